"""Gaussian processes against the closed forms of their papers and against simulation."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, Literal
from unisci.processes.gaussian import (
    EDM,
    VE,
    VP,
    Cosine,
    Gaussian,
    Linear,
    SubVP,
    drift_diffusion,
    lam,
    level_for,
    time,
    to_noise,
    to_score,
    to_velocity,
)
from unisci.rng import Rng
from unisci.solvers.formulas import heun
from unisci.solvers.grids import grid
from unisci.solvers.level import levels
from unisci.solvers.program import compile_solver, run

PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
inside = torch.linspace(0.001, 0.999, 301, dtype=torch.float64)


class Elsewhere(Gaussian):
    """A process that defines only its level: no closed inverse."""

    def level(self, t):
        return (1 - t**2) ** 2, t**1.5


def paper_drift_diffusion(process, t):
    """f and g^2 as the papers state them, by hand."""
    match process:
        case VP() | SubVP():
            low, high = process.beta_min, process.beta_max
            b, integral = low + t * (high - low), low * t + (high - low) * t**2 / 2
            return -b / 2, b if isinstance(process, VP) else b * (1 - torch.exp(-2 * integral))
        case VE():
            r = process.sigma_max / process.sigma_min
            return 0 * t, (process.sigma_min * r**t * math.sqrt(2 * math.log(r))) ** 2
        case EDM():
            low, high = process.sigma_min ** (1 / 7), process.sigma_max ** (1 / 7)
            c, u = process.sigma_max / (process.sigma_max - process.sigma_min), low + t * (high - low)
            return 0 * t, 2 * c * (u**7 - process.sigma_min) * c * 7 * u**6 * (high - low)
        case Cosine():
            w = math.pi / 2
            return -w * torch.tan(w * t), 2 * w * torch.tan(w * t)
        case Linear():
            return -1 / (1 - t), 2 * t / (1 - t)


@each
def test_drift_and_diffusion_are_those_of_the_paper(process):
    for ours, paper in zip(drift_diffusion(process, inside), paper_drift_diffusion(process, inside), strict=True):
        torch.testing.assert_close(ours, paper, rtol=1e-11, atol=1e-12)


@each
def test_schedule_identity(process):
    """d(sigma^2)/dt = 2 f sigma^2 + g^2, d(log alpha)/dt = f, with the paper's f and g^2 (S44, check 1)."""
    t = inside.clone().requires_grad_()
    alpha, sigma = process.level(t)
    f, g2 = paper_drift_diffusion(process, inside)
    (slope,) = torch.autograd.grad((sigma**2).sum(), t, retain_graph=True)
    scale = 1 + slope.abs()
    assert ((slope - 2 * f * sigma.detach() ** 2 - g2).abs() / scale).max() < 1e-12
    if alpha.requires_grad:
        (slope,) = torch.autograd.grad(alpha.log().sum(), t)
        assert ((slope - f).abs() / (1 + f.abs())).max() < 1e-12


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact(process, dtype):
    alpha, sigma = process.level(torch.tensor([0.0, 1.0], dtype=dtype))
    assert alpha[0] == 1 and sigma[0] == 0
    assert torch.isfinite(torch.cat(drift_diffusion(process, torch.zeros(1, dtype=dtype)))).all()
    top = {"VE": 50.0, "EDM": 80.0}.get(type(process).__name__, 1.0)
    assert sigma[1].item() == pytest.approx(top, rel=1e-4)
    assert alpha[1] >= 0 and (alpha[1] == 0) == isinstance(process, Cosine | Linear)
    t = torch.linspace(0, 1, 1001, dtype=dtype)
    assert (lam(process, t).diff() < 0).all()


def test_published_levels():
    t = torch.tensor(0.5, dtype=torch.float64)
    integral = 0.1 * 0.5 + 19.9 * 0.125
    assert VP().level(t)[1].item() == pytest.approx(math.sqrt(1 - math.exp(-integral)), rel=1e-12)
    assert SubVP().level(t)[1].item() == pytest.approx(1 - math.exp(-integral), rel=1e-12)
    assert VE().level(t)[1].item() == pytest.approx(0.01 * 5000**0.5, rel=2e-4)
    assert EDM().level(t)[1].item() == pytest.approx(((0.002 ** (1 / 7) + 80 ** (1 / 7)) / 2) ** 7, rel=2e-3)


@each
@settings(max_examples=40, deadline=None)
@given(t=st.floats(1e-3, 0.999))
def test_time_inverts_lam(process, t):
    t = torch.tensor([t], dtype=torch.float64)
    assert (time(process, lam(process, t)) - t).abs().item() < 1e-12
    assert (Gaussian.time(process, lam(process, t)) - t).abs().item() < 1e-11, "bisection"


def test_time_without_a_closed_form_and_clamped():
    t = inside[:-1]
    torch.testing.assert_close(time(Elsewhere(), lam(Elsewhere(), t)), t, rtol=0, atol=1e-10)
    assert time(VP(), torch.tensor([-50.0, 0.0, 50.0])).tolist()[0::2] == [1.0, pytest.approx(0, abs=1e-12)]


@each
def test_perturb_leaves_time_zero_alone_and_broadcasts(process):
    """A time per site: sites at t = 0 stay bit-identical, and t = 1 is the prior plus alpha(1) of the clean value."""
    clean = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)) * 1e3
    t = torch.ones(3, 5)
    t[:, 2:4] = 0
    noised = process.perturb(clean, t, Rng(1, torch.arange(3)), "position", 1)
    assert torch.equal(noised[:, 2:4], clean[:, 2:4])
    assert (noised[:, :2] != clean[:, :2]).all()
    assert noised.dtype == torch.float32
    whole = process.perturb(clean, torch.tensor(0.0, dtype=torch.float64), Rng(1, torch.arange(3)), "position", 1)
    assert torch.equal(whole, clean) and whole.dtype == torch.float32
    assert process.perturb(clean, t.double(), Rng(1, torch.arange(3)), "position", 1).dtype == torch.float32
    assert process.to("cpu") is process


@each
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), keep=st.lists(st.integers(0, 63), min_size=1, max_size=7, unique=True))
def test_draws_belong_to_the_sample(process, seed, keep):
    ids = torch.arange(64) + 100
    clean = torch.arange(64.0)[:, None].expand(64, 3).contiguous()
    full = process.perturb(clean, torch.tensor(0.4), Rng(seed, ids))
    part = process.perturb(clean[keep], torch.full((len(keep),), 0.4), Rng(seed, ids[keep]))
    assert torch.equal(full[keep], part)
    assert torch.equal(process.prior(clean, Rng(seed, ids))[keep], process.prior(clean[keep], Rng(seed, ids[keep])))


def test_pair_noise_is_symmetric_and_prior_is_not_the_perturbation():
    clean, rng = torch.zeros(2, 4, 4), Rng(3, torch.arange(2))
    noise = VP().perturb(clean, torch.tensor(1.0), rng, "bond", 2)
    assert torch.equal(noise, noise.transpose(1, 2)) and noise[0, 0, 1] != noise[0, 0, 2]
    assert not torch.isclose(noise, VP().prior(clean, rng, "bond", 2), atol=1e-3).any()


@each
def test_marginal_moments(process):
    """20000 draws: mean alpha m, variance sigma^2, the prior's variance sigma(1)^2, within 4 standard errors."""
    n, t = 20000, torch.tensor(0.6)
    alpha, sigma = (v.item() for v in process.level(t))
    x = process.perturb(torch.full((n, 1), 2.0), t, Rng(0, torch.arange(n)))
    assert abs(x.mean().item() - 2 * alpha) < 4 * sigma / math.sqrt(n)
    assert x.var().item() == pytest.approx(sigma**2, rel=4 * math.sqrt(2 / n))
    prior, end = process.prior(x, Rng(0, torch.arange(n))), process.level(torch.tensor(1.0))[1].item()
    assert prior.var().item() == pytest.approx(end**2, rel=4 * math.sqrt(2 / n))


@each
def test_forward_sde_has_the_marginal(process):
    """Euler-Maruyama on dx = f x dt + g dw from x_0 = 1.5 (S44, check 2). Its mean and variance obey the recursion
    below without sampling error; both meet the closed form within 2 %, and twice as well with half the step."""

    def euler(n, end=0.8):
        t = torch.linspace(0, end, n + 1, dtype=torch.float64)
        f, g2 = drift_diffusion(process, t[:-1])
        mean, variance = 1.5, 0.0
        for fk, gk in zip(f.tolist(), g2.tolist(), strict=True):
            mean, variance = mean * (1 + fk * end / n), variance * (1 + fk * end / n) ** 2 + gk * end / n
        alpha, sigma = (v.item() for v in process.level(t[-1]))
        return abs(mean / (1.5 * alpha) - 1), abs(variance / sigma**2 - 1)

    coarse, fine = euler(1000), euler(2000)
    assert max(fine) < 0.02
    for a, b in zip(coarse, fine, strict=True):
        assert b < 1e-12 or a / b == pytest.approx(2, rel=0.1)


def test_forward_sde_by_paths():
    """The same by 20000 sampled paths, for one process with all terms."""
    n, steps, process = 20000, 200, SubVP()
    x, rng = torch.full((n, 1), 1.5), Rng(5, torch.arange(n))
    t = torch.linspace(0, 0.5, steps + 1, dtype=torch.float64)
    f, g2 = drift_diffusion(process, t)
    dt = 0.5 / steps
    for k in range(steps):
        x = x + f[k].item() * x * dt + math.sqrt(g2[k].item() * dt) * rng.normal("x", k, (n, 1), 0)
    alpha, sigma = (v.item() for v in process.level(t[-1]))
    assert x.mean().item() == pytest.approx(1.5 * alpha, rel=0.02)
    assert x.var().item() == pytest.approx(sigma**2, rel=0.03)


@each
def test_encode_and_decode(process):
    """Heun on 200 steps up to noise and down again returns x to 1e-4, by way of the exact code (S44, check 6)."""
    denoise = GaussianOracle(process, 0.3, 0.5)
    x = torch.linspace(-1, 1.6, 9, dtype=torch.float64)[:, None]
    times, code = grid(process, 200, start=0.99, end=1e-3), x
    for t, s in pairwise(levels(process, times.flip(0))):
        code, _ = heun(Literal(denoise), code, t, s, None)
    exact = denoise.flow(x, times[-1], times[0])
    assert ((code - exact).abs() / exact.std()).max() < 2e-3
    back = run(denoise, code, compile_solver(process, times, "heun"))
    assert (back - x).abs().max() < 1e-4


def test_same_code_in_every_process():
    """The flow keeps the standardised value: at equal lam all processes hold the same x / alpha (S44, check 6)."""
    x, at = torch.linspace(-2, 2, 7, dtype=torch.float64), torch.tensor(-1.0, dtype=torch.float64)
    codes = []
    for process in PROCESSES:
        t = time(process, at)
        alpha, _ = process.level(t)
        codes.append(GaussianOracle(process, 0.3, 0.5).flow(x, torch.zeros_like(t), t) / alpha)
    for code in codes[1:]:
        torch.testing.assert_close(code, codes[0], rtol=1e-9, atol=1e-9)


@each
def test_affine_views(process):
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    clean, noise = torch.linspace(-1, 2, 5, dtype=torch.float64), torch.linspace(3, -1, 5, dtype=torch.float64)
    alpha, sigma = process.level(t)
    x = alpha * clean + sigma * noise
    torch.testing.assert_close(to_noise(clean, x, alpha, sigma), noise, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(to_score(clean, x, alpha, sigma), -noise / sigma, rtol=1e-9, atol=1e-9)
    velocity = alpha * noise - sigma * clean
    torch.testing.assert_close(to_velocity(clean, x, alpha, sigma), velocity, rtol=1e-9, atol=1e-9)


def test_score_view_is_the_gradient_of_the_log_density():
    process, x = VP(), torch.linspace(-2, 2, 5, dtype=torch.float64).requires_grad_()
    t = torch.tensor(0.3, dtype=torch.float64)
    alpha, sigma = level_for(process, t, x)
    logp = torch.distributions.Normal(alpha * 0.3, (alpha**2 * 0.25 + sigma**2).sqrt()).log_prob(x)
    clean = GaussianOracle(process, 0.3, 0.5)(x.detach(), t)
    torch.testing.assert_close(to_score(clean, x.detach(), alpha, sigma), torch.autograd.grad(logp.sum(), x)[0])


@pytest.mark.parametrize("make, low, high", [(VP, 2, 1), (SubVP, 0, 1), (VE, 50, 0.01), (EDM, 1, math.nan)])
def test_bad_ranges_are_refused(make, low, high):
    with pytest.raises(ValueError, match=r"need 0 < (beta|sigma)_min"):
        make(low, high)
