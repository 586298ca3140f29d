"""Every scheme has its order on exact denoisers, and every SDE scheme keeps the variance (S35, S44)."""

import math

import pytest
import torch
from torch import Tensor

from tests.oracles import GaussianOracle, Given, normal, three_modes
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP, lam, level_for
from unisci.rng import Rng
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
SDE = ("euler_maruyama", "reverse_diffusion", "ancestral", "edm-heun", "sde-dpm++2m", "sde-2m", "sde-dpm++3m")
ODE = tuple(name for name in SCHEMES if name not in SDE)
KINDER = tuple(name for name in ODE if SCHEMES[name].order == 3 or name in ("4m", "dpm4m"))
LATE = ("4m", "dpm4m", "sa-solver", "unipc3", "unipc4", "unipc4-noise")
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def slope(errors: dict[int, float]) -> float:
    """Minus the slope of log error over log steps, by least squares."""
    x = torch.tensor([math.log(n) for n in errors], dtype=F64)
    y = torch.tensor([math.log(e) for e in errors.values()], dtype=F64)
    return -((x - x.mean()) * (y - y.mean())).sum().item() / (x - x.mean()).square().sum().item()


@pytest.fixture(scope="module")
def endpoints():
    """Start points, and where the flow takes them from t = 1 and from t = .4 to t = 1e-3."""
    process, denoise, x = VP(), three_modes(VP()), normal(64, 2)
    fine = {start: grid(process, 1000, start=start, end=1e-3) for start in (1.0, 0.4)}
    return x, {start: run(denoise, x, compile_solver(process, times, "unipc3")) for start, times in fine.items()}


@pytest.mark.parametrize("name", ODE)
def test_order_on_a_mixture(name, endpoints):
    """Median endpoint error over 64 points, steps uniform in lam (S35, check 1).

    Multistep schemes start by lower orders. From t = 1, where D hardly moves at first, that costs nothing, and the
    highest do better than their order in the limit; they show that from t = .4.
    """
    process, denoise, start = VP(), three_modes(VP()), 0.4 if name in LATE else 1.0
    x, exact = endpoints
    errors = {}
    for n in (160, 320, 640) if name == "3m" else (40, 80, 160, 320):
        program = compile_solver(process, grid(process, n, start=start, end=1e-3), name)
        errors[n] = (run(denoise, x, program) - exact[start]).norm(dim=1).median().item()
    assert slope(errors) == pytest.approx(SCHEMES[name].order, abs=0.2)
    assert errors[320] < {1: 8e-3, 2: 1e-4, 3: 3e-6}[SCHEMES[name].order]


@pytest.mark.parametrize("name", ODE)
def test_single_precision(name, endpoints):
    """The floor of float32, below which more steps do not help: a median of 3e-6 on this mixture."""
    process, denoise = VP(), three_modes(VP(), torch.float32)
    x, exact = endpoints
    program = compile_solver(process, grid(process, 160, end=1e-3), name)
    wide = run(three_modes(VP()), x, program)
    assert (run(denoise, x.float(), program) - wide).norm(dim=1).median() < 3e-6
    assert (wide - exact[1.0]).norm(dim=1).median() > 1e-7  # the steps' own error, for scale


def test_published_third_order_is_second(endpoints):
    """The factor 2 of every published 3M: damped by .5, D'' leaves order 2, and less error at 20 steps (S35, 3)."""
    process, denoise, (x, exact) = VP(), three_modes(VP()), endpoints
    ends = {
        (name, n): run(denoise, x, compile_solver(process, grid(process, n, end=1e-3), name))
        for name in ("3m", "3m(damping=.5)")
        for n in (20, 320)
    }
    errors = {k: (v - exact[1.0]).norm(dim=1).median().item() for k, v in ends.items()}
    assert errors["3m(damping=.5)", 20] < errors["3m", 20] / 1.5
    assert errors["3m", 320] < errors["3m(damping=.5)", 320] / 4


def coarser(noises: Tensor, ratios: list[float]) -> Tensor:
    """The noises of steps twice as long on the same Brownian path: noise 2k weighs ratios[k] against noise 2k + 1."""
    r = torch.tensor(ratios, dtype=F64).reshape(-1, *(1,) * (noises.ndim - 1))
    return (r * noises[0::2] + noises[1::2]) / (1 + r**2).sqrt()


@pytest.mark.parametrize("name", SDE)
def test_strong_order_on_a_mixture(name):
    """The same Brownian path cut into 20 to 160 steps against 1280: each SDE scheme has strong order 1."""
    process, denoise, x, n = VP(), three_modes(VP()), normal(128, 2), 1280
    euler = name == "euler_maruyama"
    noises, ends = normal(n, 128, 2, seed=1), {}
    while n >= 20:
        times = grid(process, n, "time", end=1e-2) if euler else grid(process, n, end=1e-3)
        ends[n] = run(denoise, x, compile_solver(process, times, name), Given(noises))
        h = lam(process, times).diff().tolist()
        # An exponential integrator damps the first noise by e^-h and lets in sqrt(1 - e^-2h) of each.
        pairs = list(zip(h[::2], h[1::2], strict=True))
        decay = [math.exp(-b) * math.sqrt(math.expm1(-2 * a) / math.expm1(-2 * b)) for a, b in pairs]
        noises = coarser(noises, [1.0] * (n // 2) if euler else decay)
        n //= 2
    errors = {n: (ends[n] - ends[1280]).norm(dim=1).median().item() for n in (20, 40, 80, 160)}
    assert slope(errors) == pytest.approx(SCHEMES[name].order, abs=0.25)


@each_process
@pytest.mark.parametrize("name", ODE)
def test_gaussian_flow(process, name):
    """Against the exact flow of a Gaussian, in every process (S35, check 2). It is kinder than it must be to KINDER."""
    denoise = GaussianOracle(process, 0.3, 0.5)
    errors = {}
    for n in (50, 100, 200):
        times = grid(process, n, start=0.99, end=1e-3)
        x = level_for(process, times[0], torch.ones(1, dtype=F64))[1] * normal(16, 1)
        exact = denoise.flow(x, times[0], times[-1])
        errors[n] = (run(denoise, x, compile_solver(process, times, name)) - exact).abs().max().item()
    order = SCHEMES[name].order
    assert slope(errors) == pytest.approx(order, abs=0.2) or (slope(errors) > order and name in KINDER)


def variance(process, name: str, times: Tensor, std: float = 0.5) -> float:
    """The variance at the end over the exact one, for Gaussian data of mean 0, without sampling error: the solver is
    linear, so row 0 carries the start, row k + 1 the noise of step k, and the variances add."""
    denoise, n = GaussianOracle(process, 0.0, std), len(times) - 1
    alpha, sigma = process.level(times)
    exact = alpha**2 * std**2 + sigma**2
    x, unit = torch.zeros(n + 1, 1, dtype=F64), torch.eye(n + 1, dtype=F64)[1:, :, None]
    x[0] = exact[0].sqrt()
    end = run(denoise, x, compile_solver(process, times, name), Given(unit))
    return (end.square().sum() / exact[-1]).item()


@each_process
@pytest.mark.parametrize("name", SDE)
def test_sde_keeps_the_variance(process, name):
    """Within 3 % in 500 steps, converging at order 1, and at 2 where the drift is of order 2."""
    kind = "time" if name == "euler_maruyama" else "lambda"
    errors = {n: abs(variance(process, name, grid(process, n, kind, end=1e-3)) - 1) for n in (125, 250, 500)}
    assert errors[500] < 0.03
    assert slope(errors) > (1.85 if name == "sde-dpm++2m" else 0.85)
    if name == "sde-dpm++2m":
        assert errors[125] < 0.03


@pytest.mark.parametrize("name", SDE)
def test_sde_keeps_the_variance_by_sampling(name):
    """20000 draws by Rng from the prior down to t = 0, where the last step is D: mean and variance of the data."""
    process, n = VP(), 20000
    denoise, rng = GaussianOracle(process, 0.3, 0.5), Rng(2, torch.arange(n))
    x = process.prior(torch.zeros(n, 1), rng)
    times = grid(process, 300, "time" if name == "euler_maruyama" else "lambda")
    out = run(denoise, x, compile_solver(process, times, name), rng)
    assert out.mean().item() == pytest.approx(0.3, abs=4 * 0.5 / math.sqrt(n) + 0.01)
    assert out.var().item() == pytest.approx(0.25, rel=0.06)
