"""Stochastic interpolants: bridges between two laws of data (Albergo, Boffi & Vanden-Eijnden, arXiv 2303.08797).

    x_t = alpha(t) x_0 + beta(t) x_1 + gamma(t) z,     z ~ N(0, I),     t in [0, 1]

As in the whole package t = 0 is the data to generate and t = 1 the start: the paper's t is 1 - t here, its x_1 and x_0
are x_0 and x_1, and b and v change sign, while s and eta do not. The fields, conditional means given x_t = x, are

    v = E[alpha' x_0 + beta' x_1 | x],   eta = E[z | x],   b = v + gamma' eta,   s = grad log p_t = -eta / gamma

and for every eps(t) >= 0 the law of x_t is that of the ODE dx = b dt, of the SDE dx = (b + eps s) dt + sqrt(2 eps) dw
for rising t, and of the SDE with b - eps s for falling t; `unisci.solvers.bridge` integrates them. With x_1 = z and
gamma = 0 this is a Gaussian process of sigma = beta: rectified flow, flow matching and all diffusion models.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, drift_diffusion
from unisci.rng import Rng
from unisci.state import pad

Scalar = Callable[[Tensor], Tensor]
Pair = Callable[[Tensor], tuple[Tensor, Tensor]]


class Path(NamedTuple):
    """alpha and beta as functions of t, and their derivatives."""

    level: Pair
    slope: Pair


class Gamma(NamedTuple):
    """gamma, gamma' and the product gamma gamma', which is finite where gamma' is not."""

    level: Scalar
    slope: Scalar
    product: Scalar


def brownian(c: float = 1.0) -> Gamma:
    """gamma^2 = c t (1 - t), a Brownian bridge; gamma' is infinite at both ends. Raises ValueError where c <= 0."""
    if not 0 < c < math.inf:
        raise ValueError(f"c must be positive and finite, got {c}")

    def level(t: Tensor) -> Tensor:
        return (c * t * (1 - t)).sqrt()

    return Gamma(level, lambda t: c / 2 * (1 - 2 * t) / level(t), lambda t: c / 2 * (1 - 2 * t))


NO_GAMMA = Gamma(torch.zeros_like, torch.zeros_like, torch.zeros_like)
QUADRATIC = Gamma(lambda t: t * (1 - t), lambda t: 1 - 2 * t, lambda t: t * (1 - t) * (1 - 2 * t))
SINE_SQUARED = Gamma(
    lambda t: torch.sin(math.pi * torch.minimum(t, 1 - t)) ** 2,  # 0 at t = 1 too, which sin(pi) in floats is not
    lambda t: math.pi * torch.sin(2 * math.pi * t),
    lambda t: math.pi * torch.sin(math.pi * t) ** 2 * torch.sin(2 * math.pi * t),
)


def trig(gamma: Gamma = NO_GAMMA) -> Path:
    """r (cos(pi t / 2), sin(pi t / 2)), r^2 = 1 - gamma^2: keeps unit variance. Raises ValueError where gamma is 1."""
    if not bool((gamma.level(torch.linspace(0, 1, 101, dtype=torch.float64)) < 1).all()):
        raise ValueError("trig needs gamma < 1 at all times; take brownian(c) with c < 4, or quadratic")
    w = math.pi / 2

    def level(t: Tensor) -> tuple[Tensor, Tensor]:
        r = (1 - gamma.level(t) ** 2).sqrt()
        return r * torch.sin(w * (1 - t)), r * torch.sin(w * t)

    def slope(t: Tensor) -> tuple[Tensor, Tensor]:
        r, cos, sin = (1 - gamma.level(t) ** 2).sqrt(), torch.sin(w * (1 - t)), torch.sin(w * t)
        d_r = -gamma.product(t) / r
        return d_r * cos - w * r * sin, d_r * sin + w * r * cos

    return Path(level, slope)


def _halves(first: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """(first, 0) in the first half of the time, (0, first) in the second."""
    return torch.where(t <= 0.5, first, 0.0), torch.where(t > 0.5, first, 0.0)


LINEAR = Path(lambda t: (1 - t, t), lambda t: (-torch.ones_like(t), torch.ones_like(t)))
ENCODING_DECODING = Path(  # x_0 turns into noise, then noise into x_1
    lambda t: _halves(torch.cos(math.pi * t) ** 2, t), lambda t: _halves(-math.pi * torch.sin(2 * math.pi * t), t)
)
MIRROR = Path(  # x_0 + gamma z: from the data back to the data
    lambda t: (torch.ones_like(t), torch.zeros_like(t)), lambda t: (torch.zeros_like(t), torch.zeros_like(t))
)


def path_of(process: Gaussian) -> Path:
    """The one-sided path of a Gaussian process, (alpha, sigma); for 0 < t, and t < 1 where alpha(1) = 0."""

    def slope(t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, sigma), (f, g2) = process.level(t), drift_diffusion(process, t)
        return f * alpha, (g2 / 2 + f * sigma**2) / sigma

    return Path(process.level, slope)


@dataclass(frozen=True)
class OneSided(Gaussian):
    """x_1 = z, gamma = 0: the Gaussian process of a path. OneSided(LINEAR) is Linear(), OneSided(trig()) Cosine()."""

    path: Path

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.path.level(t)


@dataclass(frozen=True)
class Interpolant:
    """Interpolant(LINEAR, brownian()). x_0, x_1 and z are of one shape (B, ...); t is a scalar, or their leading axes.

    Molecules need a coupling (x_0, x_1) with symmetries taken out, aligned and permuted, or b averages over them.
    Raises ValueError where the ends are not x_0 and x_1 (or x_0 twice).
    """

    path: Path
    gamma: Gamma

    def __post_init__(self) -> None:
        t = torch.tensor([0.0, 1.0], dtype=torch.float64)
        (alpha, beta), gamma = (v.tolist() for v in self.path.level(t)), self.gamma.level(t).tolist()
        if (alpha[0], beta[0]) != (1, 0) or sorted((alpha[1], beta[1])) != [0, 1] or gamma != [0, 0]:
            raise ValueError(
                f"an interpolant ends in its data; alpha, beta, gamma at t = 0, 1 are {alpha, beta, gamma}"
            )

    def point(self, x_0: Tensor, x_1: Tensor, z: Tensor, t: Tensor) -> Tensor:
        """x_t, which is x_0 bit for bit at t = 0."""
        alpha, beta = self.path.level(t)
        return at(alpha, x_0) * x_0 + at(beta, x_0) * x_1 + at(self.gamma.level(t), x_0) * z

    def draw(self, x_0: Tensor, x_1: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_t given both ends."""
        return self.point(x_0, x_1, rng.normal(name, 0, tuple(x_0.shape), axes).to(x_0.dtype), t)


def at(value: Tensor, x: Tensor) -> Tensor:
    """A value at each time, (), (B,) or more leading axes, ready to multiply x (B, ...)."""
    return value.to(x.dtype) if value.ndim == 0 else pad(value, x).to(x.dtype)


# What the fields are the conditional means of, each for `paired_loss`.
def v_target(interpolant: Interpolant, x_0: Tensor, x_1: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """alpha' x_0 + beta' x_1, learned by v."""
    alpha, beta = interpolant.path.slope(t)
    return at(alpha, x_0) * x_0 + at(beta, x_0) * x_1


def b_target(interpolant: Interpolant, x_0: Tensor, x_1: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """The velocity of x_t, learned by b; without gamma, this is flow matching."""
    return v_target(interpolant, x_0, x_1, z, t) + at(interpolant.gamma.slope(t), x_0) * z


def eta_target(interpolant: Interpolant, x_0: Tensor, x_1: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """z, learned by eta; the one that is bounded at the ends."""
    return z


def s_target(interpolant: Interpolant, x_0: Tensor, x_1: Tensor, z: Tensor, t: Tensor) -> Tensor:
    """-z / gamma, learned by the score s."""
    return -z / at(interpolant.gamma.level(t), x_0)


def paired_loss(
    field: Callable[[Tensor, Tensor], Tensor],
    target: Callable[[Interpolant, Tensor, Tensor, Tensor, Tensor], Tensor],
    interpolant: Interpolant,
    x_0: Tensor,
    x_1: Tensor,
    t: Tensor,
    rng: Rng,
    name: str = "x",
    axes: int = 0,
) -> Tensor:
    """1/2 |f|^2 - target f for f = field(x_t, t), elementwise (B, ...): sum it over the elements that exist.

    The mean over z and -z, two evaluations: near the ends the targets of b and s grow as 1 / gamma, and so would the
    variance, if these terms did not cancel in the pair. t in (0, 1), a scalar or (B,), say uniform.
    """
    z = rng.normal(name, 0, tuple(x_0.shape), axes).to(x_0.dtype)
    halves = []
    for signed in (z, -z):
        f = field(interpolant.point(x_0, x_1, signed, t), t)
        halves.append(f.square() / 2 - target(interpolant, x_0, x_1, signed, t) * f)
    return (halves[0] + halves[1]) / 2
