"""The step that models share: that of the known solvers for one model, linear in the weights for several."""

import pytest
import torch

from tests.oracles import GaussianOracle, MixtureOracle, normal, three_modes
from unisci.batch import Field
from unisci.guidance.joint_step import joint_step
from unisci.guidance.mixture import Mixture, equal
from unisci.processes.gaussian import EDM, VE, VP, Linear, SubVP
from unisci.rng import Rng
from unisci.solvers.divergence import exact
from unisci.solvers.program import compile_solver

F64 = torch.float64
T, S = torch.tensor(0.6, dtype=F64), torch.tensor(0.5, dtype=F64)
RNG = Rng(0, torch.arange(20))


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Linear()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_one_model_takes_the_known_steps(process, name):
    denoise, x = three_modes(process), process.level(T)[1] * normal(20, 2)
    vectors = exact if name == "ddim" else None
    step = joint_step(Mixture((denoise,)), x, T, S, RNG, vectors=vectors)
    want, _ = compile_solver(process, torch.stack([T, S]), name).step(denoise, x, T, S, None, RNG)
    torch.testing.assert_close(step.end(equal(x, T, step.cleans)), want, rtol=1e-9, atol=1e-9)


def models():
    one = torch.ones(1, dtype=F64)
    law = lambda mean, std: MixtureOracle(VP(), torch.tensor([mean], dtype=F64), one * std, one)
    return law((1.5, 0.0), 0.5), law((-1.5, 0.5), 0.7), three_modes(VP())


@pytest.mark.parametrize("vectors", [None, exact])
def test_gram_and_shifts_say_how_the_gains_move(vectors):
    """The gains are linear in kappa, with `gram` as the slopes of their differences."""
    x = normal(20, 2)
    step = joint_step(Mixture(models()), x, T, S, RNG, vectors=vectors)
    even, delta = equal(x, T, step.cleans), normal(20, 2, seed=3)
    moved = even + torch.cat([-delta.sum(1, keepdim=True), delta], 1)
    shift = sum(d[:, None] * v for d, v in zip(delta.unbind(1), step.shifts, strict=True))
    torch.testing.assert_close(step.end(moved), step.end(even) + shift)
    gap = lambda kappa: (g := step.gains(step.end(kappa)))[:, 1:] - g[:, :1]
    torch.testing.assert_close(gap(moved), gap(even) + (step.gram() @ delta[..., None])[..., 0])
    torch.testing.assert_close(step.gram(), step.gram().mT)
    assert bool((torch.linalg.eigvalsh(step.gram()) > 0).all())


def test_second_order_is_the_trace_on_the_span():
    """In the plane the shifts of three models span all, and the trace is the Laplacian's."""
    x = normal(20, 2)
    step = joint_step(Mixture(models()), x, T, S, RNG, inner=True)
    got = step.second_order(torch.linalg.inv(step.gram()))
    flow = joint_step(Mixture(models()), x, T, S, None, vectors=exact)  # h div s of each model, h in both frames alike
    torch.testing.assert_close(got, -flow.laplacians, rtol=0.2, atol=1e-3)
    near = T - 1e-4
    step = joint_step(Mixture(models()), x, T, near, RNG, inner=True)
    flow = joint_step(Mixture(models()), x, T, near, None, vectors=exact)
    torch.testing.assert_close(step.second_order(torch.linalg.inv(step.gram())), -flow.laplacians, rtol=1e-3, atol=1e-7)


def test_clean_entries_stay():
    """A time for each entry: where it is 0 nothing moves, and nothing is nan."""
    x, t = normal(20, 2), torch.tensor([[0.0, 0.6]], dtype=F64).expand(20, 2)
    pair = Mixture((GaussianOracle(VP(), 1.0, 0.5), GaussianOracle(VP(), -1.0, 0.7)))
    step = joint_step(pair, x, t, t * 0.8, RNG, inner=True)
    end = step.end(torch.tensor([[3.0, -2.0]], dtype=F64).expand(20, 2))
    assert torch.equal(end[:, 0], x[:, 0]) and bool((end[:, 1] != x[:, 1]).all())
    assert bool(step.gains(end).isfinite().all()) and bool((step.gram() > 0).all())


def test_padding_has_no_part_in_the_trace():
    """Not even where a model lets its output depend on it."""

    class Leaky(GaussianOracle):
        def __call__(self, x, t):
            hidden = (x["position"] - x["position"].detach()).flip(1)  # 0, of slope 1
            return {"position": super().__call__(x, t)["position"] + 5 * hidden}

    x, mask = {"position": normal(20, 2, 3)}, torch.tensor([True, False]).expand(20, 2)
    orders = []
    for kind in (GaussianOracle, Leaky):
        laws = [kind({"position": VP()}, m, s, {"position": Field("site", (3,))}) for m, s in ((1.0, 0.5), (-1.0, 0.7))]
        step = joint_step(Mixture(tuple(laws)), x, T, S, RNG, mask, inner=True)
        orders.append(step.second_order(torch.linalg.inv(step.gram())))
    torch.testing.assert_close(*orders)


def test_a_hidden_derivative_is_refused():
    class Hidden(GaussianOracle):
        def __call__(self, x, t):
            return super().__call__(x, t).detach()

    pair = Mixture((GaussianOracle(VP()), Hidden(VP())))
    with pytest.raises(ValueError, match="model 1 is to be differentiated"):
        joint_step(pair, normal(20, 2), T, S, RNG, inner=True)
    joint_step(pair, normal(20, 2), T, S, RNG)
