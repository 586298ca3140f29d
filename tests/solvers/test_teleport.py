"""Teleportation over the noisy part of a mixture's flow (S48)."""

import math

import pytest
import torch

from tests.oracles import MixtureOracle, normal, three_modes
from unisci.processes.categorical import uniform
from unisci.processes.gaussian import VE, VP, Cosine, Gaussian, lam
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.teleport import teleport

F64 = torch.float64


def law_of(mixture: MixtureOracle) -> GaussianLaw:
    """The mean and the covariance of a mixture."""
    mean = mixture.weights @ mixture.means
    away = mixture.means - mean
    within = (mixture.weights * mixture.stds**2).sum() * torch.eye(len(mean), dtype=F64)
    return GaussianLaw.of(mean, away.T @ (mixture.weights[:, None] * away) + within)


def test_the_law_of_a_mixture_has_its_moments():
    mixture = three_modes(VP())
    x, law = mixture.sample(40000, torch.Generator().manual_seed(0)), law_of(mixture)
    fitted = GaussianLaw.fit(x)
    torch.testing.assert_close(fitted.mean, law.mean, rtol=0, atol=0.03)
    torch.testing.assert_close(fitted.variances, law.variances, rtol=0.03, atol=0)


def test_teleport_on_a_mixture():
    """S48, check 5: the median error of the final sample, and how many end in the same mode, by where lam begins."""
    process, mixture, x = VP(), three_modes(VP()), normal(256, 2)
    law, end = law_of(mixture), 1e-3
    exact = run(mixture, x, compile_solver(process, grid(process, 400, end=end), "dpm3"))
    mode = lambda y: torch.cdist(y, mixture.means).argmin(1)
    errors = []
    published = {-3: (2e-5, 1.0), -2: (4e-4, 1.0), -1: (0.0083, 0.996), -0.5: (0.033, 0.984), 0: (0.10, 0.98)}
    for at, (error, kept) in published.items():
        start, t = teleport(law, process, x, at)
        assert lam(process, t).item() == pytest.approx(at, abs=1e-9)
        out = run(mixture, start, compile_solver(process, grid(process, 200, start=float(t), end=end), "dpm3"))
        errors.append((out - exact).norm(dim=1).median().item())
        assert errors[-1] == pytest.approx(error, rel=0.2)
        assert (mode(out) == mode(exact)).double().mean() == pytest.approx(kept, abs=0.006)
    assert errors == sorted(errors)
    first, last = lam(process, torch.tensor([1.0, end], dtype=F64)).tolist()
    assert (-1 - first) / (last - first) == pytest.approx(0.42, abs=0.005)


@pytest.mark.parametrize("process", [VP(), VE(sigma_max=3.0), Cosine()], ids=lambda p: type(p).__name__)
def test_the_right_start_keeps_the_law(process):
    """Also where sigma(1) is not large, if x is drawn from the law's own marginal."""
    variances, n = torch.tensor([4.0, 0.25], dtype=F64), 40000
    law = GaussianLaw.of(torch.tensor([1.0, -2.0], dtype=F64), torch.diag(variances))
    draw = lambda t: law.draw(
        process, torch.zeros(n, 2, dtype=F64), torch.tensor(t, dtype=F64), Rng(0, torch.arange(n))
    )
    out, t = teleport(law, process, draw(1.0), 0.5)
    alpha, sigma = process.level(t)
    torch.testing.assert_close(out.mean(0), alpha * law.mean, rtol=0, atol=0.05)
    torch.testing.assert_close(out.var(0), alpha**2 * variances + sigma**2, rtol=0.03, atol=0)
    again, _ = teleport(law, process, draw(0.9), 0.5, start=0.9)
    torch.testing.assert_close(again, out)


class Heavy(Gaussian):
    """A process whose noise is not Gaussian, as that of PFGM++."""

    is_gaussian = False


def test_bad_starts_are_refused():
    law, x = GaussianLaw.of(torch.zeros(2, dtype=F64), torch.eye(2, dtype=F64)), normal(3, 2)
    for process in (Heavy(), uniform(3)):
        with pytest.raises(ValueError, match="no Gaussian noise"):
            teleport(law, process, x, -1.0)
    for at in (-6.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="not between"):
            teleport(law, VP(), x, at)
    with pytest.raises(ValueError, match="not between"):
        teleport(law, VP(), x, -3.0, start=0.5)
    same, t = teleport(law, VP(), x, lam(VP(), torch.ones((), dtype=F64)).item())
    assert t == pytest.approx(1) and torch.allclose(same, x)
