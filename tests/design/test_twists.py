import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.design.by_hand import Carbons, finished, size
from unisci.design.atoms import Contains
from unisci.design.targets import Above, Below, Between, Maximize
from unisci.design.twists import MISSED, Twist, _scores, log_probability, log_weights
from unisci.design.wants import wants
from unisci.domains.molecule import Molecule


def double(x: float) -> Tensor:
    return torch.tensor([x], dtype=torch.float64)


@pytest.mark.parametrize("low, high", [(-1, 1), (0.5, 0.7), (-math.inf, 0.3), (2, math.inf), (-3, 4), (-2.5, -2)])
@pytest.mark.parametrize("mean, std", [(0, 1), (1.3, 0.4), (-0.7, 2.5), (3, 5)])
def test_log_probability_is_that_of_the_error_function(low, high, mean, std):
    cdf = lambda v: (1 + math.erf((v - mean) / std / math.sqrt(2))) / 2
    expected = cdf(high) - cdf(low)
    if expected < 1e-6:
        pytest.skip("the difference of two error functions has lost its digits")
    found = log_probability(double(mean), double(std), low, high)
    assert float(found) == pytest.approx(math.log(expected), rel=1e-8, abs=1e-9)


@pytest.mark.parametrize("distance", [5.0, 8.0, 20.0, 37.0])
@pytest.mark.parametrize("width", [0.1, 2.0, math.inf])
def test_log_probability_is_right_in_both_tails(distance, width):
    """By quadrature of the density, relative to its largest value: the ends lie `distance` deviations away."""
    y = torch.linspace(0, min(width, 12.0), 400_001, dtype=torch.float64)
    density = torch.exp(-distance * y - y**2 / 2)
    expected = -(distance**2) / 2 - math.log(2 * math.pi) / 2 + math.log(float(torch.trapezoid(density, y)))
    mean, std = double(1.0), double(0.5)
    above = log_probability(mean, std, 1 + 0.5 * distance, 1 + 0.5 * (distance + width))
    below = log_probability(mean, std, 1 - 0.5 * (distance + width), 1 - 0.5 * distance)
    assert float(above) == pytest.approx(expected, rel=1e-7) and float(below) == pytest.approx(expected, rel=1e-7)


def test_the_gradient_is_that_of_the_error_function():
    mean, std = double(0.4).requires_grad_(), double(1.7).requires_grad_()
    normal = torch.distributions.Normal(mean, std)
    for low, high in ((-1.0, 0.2), (0.1, 3.0), (-5.0, 1.0)):
        exact = (normal.cdf(torch.tensor(high)) - normal.cdf(torch.tensor(low))).log()
        found = log_probability(mean, std, low, high)
        for a, b in zip(torch.autograd.grad(exact, (mean, std)), torch.autograd.grad(found, (mean, std)), strict=True):
            assert float(b) == pytest.approx(float(a), rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("low, high", [(-math.inf, 0), (0, math.inf), (0, 1), (0, 0), (0, 1e-9), (-1e6, 1e6)])
def test_far_from_the_interval_value_and_gradient_are_finite_and_point_to_it(low, high, dtype):
    mean = torch.tensor([-400.0, -40.0, -8.0, 8.0, 40.0, 400.0], dtype=dtype, requires_grad=True)
    std = torch.full_like(mean, 0.9).detach().requires_grad_()
    value = log_probability(mean, std, low, high)
    by_mean, by_std = torch.autograd.grad(value.sum(), (mean, std))
    assert value.isfinite().all() and by_mean.isfinite().all() and by_std.isfinite().all() and (value <= 1e-6).all()
    misses = (mean < low) | (mean > high)
    towards = torch.where(mean < low, 1.0, -1.0)
    assert (by_mean * towards)[misses].gt(1).all() and (by_std[misses] > 0).all()


def test_an_end_that_is_not_there_has_no_gradient():
    mean, std = torch.tensor([5.0], requires_grad=True), torch.tensor([1.0])
    for low, high in ((-math.inf, math.inf), (-math.inf, 60.0), (-60.0, math.inf), (-1e9, 1e9)):
        value = log_probability(mean, std, low, high)
        assert (
            float(value.detach()) == pytest.approx(0, abs=1e-6)
            and abs(float(torch.autograd.grad(value.sum(), mean)[0])) < 1e-6
        )


def test_hopelessly_far_values_give_finite_weights_and_no_push():
    mean = torch.tensor([-1e9, 0.0, 1e9], requires_grad=True)
    value = log_probability(mean, torch.ones(3), 1e12, math.inf)
    assert value.isfinite().all() and (value < -1e5).all()
    assert torch.autograd.grad(value.sum(), mean)[0].tolist() == [0, 0, 0]


def weights(where, molecules, unit: float = 1.0) -> list[float]:
    return log_weights(wants(where), molecules, lambda want: unit).tolist()


def test_log_weights_of_finished_molecules():
    molecules = [Molecule.from_smiles(s) for s in ("CO", "CCO", "CC", "CCCC")]
    molecules.append(Molecule.from_text("C O", ""))
    expected = [0.5, MISSED - 1 + 0.75, MISSED - 1 + 0.5, 2 * MISSED - 2 - 1 + 1, -math.inf]
    assert weights(Below(size, 2) & Contains("O") & Maximize(size, 4.0), molecules) == pytest.approx(expected)
    assert weights(Below(size, 1), molecules[:2], 2.0) == pytest.approx([MISSED - 1 / 2, MISSED - 2 / 2])
    unsure = Above(lambda m: [math.nan if len(a.atoms) == 2 else 1.0 for a in m], 1)
    assert weights(unsure, molecules[:2]) == [-math.inf, 0]  # what cannot be told is not met
    assert weights(Below(lambda m: [1e9] * len(m), 0), molecules[:1]) == [MISSED - 1e9]
    for value in (math.inf, -math.inf):
        assert weights(Maximize(lambda m, v=value: [v] * len(m), 1), molecules[:1]) == [-math.inf]


@pytest.mark.parametrize("level", [-1e5, 0.0, 1e5])
def test_what_is_maximized_is_weighed_by_its_value_however_large(level):
    """exp(value / T) and nothing else: no value is cut, and an invalid molecule never wins."""
    molecules = [Molecule.from_smiles(s) for s in ("C", "CC", "CCCC")] + [Molecule.from_text("C O", "")]
    found = weights(Maximize(lambda ms: [level + len(m.atoms) for m in ms], 0.1), molecules)
    assert np.diff(found[:3]) == pytest.approx([10, 20]) and found[3] == -math.inf


def test_beginnings_are_scored_within_their_group_and_those_without_a_value_are_no_better_than_most():
    nan = math.nan
    two = _scores(np.array([-3.0, nan, -5.0, -4.0, nan, nan, nan, nan]), 4)
    spread = np.std([-3, -4, -5, -4])
    assert two[:4].tolist() == pytest.approx([0, -0.5, -1 / spread, -0.5 / spread]) and (two[4:] == -0.5).all()
    assert _scores(np.array([7.0, 7.0, 7.0]), 3).tolist() == [0, 0, 0]
    infinite = _scores(np.array([1.0, 2.0, -math.inf]), 3)  # as a function says that it cannot tell
    assert np.isfinite(infinite).all() and infinite[1] == 0 and infinite[2] == -0.5
    shifted = _scores(np.array([-103.0, nan, -105.0, -104.0]), 4)
    assert shifted.tolist() == pytest.approx(two[:4].tolist())


def test_the_twist_is_the_sum_of_its_wants_log_probabilities():
    model = Carbons()
    batch, order = finished(["CCO", "CC", "O"], 1)
    known = (Between("logp", 1.5, 3), Maximize("logp", 2.0))
    twist = Twist(model, batch.mask, batch.given, order, known)(batch.state, None)
    normal = torch.distributions.Normal(torch.tensor([2.0, 2.0, 0.0]), 1.0)
    inside = (normal.cdf(torch.tensor(3.0)) - normal.cdf(torch.tensor(1.5))).log()
    draws = normal.sample((200_000,)).double()
    torch.testing.assert_close(twist, inside + torch.tensor([2.0, 2.0, 0.0]) / 2 + 0.125)
    weighed = (draws / 2).exp().mean(0).log()  # log E[exp(v / T)], by simulation
    torch.testing.assert_close((twist - inside).double(), weighed, atol=0.01, rtol=0)
