"""The Fokker-Planck residual of a learned density or score, and the gap between its two laws (Deveney et al., Closing
the ODE-SDE gap in score-based diffusion models through the Fokker-Planck equation, arXiv 2311.15996).

Under dx = f x dt + g dw in d dimensions, u = log p_t and s = grad u obey R = 0 and r = 0,

    R = du/dt + f (d + <x, s>) - g^2 / 2 (div s + |s|^2),
    r = ds/dt + grad(f <x, s> - g^2 / 2 (div s + |s|^2))

With the true score the probability-flow ODE and the reverse SDE draw one law. With a learned one they draw two, apart
by a bound that grows with the residual. A penalty on it draws them together: the ODE's law improves, the SDE's may not.
Take it where samples go, on noised data; and networks with second derivatives (SiLU, softplus; not ReLU).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, drift_diffusion, level_for
from unisci.rng import Rng
from unisci.solvers.divergence import Probe, Vectors, divergence, exact, hutchinson, prepare
from unisci.solvers.sample import Denoise
from unisci.solvers.score import check_gaussian, score_of

LogDensity = Callable[[Tensor, Tensor], Tensor]  # x (B, ...), t (B,) -> log p_t(x) (B,), up to a constant


@dataclass(frozen=True)
class Potential:
    """A `Denoise` whose score is the gradient of log_density, (x + sigma^2 grad u) / alpha: conservative by
    construction. log_density: (x (B, ...), t () or (B,)) -> (B,)."""

    log_density: LogDensity
    process: Gaussian
    schema: ClassVar[None] = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        keep = torch.is_grad_enabled()
        alpha, sigma = level_for(self.process, t, x)
        with torch.enable_grad():
            at = x if x.requires_grad else x.detach().requires_grad_()
            (score,) = torch.autograd.grad(self.log_density(at, t).sum(), at, create_graph=keep)
        return (x + sigma**2 * score) / alpha


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).reshape(len(a), -1).sum(1)


def _ready(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    return x.detach().requires_grad_(), t.detach().expand(len(x)).clone().requires_grad_()


def fp_residual(log_density: LogDensity, process: Gaussian, x: Tensor, t: Tensor, vectors: Vectors = exact) -> Tensor:
    """R (B,) of a potential at x (B, ...) and t, () or (B,); with `hutchinson(rng)` an unbiased estimate of it.

    u may be off by a constant, not by a function of t. R is as differentiable as log_density.
    """
    x, t = _ready(x, t)
    return _potential(log_density, process, x, t)(prepare(vectors, x, 0, None))


@torch.enable_grad()
def _potential(log_density: LogDensity, process: Gaussian, x: Tensor, t: Tensor) -> Callable[[list[Probe]], Tensor]:
    """R as a function of the probes of its divergence."""
    s, du_dt = torch.autograd.grad(log_density(x, t).sum(), (x, t), create_graph=True)
    f, g2 = drift_diffusion(process, t)
    rest = du_dt + f * (x[0].numel() + _dot(x, s)) - g2 / 2 * _dot(s, s)
    return lambda probes: rest - g2 / 2 * divergence(s, x, probes, create_graph=True)


def score_residual(denoise: Denoise, x: Tensor, t: Tensor, vectors: Vectors = exact) -> Tensor:
    """r, shaped as x (B, ...), of the score of a denoiser, which needs no potential; t > 0, () or (B,).

    With `hutchinson(rng)` an unbiased estimate. Raises ValueError where the noise is not Gaussian.
    """
    x, t = _ready(x, t)
    return _score(denoise, x, t)(prepare(vectors, x, 0, None))


@torch.enable_grad()
def _score(denoise: Denoise, x: Tensor, t: Tensor) -> Callable[[list[Probe]], Tensor]:
    """r as a function of the probes of its divergence."""
    check_gaussian(denoise, "the Fokker-Planck residual")
    s = score_of(denoise(x, t), x, denoise.process, t)
    w = torch.zeros_like(s, requires_grad=True)
    (along,) = torch.autograd.grad((s * w).sum(), t, create_graph=True)
    (ds_dt,) = torch.autograd.grad(along.sum(), w, create_graph=True)  # linear in w, whose gradient is ds / dt
    f, g2 = drift_diffusion(denoise.process, t)
    rest = f * _dot(x, s) - g2 / 2 * _dot(s, s)

    def at(probes: list[Probe]) -> Tensor:
        whole = rest - g2 / 2 * divergence(s, x, probes, create_graph=True)
        return ds_dt + torch.autograd.grad(whole.sum(), x, create_graph=True)[0]

    return at


def penalty(log_density: LogDensity, process: Gaussian, x: Tensor, t: Tensor, rng: Rng | None = None) -> Tensor:
    """The mean of sigma^4 R^2, a scalar to add to a loss; x, t: noised data and their times, as in `fp_residual`.

    sigma^4, as R grows as 1 / sigma^2 towards the data. rng: R^2 by two Hutchinson estimates with probes of their own,
    so that it is unbiased, and may be negative; None: exactly, at a backward pass for each dimension.
    """
    x, t = _ready(x, t)
    first, second = _twice(_potential(log_density, process, x, t), x, rng)
    return (process.level(t.detach())[1] ** 4 * first * second).mean()


def score_penalty(denoise: Denoise, x: Tensor, t: Tensor, rng: Rng | None = None) -> Tensor:
    """The mean of sigma^6 |r|^2 over samples, a scalar: `penalty` for a denoiser without a potential."""
    x, t = _ready(x, t)
    first, second = _twice(_score(denoise, x, t), x, rng)
    return (denoise.process.level(t.detach())[1] ** 6 * _dot(first, second)).mean()


def _twice(residual: Callable[[list[Probe]], Tensor], x: Tensor, rng: Rng | None) -> tuple[Tensor, Tensor]:
    if rng is None:
        exactly = residual(prepare(exact, x, 0, None))
        return exactly, exactly
    first, second = (residual(prepare(hutchinson(rng.at(k)), x, 0, None)) for k in (0, 1))
    return first, second
