"""The mean-reverting process is its base in the frame of mu, and the marginal of its own SDE (S09)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.processes.gaussian import VP, Cosine, drift_diffusion
from unisci.processes.mean_reverting import Shifted
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng

F64 = torch.float64
MU = torch.linspace(-2, 3, 5, dtype=F64)


@settings(max_examples=25, deadline=None)
@given(scale=st.floats(0.1, 50), t=st.floats(0, 1), seed=st.integers(0, 99))
@pytest.mark.parametrize("base", [VP(), Cosine(), StudentT(VP(), 4.0)], ids=lambda p: type(p).__name__)
def test_in_the_frame_it_is_the_base(base, scale, t, seed):
    process, rng = Shifted(base, MU, scale), Rng(seed, torch.arange(7))
    x = 3 * torch.randn(7, 5, dtype=F64, generator=torch.Generator().manual_seed(seed))
    t = torch.tensor(t, dtype=F64)
    torch.testing.assert_close(process.frame(x) * scale + MU, x, rtol=0, atol=1e-12)
    torch.testing.assert_close(process.unframe(process.frame(x)), x, rtol=0, atol=1e-12)
    noised = process.frame(process.perturb(x, t, rng, "position", 1))
    torch.testing.assert_close(noised, base.perturb(process.frame(x), t, rng, "position", 1), rtol=1e-9, atol=1e-9)
    prior = process.frame(process.prior(x, rng, "position", 1))
    torch.testing.assert_close(prior, base.prior(x, rng, "position", 1), rtol=1e-9, atol=1e-9)


def test_marginal_is_the_paper_s():
    """x_t ~ N(alpha x_0 + (1 - alpha) mu, s^2 sigma^2), by 20000 draws within 4 standard errors."""
    n, scale, t = 20000, 0.2, torch.tensor(0.4)
    base, mu = VP(), torch.tensor([1.0, -3.0])
    alpha, sigma = (v.item() for v in base.level(t))
    clean = torch.tensor([2.0, 5.0]).expand(n, 2)
    x = Shifted(base, mu, scale).perturb(clean, t, Rng(0, torch.arange(n)))
    mean = alpha * clean[0] + (1 - alpha) * mu
    assert ((x.mean(0) - mean).abs() < 4 * scale * sigma / math.sqrt(n)).all()
    assert x.var(0).tolist() == pytest.approx([(scale * sigma) ** 2] * 2, rel=4 * math.sqrt(2 / n))
    prior = Shifted(base, mu, scale).prior(clean, Rng(0, torch.arange(n)))
    assert ((prior.mean(0) - mu).abs() < 4 * scale / math.sqrt(n)).all()


def test_the_sde_reverts_to_mu():
    """Euler-Maruyama on dx = theta (mu - x) dt + g dw, theta = -f, from x_0 = 1.5: its mean and variance obey the
    recursion below and meet the marginal, twice as well with half the step."""
    base, mu, scale, end = VP(), 4.0, 0.3, 0.5

    def euler(n):
        t = torch.linspace(0, end, n + 1, dtype=F64)
        f, g2 = drift_diffusion(base, t[:-1])
        mean, variance = 1.5, 0.0
        for fk, gk in zip(f.tolist(), g2.tolist(), strict=True):
            mean, variance = mean - fk * (mu - mean) * end / n, variance * (1 + fk * end / n) ** 2 + gk * end / n
        return mean, scale**2 * variance

    n = 4000
    x = Shifted(base, torch.full((1,), mu, dtype=F64), scale).perturb(
        torch.full((n, 1), 1.5, dtype=F64), torch.tensor(end, dtype=F64), Rng(1, torch.arange(n))
    )
    alpha, sigma = (v.item() for v in base.level(torch.tensor(end, dtype=F64)))
    exact = alpha * 1.5 + (1 - alpha) * mu, (scale * sigma) ** 2
    for coarse, fine, true in zip(euler(1000), euler(2000), exact, strict=True):
        assert (coarse - true) / (fine - true) == pytest.approx(2, rel=0.1) and fine == pytest.approx(true, rel=0.01)
    assert x.mean().item() == pytest.approx(exact[0], abs=4 * scale * sigma / math.sqrt(n))
    assert x.var().item() == pytest.approx(exact[1], rel=4 * math.sqrt(2 / n))


def test_time_zero_is_clean_bit_for_bit_with_a_time_for_each_site():
    clean = 1e3 * torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0))
    t = torch.ones(3, 5)
    t[:, 2:4] = 0
    process = Shifted(VP(), 7 * torch.randn(3, 5, 2, dtype=F64, generator=torch.Generator().manual_seed(1)), 0.3)
    x = process.perturb(clean, t, Rng(1, torch.arange(3)), "position", 1)
    assert torch.equal(x[:, 2:4], clean[:, 2:4]) and (x[:, :2] != clean[:, :2]).all()
    assert x.dtype == process.prior(clean, Rng(1, torch.arange(3)), "position", 1).dtype == torch.float32


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**40), keep=st.lists(st.integers(0, 31), min_size=1, max_size=7, unique=True))
def test_draws_belong_to_the_sample(seed, keep):
    clean, mu, ids = torch.randn(32, 4), torch.randn(32, 4), torch.arange(32) + 5
    full, part = Shifted(VP(), mu, 0.4), Shifted(VP(), mu[keep], 0.4)
    t = torch.rand(32)
    x, y = full.perturb(clean, t, Rng(seed, ids)), part.perturb(clean[keep], t[keep], Rng(seed, ids[keep]))
    assert torch.equal(x[keep], y)
    assert torch.equal(full.prior(clean, Rng(seed, ids))[keep], part.prior(clean[keep], Rng(seed, ids[keep])))


def test_to_moves_mu():
    process = Shifted(VP(), MU, 2.0)
    assert process.to("cpu") is process
    moved = process.to("meta")
    assert moved.mu.device.type == "meta" and moved.base is process.base and moved.scale == 2.0
    assert process.mu.device.type == "cpu"


def test_bad_values_are_refused():
    for scale in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"scale must be positive and finite, got {scale}"):
            Shifted(VP(), MU, scale)
    for bad in (math.nan, math.inf):
        with pytest.raises(ValueError, match="mu must be finite; 1 of its 3 are not"):
            Shifted(VP(), torch.tensor([0.0, bad, 1.0]))
