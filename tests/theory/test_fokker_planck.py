"""Fokker-Planck residuals of exact, wrong and arbitrary densities, and what a penalty on them does (S40)."""

import math

import pytest
import torch
from torch import nn

from tests.oracles import GaussianOracle, normal, three_modes
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Gaussian, Linear, SubVP, drift_diffusion
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.divergence import hutchinson
from unisci.solvers.grids import grid
from unisci.solvers.likelihood import log_likelihood
from unisci.theory.fokker_planck import Potential, fp_residual, penalty, score_penalty, score_residual
from unisci.theory.ode_sde_gap import ode_sde_gap

F64 = torch.float64


class OU(Gaussian):
    """dx = -x dt + dw over the time 3, rescaled to [0, 1]: f = -3, g^2 = 3."""

    def level(self, t):
        return torch.exp(-3 * t), (-torch.expm1(-6 * t) / 2).sqrt()


PROCESSES = [OU(), VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


class Net(nn.Module):
    """u(x, t), any smooth function."""

    def __init__(self, dims: int, width: int = 16, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        layers = [nn.Linear(dims + 2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()]
        self.body = nn.Sequential(*layers, nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))

    def forward(self, x, t):
        t = t.expand(len(x))
        return self.body(torch.cat([x, t[:, None], (-6 * t).exp()[:, None]], 1))[:, 0] - x.square().sum(1) / 2


@each_process
def test_zero_on_exact_densities(process):
    """Max |R| below 1e-9 on a mixture, and |r| (S40, check 1); at one time and at a time for each sample."""
    oracle, x = three_modes(process), normal(32, 2)
    for t in (torch.tensor(0.3, dtype=F64), torch.linspace(0.05, 0.95, 32, dtype=F64)):
        scale = drift_diffusion(process, t)[1].max() / process.level(t)[1].min() ** 3
        assert fp_residual(oracle.logp, process, x, t).abs().max() < 1e-12 * (1 + scale)
        assert score_residual(oracle, x, t).abs().max() < 1e-12 * (1 + scale)


def test_zero_on_a_gaussian_under_ou():
    """V_0 = .2 at time .3 of the paper's process, to 1e-12 (S40, check 1)."""

    def log_density(x, t):
        alpha, sigma = OU().level(t)
        v = alpha**2 * 0.2 + sigma**2
        return -0.5 * (x.square().sum(1) / v + x.shape[1] * v.log())

    r = fp_residual(log_density, OU(), normal(64, 3), torch.tensor(0.1, dtype=F64))
    assert r.shape == (64,) and r.abs().max() < 1e-12


@each_process
def test_of_a_wrong_density(process):
    """(1 + c) log p leaves R = -c (f d + (1 + c) g^2 / 2 |s|^2), and r its gradient (S40, check 2)."""
    oracle, x, t = three_modes(process), normal(16, 2).requires_grad_(), torch.linspace(0.2, 0.8, 16, dtype=F64)
    (s,) = torch.autograd.grad(oracle.logp(x, t).sum(), x, create_graph=True)
    f, g2 = drift_diffusion(process, t)
    for c in (0.1, 0.2):
        want = -c * (2 * f + (1 + c) * g2 / 2 * s.square().sum(1))
        u = lambda x, t, c=c: (1 + c) * oracle.logp(x, t)
        got = fp_residual(u, process, x, t)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
        assert got.abs().max() > 1e-2
        (gradient,) = torch.autograd.grad(want.sum(), x, retain_graph=True)
        torch.testing.assert_close(score_residual(Potential(u, process), x, t), gradient, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("process", [OU(), VP(), Linear()], ids=lambda p: type(p).__name__)
def test_the_score_form_is_the_gradient_of_the_potential_form(process):
    """On a random network, where neither is 0."""
    net, x, t = Net(3).double(), normal(8, 3).requires_grad_(), torch.linspace(0.2, 0.8, 8, dtype=F64)
    small = 1e-5
    r = score_residual(Potential(net, process), x, t)
    for k in range(3):
        shift = small * torch.eye(3, dtype=F64)[k]
        rise = fp_residual(net, process, x + shift, t) - fp_residual(net, process, x - shift, t)
        torch.testing.assert_close(r[:, k], rise / (2 * small), rtol=1e-5, atol=1e-5)


def test_hutchinson_is_unbiased():
    """2000 probes on a random network in 6 dimensions, within 3 standard errors (S40, check 4); R and each of r."""
    net, process, n = Net(6).double(), OU(), 2000
    x, t = normal(1, 6), torch.tensor(0.3, dtype=F64)
    many, rng = x.expand(n, 6), Rng(0, torch.arange(n))
    for residual in (
        lambda x, *vectors: fp_residual(net, process, x, t, *vectors)[:, None],
        lambda x, *vectors: score_residual(Potential(net, process), x, t, *vectors),
    ):
        drawn = residual(many, hutchinson(rng)).detach()
        error = drawn.std(0) / n**0.5
        assert (error > 1e-6).all() and ((drawn.mean(0) - residual(x)[0]).abs() < 3 * error).all()


def test_penalties():
    """sigma^4 R^2 and sigma^6 |r|^2, exactly; and without bias by two probes, where one squared has one."""
    net, process = Net(6).double(), VP()
    x, t = normal(4, 6), torch.linspace(0.1, 0.7, 4, dtype=F64)
    sigma, rng = process.level(t)[1], Rng(0, torch.arange(20000))
    denoise, rows = Potential(net, process), torch.arange(20000) % 4
    big, r = fp_residual(net, process, x, t), score_residual(denoise, x, t)
    exact = penalty(net, process, x, t), score_penalty(denoise, x, t)
    torch.testing.assert_close(exact[0], (sigma**4 * big**2).mean())
    torch.testing.assert_close(exact[1], (sigma**6 * r.square().sum(1)).mean())
    assert penalty(net, process, x, t, rng[:4]) != exact[0]
    one = fp_residual(net, process, x[rows], t[rows], hutchinson(rng)).detach()
    spread = (sigma[rows] ** 4 * one**2).std() / 20000**0.5
    assert (penalty(net, process, x[rows], t[rows], rng) - exact[0]).abs() < 4 * spread
    assert (sigma[rows] ** 4 * one**2).mean() - exact[0] > 20 * spread
    of_score = score_penalty(denoise, x[rows[:8000]], t[rows[:8000]], rng[:8000])
    assert of_score.item() == pytest.approx(exact[1].item(), rel=0.1)


@pytest.mark.parametrize("form", ["potential", "score"])
@pytest.mark.parametrize("probes", [False, True])
def test_penalties_train(form, probes):
    """The gradient in a parameter by finite differences; one that cures the density comes to 0."""
    oracle, process = three_modes(VP()), VP()
    x, t = normal(8, 2), torch.linspace(0.2, 0.8, 8, dtype=F64)
    rng = Rng(0, torch.arange(8)) if probes else None

    def loss(c):
        u = lambda x, t: c * oracle.logp(x, t)
        return (
            penalty(u, process, x, t, rng) if form == "potential" else score_penalty(Potential(u, process), x, t, rng)
        )

    c = torch.tensor(1.1, dtype=F64, requires_grad=True)
    (got,) = torch.autograd.grad(loss(c), c)
    rise = loss(torch.tensor(1.1 + 1e-5, dtype=F64)) - loss(torch.tensor(1.1 - 1e-5, dtype=F64))
    assert got.item() == pytest.approx(rise.item() / 2e-5, rel=1e-4)
    if not probes:
        assert loss(torch.tensor(1.0, dtype=F64)).item() < 1e-18


def test_potential_is_the_denoiser():
    """Of an exact log density: E[x_0 | x_t], also where it is differentiated again; no graph under no_grad."""
    oracle = three_modes(VP())
    denoise, x, t = Potential(oracle.logp, VP()), normal(8, 2), torch.tensor(0.4, dtype=F64)
    torch.testing.assert_close(denoise(x, t), oracle(x, t), rtol=1e-9, atol=1e-9)
    with torch.no_grad():
        assert not denoise(x, t).requires_grad
    times = grid(VP(), 30, end=1e-2)
    torch.testing.assert_close(log_likelihood(denoise, x, times), log_likelihood(oracle, x, times))


def test_rotation():
    """R of an isotropic mixture's wrong density does not change with the frame (S40, check 6)."""
    oracle, x, t = three_modes(VP()), normal(8, 2), torch.tensor(0.4, dtype=F64)
    turn = torch.linalg.qr(normal(2, 2))[0]
    plain = fp_residual(lambda x, t: 1.1 * oracle.logp(x, t), VP(), x, t)
    turned = fp_residual(lambda x, t: 1.1 * oracle.logp(x @ turn, t), VP(), x @ turn.T, t)
    torch.testing.assert_close(plain, turned, rtol=1e-9, atol=1e-9)


def test_what_is_refused():
    x, t = normal(4, 2), torch.tensor(0.4, dtype=F64)
    with pytest.raises(ValueError, match="its process StudentT"):
        score_residual(GaussianOracle(StudentT(EDM(), 64.0)), x, t)


def nine(n, generator):
    """Nine narrow Gaussians on a square grid."""
    k = torch.randint(0, 9, (n,), generator=generator)
    return torch.stack([k % 3 - 1, k // 3 - 1], 1) * 1.2 + 0.2 * torch.randn(n, 2, generator=generator)


def noised(n, generator):
    x0, t = nine(n, generator), torch.rand(n, generator=generator) ** 2 * 0.98 + 0.02
    alpha, sigma = (v[:, None] for v in OU().level(t))
    noise = torch.randn(n, 2, generator=generator)
    return alpha * x0 + sigma * noise, t, sigma, noise


def trained(weight: float, steps: int) -> Net:
    """Denoising score matching, and the penalty on half of each batch."""
    net, generator = Net(2, 48), torch.Generator().manual_seed(1)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        x, t, sigma, noise = noised(256, generator)
        x.requires_grad_()
        (score,) = torch.autograd.grad(net(x, t).sum(), x, create_graph=True)
        loss = (sigma * score + noise).square().sum(1).mean()
        if weight:
            loss = loss + weight * penalty(net, OU(), x[:128], t[:128])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return net


@pytest.mark.slow
def test_the_penalty_closes_the_gap():
    """Nine Gaussians: sigma^4 R^2 falls more than 5 times, and the distance of the two laws falls (S40, check 5)."""
    residual, gap, n = {}, {}, 6000
    rng, times = Rng(0, torch.arange(n)), grid(OU(), 100, end=1e-3)
    start = math.sqrt(0.5) * rng.at(9).normal("x", 0, (n, 2), 0)
    for weight in (0.0, 1.0):
        net = trained(weight, 800)
        x, t, _, _ = noised(2000, torch.Generator().manual_seed(5))
        residual[weight] = penalty(net, OU(), x, t).item()
        gap[weight] = ode_sde_gap(Potential(net, OU()), start, times, rng)
    assert residual[1.0] < residual[0.0] / 5
    assert gap[1.0].gap < 0.75 * gap[0.0].gap and gap[0.0].ode_change < 0.01
