"""Bridges between mixtures whose fields are known: every level of noise, both ways, ends in the right law (S11)."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import GaussianOracle, three_modes
from tests.processes.test_interpolant import BRIDGE, DATA, START, MixtureBridge
from tests.solvers.test_orders import normal
from unisci.batch import Field
from unisci.processes.gaussian import EDM, VP, Cosine, Linear, drift_diffusion, lam, level_for, to_score
from unisci.processes.interpolant import (
    ENCODING_DECODING,
    MIRROR,
    QUADRATIC,
    Interpolant,
    OneSided,
    brownian,
    path_of,
    trig,
)
from unisci.rng import Rng
from unisci.solvers.bridge import Fields, bridge, constant, fields_of_b, fields_of_denoiser, fields_of_v
from unisci.solvers.integrate import euler_maruyama, integrate, rk4

F64 = torch.float64
CLIP = 1e-4  # where a constant eps is cut off; gamma is .014 there, against a component's deviation of .22


def fields(law: MixtureBridge) -> Fields:
    return Fields(lambda x, t: ((f := law.parts(x, t))["b"], f["eta"]), law.interpolant.gamma.level)


def quantiles(law: tuple[Tensor, ...], n: int) -> Tensor:
    """The quantiles (k + 1/2) / n of a mixture on the line, (n,)."""
    x = torch.linspace(-5, 6, 200_001, dtype=F64)
    cdf = (law[2] * torch.special.ndtr((x[:, None] - law[0]) / law[1].sqrt())).sum(1)
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    k = torch.searchsorted(cdf, u).clamp(1, len(x) - 1)
    return torch.lerp(x[k - 1], x[k], (u - cdf[k - 1]) / (cdf[k] - cdf[k - 1]))


def w1(x: Tensor, law: tuple[Tensor, ...]) -> float:
    """The Wasserstein-1 distance of the points x (n,) from a mixture."""
    return (x.sort().values - quantiles(law, len(x))).abs().mean().item()


def travel(law, rate, steps, n, ends, start, seed=0) -> Tensor:
    rng = Rng(seed, torch.arange(n))
    shuffled = quantiles(start, n)[torch.randperm(n, generator=torch.Generator().manual_seed(seed))]
    return bridge(fields(law), shuffled, torch.linspace(*ends, steps + 1, dtype=F64), rng, rate)


RATES = {"0": 0.0, "1/2": constant(0.5, brownian(2.0).level), "2": constant(2.0, brownian(2.0).level), "gamma": 1.0}


@pytest.mark.parametrize(
    ("rate", "falling"), [("0", True), ("1/2", True), ("2", True), ("gamma", True), ("0", False), ("2", False)]
)
def test_every_level_of_noise_keeps_the_law(rate, falling):
    """W1 below .02 for eps = 0, 1/2, 2 and gamma, and both ways (S11, checks 1 and 5). 10000 points that start at
    quantiles: as many independent draws are .012 off on average, and 150 steps are off by less; the ODE, which draws
    nothing, is .0005 off."""
    ends = (1 - CLIP, CLIP) if falling else (CLIP, 1 - CLIP)
    start, end = (START, DATA) if falling else (DATA, START)
    x = travel(BRIDGE, RATES[rate], 75 if rate == "0" else 150, 10_000, ends, start)
    assert w1(x, end) < (0.002 if rate == "0" else 0.02)


BRIDGES = {
    "trig, quadratic": Interpolant(trig(QUADRATIC), QUADRATIC),
    "encoding-decoding": Interpolant(ENCODING_DECODING, brownian()),
}


@pytest.mark.parametrize("interpolant", BRIDGES.values(), ids=BRIDGES)
def test_other_paths_from_end_to_end(interpolant):
    """At the ends themselves, t = 1 to t = 0, where eps = gamma is 0, b is finite and nothing is divided."""
    law = MixtureBridge(interpolant, DATA, START)
    x = travel(law, 1.0, 200, 10_000, (1.0, 0.0), START)
    assert w1(x, DATA) < 0.02


def test_mirror_returns_to_the_data():
    """x_1 = x_0, each x its own start: x_t = x_0 + gamma z has the law of the data at both ends."""
    law = MixtureBridge(Interpolant(MIRROR, brownian()), DATA, DATA)
    assert w1(travel(law, 1.0, 150, 10_000, (1.0, 0.0), DATA), DATA) < 0.02


def test_the_step_is_a_choice():
    """One step of Euler-Maruyama, written out."""
    view, x, rng, times = fields(BRIDGE), quantiles(START, 16), Rng(3, torch.arange(16)), torch.tensor([0.8, 0.7])
    t, h = times.to(F64)[0], 0.1
    exact, gamma, xi = BRIDGE.parts(x, t), BRIDGE.interpolant.gamma.level(t), rng.at(0).normal("x", 0, (16,), 0)
    literal = x - h * (exact["b"] + 1.5 * exact["eta"]) + (2 * 1.5 * gamma * h).sqrt() * xi
    ours = bridge(view, x, times, rng, 1.5, euler_maruyama)
    torch.testing.assert_close(ours, literal, rtol=0, atol=1e-6)


def test_the_ode_returns_to_its_start():
    """500 steps of Heun there and back: 4e-6 in the tail, 2e-7 in the middle of 200 points (S11, check 5)."""
    x, times = quantiles(START, 200), torch.linspace(1 - 1e-3, 1e-3, 501, dtype=F64)
    there = bridge(fields(BRIDGE), x, times, rate=0.0)
    back = bridge(fields(BRIDGE), there, times.flip(0), rate=0.0)
    assert (there - x).abs().max() > 0.5
    assert (back - x).abs().median() < 1e-6 and (back - x).abs().max() < 1e-5
    precise = integrate(fields(BRIDGE).velocity, x, times[::5], rk4)
    assert (there - precise).abs().max() < 1e-3


def test_views_of_the_fields():
    """From (b, eta) or (v, eta): score, and drifts with eps = rate gamma either way."""
    f, t, x = BRIDGE.parts, torch.tensor(0.3, dtype=F64), torch.linspace(-3, 3, 13, dtype=F64)
    exact, gamma = f(x, t), BRIDGE.interpolant.gamma
    of_b = fields_of_b(BRIDGE.field("b"), BRIDGE.field("eta"), gamma)
    of_v = fields_of_v(BRIDGE.field("v"), BRIDGE.field("eta"), gamma)
    for view in (of_b, of_v):
        torch.testing.assert_close(view.velocity(x, t), exact["b"])
        torch.testing.assert_close(view.score(x, t), exact["s"])
        rate = constant(0.7, gamma.level)
        torch.testing.assert_close(view.forward(rate, x, t), exact["b"] + 0.7 * exact["s"])
        torch.testing.assert_close(view.backward(rate, x, t), exact["b"] - 0.7 * exact["s"])


@pytest.mark.parametrize("process", [VP(), EDM(), Cosine(), Linear()], ids=lambda p: type(p).__name__)
def test_one_sided_fields_are_those_of_the_diffusion(process):
    """b is the probability-flow ODE, b + g^2 / 2 s the forward SDE, b - g^2 / 2 s the reverse one (S11, check 6)."""
    oracle, x = three_modes(process), normal(20, 2)
    view = fields_of_denoiser(oracle, path_of(process))
    for t in torch.tensor([0.05, 0.4, 0.9], dtype=F64):
        f, g2 = drift_diffusion(process, t)
        score = to_score(oracle(x, t), x, *level_for(process, t, x))
        scale = 1 + (f * x).abs() + (g2 * score).abs()
        rate = lambda u: drift_diffusion(process, u)[1] / 2 / process.level(u)[1]
        assert ((view.score(x, t) - score) / (1 + score.abs())).abs().max() < 1e-10
        assert ((view.velocity(x, t) - (f * x - g2 / 2 * score)) / scale).abs().max() < 1e-10
        assert ((view.forward(rate, x, t) - f * x) / scale).abs().max() < 1e-10
        assert ((view.backward(rate, x, t) - (f * x - g2 * score)) / scale).abs().max() < 1e-10


def test_trig_is_vp_under_a_change_of_time():
    """Velocities of the one-sided trig path and of VP's probability-flow ODE, at equal lam, differ by dt / dtau alone,
    to 1e-10 (S11, check 6)."""
    vp, path, x = VP(), trig(), normal(20, 2)
    view = fields_of_denoiser(three_modes(OneSided(path)), path)
    for tau in torch.tensor([0.1, 0.4, 0.8], dtype=F64):
        t = OneSided(path).time(lam(vp, tau))
        f, g2 = drift_diffusion(vp, tau)
        alpha, sigma = vp.level(tau)
        speed = -f * alpha / sigma * 2 / math.pi  # alpha(tau) = cos(pi t / 2)
        flow = f * x - g2 / 2 * to_score(three_modes(vp)(x, tau), x, alpha, sigma)
        assert (view.velocity(x, t) * speed - flow).abs().max() < 1e-10 * (1 + flow.abs().max())


def test_a_denoiser_is_sampled_at_any_level_of_noise():
    """A VP denoiser as a bridge from noise: mean .3 and deviation .5, whether by the ODE or by noise."""
    n, process = 10_000, VP()
    rng, times = Rng(7, torch.arange(n)), torch.linspace(1, 0.05**0.5, 81, dtype=F64) ** 2
    view = fields_of_denoiser(GaussianOracle(process, 0.3, 0.5), path_of(process))
    alpha, sigma = (v.item() for v in process.level(times[-1]))
    deviation = math.sqrt(alpha**2 * 0.25 + sigma**2)
    x = process.prior(torch.zeros(n, 1, dtype=F64), rng)
    for rate in (0.0, 3.0, lambda u: drift_diffusion(process, u)[1] / 2 / process.level(u)[1]):
        out = bridge(view, x, times, rng, rate)
        assert out.mean().item() == pytest.approx(0.3 * alpha, abs=4 * deviation / math.sqrt(n))
        assert out.std().item() == pytest.approx(deviation, rel=4 / math.sqrt(2 * n) + 0.005)


def test_samples_do_not_depend_on_their_batch_and_dicts_move_as_tensors():
    x, times, keep = quantiles(START, 8).float(), torch.linspace(1, 0, 9), torch.tensor([5, 2])
    rng, view = (
        Rng(2, torch.arange(8)),
        fields_of_b(lambda x, t: torch.sin(x) * t, lambda x, t: torch.cos(x), QUADRATIC),
    )
    whole = bridge(view, x, times, rng)
    assert torch.equal(whole[keep], bridge(view, x[keep], times, rng[keep]))
    assert not torch.equal(whole, bridge(view, x, times, rng.at(1)))
    each = lambda f: lambda x, t: {k: f(v, t) for k, v in x.items()}
    named = Fields(
        lambda x, t: (each(lambda v, t: torch.sin(v) * t)(x, t), each(lambda v, t: torch.cos(v))(x, t)), QUADRATIC.level
    )
    out = bridge(named, {"x": x, "y": x}, times, rng, schema={"x": Field("whole"), "y": Field("whole")})
    assert torch.equal(out["x"], whole) and not torch.equal(out["y"], whole)


def test_nothing_waits_for_the_device():
    """Tensors without values pass: no step reads one."""
    x, rng = torch.zeros(4, 2, device="meta"), Rng(0, torch.arange(4, device="meta"))
    view = fields_of_v(lambda x, t: x * t, lambda x, t: x, brownian())
    for rate in (0.0, 1.0, constant(1.0, brownian().level)):
        assert bridge(view, x, torch.linspace(0.9, 0.1, 4), rng, rate).device.type == "meta"


def test_bad_levels_of_noise_are_refused():
    view, x = fields(BRIDGE), quantiles(START, 4)
    rng, times = Rng(0, torch.arange(4)), torch.tensor([1.0, 0.5, 0.0])
    with pytest.raises(ValueError, match=r"finite and >= 0.*t = \[1.0, 0.0\]"):
        bridge(view, x, times, rng, constant(1.0, BRIDGE.interpolant.gamma.level))
    with pytest.raises(ValueError, match=r"finite and >= 0.*t = \[0.5\]"):
        bridge(view, x, times, rng, -1.0)
    with pytest.raises(ValueError, match="pass rng"):
        bridge(view, x, times)
