"""One noise by three names: what DDPM, score networks and SDEs call it, in numbers (S27, check 5)."""

import pytest
import torch

from tests.oracles import normal, three_modes
from unisci.processes.gaussian import VE, VP, drift_diffusion, to_noise, to_score
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
N = 1000


def betas() -> torch.Tensor:
    """DDPM's N values, evenly from b(0) / N = 1e-4 to b(1) / N = .02, where b(t) = .1 + 19.9 t."""
    return torch.linspace(0.1, 20, N, dtype=F64) / N


def test_the_discrete_chain_is_vp():
    """prod (1 - beta_i) against e^-B: 8.1e-4 apart at most, at the end 6.5 % of 4e-5."""
    discrete = (1 - betas()).cumprod(0)
    continuous = VP().level(torch.arange(1, N + 1, dtype=F64) / N)[0] ** 2
    assert (discrete - continuous).abs().max().item() == pytest.approx(8.1e-4, rel=0.01)
    assert 1 - (discrete[-1] / continuous[-1]).item() == pytest.approx(0.065, abs=5e-4)
    assert continuous[-1].item() == pytest.approx(4.3e-5, rel=0.01)


def test_ancestral_is_the_step_of_ddpm():
    """x_s = c_0 D + c_1 x + sqrt(posterior variance) xi with the chain's own beta = 1 - alpha_t^2 / alpha_s^2, and a
    whole run of N such steps."""
    times = grid(VP(), 50, "time")
    program, denoise = compile_solver(VP(), times, "ancestral"), three_modes(VP())
    x, rng = normal(16, 2), Rng(0, torch.arange(16))
    want, square = x, VP().level(times)[0] ** 2
    for k in range(50):
        now, then = square[k], square[k + 1]
        beta = 1 - now / then
        clean = denoise(want, times[k])
        noise = rng.at(k).normal("x", 0, (16, 2), 0).to(F64)
        mean = then.sqrt() * beta / (1 - now) * clean + (1 - beta).sqrt() * (1 - then) / (1 - now) * want
        want = mean + (beta * (1 - then) / (1 - now)).sqrt() * noise
    torch.testing.assert_close(run(denoise, x, program, rng), want, rtol=0, atol=1e-10)


def test_score_networks_are_ve():
    """A score is minus the noise over sigma in each; VE has f = 0 and g^2 = d sigma^2 / dt, VP f = -b / 2, g^2 = b."""
    t, x, clean = torch.tensor([0.3, 0.7], dtype=F64), normal(2), normal(2, seed=1)
    for process in (VP(), VE()):
        alpha, sigma = process.level(t)
        score = to_score(clean, x, alpha, sigma)
        torch.testing.assert_close(score, -to_noise(clean, x, alpha, sigma) / sigma)
    f, g2 = drift_diffusion(VE(), t)
    step = 1e-6
    slope = (VE().level(t + step)[1] ** 2 - VE().level(t - step)[1] ** 2) / (2 * step)
    torch.testing.assert_close(f, torch.zeros(2, dtype=F64))
    torch.testing.assert_close(g2, slope, rtol=1e-6, atol=0)
    f, g2 = drift_diffusion(VP(), t)
    torch.testing.assert_close(g2, 0.1 + 19.9 * t)
    torch.testing.assert_close(f, -g2 / 2)
