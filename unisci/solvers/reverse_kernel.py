"""One step of a Gaussian field by one prediction D of its clean value, for any schedule: the ancestral step of DDPM (Ho
et al., arXiv 2006.11239) and the step without noise of DDIM (Song et al., 2010.02502),

    x_s = keep x_t + gain D + deviation xi,     xi ~ N(0, 1)

with keep alpha_t + gain = alpha_s and keep^2 sigma_t^2 + deviation^2 = sigma_s^2, so that right predictions give right
marginals.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian
from unisci.state import place


class Kernel(NamedTuple):
    """The coefficients, float64, each of the shape of the times; 1, 0 and 0 where x_t is clean."""

    keep: Tensor
    gain: Tensor
    deviation: Tensor

    def on(self, x: Tensor) -> "Kernel":
        """Ready to multiply x (B, ...)."""
        return Kernel(*(place(v, x) for v in self))


def ancestral(process: Gaussian, t: Tensor, s: Tensor, variance: float = 0.0) -> Kernel:
    """p(x_s | x_t). variance 0: q(x_s | x_t, x_0 = D); else that of the data, and the kernel is exact where they are
    Gaussian with it. No noise in a step to sigma = 0."""
    (alpha, sigma), (alpha_s, sigma_s) = process.level(t.double()), process.level(s.double())
    safe, ratio = _ratio(sigma, sigma_s)
    kept = alpha / alpha_s * ratio  # the share of x_t's noise that stays
    fresh = (1 - kept**2).clamp(min=0)
    clean = variance * safe**2 / (alpha**2 * variance + safe**2)  # the variance of x_0 given x_t
    deviation = torch.where(sigma_s > 0, (sigma_s**2 * fresh + (alpha_s * fresh) ** 2 * clean).sqrt(), 0.0)
    return Kernel(kept * ratio, alpha_s * fresh, deviation)


def ddim(process: Gaussian, t: Tensor, s: Tensor) -> Kernel:
    """The step of the probability-flow ODE, without noise."""
    (alpha, sigma), (alpha_s, sigma_s) = process.level(t.double()), process.level(s.double())
    _, ratio = _ratio(sigma, sigma_s)
    return Kernel(ratio, alpha_s - alpha * ratio, torch.zeros_like(ratio))


def _ratio(sigma: Tensor, sigma_s: Tensor) -> tuple[Tensor, Tensor]:
    """sigma, 1 where it is 0, and sigma_s / sigma, likewise."""
    noised = sigma > 0
    safe = torch.where(noised, sigma, 1.0)
    return safe, torch.where(noised, sigma_s / safe, 1.0)
