"""Exact denoisers: laws so simple that E[x_0 | x_t] is a formula. Each has `process` and `schema` as any Denoise."""

import math
from typing import Any

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.gaussian import level_for, time
from unisci.solvers.level import Level, levels
from unisci.state import State, Time, fieldwise


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal float64 numbers, the same at each call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class GaussianOracle:
    """x_0 ~ N(mean, std^2), elementwise. State: a tensor, or a dict, for which each argument may be a dict by field."""

    def __init__(self, process: Any, mean: Any = 0.0, std: Any = 1.0, schema: Schema | None = None):
        self.process, self.mean, self.std, self.schema = process, mean, std, schema

    def __call__(self, x: State, t: Time) -> State:
        return fieldwise(self._clean, x, t, self.process, self.mean, self.std)

    @staticmethod
    def _clean(x: Tensor, t: Tensor, process: Any, m: Any, c: Any) -> Tensor:
        alpha, sigma = level_for(process, t, x)
        return m + alpha * c**2 / (alpha**2 * c**2 + sigma**2) * (x - alpha * m)

    def flow(self, x: State, t: Time, s: Time) -> State:
        """Where the probability-flow ODE takes x from time t to time s: the standardised value is kept."""
        return fieldwise(self._flow, x, t, s, self.process, self.mean, self.std)

    @staticmethod
    def _flow(x: Tensor, t: Tensor, s: Tensor, process: Any, m: Any, c: Any) -> Tensor:
        (a, b), (e, d) = level_for(process, t, x), level_for(process, s, x)
        return e * m + ((e**2 * c**2 + d**2) / (a**2 * c**2 + b**2)) ** 0.5 * (x - a * m)


class MixtureOracle:
    """x_0 ~ sum_k weights_k N(means_k, stds_k^2 I): means (K, D), stds and weights (K,), state (B, D)."""

    schema = None

    def __init__(self, process: Any, means: Tensor, stds: Tensor, weights: Tensor):
        self.process, self.means, self.stds, self.weights = process, means, stds, weights

    def _parts(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x - alpha mean (B, K, D), the variance (B or 1, K), log weight + log density (B, K), alpha (B or 1, 1)."""
        alpha, sigma = (v.reshape(-1, 1) for v in level_for(self.process, t, x))
        means, stds, weights = (v.to(x) for v in (self.means, self.stds, self.weights))
        away = x[:, None] - alpha[..., None] * means
        variance = alpha**2 * stds**2 + sigma**2
        density = -0.5 * (away.square().sum(-1) / variance + x.shape[1] * (2 * math.pi * variance).log())
        return away, variance, weights.log() + density, alpha

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        away, variance, joint, alpha = self._parts(x, t)
        gain = alpha * self.stds.to(x) ** 2 / variance
        return (joint.softmax(1)[..., None] * (self.means.to(x) + gain[..., None] * away)).sum(1)

    def logp(self, x: Tensor, t: Tensor) -> Tensor:
        """The log density of x_t at x (B, D), (B,)."""
        return self._parts(x, t)[2].logsumexp(1)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """n clean draws (n, D)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        xi = torch.randn(n, self.means.shape[1], generator=generator, dtype=self.means.dtype)
        return self.means[k] + self.stds[k, None] * xi


def three_modes(process: Any, dtype: torch.dtype = torch.float64) -> MixtureOracle:
    """Three components in the plane, of different widths: the test law of S35."""
    means = torch.tensor([[-2.0, 0.0], [1.5, 1.0], [0.5, -1.5]], dtype=dtype)
    stds, weights = torch.tensor([0.3, 0.2, 0.4], dtype=dtype), torch.tensor([0.3, 0.4, 0.3], dtype=dtype)
    return MixtureOracle(process, means, stds, weights)


class LowRankMixtureOracle:
    """x_0 ~ sum_k weights_k N(0, U_k U_k^T), U_k (D, r_k) with orthonormal columns (arXiv 2409.02426); state (B, D).

    For sigma > 0: the density off the subspaces is what tells them apart.
    """

    schema = None

    def __init__(self, process: Any, bases: list[Tensor], weights: Tensor):
        self.process, self.bases, self.weights = process, bases, weights

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.reshape(-1, 1) for v in level_for(self.process, t, x))
        total = alpha**2 + sigma**2
        ranks = torch.tensor([u.shape[1] for u in self.bases]).to(x)
        inside = torch.stack([x @ u.to(x) @ u.to(x).T for u in self.bases], 1)  # (B, K, D)
        # By Woodbury, |x|^2 under the inverse covariance is |x|^2 / sigma^2 - 2 phi |U^T x|^2.
        phi = alpha**2 / (2 * sigma**2 * total)
        joint = self.weights.to(x).log() + ranks / 2 * (sigma**2 / total).log() + phi * inside.square().sum(-1)
        return alpha / total * (joint.softmax(1)[..., None] * inside).sum(1)


class AROracle:
    """A stationary Gaussian AR(1) series, cov(x_i, x_j) = rho^|i - j|; state (B, length). t may be (B, length): a time
    per element, so that the conditional law given clean elements (t = 0) is included."""

    schema = None

    def __init__(self, process: Any, rho: float, length: int):
        i = torch.arange(length, dtype=torch.float64)
        self.process, self.covariance = process, rho ** (i[:, None] - i).abs()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (v.expand(x.shape).double() for v in level_for(self.process, t, x))
        cross = self.covariance.to(x.device) * alpha[:, None, :]  # cov(x_0, x_t), (B, length, length)
        noised = alpha[:, :, None] * cross + torch.diag_embed(sigma**2)
        return (cross @ torch.linalg.solve(noised, x.double()[..., None]))[..., 0].to(x.dtype)


class EnumeratedOracle:
    """Sequences of d tokens of V classes; joint probabilities `table` (V,) * d; state (B, d) int64.

    The process has `likelihood(x_t, t)` -> (..., K >= V), q(x_t | x_0 = k); t is a scalar, (B,) or (B, d).
    """

    schema = None

    def __init__(self, process: Any, table: Tensor):
        self.process, self.table = process, table / table.sum()

    def posterior(self, x: Tensor, t: Tensor) -> Tensor:
        """p(x_0 | x_t) over whole sequences, (B, V, ..., V)."""
        d, v = self.table.ndim, self.table.shape[0]
        likelihood = self.process.likelihood(x, t)[..., :v].to(self.table.dtype)
        joint = self.table.to(x.device).expand(len(x), *self.table.shape)
        for i in range(d):
            joint = joint * likelihood[:, i].reshape(len(x), *(v if j == i else 1 for j in range(d)))
        return joint / joint.flatten(1).sum(1).reshape(-1, *(1,) * d)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """log p(x_0^i = k | x_t), (B, d, V): the logits, already normalised; -inf where impossible."""
        p, d = self.posterior(x, t), self.table.ndim
        marginals = [p.sum([j + 1 for j in range(d) if j != i]) if d > 1 else p for i in range(d)]
        return torch.stack(marginals, 1).log()


class Literal:
    """Runs a formula of `unisci.solvers.formulas` on tensors, in place of the tape; takes `noises` in their order."""

    def __init__(self, denoise: Any, noises: Any = ()):
        self.denoise, self.noises = denoise, iter(noises)

    def clean(self, x: Tensor, t: Level) -> Tensor:
        return self.denoise(x, torch.tensor(t.time, dtype=x.dtype))

    def point(self, x: Tensor) -> Tensor:
        return x

    def noise(self) -> Tensor:
        return next(self.noises)

    def level(self, at: float) -> Level:
        return levels(self.denoise.process, time(self.denoise.process, torch.tensor([at], dtype=torch.float64)))[0]


class Given:
    """An Rng whose step k draws noises[k]."""

    def __init__(self, noises: Tensor, k: int = 0):
        self.noises, self.k = noises, k

    def at(self, k: int) -> "Given":
        return Given(self.noises, k)

    def normal(self, name: str, step: int, shape: tuple[int, ...], axes: int) -> Tensor:
        return self.noises[self.k]
