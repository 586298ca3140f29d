"""Gaussian mixtures, whose denoiser is a formula: x_0 ~ sum_k w_k N(m_k, s_k^2 I), x_t = alpha x_0 + sigma noise give

    E[x_0 | x_t] = sum_k r_k(x_t) (m_k + g_k (x_t - alpha m_k)),   g_k = alpha s_k^2 / (alpha^2 s_k^2 + sigma^2),

with r_k the posterior weight of component k (Tweedie's formula; see arXiv 2206.00364, appendix B.3).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian


@dataclass(frozen=True)
class Mixture:
    """A Denoise of states (..., B, D): means (..., K, D), stds and weights (..., K). The leading axes are laws side by
    side, each with states of its own; of the dtype of the state."""

    process: Gaussian
    means: Tensor
    stds: Tensor
    weights: Tensor
    schema = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.clean(x, *self.process.level(t))

    def clean(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """E[x_0 | x_t = x] at a level of noise, scalars."""
        means, stds = self.means.to(x), self.stds.to(x)
        gain = alpha * stds**2 / (alpha**2 * stds**2 + sigma**2)
        share = self._joint(x, alpha, sigma).softmax(-1)
        return share @ ((1 - alpha * gain)[..., None] * means) + share @ gain[..., None] * x

    def logp(self, x: Tensor, t: Tensor) -> Tensor:
        """The log density of x_t at x (..., B, D), (..., B)."""
        return self._joint(x, *self.process.level(t)).logsumexp(-1)

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """log weight + log density of each component (..., B, K)."""
        means, stds, weights = (v.to(x) for v in (self.means, self.stds, self.weights))
        variance = (alpha**2 * stds**2 + sigma**2)[..., None, :]
        cross = alpha * x @ means.mT
        away = x.square().sum(-1, keepdim=True) - 2 * cross + alpha**2 * means.square().sum(-1)[..., None, :]
        density = -0.5 * (away / variance + x.shape[-1] * (2 * math.pi * variance).log())
        return weights.log()[..., None, :] + density


def mixture(process: Gaussian, dim: int, components: int = 12, seed: int = 0) -> Mixture:
    """A random law: means N(0, 1.5^2 I), stds uniform in [.2, .4], weights uniform in [.5, 1.5] before they are
    normalised; float64."""
    g = torch.Generator().manual_seed(seed)
    means = 1.5 * torch.randn(components, dim, generator=g, dtype=torch.float64)
    stds = 0.2 + 0.2 * torch.rand(components, generator=g, dtype=torch.float64)
    weights = 0.5 + torch.rand(components, generator=g, dtype=torch.float64)
    return Mixture(process, means, stds, weights / weights.sum())


def side_by_side(laws: list[Mixture]) -> Mixture:
    """Laws of one process as one Denoise of states (len(laws), B, D)."""
    stacked = (torch.stack([getattr(law, name) for law in laws]) for name in ("means", "stds", "weights"))
    return Mixture(laws[0].process, *stacked)


def draw(law: Mixture, n: int, generator: torch.Generator) -> Tensor:
    """n clean draws (n, D) from one law."""
    k = torch.multinomial(law.weights, n, replacement=True, generator=generator)
    xi = torch.randn(n, law.means.shape[-1], generator=generator, dtype=law.means.dtype)
    return law.means[k] + law.stds[k, None] * xi
