"""Mean-reverting diffusion: from a clean value towards a cheap estimate mu of it (IR-SDE, Luo et al., arXiv
2301.11699; MaRS, arXiv 2502.07856).

    dx = f (mu - x) dt + g dw,     x_t = mu + alpha (x_0 - mu) + s sigma eps

mu is a force-field geometry, an unrelaxed crystal, a coarse forecast; alpha = exp(-integral of f). In the frame
y = (x - mu) / s this is the process of (alpha, sigma) exactly, so its solvers are those of the frame, see
`unisci.solvers.mr_sampler`. For a base with alpha^2 + sigma^2 = 1, s is the papers' stationary deviation.
"""

import copy
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng


@dataclass(frozen=True, eq=False)
class Shifted:
    """`base` in the frame of mu (broadcasting against x (B, ...)) and `scale` s, in the units of x.

    Where mu differs by sample it has a row for each, in the order of the batch. The prior is N(mu, s^2 sigma(1)^2); it
    leaves out alpha(1) (x_0 - mu). Vectors that turn with the sample need a mu that turns along. Raises ValueError
    where the scale is not positive or mu not finite.
    """

    base: Gaussian
    mu: Tensor
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.scale < math.inf:
            raise ValueError(f"scale must be positive and finite, got {self.scale}")
        if not bool(self.mu.isfinite().all()):
            raise ValueError(f"mu must be finite; {int((~self.mu.isfinite()).sum())} of its {self.mu.numel()} are not")

    def frame(self, x: Tensor) -> Tensor:
        """y = (x - mu) / s, where the process is `base`."""
        return (x - self.mu.to(x.dtype)) / self.scale

    def unframe(self, y: Tensor) -> Tensor:
        """x = mu + s y."""
        return self.mu.to(y.dtype) + self.scale * y

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_t given `clean` (B, ...); t: scalar, or the leading axes of `clean`. t = 0 changes nothing."""
        alpha, _ = level_for(self.base, t, clean)
        noise = self.base.perturb(torch.zeros_like(clean), t, rng, name, axes)
        return alpha * clean + (1 - alpha) * self.mu.to(clean.dtype) + self.scale * noise

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of mu + s sigma(1) noise, shaped as `like` (B, ...); independent of `perturb` under the same rng."""
        return self.unframe(self.base.prior(like, rng, name, axes))

    def to(self, device: torch.device | str) -> "Shifted":
        """The same process with mu on another device."""
        if self.mu.device == torch.device(device):
            return self
        moved = copy.copy(self)  # past __post_init__, whose checks would wait for the device
        object.__setattr__(moved, "mu", self.mu.to(device))
        return moved
