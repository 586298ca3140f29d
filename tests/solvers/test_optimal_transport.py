"""Semi-discrete transport against one dimension, where it is a sort, and against what optimal maps must obey (S47)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import MixtureOracle, normal
from unisci.processes.gaussian import VP, time
from unisci.rng import Rng
from unisci.solvers import optimal_transport
from unisci.solvers.grids import grid
from unisci.solvers.optimal_transport import (
    SemiDiscreteMap,
    dual,
    dual_gradient,
    memorisation,
    noised_targets,
    transport_start,
)
from unisci.solvers.program import compile_solver, run

F64 = torch.float64


def at(lam: float) -> torch.Tensor:
    return time(VP(), torch.tensor(lam, dtype=F64))


def two_clusters() -> torch.Tensor:
    side = torch.tensor([-3.0, 3.0], dtype=F64)[torch.arange(64) % 2]
    return 0.5 * normal(64, 2) + torch.stack([side, torch.zeros(64, dtype=F64)], 1)


@pytest.fixture(scope="module")
def fitted() -> SemiDiscreteMap:
    return SemiDiscreteMap.fit(two_clusters(), Rng(0, torch.arange(2048)), steps=1500)


def test_one_dimension_is_a_sort():
    """S47, check 1: T(z) is the target of rank ceil(n Phi(z)), with the closed-form heights and with fitted ones."""
    n, z = 32, normal(20000, 1, seed=1)
    y = normal(n, 1).sort(0).values
    rank = (n * torch.special.ndtr(z[:, 0])).long().clamp(max=n - 1)
    q = torch.special.ndtri(torch.arange(1, n, dtype=F64) / n)
    h = torch.cat([torch.zeros(1, dtype=F64), -(q * y[:, 0].diff()).cumsum(0)])
    exact = SemiDiscreteMap(y, h)
    assert (exact.cells(z) == rank).double().mean() > 0.999
    assert torch.equal(exact.map(z), y[exact.cells(z)])
    ot = SemiDiscreteMap.fit(y, Rng(0, torch.arange(2048)), steps=2000)
    assert (ot.cells(z) == rank).double().mean() > 0.96
    assert abs(ot.h.mean()) < 1e-9


def test_cells_have_equal_mass(fitted):
    """S47, check 2. The spec's 3000 steps of 4096 points reach [.93, 1.07]; half as many of half as many do here."""
    masses = fitted.masses(normal(200000, 2, seed=1))
    assert masses.sum() == pytest.approx(64)
    assert masses.min() > 0.8 and masses.max() < 1.2


def test_gradient_is_that_of_the_dual():
    """S47, check 3, by differences at fixed points, none of which changes its cell, and by automatic ones."""
    z, y, h = normal(500, 3), normal(12, 3, seed=1), normal(12, seed=2)
    gradient, step = dual_gradient(z, y, h), 1e-7
    unit = step * torch.eye(12, dtype=F64)
    differences = torch.stack([(dual(z, y, h + e) - dual(z, y, h - e)) / (2 * step) for e in unit])
    torch.testing.assert_close(differences, gradient, rtol=0, atol=1e-7)
    assert gradient.sum().abs() < 1e-12 and gradient.abs().max() > 0.01
    h.requires_grad_()
    torch.testing.assert_close(torch.autograd.grad(dual(z, y, h), h)[0], gradient)


def test_fit_lowers_the_dual(fitted):
    z, y = normal(20000, 2, seed=5), fitted.targets
    start = -(y - y.mean(0)).square().sum(1) / 2
    assert dual(z, y, fitted.h) < min(dual(z, y, start), dual(z, y, torch.zeros_like(start))) - 0.01


def test_map_is_cyclically_monotone(fitted):
    """S47, check 4: no exchange of targets is cheaper, neither of pairs nor of all in another order."""
    z = normal(2000, 2, seed=2)
    x = fitted.map(z)
    assert ((z[:1000] - z[1000:]) * (x[:1000] - x[1000:])).sum(1).min() >= -1e-12
    cost = (z - x).square().sum()
    for seed in range(50):
        order = torch.randperm(2000, generator=torch.Generator().manual_seed(seed))
        assert cost < (z - x[order]).square().sum()


@given(scale=st.floats(1e-2, 1e2), shift=st.floats(-5, 5))
@settings(max_examples=5, deadline=None)
def test_fit_does_not_depend_on_units(scale, shift):
    """Cells are those of scaled and shifted targets; heights scale along, but for what the shift adds."""
    y, rng, z = normal(8, 2), Rng(0, torch.arange(256)), normal(200, 2, seed=1)
    one, other = SemiDiscreteMap.fit(y, rng, 100), SemiDiscreteMap.fit(scale * y + shift, rng, 100)
    assert (one.cells(z) == other.cells(z)).double().mean() > 0.99
    torch.testing.assert_close(other.h, scale * one.h, rtol=1e-5, atol=1e-5 * scale)


def test_chunks_do_not_show(fitted, monkeypatch):
    z = normal(300, 2)
    cells = fitted.cells(z)
    monkeypatch.setattr(optimal_transport, "ENTRIES", 300 * 7)
    assert torch.equal(fitted.cells(z), cells)
    near = optimal_transport._nearest(z, fitted.targets)
    torch.testing.assert_close(near, torch.cdist(z, fitted.targets).min(1).values)


def test_start_depends_on_the_sample_alone(fitted):
    like = torch.zeros(6, 2, dtype=F64)
    x = transport_start(fitted, like, Rng(3, torch.arange(6)))
    assert torch.equal(transport_start(fitted, like[4:5], Rng(3, torch.tensor([4]))), x[4:5])
    assert torch.equal(x, fitted.map(Rng(3, torch.arange(6)).normal("x", 1, (6, 2), 0).double()))
    shaped = SemiDiscreteMap(fitted.targets.reshape(64, 2, 1), fitted.h)
    assert torch.equal(transport_start(shaped, like.float()[..., None], Rng(3, torch.arange(6))), x.float()[..., None])


def ring(std: float = 0.1) -> MixtureOracle:
    angle = torch.arange(8, dtype=F64) * math.pi / 4
    means = 2 * torch.stack([angle.cos(), angle.sin()], 1)
    return MixtureOracle(VP(), means, torch.full((8,), std, dtype=F64), torch.full((8,), 1 / 8, dtype=F64))


def test_modes_do_not_mix():
    """S47, check 5: ten evaluations on a ring of eight Gaussians, from noise and from transported noise at lam = 1."""
    process, mixture, n, b = VP(), ring(), 512, 4000
    clean, rng, like = (
        mixture.sample(n, torch.Generator().manual_seed(0)),
        Rng(0, torch.arange(b)),
        torch.zeros(b, 2).double(),
    )
    astray = lambda x: (torch.cdist(x, mixture.means).min(1).values > 0.4).double().mean().item()
    ot = SemiDiscreteMap.fit(
        noised_targets(process, clean, at(1.0), Rng(1, torch.arange(n))), Rng(2, torch.arange(1024)), 600
    )
    start = transport_start(ot, like, rng)
    for name in ("ddim", "ancestral"):
        whole = compile_solver(process, grid(process, 10), name)
        last = compile_solver(process, grid(process, 10, start=float(at(1.0))), name)
        assert whole.nfe == last.nfe == 10
        mixed, clear = (
            astray(run(mixture, process.prior(like, rng), whole, rng)),
            astray(run(mixture, start, last, rng)),
        )
        assert clear < 0.01 < mixed
    out = run(mixture, start, last, rng)
    share = torch.cdist(out, mixture.means).argmin(1).bincount(minlength=8) / b
    assert share.min() > 0.08 and share.max() < 0.17


def test_memorisation_is_told():
    """S47, check 6: the quieter the level, the nearer the copies; new samples have a ratio of 1."""
    process, mixture, n = VP(), ring(), 300
    draw = lambda seed: mixture.sample(n, torch.Generator().manual_seed(seed))
    clean, held_out, ratios = draw(0), draw(1), []
    for lam in (0.0, 4.5, 6.0):
        y = noised_targets(process, clean, at(lam), Rng(1, torch.arange(n)), allow_copies=True)
        out = run(mixture, y, compile_solver(process, grid(process, 10, start=float(at(lam))), "ddim"))
        ratios.append(memorisation(out, clean, held_out))
    assert ratios[0].ratio > 0.7 > 0.5 > ratios[1].ratio > ratios[2].ratio
    assert ratios[2].ratio < 0.15 and ratios[0].copies < 0.1
    fresh = memorisation(draw(2), clean, held_out)
    assert fresh.ratio == pytest.approx(1, abs=0.2) and fresh.copies < 0.03
    exact = memorisation(clean, clean, held_out)
    assert exact.samples == exact.ratio == 0 and exact.copies == 1 and exact.held_out == fresh.held_out
    assert math.isnan(memorisation(draw(2), clean, clean).ratio)


def test_levels_that_copy_are_refused():
    process, clean, rng = VP(), normal(200, 2), Rng(1, torch.arange(200))
    apart = (torch.cdist(clean, clean) + 1e9 * torch.eye(200)).min(1).values.median().item()
    just, below = at(-math.log(apart) - 1e-3), at(-math.log(apart) + 1e-3)
    y = noised_targets(process, clean, just, rng)
    assert torch.equal(y, process.perturb(clean, just, rng))
    with pytest.raises(ValueError, match="near copies of the data; take a noisier level, or pass allow_copies=True"):
        noised_targets(process, clean, below, rng)
    assert torch.equal(
        noised_targets(process, clean, below, rng, allow_copies=True), process.perturb(clean, below, rng)
    )
    with pytest.raises(ValueError, match="its own copy"):
        noised_targets(process, clean[:1], just, Rng(1, torch.arange(1)))


def test_bad_input_is_refused():
    y, rng = normal(5, 2), Rng(0, torch.arange(16))
    with pytest.raises(ValueError, match=r"targets \(5, 2\) need heights \(n,\), got \(4,\)"):
        SemiDiscreteMap(y, torch.zeros(4))
    for bad in (SemiDiscreteMap.fit, lambda v, _: SemiDiscreteMap(v, torch.zeros(5))):
        with pytest.raises(ValueError, match="must be finite"):
            bad(torch.where(y > 0, torch.nan, y), rng)
    with pytest.raises(ValueError, match="steps must be 1 or more, got 0"):
        SemiDiscreteMap.fit(y, rng, steps=0)
    one = SemiDiscreteMap.fit(y[:1], rng, steps=3)
    assert torch.equal(one.map(normal(4, 2)), y[:1].expand(4, 2))
