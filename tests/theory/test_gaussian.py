"""Emergence, sensitivity and the score gap, measured on solved flows (S48)."""

import math

import pytest
import torch
from torch import nn

from tests.oracles import GaussianOracle, normal, three_modes
from tests.solvers.test_teleport import law_of
from unisci.processes.gaussian import VE, VP, Linear, lam
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.teleport import GaussianDenoise, teleport
from unisci.theory.gaussian import choose, emerged, emergence, gap, saved_calls, sensitivity

F64 = torch.float64


def anisotropic() -> GaussianLaw:
    basis = torch.linalg.qr(normal(6, 4))[0]
    variances = torch.tensor([9.0, 1.0, 0.2, 0.03], dtype=F64)
    return GaussianLaw(normal(6, seed=1), basis, variances, torch.tensor(0.01, dtype=F64))


@pytest.mark.parametrize("process", [VP(), VE(), Linear()], ids=lambda p: type(p).__name__)
def test_large_variance_emerges_first(process):
    """S48, check 6, on the path of a solver: xi / xi(0) passes tan(angle) at alpha sqrt(c) / sigma = tan(angle)."""
    law = anisotropic()
    denoise, times = GaussianDenoise(process, law), grid(process, 200, start=0.995, end=1e-3)
    x = law.draw(process, torch.zeros(1, 6, dtype=F64), times[0], Rng(0, torch.arange(1)))
    seen, at = [denoise(x, times[0])], lam(process, times)
    run(denoise, x, compile_solver(process, times, "dpm3"), on_step=lambda y, s: seen.append(denoise(y, s)))
    final = law.along(law.flow(process, x, times[0], torch.zeros((), dtype=F64)) - law.mean)
    xi = law.along(torch.cat(seen) - law.mean) / final
    torch.testing.assert_close(xi.square(), emerged(law, process, times), rtol=0, atol=1e-3)
    cell, expected = (at[1] - at[0]).item(), emergence(law)
    assert expected.tolist() == sorted(expected.tolist())
    for level, shift in ((math.sqrt(0.5), 0.0), (0.5, math.log(math.tan(math.pi / 6)))):
        crossing = at[(xi < level).sum(0)]
        assert ((crossing - expected - shift).abs() <= cell).all()


@pytest.mark.parametrize("process", [VP(), Linear()], ids=lambda p: type(p).__name__)
def test_a_push_ends_as_long_as_foreseen(process):
    law, times = anisotropic(), grid(process, 60, start=0.8, end=0)
    law = GaussianLaw(law.mean, law.basis, law.variances, torch.zeros((), dtype=F64))
    x, a = law.draw(process, torch.zeros(1, 6, dtype=F64), times[0], Rng(0, torch.arange(1))), 1e-3
    off = torch.linalg.qr(torch.cat([law.basis, normal(6, 2)], 1))[0][:, 4:]
    pushes = torch.cat([law.basis, off], 1).T
    out = run(GaussianDenoise(process, law), torch.cat([x, x + a * pushes]), compile_solver(process, times, "dpm3"))
    size = (out[1:] - out[0]).norm(dim=1) / a
    foreseen = sensitivity(law, process, times[:1])[0]
    torch.testing.assert_close(size[:4], foreseen, rtol=0.01, atol=0)
    assert size[4:].max() < 1e-4
    assert foreseen[0] > 1 and foreseen[3] < 1


def test_gap_is_that_of_the_scores():
    """Against autograd of both log densities on one noised sample; none for the law itself, and at high noise."""
    process, mixture, n = VP(), three_modes(VP()), 2000
    law, clean, rng = law_of(mixture), mixture.sample(n, torch.Generator().manual_seed(0)), Rng(0, torch.arange(n))
    curve = gap(mixture, law, clean, [-4.0, 0.0, 1.0], rng)
    t = process.time(torch.tensor(0.0, dtype=F64))
    x = process.perturb(clean, t, rng.at(1)).requires_grad_()
    (s,) = torch.autograd.grad(mixture.logp(x, t).sum(), x)
    (s_law,) = torch.autograd.grad(law.log_density(process, x, t).sum(), x)
    torch.testing.assert_close(curve[1], (s - s_law).square().sum() / s.square().sum())
    assert curve[0] < 1e-8 < 0.1 < curve[1] < curve[2]
    exact = GaussianOracle(process, law.mean, 0.5)
    same = GaussianLaw.of(law.mean, 0.25 * torch.eye(2, dtype=F64))
    assert gap(exact, same, clean, [-2.0, 2.0], rng).max() < 1e-20


def test_choose_stops_before_the_gap():
    process, mixture, n = VP(), three_modes(VP()), 2000
    law, clean, rng = law_of(mixture), mixture.sample(n, torch.Generator().manual_seed(0)), Rng(0, torch.arange(n))
    lams = [-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5]
    assert choose(mixture, law, clean, lams, rng) == -1.0
    assert choose(mixture, law, clean, lams, rng, tolerance=1e-3) == -1.5
    same = GaussianDenoise(process, law)
    assert choose(same, law, clean, lams, rng) == 0.5
    with pytest.raises(ValueError, match=r"the gap is .* at lam = 0.5 already"):
        choose(mixture, law, clean, [0.5, 1.0], rng)
    with pytest.raises(ValueError, match="lams must increase"):
        choose(mixture, law, clean, [1.0, 0.5], rng)


def test_error_against_calls_saved():
    process, mixture, x = VP(), three_modes(VP()), normal(128, 2)
    times = grid(process, 100, end=1e-3)
    curve = saved_calls(mixture, law_of(mixture), x, times, [0, 20, 40, 60], "dpm2")
    torch.testing.assert_close(curve.saved, torch.tensor([0, 0.2, 0.4, 0.6]))
    torch.testing.assert_close(curve.lam, lam(process, times[[0, 20, 40, 60]]))
    assert curve.error[0] == 0 and (curve.error.diff() > 0).all()
    assert 1e-5 < curve.error[1] < 1e-3 and curve.error[2] < 1e-2 < 0.1 < curve.error[3]
    with pytest.raises(ValueError, match="must leave a step of the 100"):
        saved_calls(mixture, law_of(mixture), x, times, [100])


def windows(n: int, seed: int) -> torch.Tensor:
    """Windows (n, 48) of sines with one to three periods, random phase and size, and a little noise."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(n, 3, 1, generator=g)
    clock = torch.arange(48) / 48
    return (0.5 + u[:, 0]) * (2 * math.pi * (clock * (1 + 2 * u[:, 1]) + u[:, 2])).sin() + 0.05 * torch.randn(
        n, 48, generator=g
    )


class Windows(nn.Module):
    """A small preconditioned MLP (arXiv 2206.00364) that denoises windows, trained on the VP process."""

    process, schema, scale = VP(), None, 0.8

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(49, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 48))

    def forward(self, x, t):
        alpha, sigma = (v.reshape(-1, 1).expand(len(x), 1).to(x) for v in self.process.level(t))
        v = alpha**2 * self.scale**2 + sigma**2
        out = self.net(torch.cat([x / v.sqrt(), (alpha / sigma).log() / 4], 1))
        return alpha * self.scale**2 / v * x + sigma * self.scale / v.sqrt() * out

    def fit(self, data, steps, rng):
        optimizer = torch.optim.Adam(self.parameters(), 2e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for k in range(steps):
            draw = rng.at(k)
            rows = draw.words("row", 0, (len(rng.ids),), 0) % len(data)
            t = self.process.time(8 * draw.uniform("lam", 0, (len(rng.ids),), 0) - 4)
            alpha, sigma = (v[:, None] for v in self.process.level(t))
            weight = (alpha**2 * self.scale**2 + sigma**2) / (sigma * self.scale) ** 2
            loss = (weight * (self(self.process.perturb(data[rows], t, draw), t) - data[rows]).square()).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        return self.requires_grad_(False)


def energy_distance(x, y):
    inside = lambda v: torch.cdist(v, v).sum() / (len(v) * (len(v) - 1))
    return (2 * torch.cdist(x, y).mean() - inside(x) - inside(y)).item()


@pytest.mark.slow
def test_teleport_saves_calls_on_a_trained_model():
    """S48, check 7: from where the gap is below 1 %, a fifth fewer calls at an equal energy distance."""
    torch.manual_seed(0)
    data, n = windows(20000, 0), 4000
    model, law = Windows().fit(data, 2000, Rng(0, torch.arange(256))), GaussianLaw.fit(data, rank=20)
    lams, rows = [-4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0], Rng(1, torch.arange(2000))
    curve = gap(model, law, data[:2000], lams, rows)
    assert (curve.diff() > 0).all() and curve[0] < 1e-4 and curve[-1] > 0.01
    chosen = choose(model, law, data[:2000], lams, rows)
    assert chosen >= -1.0
    process, held_out = model.process, windows(n, 1)
    x = process.prior(held_out, Rng(2, torch.arange(n)))
    full = run(model, x, compile_solver(process, grid(process, 10), "dpm++2m"))
    start, t = teleport(law, process, x, chosen)
    short = run(model, start, compile_solver(process, grid(process, 8, start=float(t)), "dpm++2m"))
    # Two sets of true windows differ by up to 0.001.
    assert energy_distance(short, held_out) < energy_distance(full, held_out) + 0.002
