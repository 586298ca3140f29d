"""The low-rank mixture with true parameters is exact, for any ranks, variances and means (S30, check 1)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import LowRankMixtureOracle, MixtureOracle, normal
from unisci.networks.low_rank import LowRankMixture, completed, random_bases
from unisci.processes.gaussian import VP

F64 = torch.float64
WEIGHTS = torch.tensor([0.2, 0.5, 0.3], dtype=F64)


def bases(dim: int, *ranks: int) -> list[torch.Tensor]:
    return [torch.linalg.qr(normal(dim, r, seed=k))[0] for k, r in enumerate(ranks)]


def general() -> LowRankMixture:
    variances = [normal(r, seed=r).exp() for r in (2, 4, 1)]
    return LowRankMixture(bases(8, 2, 4, 1), WEIGHTS, variances, normal(3, 8, seed=9))


@pytest.mark.parametrize("t", [0.01, 0.1, 0.5, 0.9, 1.0])
def test_is_the_oracle(t):
    t, x = torch.tensor(t, dtype=F64), normal(6, 8)
    model, oracle = LowRankMixture(bases(8, 2, 4, 1), WEIGHTS), LowRankMixtureOracle(VP(), bases(8, 2, 4, 1), WEIGHTS)
    torch.testing.assert_close(model(x, *VP().level(t)), oracle(x, t), rtol=1e-10, atol=1e-10)


@given(alpha=st.floats(0.01, 1), sigma=st.floats(0.03, 3))
@settings(max_examples=20, deadline=None)
def test_obeys_tweedie_and_dense_densities(alpha, sigma):
    """alpha D = x + sigma^2 grad log p, where p is a mixture of multivariate normals with full covariances."""
    model, x, (alpha, sigma) = general(), normal(6, 8).requires_grad_(), torch.tensor([alpha, sigma], dtype=F64)
    logp = model.log_density(x, alpha, sigma)
    (score,) = torch.autograd.grad(logp.sum(), x)
    difference = ((alpha * model(x, alpha, sigma) - x) / sigma**2 - score).abs().max()
    assert difference < 1e-8 * max(1.0, score.abs().max().item())
    covariances = [
        alpha**2 * u * c[: u.shape[1]] @ u.T + sigma**2 * torch.eye(8, dtype=F64)
        for u, c in zip(model.bases(), model.variances, strict=True)
    ]
    parts = [
        torch.distributions.MultivariateNormal(alpha * m, s) for m, s in zip(model.means, covariances, strict=True)
    ]
    joint = WEIGHTS.log() + torch.stack([p.log_prob(x) for p in parts], 1)
    torch.testing.assert_close(model.log_joint(x, alpha, sigma), joint, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(logp, joint.logsumexp(1))


def test_full_rank_is_a_gaussian_mixture():
    means, stds = normal(3, 4, seed=1), torch.tensor([0.3, 0.5, 1.0], dtype=F64)
    model = LowRankMixture([torch.eye(4, dtype=F64)] * 3, WEIGHTS, [s.expand(4) ** 2 for s in stds], means)
    oracle, t, x = MixtureOracle(VP(), means, stds, WEIGHTS), torch.tensor(0.4, dtype=F64), normal(5, 4)
    torch.testing.assert_close(model(x, *VP().level(t)), oracle(x, t))
    torch.testing.assert_close(model.log_density(x, *VP().level(t)), oracle.logp(x, t))


def test_levels_per_sample():
    model, x, t = general(), normal(3, 8), torch.tensor([0.2, 0.5, 0.9], dtype=F64)
    rows = torch.cat([model(x[i : i + 1], *VP().level(t[i])) for i in range(3)])
    for alpha, sigma in (VP().level(t), VP().level(t[:, None])):
        torch.testing.assert_close(model(x, alpha, sigma), rows)


def test_small_noise_stays_finite_in_float32():
    """phi = alpha^2 / (2 sigma^2 (alpha^2 + sigma^2)) is 5e11 here; only log space holds it."""
    model, point = LowRankMixture([u.float() for u in bases(8, 2, 4)]), bases(8, 2, 4)[0].float() @ torch.ones(2)
    out = model(point[None], torch.tensor(1.0), torch.tensor(1e-6))
    torch.testing.assert_close(out[0], point)


def test_bases_stay_orthonormal_and_gradients_reach_them():
    torch.manual_seed(0)
    model = LowRankMixture(random_bases(6, [2, 3]))
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["frames", "logits"]
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    model.requires_grad_()
    model(normal(4, 6).float(), torch.tensor(0.8), torch.tensor(0.6)).square().sum().backward()
    assert all(p.grad.abs().max() > 0 for p in model.parameters())
    assert model.log_variances.grad[0, 2] == 0
    optimizer.step()
    for u, r in zip(model.bases(), (2, 3), strict=True):
        torch.testing.assert_close(u.T @ u, torch.eye(r))
    again = LowRankMixture(random_bases(6, [2, 3]))
    again.load_state_dict(model.state_dict())
    x = normal(4, 6).float()
    assert torch.equal(again(x, torch.tensor(0.8), torch.tensor(0.6)), model(x, torch.tensor(0.8), torch.tensor(0.6)))


def test_random_bases_are_random_and_completed_ones_orthonormal():
    torch.manual_seed(0)
    u, v = random_bases(7, [3, 3])
    assert (u - v).abs().max() > 0.1
    torch.testing.assert_close(u.T @ u, torch.eye(3))
    axes = torch.eye(7, dtype=F64)[:, :2]
    full = completed(axes, 5)
    torch.testing.assert_close(full.T @ full, torch.eye(5, dtype=F64))
    torch.testing.assert_close(full[:, :2].abs(), axes)
    assert completed(u, 3).shape == (7, 3)


def test_bad_input_is_refused():
    for ranks in ([], [0, 2], [3, 8]):
        with pytest.raises(ValueError, match=r"ranks must lie in 1, \.\.\., 7"):
            random_bases(7, ranks)
    good = bases(6, 2)[0]
    for bad in (2 * good, bases(5, 2)[0], good[:, :0], torch.full((6, 2), math.nan, dtype=F64)):
        with pytest.raises(ValueError, match="a basis must have orthonormal columns of length 6"):
            LowRankMixture([good, bad])
