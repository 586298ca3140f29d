"""PCA, K-subspaces, EM and the diffusion loss find the same subspaces, given enough samples (S30)."""

import itertools
import math

import pytest
import torch

from tests.oracles import LowRankMixtureOracle, normal
from unisci.networks.low_rank import LowRankMixture, random_bases
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.theory.subspaces import (
    Clustering,
    LowRankDenoise,
    diffusion_loss,
    fit_mixture,
    fit_pca,
    k_subspaces,
    principal_angles,
    sample_budget,
    train_bases,
)

F64 = torch.float64


def basis(dim: int, rank: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(normal(dim, rank, seed=seed))[0]


def distance(u, v) -> float:
    return (u @ u.T - v @ v.T).norm().item()


def mixture(dim: int, ranks: list[int], counts: list[int], seed: int = 0):
    """True bases, noise-free samples of each, and their labels."""
    bases = [basis(dim, r, 100 * seed + k) for k, r in enumerate(ranks)]
    x = torch.cat(
        [
            normal(n, u.shape[1], seed=100 * seed + 50 + k) @ u.T
            for k, (u, n) in enumerate(zip(bases, counts, strict=True))
        ]
    )
    return bases, x, torch.arange(len(ranks)).repeat_interleave(torch.tensor(counts))


def accuracy(labels, truth, k: int) -> float:
    return max((torch.tensor(p)[labels] == truth).double().mean().item() for p in itertools.permutations(range(k)))


def test_principal_angles():
    """Two planes that share a line and meet at 1e-9 rad, where a cosine is 1; one more dimension changes nothing."""
    u = torch.eye(4, dtype=F64)[:, :2]
    for angle in (1e-9, 0.3, math.pi / 2):
        v = torch.tensor([[1, 0, 0, 0], [0, math.cos(angle), math.sin(angle), 0]], dtype=F64).T
        torch.testing.assert_close(principal_angles(u, v), torch.tensor([0, angle], dtype=F64), rtol=1e-6, atol=1e-15)
    line = v[:, 1:]
    torch.testing.assert_close(principal_angles(line, u), torch.tensor([math.pi / 2], dtype=F64))
    p, q = basis(9, 4, 1), basis(9, 4, 2)
    assert math.sqrt(2) * principal_angles(p, q).sin().norm() == pytest.approx(distance(p, q))


def test_recovery_needs_as_many_samples_as_dimensions():
    """S30, check 2: the mean error of 50 runs, n = 32, d = 4: below d samples sqrt(2 (d - N)), from d on none."""
    expected = {2: 1.93, 3: 1.38, 4: 0.0, 5: 0.0}
    for n, error in expected.items():
        runs = [
            distance(u, fit_pca(normal(n, 4, seed=1000 + seed) @ u.T, 4))
            for seed, u in ((seed, basis(32, 4, seed)) for seed in range(50))
        ]
        assert sum(runs) / 50 == pytest.approx(error, abs=0.03 if n < 4 else 1e-6)


def test_the_diffusion_loss_is_pca():
    """S30, check 3: n = 16, d = 3, N = 200, a little noise off the subspace."""
    u, noise = basis(16, 3, 0), 0.01 * normal(200, 16, seed=2)
    x, rng = normal(200, 3, seed=1) @ u.T + noise, Rng(0, torch.arange(200))
    pca = fit_pca(x, 3)
    torch.manual_seed(0)
    model = LowRankMixture(random_bases(16, [3])).double()
    start = principal_angles(model.bases()[0].detach(), pca).max()
    losses = train_bases(model, VP(), x, rng, steps=300)
    assert principal_angles(model.bases()[0].detach(), pca).max() < 1e-2 < 0.5 < start
    assert losses[-20:].mean() < 0.5 * losses[:20].mean()
    exact, random = LowRankMixture([pca]), LowRankMixture([basis(16, 3, 5)])
    for t in torch.linspace(0.05, 1, 8, dtype=F64):
        assert diffusion_loss(exact, VP(), x, t, rng) < diffusion_loss(random, VP(), x, t, rng)


def test_the_diffusion_loss_has_its_closed_form():
    """E |g U U^T (alpha x + sigma eps) - x|^2 for one component, g = alpha / (alpha^2 + sigma^2), times the weight."""
    n, u, t = 20000, basis(6, 2, 0), torch.tensor(0.3, dtype=F64)
    x = normal(1, 6, seed=1).expand(n, 6)
    a, s = VP().level(t)
    g, inside = a / (a**2 + s**2), (x[0] @ u).square().sum()
    expected = x[0].square().sum() - (2 * g * a - (g * a) ** 2) * inside + 2 * (g * s) ** 2
    loss = diffusion_loss(LowRankMixture([u]), VP(), x, t, Rng(0, torch.arange(n)))
    assert loss.item() == pytest.approx(((a**2 + s**2) / s**2 * expected).item(), rel=0.02)
    one_each = diffusion_loss(LowRankMixture([u]), VP(), x, t.expand(n), Rng(0, torch.arange(n)))
    torch.testing.assert_close(one_each, loss)


def test_training_is_clustering():
    """Two subspaces of R^20: the loss alone, without labels, finds them, as K-subspaces does."""
    bases, x, truth = mixture(20, [3, 3], [100, 100])
    torch.manual_seed(0)
    model = LowRankMixture(random_bases(20, [3, 3])).double()
    train_bases(model, VP(), x, Rng(0, torch.arange(200)), steps=300)
    learnt = [u.detach() for u in model.bases()]
    angles = [[principal_angles(v, u).max().item() for u in bases] for v in learnt]
    assert sorted(min(row) < 1e-2 for row in angles) == [True, True]
    assert {row.index(min(row)) for row in angles} == {0, 1}
    joint = model.log_joint(x, torch.tensor(1.0, dtype=F64), torch.tensor(0.1, dtype=F64))
    assert accuracy(joint.argmax(1), truth, 2) == 1
    assert accuracy(k_subspaces(x, [3, 3], Rng(0, torch.arange(5))).labels, truth, 2) == 1


def test_k_subspaces_finds_the_clusters():
    """S30, check 4: K = 3, d = 3, n = 30."""
    found = 0
    for seed in range(10):
        bases, x, truth = mixture(30, [3, 3, 3], [50] * 3, seed)
        clusters = k_subspaces(x, [3, 3, 3], Rng(seed, torch.arange(10)))
        found += accuracy(clusters.labels, truth, 3) == 1 and clusters.cost < 1e-20
    assert found >= 9
    bases, x, _ = mixture(30, [3, 3, 3], [2] * 3)
    few = k_subspaces(x, [3, 3, 3], Rng(0, torch.arange(10))).bases
    assert all(min(distance(u, v) for v in few) > 1 for u in bases)


def test_one_farthest_first_start_is_enough_for_many_clusters():
    for seed in range(3):
        _, x, truth = mixture(20, [2] * 6, [30] * 6, seed)
        assert accuracy(k_subspaces(x, [2] * 6, Rng(seed, torch.arange(1))).labels, truth, 6) == 1


def test_k_subspaces_ends_at_a_fixed_point():
    """With noise: each basis is the PCA of its rows, and each row is with its nearest basis."""
    _, x, truth = mixture(30, [3] * 5, [40] * 5)
    x = x + 0.1 * normal(200, 30, seed=9)
    clusters = k_subspaces(x, [3] * 5, Rng(0, torch.arange(3)))
    for k, u in enumerate(clusters.bases):
        assert principal_angles(u, fit_pca(x[clusters.labels == k], 3)).max() < 1e-9
    residual = torch.stack([(x - x @ u @ u.T).square().sum(1) for u in clusters.bases], 1)
    assert torch.equal(residual.argmin(1), clusters.labels)
    assert accuracy(clusters.labels, truth, 5) > 0.97


def test_k_subspaces_of_unequal_ranks():
    """The largest rank fits all that lies in a smaller one, so that only the cost of all restarts tells."""
    _, x, truth = mixture(12, [1, 4, 2], [30, 60, 40])
    one, many = (k_subspaces(x, [1, 4, 2], Rng(3, torch.arange(n))) for n in (1, 30))
    assert many.cost < 1e-20 and many.cost <= one.cost
    assert torch.equal(many.labels, truth)
    assert [u.shape[1] for u in many.bases] == [1, 4, 2]
    residual = torch.stack([(x - x @ u @ u.T).square().sum(1) for u in one.bases], 1).amin(1).sum()
    torch.testing.assert_close(one.cost, residual)


def noisy_mixture(n: int = 2000):
    g = torch.Generator().manual_seed(0)
    bases, means = [basis(20, r, r) for r in (2, 3)], 0.3 * normal(2, 20, seed=7)
    spectra = [torch.tensor([4.0, 1.0], dtype=F64), torch.tensor([2.0, 1.0, 0.5], dtype=F64)]
    k = (torch.rand(n, generator=g) < 0.3).long()
    parts = [
        means[j] + (normal(n, len(c), seed=j) * c.sqrt()) @ u.T
        for j, (u, c) in enumerate(zip(bases, spectra, strict=True))
    ]
    return bases, means, spectra, k, torch.where(k[:, None] == 0, *parts) + 0.1 * normal(n, 20, seed=3)


def test_em_recovers_the_mixture():
    """From labels of which a third are drawn anew: weights, means, bases, variances and noise."""
    bases, means, spectra, k, x = noisy_mixture()
    labels = torch.where(torch.rand(len(k), generator=torch.Generator().manual_seed(1)) < 0.35, 1 - k, k)
    fit = fit_mixture(x, Clustering([basis(20, 2, 5), basis(20, 3, 6)], labels, torch.zeros(())), steps=40)
    assert fit.noise.item() == pytest.approx(0.1, rel=0.02)
    assert (fit.log_likelihood.diff() > -1e-9).all() and fit.log_likelihood[-1] > fit.log_likelihood[0] + 1
    share = k.double().mean().item()
    torch.testing.assert_close(fit.model.weights, torch.tensor([1 - share, share], dtype=F64), rtol=0, atol=0.01)
    torch.testing.assert_close(fit.model.means.data, means, rtol=0, atol=0.15)
    for u, v, c, own in zip(bases, fit.model.bases(), spectra, fit.model.variances, strict=True):
        assert principal_angles(u, v.detach()).max() < 0.05
        torch.testing.assert_close(own[: len(c)].detach(), c, rtol=0.15, atol=0)


def test_em_of_one_component_is_probabilistic_pca():
    """Tipping & Bishop (1999): variances are the largest eigenvalues less the noise, the mean of the others."""
    x = normal(200, 2, seed=1) @ basis(6, 2, 0).T + 0.5 * normal(200, 6, seed=2) + 1
    fit = fit_mixture(x, Clustering([basis(6, 2, 3)], torch.zeros(200, dtype=torch.long), torch.zeros(())), steps=1)
    values = torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0)
    torch.testing.assert_close(fit.noise, values[2:].mean().sqrt())
    torch.testing.assert_close(fit.model.variances[0].detach(), values[:2] - values[2:].mean())
    torch.testing.assert_close(fit.model.means[0].detach(), x.mean(0))


def test_em_improves_on_hard_labels():
    """Noise makes rows near the origin ambiguous; EM from K-subspaces is likelier than its first step."""
    _, x, truth = mixture(12, [2, 3], [300, 300])
    x = x + 0.2 * normal(600, 12, seed=8)
    start = k_subspaces(x, [2, 3], Rng(0, torch.arange(10)))
    fit = fit_mixture(x, start)
    assert fit.log_likelihood[-1] > fit.log_likelihood[0] + 0.003
    assert fit.noise.item() == pytest.approx(0.2, rel=0.03)
    one = torch.ones((), dtype=F64)
    soft = fit.model.log_joint(x, one, fit.noise).argmax(1)
    assert accuracy(soft, truth, 2) > max(0.9, accuracy(start.labels, truth, 2))


def test_em_on_exact_low_rank_data_stops_at_the_floor():
    _, x, truth = mixture(10, [2, 2], [30, 30])
    clusters = k_subspaces(x, [2, 2], Rng(0, torch.arange(5)))
    fit = fit_mixture(x, clusters, steps=5, floor=1e-2)
    assert fit.noise.item() == pytest.approx(1e-2 * x.square().mean().sqrt().item())
    assert fit.log_likelihood.isfinite().all()
    few = fit_mixture(x[28:33], Clustering(clusters.bases, truth[28:33], torch.zeros(())), steps=3)
    assert few.log_likelihood.isfinite().all() and few.model.frames.isfinite().all()


def test_generated_samples_lie_on_the_subspaces():
    """S30, check 5, and the Denoise sees a state of any shape as a vector."""
    bases, weights, n = [basis(24, r, r) for r in (2, 4, 3)], torch.tensor([0.3, 0.5, 0.2], dtype=F64), 2000
    denoise = LowRankDenoise(VP(), LowRankMixture(bases, weights).requires_grad_(False))
    x = VP().prior(torch.zeros(n, 24, dtype=F64), Rng(0, torch.arange(n)))
    out = run(denoise, x, compile_solver(VP(), grid(VP(), 60), "dpm++2m"))
    off = torch.stack([(out - out @ u @ u.T).square().sum(1) for u in bases], 1) / out.square().sum(1, keepdim=True)
    assert off.amin(1).max() < 1e-4
    share, error = off.argmin(1).bincount(minlength=3) / n, (weights * (1 - weights) / n).sqrt()
    assert ((share - weights).abs() < 3 * error).all()
    t, oracle = torch.full((4,), 0.3, dtype=F64), LowRankMixtureOracle(VP(), bases, weights)
    torch.testing.assert_close(denoise(x[:4].reshape(4, 6, 4), t), oracle(x[:4], t).reshape(4, 6, 4))


def test_sample_budget():
    assert sample_budget([7, 7]) == 14
    assert sample_budget([2, 4], [0.5, 0.5]) == 8
    assert sample_budget([3, 4], [0.1, 0.9]) == 30
    assert sample_budget([3, 4], [1, 9]) == 30
    assert sample_budget([3]) == 3


def test_bad_input_is_refused():
    x = normal(5, 4)
    for rank in (0, 5):
        with pytest.raises(ValueError, match=f"rank {rank} does not lie in 1"):
            fit_pca(x, rank)
    with pytest.raises(ValueError, match="2 subspaces need as many rows, got 1"):
        k_subspaces(x[:1], [1, 1], Rng(0, torch.arange(1)))
    with pytest.raises(ValueError, match="leave room for noise"):
        fit_mixture(x, Clustering([torch.eye(4, dtype=F64)], torch.zeros(5, dtype=torch.long), torch.zeros(())))
    for ranks, weights in (([1, 2], [1.0]), ([1, 2], [0.0, 1.0])):
        with pytest.raises(ValueError, match="need as many positive weights"):
            sample_budget(ranks, weights)
