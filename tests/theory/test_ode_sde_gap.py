"""The distance between the law of the ODE and that of the SDE, against its closed form (S40, check 3)."""

import math

import pytest
import torch

from tests.oracles import GaussianOracle, three_modes
from tests.theory.test_fokker_planck import OU
from unisci.processes.gaussian import EDM, VP, level_for
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.theory.ode_sde_gap import Gap, ode_sde_gap, wasserstein

F64 = torch.float64
N = 20000
RNG = Rng(0, torch.arange(N))


class Off(GaussianOracle):
    """A denoiser whose score is 1 + c times the true one, for data of mean 0."""

    def __init__(self, process, std, c):
        super().__init__(process, 0.0, std)
        self.c = c

    def __call__(self, x, t):
        alpha, sigma = level_for(self.process, t, x)
        score = -(1 + self.c) * x / (alpha**2 * self.std**2 + sigma**2)
        return (x + sigma**2 * score) / alpha


@pytest.mark.parametrize(
    "c, by_ode, by_sde, gap", [(0.0, 0.2002, 0.2004, 0.0), (0.1, 0.1, 0.1667, 0.092), (0.3, 0.025, 0.1258, 0.196)]
)
def test_a_score_that_is_too_large(c, by_ode, by_sde, gap):
    """A tenth too large, the score halves the variance of the ODE and costs the SDE a sixth."""
    start = math.sqrt(0.5) * RNG.at(9).normal("x", 0, (N, 1), 0).double()
    got = ode_sde_gap(Off(OU(), math.sqrt(0.2), c), start, grid(OU(), 400, end=1e-4), RNG)
    assert got.ode_std**2 == pytest.approx(by_ode, rel=0.03) and got.sde_std**2 == pytest.approx(by_sde, rel=0.03)
    assert got.gap == pytest.approx(gap, abs=0.01)
    assert got.resolved == (c > 0) and got.ode_change < 1e-3 and got.sde_change < 0.02
    assert (got.n, got.ode_nfe, got.sde_nfe, got.seed) == (N, 800, 400, 0)


def test_too_few_steps_are_seen():
    """The report tells an error of the steps from a gap."""
    start = math.sqrt(0.5) * RNG.at(9).normal("x", 0, (N, 1), 0).double()
    denoise = Off(OU(), math.sqrt(0.2), 0.0)
    few = ode_sde_gap(denoise, start, grid(OU(), 4, end=1e-4), RNG, ode="ddim")
    assert few.gap > 0.05 and few.ode_change > 0.05 and not few.resolved


def test_exact_score_in_the_plane():
    """One law of three modes, by both, to sampling error."""
    n = 4000
    rng = Rng(1, torch.arange(n))
    got = ode_sde_gap(three_modes(VP()), rng.normal("x", 0, (n, 2), 0).double(), grid(VP(), 100, end=1e-2), rng)
    assert got.gap < 0.1 and not got.resolved and got.seed == 1
    assert got.ode_std == pytest.approx(got.sde_std, rel=0.03)


def test_wasserstein():
    """Exact for a shift and a stretch in one dimension; |shift| / sqrt(d) sliced; of laws, not of rows."""
    x = torch.randn(500, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    assert wasserstein(x, x.flip(0) + 0.7, RNG) == pytest.approx(0.7)
    assert wasserstein(x, 2 * x, RNG) == pytest.approx(x.square().mean().sqrt().item())
    y = torch.randn(500, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    shift = torch.tensor([[1.0, 0.0], [2.0, 2.0]], dtype=F64)
    assert wasserstein(y, y.flip(0) + shift, RNG, 2000) == pytest.approx(3 / 2, rel=0.05)
    assert wasserstein(y, y.flip(0), RNG) == 0 and wasserstein(y, y + shift, RNG) == wasserstein(y, y + shift, RNG)
    assert wasserstein(y, y + shift, Rng(5, RNG.ids)) != wasserstein(y, y + shift, RNG)
    with pytest.raises(ValueError, match=r"one shape, got \(500, 1\) and \(499, 1\)"):
        wasserstein(x, x[1:], RNG)


def test_resolved():
    gap = lambda *values: Gap(*values, 1.0, 1.0, 1, 1, 1, 0)
    assert gap(1.0, 0.1, 0.3).resolved and not gap(1.0, 0.2, 0.4).resolved


def test_what_is_refused():
    x, rng, times = torch.zeros(4, 1), Rng(0, torch.arange(4)), grid(VP(), 4, end=1e-2)
    denoise = GaussianOracle(VP())
    with pytest.raises(ValueError, match="odd number of times, got 4"):
        ode_sde_gap(denoise, x, times[1:], rng)
    for names in (("ancestral", "ancestral"), ("ddim", "ddim")):
        with pytest.raises(ValueError, match="a scheme without noise and one with it"):
            ode_sde_gap(denoise, x, times, rng, *names)
    with pytest.raises(ValueError, match="has fields"):
        ode_sde_gap(GaussianOracle({"x": VP()}), {"x": x}, times, rng)
    with pytest.raises(ValueError, match="its process StudentT"):
        ode_sde_gap(GaussianOracle(StudentT(EDM(), 64.0)), x, times, rng)
