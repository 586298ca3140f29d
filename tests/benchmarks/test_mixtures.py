"""The laws of the solver benchmark: the denoiser is the score's, the laws are what they say, and stand side by side."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from benchmarks.mixtures import Mixture, draw, mixture, side_by_side
from unisci.processes.gaussian import VP, Cosine, to_score

DOUBLE = torch.float64


def at(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=DOUBLE)


@pytest.mark.parametrize("dim", [2, 8, 64])
@pytest.mark.parametrize("t", [0.01, 0.3, 1.0])
def test_the_denoiser_is_the_gradient_of_logp(dim, t):
    law = mixture(VP(), dim, seed=1)
    alpha, sigma = law.process.level(at(t))
    clean = draw(law, 32, torch.Generator().manual_seed(0))
    x = (alpha * clean + sigma * torch.randn(32, dim, dtype=DOUBLE)).requires_grad_()
    (score,) = torch.autograd.grad(law.logp(x, at(t)).sum(), x)
    torch.testing.assert_close(to_score(law(x, at(t)), x, alpha, sigma), score, rtol=1e-8, atol=1e-8)


def test_logp_is_that_of_the_noised_mixture():
    law, t = mixture(VP(), 8, seed=2), at(0.1)
    alpha, sigma = law.process.level(t)
    scale = (alpha**2 * law.stds**2 + sigma**2).sqrt()[:, None].expand(12, 8)
    parts = Independent(Normal(alpha * law.means, scale), 1)
    expected = MixtureSameFamily(Categorical(law.weights), parts)
    x = draw(law, 32, torch.Generator().manual_seed(4))
    torch.testing.assert_close(law.logp(x, t), expected.log_prob(x))


def test_at_time_zero_the_denoiser_returns_the_state():
    law = mixture(VP(), 2, seed=0)
    x = draw(law, 16, torch.Generator().manual_seed(1))
    torch.testing.assert_close(law(x, at(0.0)), x)


def test_draws_have_the_mean_and_covariance_of_the_law():
    means, n = torch.tensor([[2.0, 0.0], [-1.0, 3.0]], dtype=DOUBLE), 40_000
    law = Mixture(VP(), means, torch.tensor([0.2, 0.4], dtype=DOUBLE), torch.tensor([0.8, 0.2], dtype=DOUBLE))
    x = draw(law, n, torch.Generator().manual_seed(2))
    mean = law.weights @ means
    away = means - mean
    covariance = law.weights @ law.stds**2 * torch.eye(2) + away.T @ (law.weights[:, None] * away)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.04)
    torch.testing.assert_close(x.T.cov(), covariance.double(), rtol=0, atol=0.04)


def test_laws_are_seeded_and_as_described():
    law, again, other = mixture(VP(), 8, seed=5), mixture(VP(), 8, seed=5), mixture(VP(), 8, seed=6)
    assert torch.equal(law.means, again.means) and not torch.equal(law.means, other.means)
    assert law.means.shape == (12, 8) and law.means.dtype == DOUBLE
    assert 0.2 <= float(law.stds.min()) <= float(law.stds.max()) <= 0.4
    torch.testing.assert_close(law.weights.sum(), at(1.0))
    assert float(law.weights.max() / law.weights.min()) <= 3
    assert 1.2 < float(mixture(VP(), 64, seed=0).means.std()) < 1.8


def test_laws_side_by_side_are_the_laws():
    laws = [mixture(Cosine(), 3, seed=s) for s in range(4)]
    x, t = torch.randn(4, 10, 3, dtype=DOUBLE), at(0.4)
    together = side_by_side(laws)
    for i, law in enumerate(laws):
        torch.testing.assert_close(together(x, t)[i], law(x[i], t))
        torch.testing.assert_close(together.logp(x, t)[i], law.logp(x[i], t))


def test_float32_follows_float64():
    law = mixture(VP(), 64, seed=4)
    x = draw(law, 32, torch.Generator().manual_seed(3))
    exact = law(x, at(0.2))
    found = law(x.float(), at(0.2).float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=1e-4)
