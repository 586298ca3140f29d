"""Scenarios on the exact AR(.9) model, against closed forms and against its own paths, weighted."""

import numpy as np
import pytest
import torch

from tests.forecasting.ar_windows import F64, TRUTH, H, L, Windows, ids, program
from tests.oracles import GaussianOracle
from unisci.batch import Field
from unisci.forecasting.prompts import Prompted, draw
from unisci.forecasting.scales import Scaled
from unisci.forecasting.scenarios import Above, At, Below, Highest, Lowest, Mean, Total, guide_by, known_entries, terms
from unisci.forecasting.windows import WindowShape
from unisci.guidance.observation import Jacobian
from unisci.guidance.terms import guided
from unisci.processes.gaussian import Cosine, level_for

SHAPE = WindowShape(H, L - H)
N, LOC, SCALE = 2000, 100.0, 5.0  # a unit of the model is 5 of the user's, and its 0 is 100


class Shared(Windows):
    """AR(.9) where all rows have the times of the first, in any field: one matrix for all rows."""

    def __call__(self, x, t):
        if isinstance(x, dict):
            return {"y": self(x["y"], t["y"] if isinstance(t, dict) else t)}
        t = t[:1] if t.ndim == 2 else t.reshape(-1)[:1, None]
        alpha, sigma = (v.expand(1, x.shape[1]).double() for v in level_for(Cosine(), t, x[:1]))
        cross = self.covariance * alpha
        noised = alpha[0, :, None] * cross + torch.diag(sigma[0] ** 2)
        return x @ torch.linalg.solve(noised, cross.T).to(x)


def units(n=N, channels=1, loc=LOC, scale=SCALE):
    full = lambda v: torch.full((n, channels, 1), v, dtype=F64)
    return Scaled(torch.zeros(n, channels * L), full(loc), full(scale))


def window(n=N):
    y = LOC + SCALE * torch.tensor(TRUTH, dtype=F64).expand(n, L)
    return torch.where(torch.arange(L) < H, y, 0.0), (torch.arange(L) < H).expand(n, L)


def drawn(scenarios, steps=30, inside=True, field=False, n=N):
    """Horizons (n, h) in the user's units."""
    y, known = known_entries(scenarios, SHAPE, *window(n))
    x, denoise, found = (y - LOC) / SCALE, Shared(Cosine()), terms(scenarios, SHAPE, units(n))
    if field:
        x, denoise.process, denoise.schema = {"y": x}, {"y": Cosine()}, {"y": Field("site")}
    told = Prompted(guided(denoise, *found), x, known) if inside else guided(Prompted(denoise, x, known), *found)
    path = draw(told, x, program(steps, "dpm++2m", Cosine(), kind="time"), ids(n))
    return LOC + SCALE * (path["y"] if field else path)[:, H:]


def closed(measures, numbers, tolerances):
    """Mean and covariance of the horizon given the past and measures (m, h) of it, in the user's units."""
    s = Windows().covariance
    gain = s[H:, :H] @ torch.linalg.inv(s[:H, :H])
    mean = LOC + SCALE * gain @ torch.tensor(TRUTH[:H], dtype=F64)
    c = SCALE**2 * (s[H:, H:] - gain @ s[:H, H:])
    a, y, noise = (torch.as_tensor(v, dtype=F64) for v in (measures, numbers, tolerances))
    k = c @ a.T @ torch.linalg.inv(a @ c @ a.T + torch.diag(noise**2))
    return mean + k @ (y - a @ mean), c - k @ a @ c


def agrees(x, mean, covariance, spread=0.08):
    std = covariance.diag().clamp(min=0).sqrt()
    assert ((x.mean(0) - mean).abs() < 4 * std / len(x) ** 0.5 + 0.03 * std + 1e-6).all()
    assert ((x.std(0) - std).abs() <= spread * std + 1e-6).all()


ALL = [[1.0] * 8]


@pytest.mark.parametrize(("inside", "field"), [(True, True), (False, False)])
def test_a_total_is_met_in_mean_and_covariance(inside, field):
    x = drawn([Total(820.0, 6.0)], steps=50, inside=inside, field=field)
    mean, covariance = closed(ALL, [820.0], [6.0])
    agrees(x, mean, covariance)
    one = torch.ones(8, dtype=F64)
    assert x.sum(1).mean() == pytest.approx(float(mean.sum()), abs=0.6)
    assert x.sum(1).std() == pytest.approx(float(one @ covariance @ one) ** 0.5, rel=0.1)


def test_inside_and_outside_of_the_prompt_are_the_same():
    scenarios = [Total(820.0, 6.0), At(2, 101.0), Mean(104.0, 2.0, last=3)]
    inside, outside = (drawn(scenarios, steps=6, inside=i, n=3) for i in (True, False))
    assert torch.allclose(inside, outside, rtol=0, atol=1e-9)


def test_several_statements_hold_jointly():
    """Each alone would not know of the others, and the sum of their pushes would overshoot."""
    scenarios = [Total(820.0, 6.0), Mean(104.0, 1.0, first=5), At(1, 90.0), Mean(95.0, 2.0, last=2)]
    x = drawn(scenarios, steps=30, n=1000)
    first, last = [0.0] * 5 + [1 / 3] * 3, [1 / 3] * 3 + [0.0] * 5
    at = [0.0, 1, 0, 0, 0, 0, 0, 0]
    mean, covariance = closed([*ALL, first, at, last], [820.0, 104, 90, 95], [6.0, 1, 1e-6, 2])
    assert (x[:, 1] == 90).all()
    agrees(x, mean, covariance, 0.1)


def test_extremes_are_near_their_values():
    for scenario, extreme in ((Highest(104.0, 0.5), torch.amax), (Lowest(88.0, 0.5), torch.amin)):
        found = extreme(drawn([scenario], n=1000), 1)
        free = extreme(drawn([], n=200), 1)
        assert (found.mean() - scenario.value).abs() < 0.75 < (free.mean() - scenario.value).abs()
        assert found.std() < 0.9 < free.std()


@pytest.mark.parametrize("sign", [1, -1])
def test_limits_hold_and_do_not_push_far(sign):
    """Of the free paths those that are rarely within the limit say how far below it paths should be."""
    mean, covariance = closed(torch.zeros(1, 8), [0.0], [1.0])
    noise = torch.randn(100_000, 8, dtype=F64, generator=torch.Generator().manual_seed(0))
    free = mean + noise @ torch.linalg.cholesky(covariance).T
    limit = 97.5 if sign > 0 else 96.5
    within = free[(sign * free).amax(1) < sign * limit]
    assert 0.05 < len(within) / len(free) < 0.4
    x = drawn([(Below if sign > 0 else Above)(limit, 0.25)])
    assert ((sign * x).amax(1) > sign * limit).double().mean() < 0.02
    away = (x.mean(0) - within.mean(0)).abs() / within.std(0)
    assert away.max() < 1.6 and (x.std(0) / within.std(0) - 1).abs().max() < 0.3


def test_a_limit_on_one_step_is_near_the_truncated_law():
    """The last step, whose variance given the past is near 1 in units of the model: the truncated Gaussian."""
    mean, covariance = closed(torch.zeros(1, 8), [0.0], [1.0])
    m, s, limit = float(mean[7]), float(covariance[7, 7]) ** 0.5, 95.0
    x = drawn([Below(limit, 0.05, first=7)], steps=60)[:, 7]
    z = torch.distributions.Normal(0, 1)
    cut = torch.tensor((limit - m) / s)
    expected = m - s * float(z.log_prob(cut).exp() / z.cdf(cut))
    assert x.mean() == pytest.approx(expected, abs=0.5) and (x > limit).double().mean() < 0.04


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("field", [True, False])
def test_a_limit_is_bayes_on_independent_entries_of_unit_variance(sign, field):
    """E[x_0 | x_t, h] = int x h N(x; D, r^2) dx / int h N(x; D, r^2) dx, on a fine grid; the other entries stay."""
    shape, width, limit = WindowShape(1, 2, 2), 1.5, 104.0
    scale = torch.tensor([[[5.0], [2.0]]], dtype=F64)
    window = Scaled(torch.zeros(1, 6), torch.full((1, 2, 1), 100.0, dtype=F64), scale)
    (term,) = terms([(Below if sign > 0 else Above)(limit, width, "v", 1)], shape, window, ("u", "v"))
    x, t = torch.linspace(-1.0, 2.0, 6, dtype=F64)[None], torch.tensor(0.4, dtype=F64)
    oracle = GaussianOracle(Cosine())
    clean, state = oracle(x, t), x
    if field:
        oracle, state = GaussianOracle({"y": Cosine()}, schema={"y": Field("site")}), {"y": x}
    found = guided(oracle, term)(state, t)
    found = found["y"] if field else found
    r2 = Cosine().level(t)[1] ** 2
    grid = clean[0, 5] + torch.linspace(-9.0, 9.0, 20001, dtype=F64)
    weight = torch.exp(-((grid - clean[0, 5]) ** 2) / (2 * r2))
    weight = weight * torch.special.ndtr(sign * (limit - (100 + 2 * grid)) / width)
    assert found[0, 5].item() == pytest.approx(float((weight * grid).sum() / weight.sum()), abs=1e-8)
    assert (found[0, :5] == clean[0, :5]).all() and found[0, 5] != clean[0, 5]


def test_channels_and_steps_are_theirs():
    shape, y, known = WindowShape(2, 3, 2), torch.zeros(4, 10, dtype=F64), torch.zeros(4, 10, dtype=torch.bool)
    told, where = known_entries([At(0, 5.0, "v"), At(2, 6.0, "u"), Total(1.0, 1.0, "u")], shape, y, known, ("u", "v"))
    assert where[0].nonzero()[:, 0].tolist() == [4, 7] and told[3, [4, 7]].tolist() == [6.0, 5.0]
    assert not known.any() and not y.any()
    assert known_entries([At(1, 5.0, "1")], shape, y, known)[1][0].nonzero()[:, 0].tolist() == [8]
    statements = [Total(6.0, 2.0, "v"), Mean(6.0, 0.5, "u", 1), Lowest(0.0, 1.0, "v", 0, 1), Highest(1.0, 1.0, "u")]
    loc, scale = torch.tensor([[[10.0], [20.0]]], dtype=F64), torch.tensor([[[2.0], [3.0]]], dtype=F64)
    sums, extremes = terms(statements, shape, Scaled(y, loc, scale), ("u", "v"))
    assert sums.covariance == Jacobian() and not extremes.covariance.needs_graph
    x = torch.arange(10, dtype=torch.float32)[None]
    u, v = (10 + 2 * np.arange(5))[2:], (20 + 3 * np.arange(5, 10))[2:]
    expected = [v.sum() / 2, u[1:].mean() / 0.5, v[:2].min(), u.max()]
    asked = lambda x: [*sums.operator(x)[0].tolist(), *extremes.operator(x)[0].tolist()]
    assert asked({"y": x}) == asked(x) == pytest.approx(expected)
    assert [*sums.y.tolist(), *extremes.y.tolist()] == [3, 12, 0, 1]


def test_the_steps_that_are_asked_for_end_the_horizon():
    shape = WindowShape(2, 6)
    (term,) = terms([Total(1.0, 1.0)], shape, units(1, loc=0.0, scale=1.0), steps=4)
    assert term.operator(torch.ones(1, 8))[0].tolist() == [4]
    with pytest.raises(ValueError, match="steps are 0 to 3"):
        terms([Total(1.0, 1.0, last=4)], shape, units(1), steps=4)


def test_a_guide_is_the_terms():
    denoise = Shared(Cosine())
    found = guide_by([Total(800.0, 1.0), Below(99.0, 1.0)], SHAPE)(denoise, units())
    assert found.denoise is denoise and len(found.terms) == 2
    assert guide_by([At(0, 1.0)], SHAPE)(denoise, units()) is denoise


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Total(1.0, 0.0), "Total needs a tolerance > 0, in units of the series, got 0.0"),
        (lambda: Below(1.0, float("nan")), "Below needs a tolerance"),
        (lambda: Highest(float("inf"), 1.0), "Highest needs a finite value, got inf"),
        (lambda: At(0, float("nan")), "At needs a finite value"),
        (lambda: known_entries([At(8, 1.0)], SHAPE, *window(1)), "steps 8 to 8 are not in the horizon.*0 to 7"),
        (lambda: known_entries([At(-1, 1.0)], SHAPE, *window(1)), "not in the horizon"),
        (lambda: known_entries([At(0, 1.0), At(0, 2.0)], SHAPE, *window(1)), "already"),
        (lambda: known_entries([At(0, 1.0, "w")], SHAPE, *window(1), ("u",)), r"no channel is named 'w'.*\['u'\]"),
        (lambda: terms([Mean(1.0, 1.0)], WindowShape(2, 3, 2), units(1, 2), ("u", "v")), r"name the channel.*'u', 'v'"),
        (lambda: terms([Mean(1.0, 1.0, first=3, last=2)], SHAPE, units(1)), "steps 3 to 2"),
        (lambda: terms([Above(1.0, 1.0, last=8)], SHAPE, units(1)), "steps 0 to 8"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
