"""Diffusion learns low-dimensional data by subspace clustering (Wang et al., arXiv 2409.02426).

For the low-rank mixture of `unisci.networks.low_rank` with variances 1, the diffusion loss over orthonormal U_k is

    one component    max_U sum_i |U^T x_i|^2                              PCA: `fit_pca`
    well separated   min sum_k sum_{i in C_k} |x_i - U_k U_k^T x_i|^2     K-subspaces: `k_subspaces`

which `train_bases` shows by gradients and `fit_mixture` (EM, Tipping & Bishop 1999) solves softly, with weights,
variances and means. Recovery needs N_k >= d_k samples of each component: `sample_budget`. Subspaces are not invariant
under rotation: for molecules use invariant descriptors, or one frame.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.networks.low_rank import LowRankMixture, completed
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng


@dataclass(frozen=True, eq=False)
class LowRankDenoise:
    """The `Denoise` of a low-rank mixture for states (B, ...), seen as (B, D); t > 0 a scalar or (B,)."""

    process: Gaussian
    model: LowRankMixture
    schema = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        flat = x.flatten(1)
        return self.model(flat, *level_for(self.process, t, flat)).reshape(x.shape)


def fit_pca(x: Tensor, rank: int) -> Tensor:
    """U (D, rank) that maximises sum_i |U^T x_i|^2 over x (n, D), about the origin. With fewer than `rank` rows the
    other columns are arbitrary. Raises ValueError for a rank not in 1, ..., D."""
    if x.ndim != 2 or not 1 <= rank <= x.shape[1]:
        raise ValueError(f"rank {rank} does not lie in 1, ..., D of data (n, D), here {tuple(x.shape)}")
    _, _, vt = torch.linalg.svd(x, full_matrices=False)
    return completed(vt[:rank].T, rank)


def principal_angles(u: Tensor, v: Tensor) -> Tensor:
    """The angles between the spans of u (D, p) and v (D, q) in radians, increasing, (min(p, q),). Bases orthonormal."""
    if u.shape[1] < v.shape[1]:
        u, v = v, u
    cosines = torch.linalg.svdvals(u.T @ v)
    sines = torch.linalg.svdvals(v - u @ (u.T @ v)).flip(0)
    return torch.atan2(sines, cosines)


class Clustering(NamedTuple):
    """K-subspaces: bases (D, d_k), the label of each row (n,), and cost sum_i |x_i - U U^T x_i|^2 ()."""

    bases: list[Tensor]
    labels: Tensor
    cost: Tensor


def _residuals(x: Tensor, bases: Sequence[Tensor]) -> Tensor:
    """|x_i - U_k U_k^T x_i|^2, (n, K)."""
    return torch.stack([(x - x @ u @ u.T).square().sum(1) for u in bases], 1)


def _farthest_first(x: Tensor, ranks: Sequence[int], first: int) -> list[Tensor]:
    """Bases of the rows most parallel to a seed; each next seed is the row farthest from the bases so far."""
    unit = torch.nn.functional.normalize(x, dim=1)
    bases, seed = [], first
    for rank in ranks:
        near = (unit @ unit[seed]).abs().topk(min(rank + 1, len(x))).indices
        bases.append(fit_pca(unit[near], rank))
        seed = int(_residuals(unit, bases).amin(1).argmax())
    return bases


def k_subspaces(x: Tensor, ranks: Sequence[int], rng: Rng, steps: int = 100) -> Clustering:
    """The best of len(rng.ids) restarts on x (n, D): label each row by its nearest subspace, refit each by PCA, until
    no label changes. Subspaces pass through the origin; unequal ranks need many restarts, for a large one fits the data
    of a small one too. Raises ValueError for fewer rows than subspaces."""
    if len(x) < len(ranks):
        raise ValueError(f"{len(ranks)} subspaces need as many rows, got {len(x)}")
    best = None
    for first in (rng.words("first", 0, (len(rng.ids),), 0) % len(x)).tolist():
        bases, labels = _farthest_first(x, ranks, first), None
        for _ in range(steps):
            before, labels = labels, _residuals(x, bases).argmin(1)
            if before is not None and torch.equal(before, labels):
                break
            bases = [fit_pca(x[labels == k], r) if bool((labels == k).any()) else bases[k] for k, r in enumerate(ranks)]
        cost, labels = _residuals(x, bases).min(1)
        if best is None or cost.sum() < best.cost:
            best = Clustering(bases, labels, cost.sum())
    return best


class MixtureFit(NamedTuple):
    """EM: the mixture, the standard deviation of the isotropic noise beside it, and the mean log likelihood in nats
    after each step (steps,), which never falls."""

    model: LowRankMixture
    noise: Tensor
    log_likelihood: Tensor


def fit_mixture(x: Tensor, start: Clustering, steps: int = 50, floor: float = 1e-3) -> MixtureFit:
    """Maximum likelihood of weights, means, bases and variances of x = x_0 + noise, x (n, D), from a clustering.

    floor: the least noise, in units of the root mean square of x, for the likelihood of exactly low-rank data has no
    bound. Raises ValueError where a rank is D, which leaves no room for noise.
    """
    ranks = [u.shape[1] for u in start.bases]
    if max(ranks) >= x.shape[1]:
        raise ValueError(f"ranks {ranks} must be below D = {x.shape[1]}, to leave room for noise")
    least = (floor * x.square().mean().sqrt()) ** 2
    share, trace = torch.nn.functional.one_hot(start.labels, len(ranks)).to(x), []
    for _ in range(steps):
        model, variance = _maximise(x, share, ranks, least)
        with torch.no_grad():
            joint = model.log_joint(x, torch.ones_like(variance), variance.sqrt())
        trace.append(joint.logsumexp(1).mean())
        share = joint.softmax(1)
    return MixtureFit(model, variance.sqrt(), torch.stack(trace))


def _maximise(x: Tensor, share: Tensor, ranks: list[int], least: Tensor) -> tuple[LowRankMixture, Tensor]:
    """The likeliest mixture and noise variance, given the share (n, K) of each row in each component."""
    weights = share.mean(0).clamp(min=1e-12)
    means = (share.T @ x) / (len(x) * weights[:, None])
    bases, spectra, left = [], [], x.new_zeros(())
    for k, r in enumerate(ranks):
        rows = (x - means[k]) * (share[:, k : k + 1] / (len(x) * weights[k])).sqrt()
        _, s, vt = torch.linalg.svd(rows, full_matrices=False)
        bases.append(completed(vt[:r].T, r))
        spectra.append(torch.nn.functional.pad(s.square(), (0, max(r - len(s), 0)))[:r])
        left = left + weights[k] * s[r:].square().sum()
    room = sum(w * (x.shape[1] - r) for w, r in zip(weights, ranks, strict=True))
    noise = torch.maximum(left / room, least)
    variances = [torch.maximum(c - noise, least * 1e-6) for c in spectra]
    return LowRankMixture(bases, weights, variances, means), noise


def diffusion_loss(model: LowRankMixture, process: Gaussian, x: Tensor, t: Tensor, rng: Rng) -> Tensor:
    """Mean of (alpha^2 + sigma^2) / sigma^2 |E[x_0 | x_t] - x_0|^2 over the rows of x (n, D), at times t > 0, () or
    (n,); rng.ids are the ids of the rows. The weight is that of `unisci.denoiser` for data of scale 1."""
    noised = process.perturb(x, t, rng)
    alpha, sigma = level_for(process, t, noised)
    return (((alpha / sigma) ** 2 + 1) * (model(noised, alpha, sigma) - x) ** 2).sum(1).mean()


def train_bases(
    model: LowRankMixture, process: Gaussian, x: Tensor, rng: Rng, steps: int = 1000, lr: float = 0.02
) -> Tensor:
    """Train the mixture in place by the diffusion loss, times uniform: Adam, lr falling to 0. The losses (steps,)."""
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 1e-3, steps)
    losses = []
    for k in range(steps):
        draw = rng.at(k)
        t = 1e-3 + (1 - 1e-3) * draw.uniform("t", 0, (len(x),), 0)
        loss = diffusion_loss(model, process, x, t, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    return torch.stack(losses)


def sample_budget(ranks: Sequence[int], weights: Sequence[float] | None = None) -> int:
    """The least number of samples that gives every component d_k of them on average, max_k d_k / pi_k.

    A lower bound: it suffices for exactly low-rank data about the origin, alike in all their directions; noise, decay
    of the variances and curvature need more. Raises ValueError where ranks and weights do not match.
    """
    weights = [1 / len(ranks)] * len(ranks) if weights is None else weights
    if len(weights) != len(ranks) or not all(w > 0 for w in weights):
        raise ValueError(f"ranks {list(ranks)} need as many positive weights, got {list(weights)}")
    total = sum(weights)
    return math.ceil(max(d * total / w for d, w in zip(ranks, weights, strict=True)) - 1e-9)
