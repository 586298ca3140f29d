"""Denoising by one call, and the level of the noise (S27, check 4)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, normal
from unisci.batch import Field
from unisci.inverse.denoising import SIGMAS, blind_sigma, denoise_at, likeliest_sigma, noise_excess
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import EDM, VE, VP, Cosine
from unisci.rng import Rng
from unisci.solvers.divergence import exact, hutchinson
from unisci.solvers.gaussian_law import GaussianLaw

F64 = torch.float64
each_process = pytest.mark.parametrize("process", [VP(), VE(), EDM(), Cosine()], ids=lambda p: type(p).__name__)


class LowRank:
    """x_0 ~ N(0, U U^T), U (64, 4) with orthonormal columns: smooth windows, say."""

    schema = None

    def __init__(self, process, rank=4, d=64):
        self.process = process
        basis = torch.linalg.qr(normal(d, rank, seed=7))[0]
        self.law = GaussianLaw(
            torch.zeros(d, dtype=F64), basis, torch.ones(rank, dtype=F64), torch.zeros((), dtype=F64)
        )

    def __call__(self, x, t):
        alpha, sigma = (v.reshape(-1, 1) for v in self.process.level(t))
        return self.law.scale(x, lambda c: alpha * c / (alpha**2 * c + sigma**2))

    def noisy(self, n, sigma, seed=0):
        basis = self.law.basis
        return normal(n, basis.shape[1], seed=seed) @ basis.T + sigma * normal(n, len(basis), seed=seed + 1)


@each_process
@pytest.mark.parametrize("sigma", [0.1, 0.7, 3.0])
def test_mean_squared_error(process, sigma):
    """Of x_0 ~ N(0, 1) at a known sigma: sigma^2 / (1 + sigma^2), within 2 %."""
    x, denoise = normal(100, 1000), GaussianOracle(process)
    y = x + sigma * normal(100, 1000, seed=1)
    clean = denoise_at(denoise, y, sigma)
    torch.testing.assert_close(clean, y / (1 + sigma**2), rtol=1e-6, atol=1e-9)
    assert (clean - x).square().mean().item() == pytest.approx(sigma**2 / (1 + sigma**2), rel=0.02)


def test_a_sigma_for_each_sample_and_field():
    schema = {"a": Field("site", (2,)), "b": Field("whole", (3,))}
    denoise = GaussianOracle({"a": VP(), "b": EDM()}, schema=schema)
    y, sigma = {"a": normal(3, 4, 2), "b": normal(3, 3)}, torch.tensor([0.1, 0.5, 2.0], dtype=F64)
    clean = denoise_at(denoise, y, sigma)
    for k in y:
        torch.testing.assert_close(clean[k], y[k] / (1 + sigma**2).reshape(3, *(1,) * (y[k].ndim - 1)))
    assert denoise_at(denoise, {k: v.float() for k, v in y.items()}, 0.5)["a"].dtype == torch.float32


@each_process
@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_blind_sigma(process, sigma):
    """Within 10 % of the truth for n = 64 dimensions, of which the data fill 4; the clean estimate is then nearly as
    good as with sigma given."""
    denoise = LowRank(process)
    y = denoise.noisy(300, sigma)
    found = blind_sigma(denoise, y)
    assert found.shape == (300,)
    assert found.median().item() == pytest.approx(sigma, rel=0.06)
    assert (found / sigma - 1).square().mean().sqrt() < 0.13  # one sample: 1 / sqrt(2 * 64) = .09
    x = normal(300, 4, seed=0) @ denoise.law.basis.T
    error = lambda sigma: (denoise_at(denoise, y, sigma) - x).square().mean()
    assert error(None) < 1.05 * error(sigma)
    torch.testing.assert_close(denoise_at(denoise, y), denoise_at(denoise, y, found))


@pytest.mark.parametrize("sigma", [0.5, 1.5, 4.0])
def test_likeliest_sigma(sigma):
    """Of x_0 ~ N(0, 1) the likelihood gives sigma^2 = |y|^2 / n - 1; the published rule misses it, or finds it in most
    samples where the noise is well above the data."""
    y = normal(50, 1024) + sigma * normal(50, 1024, seed=1)
    denoise, want = GaussianOracle(VP()), (y.square().mean(1) - 1).sqrt()
    by_signs = likeliest_sigma(denoise, y, hutchinson(Rng(0, torch.arange(50))))
    torch.testing.assert_close(by_signs, want, rtol=0.01, atol=0)  # D is linear and diagonal, the probe exact
    missed = (blind_sigma(denoise, y) / sigma - 1).abs() > 0.1
    assert missed.all() if sigma < 2 else not missed.all()
    few = likeliest_sigma(GaussianOracle(VP()), y[:, :8], exact)
    torch.testing.assert_close(few.clamp(0.2), (y[:, :8].square().mean(1) - 1).clamp(0.04).sqrt(), rtol=0.02, atol=0.03)


def test_likeliest_sigma_of_few_directions():
    denoise = LowRank(VP())
    y = denoise.noisy(100, 0.3)
    found = likeliest_sigma(denoise, y, hutchinson(Rng(0, torch.arange(100)), 4))
    assert (found / 0.3 - 1).square().mean().sqrt() < 0.11
    bias = lambda s: (s / 0.3 - 1).mean().abs()
    assert bias(found) < bias(blind_sigma(denoise, y))  # by the n - 4 of 64 directions that the rule leaves out


def test_excess_is_the_slope_of_the_likelihood():
    """d log p_sigma(y) / d log sigma = |eps|^2 + div D - n, by differences."""
    denoise, y, s = GaussianOracle(VP(), 0.4, 0.8), normal(6, 5), 0.6
    logp = lambda s: torch.distributions.Normal(0.4, (0.64 + s**2) ** 0.5).log_prob(y).sum(1)
    slope = (logp(s * 1.0001) - logp(s / 1.0001)) / (2 * torch.tensor(1.0001).log())
    got = noise_excess(denoise, y, torch.tensor(s, dtype=F64), exact)
    torch.testing.assert_close(5 * got, slope.double(), rtol=1e-3, atol=1e-3)
    plain = noise_excess(denoise, y, torch.tensor(s, dtype=F64))
    torch.testing.assert_close(got - plain, torch.full((6,), 0.64 / (0.64 + s**2), dtype=F64))


def test_ends_of_the_candidates():
    """Where the excess keeps its sign, the candidate that is least off: no extrapolation."""
    denoise = LowRank(VP())
    y = denoise.noisy(20, 0.3)
    high, low = torch.tensor([1.0, 2.0, 3.0], dtype=F64), torch.tensor([0.01, 0.02], dtype=F64)
    assert (blind_sigma(denoise, y, high) == 1).all()
    torch.testing.assert_close(blind_sigma(denoise, y, low), torch.full((20,), 0.02, dtype=F64))
    fine = blind_sigma(denoise, y, torch.logspace(-2, 1, 2000, dtype=F64))
    torch.testing.assert_close(blind_sigma(denoise, y), fine, rtol=4e-3, atol=0)


def test_padding_does_not_count():
    schema = {"x": Field("site")}
    denoise = GaussianOracle({"x": VP()}, std=0.01, schema=schema)
    y = {"x": 0.5 * normal(4, 9)}
    wide = {"x": torch.cat([y["x"], torch.full((4, 3), 50.0, dtype=F64)], 1)}
    mask = torch.arange(12).expand(4, 12) < 9
    torch.testing.assert_close(blind_sigma(denoise, y), blind_sigma(denoise, wide, mask=mask))
    signs_of = lambda *ids: hutchinson(Rng(0, torch.tensor(ids)))
    same = signs_of(0, 1, 2, 3)
    torch.testing.assert_close(likeliest_sigma(denoise, y, same), likeliest_sigma(denoise, wide, same, mask=mask))
    ragged = torch.arange(12).expand(4, 12) < torch.tensor([9, 5, 2, 7])[:, None]
    rows = likeliest_sigma(denoise, wide, same, mask=ragged)
    alone = {"x": wide["x"][1:2]}
    torch.testing.assert_close(rows[1:2], likeliest_sigma(denoise, alone, signs_of(1), mask=ragged[1:2]))
    clean = denoise_at(denoise, wide, mask=mask)
    torch.testing.assert_close(clean["x"][:, :9], denoise_at(denoise, y)["x"])


@given(size=st.integers(1, 6), seed=st.integers(0, 5))
@settings(max_examples=8, deadline=None)
def test_batch(size, seed):
    """A sample is the same, bit for bit, in any batch."""
    denoise, y, rng = GaussianOracle(VP(), 0.0, 0.2), normal(6, 16, seed=seed), Rng(seed, torch.arange(6))
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:size]
    assert torch.equal(denoise_at(denoise, y)[rows], denoise_at(denoise, y[rows]))
    whole, part = (likeliest_sigma(denoise, v, hutchinson(r)) for v, r in ((y, rng), (y[rows], rng[rows])))
    assert torch.equal(whole[rows], part)


def test_what_is_refused():
    denoise, y = GaussianOracle(VP()), normal(2, 3)
    with pytest.raises(ValueError, match=r"sigma must be positive.*got 0\.0"):
        denoise_at(denoise, y, 0.0)
    with pytest.raises(ValueError, match="within the process's largest noise; got 60"):
        denoise_at(GaussianOracle(VE(sigma_max=50)), y, 60.0)
    with pytest.raises(ValueError, match="must ascend, two or more"):
        blind_sigma(denoise, y, SIGMAS.flip(0))
    with pytest.raises(ValueError, match="must ascend, two or more"):
        likeliest_sigma(denoise, y, exact, SIGMAS[:1])
    with pytest.raises(ValueError, match="adds no Gaussian noise"):
        denoise_at(GaussianOracle(absorbing(3)), y, 0.1)
    with pytest.raises(ValueError, match="adds no Gaussian noise"):
        blind_sigma(GaussianOracle(absorbing(3)), y)
