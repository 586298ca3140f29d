"""Gaussian processes, x_t = alpha(t) x_0 + sigma(t) noise: score SDEs (Song et al., arXiv 2011.13456), EDM
(2206.00364), cosine (2102.09672) and rectified flow (2209.03003).

A process is its `level`: t -> (alpha, sigma), with alpha(0) = 1 and sigma(0) = 0 exactly, so that x_0 is the clean
value bit for bit. All else follows: lam = log(alpha / sigma), f = alpha' / alpha, g^2 = 2 sigma sigma' - 2 f sigma^2.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unisci.rng import Rng
from unisci.state import place


class Gaussian:
    """What Gaussian processes share. A process defines `level`, and `time` where lam has a closed inverse."""

    is_gaussian: ClassVar[bool] = True  # False where only the noise of the scale family differs: no SDE, no Tweedie

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma, each of the shape and dtype of t in [0, 1]."""
        raise NotImplementedError(f"{type(self).__name__} does not define level(t) -> (alpha, sigma)")

    def time(self, at: Tensor) -> Tensor:
        """The t at which lam(t) = at, by bisection in float64: 80 halvings of [0, 1]."""
        low, high = torch.zeros_like(at, dtype=torch.float64), torch.ones_like(at, dtype=torch.float64)
        for _ in range(80):
            middle = (low + high) / 2
            cleaner = lam(self, middle) > at  # lam decreases in t, so the time sought is later
            low, high = torch.where(cleaner, middle, low), torch.where(cleaner, high, middle)
        return ((low + high) / 2).to(at.dtype)

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_t given `clean` (B, ...); t: scalar, or the leading axes of `clean`. t = 0 changes nothing."""
        alpha, sigma = level_for(self, t, clean)
        return alpha * clean + sigma * rng.normal(name, 0, tuple(clean.shape), axes).to(clean.dtype)

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of sigma(1) noise, shaped as `like` (B, ...); independent of `perturb` under the same rng."""
        _, sigma = self.level(torch.ones((), dtype=torch.float64))
        return sigma * rng.normal(name, 1, tuple(like.shape), axes).to(like.dtype)

    def to(self, device: torch.device | str) -> "Gaussian":
        """The process itself: it holds numbers, no tensors."""
        return self


def level_for(process: Gaussian, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma of the process at t, ready to multiply x (B, ...), see `place`."""
    alpha, sigma = process.level(t)
    return place(alpha, x), place(sigma, x)


def lam(process: Gaussian, t: Tensor) -> Tensor:
    """Half the log signal-to-noise ratio, log(alpha / sigma), decreasing in t: inf at t = 0, -inf where alpha is 0."""
    alpha, sigma = process.level(t)
    return alpha.log() - sigma.log()


def time(process: Gaussian, at: Tensor) -> Tensor:
    """The inverse of `lam`, of the shape of `at`, clamped to [0, 1]."""
    return process.time(at).clamp(0, 1)


def drift_diffusion(process: Gaussian, t: Tensor) -> tuple[Tensor, Tensor]:
    """f and g^2 of the forward SDE dx = f x dt + g dw, of the shape of t; f is -inf where alpha is 0.

    f = alpha' / alpha, g^2 = 2 sigma sigma' - 2 f sigma^2, the derivatives by automatic differentiation.
    """
    with torch.inference_mode(False), torch.enable_grad():
        t = t.detach().clone().clamp(min=1e-12).requires_grad_()  # at 0 sigma' may be infinite, sigma sigma' is not
        values = process.level(t)
        # + 0 t: a constant alpha has no graph of its own.
        d_alpha, d_sigma = (torch.autograd.grad((v + 0 * t).sum(), t, retain_graph=True)[0] for v in values)
    alpha, sigma = (v.detach() for v in values)
    f = d_alpha / alpha
    return f, 2 * sigma * d_sigma - 2 * f * sigma**2


def to_noise(clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise in x = alpha clean + sigma noise."""
    return (x - alpha * clean) / sigma


def to_score(clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The score grad log p_t(x) where clean = E[x_0 | x_t = x] (Tweedie): minus the noise over sigma."""
    return (alpha * clean - x) / sigma**2


def to_velocity(clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """alpha noise - sigma clean (v-prediction, Salimans & Ho, arXiv 2202.00512)."""
    return alpha * to_noise(clean, x, alpha, sigma) - sigma * clean


def _check_range(name: str, low: float, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"need 0 < {name}_min < {name}_max, got {name}_min = {low} and {name}_max = {high}")


def _integral(t: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """B(t), the integral from 0 to t of b(t) = beta_min + t (beta_max - beta_min)."""
    return t * (beta_min + t * (beta_max - beta_min) / 2)


def _integral_inverse(b: Tensor, beta_min: float, beta_max: float) -> Tensor:
    """The t with B(t) = b, in the form of the quadratic formula that does not cancel."""
    return 2 * b / (beta_min + (beta_min**2 + 2 * (beta_max - beta_min) * b).sqrt())


@dataclass(frozen=True)
class VP(Gaussian):
    """Variance preserving (arXiv 2011.13456, eq. 11): f = -b/2, g^2 = b, alpha = e^(-B/2), sigma^2 = 1 - e^-B."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_range("beta", self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = _integral(t, self.beta_min, self.beta_max)
        return torch.exp(-b / 2), (-torch.expm1(-b)).sqrt()

    def time(self, at: Tensor) -> Tensor:
        return _integral_inverse(torch.nn.functional.softplus(-2 * at), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class SubVP(Gaussian):
    """Sub-VP (arXiv 2011.13456, eq. 12): f = -b/2, g^2 = b (1 - e^-2B), alpha = e^(-B/2), sigma = 1 - e^-B."""

    beta_min: float = 0.1
    beta_max: float = 20.0

    def __post_init__(self) -> None:
        _check_range("beta", self.beta_min, self.beta_max)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        b = _integral(t, self.beta_min, self.beta_max)
        return torch.exp(-b / 2), -torch.expm1(-b)

    def time(self, at: Tensor) -> Tensor:
        # sigma / alpha = 2 sinh(B / 2)
        return _integral_inverse(2 * torch.asinh(torch.exp(-at) / 2), self.beta_min, self.beta_max)


@dataclass(frozen=True)
class VE(Gaussian):
    """Variance exploding (arXiv 2011.13456, eq. 9): f = 0, g^2 = 2 ln r sigma_min^2 r^2t, r = sigma_max / sigma_min.

    sigma^2 = sigma_min^2 (r^2t - 1), the exact marginal of that SDE from clean data. The paper drops the -1, and with
    it x_0 = clean; at t = 1 the two differ by a part in 2 r^2.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma_min, self.sigma_max)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        r = self.sigma_max / self.sigma_min
        return torch.ones_like(t), self.sigma_min * torch.expm1(2 * math.log(r) * t).sqrt()

    def time(self, at: Tensor) -> Tensor:
        r = self.sigma_max / self.sigma_min
        return torch.log1p((torch.exp(-at) / self.sigma_min) ** 2) / (2 * math.log(r))


@dataclass(frozen=True)
class EDM(Gaussian):
    """EDM (Karras et al., arXiv 2206.00364): alpha = 1; t runs along the paper's grid of rho = 7, shifted to reach 0.

    sigma = c ((sigma_min^(1/7) + t (sigma_max^(1/7) - sigma_min^(1/7)))^7 - sigma_min), with c such that sigma(1) is
    sigma_max. Below about sigma_min, sigma is linear in t. A time-uniform grid is nearly the paper's grid.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self) -> None:
        _check_range("sigma", self.sigma_min, self.sigma_max)

    def _scale(self) -> tuple[float, float]:
        # With these sigma = a ((1 + q t)^7 - 1), which expm1 and log1p keep exact near 0.
        a = self.sigma_min * self.sigma_max / (self.sigma_max - self.sigma_min)
        return a, (self.sigma_max / self.sigma_min) ** (1 / 7) - 1

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        a, q = self._scale()
        return torch.ones_like(t), a * torch.expm1(7 * torch.log1p(q * t))

    def time(self, at: Tensor) -> Tensor:
        a, q = self._scale()
        return torch.expm1(torch.log1p(torch.exp(-at) / a) / 7) / q


@dataclass(frozen=True)
class Cosine(Gaussian):
    """alpha = cos(pi t / 2), sigma = sin(pi t / 2) (arXiv 2102.09672 without its offset); alpha(1) = 0."""

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        # The sine of the complement is exact at both ends, where a float cosine of pi/2 is not 0.
        return torch.sin(math.pi / 2 * (1 - t)), torch.sin(math.pi / 2 * t)

    def time(self, at: Tensor) -> Tensor:
        return torch.atan(torch.exp(-at)) * (2 / math.pi)


@dataclass(frozen=True)
class Linear(Gaussian):
    """alpha = 1 - t, sigma = t: rectified flow (arXiv 2209.03003), flow matching (2210.02747); alpha(1) = 0."""

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t

    def time(self, at: Tensor) -> Tensor:
        return torch.sigmoid(-at)
