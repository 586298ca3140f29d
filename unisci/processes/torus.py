"""Fractional coordinates: a Gaussian process on the torus (DiffCSP, Jiao et al., arXiv 2309.04475).

    x_t = x_0 + sigma(t) n   modulo 1,      grad log p(x_t | x_0) = (m - x_t) / sigma^2,
    m = sum_k w_k (x_0 + k),   w_k ∝ exp(-(x_0 + k - x_t)^2 / 2 sigma^2)     over the images k of every coordinate

Lifted to the real line, data on a torus is a lattice of images, and this noise is an ordinary variance-exploding one:
the wrapped score is the score of the lifted law, so every linear solver runs on it unchanged, and the result is wrapped
at the end. The clean value that a denoiser predicts is then the mean of the images around x_t, which is m when x_0 is
known. Where sigma is small m is the image nearest to x_t (the minimum-image form); where it is large, x_t itself.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from unisci.lattice import wrap
from unisci.processes.gaussian import VE, Gaussian
from unisci.rng import Rng
from unisci.state import pad

IMAGES = 3  # a wrapped normal of sigma <= .5 has less than 1e-10 of its mass further out


@dataclass(frozen=True)
class Torus(Gaussian):
    """base: a process with alpha = 1 and, at t = 1, a sigma of at least .4: uniform to a part in 20, or 1.4 % at .5.

    Raises ValueError for another base.
    """

    base: Gaussian = field(default_factory=lambda: VE(0.005, 0.5))

    def __post_init__(self) -> None:
        t = torch.linspace(0, 1, 5, dtype=torch.float64)
        alpha, sigma = self.base.level(t)
        if bool((alpha != 1).any()):
            raise ValueError(f"noise on a torus cannot shrink the data: alpha must be 1, not that of {self.base}")
        if not 0.4 <= float(sigma[-1]) <= 1:
            raise ValueError(
                f"sigma at t = 1 must be from .4 to 1, of which the uniform law is the limit, got {sigma[-1]:g}"
            )

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.level(t)

    def time(self, at: Tensor) -> Tensor:
        return self.base.time(at)

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """x_t in [0, 1) given the clean value; x_0 is the clean value itself."""
        _, sigma = self.level(t)
        x = clean + pad(sigma, clean).to(clean.dtype) * rng.normal(name, 0, tuple(clean.shape), axes).to(clean.dtype)
        return torch.where(pad(t, clean) <= 0, clean, x - x.floor())

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """Uniform in [0, 1)."""
        return rng.uniform(name, 0, tuple(like.shape), axes).to(like.dtype)

    def target(self, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """E[image of the clean value | x_t = x], near x: what a denoiser should predict where the clean value is known.

        t with leading axes of x, above 0.
        """
        sigma = pad(self.level(t)[1], x).to(x.dtype)[..., None]
        images = wrap(clean - x)[..., None] + torch.arange(-IMAGES, IMAGES + 1, device=x.device)
        share = (-((images / sigma.clamp(min=1e-6)) ** 2) / 2).softmax(-1)
        return x + (share * images).sum(-1)

    def centred_target(self, clean: Tensor, x: Tensor, t: Tensor, moving: Tensor, exists: Tensor) -> Tensor:
        """`target` of sites (B, N, 3), less the mean shift from x of samples all of whose sites move.

        Where everything moves nothing tells where the crystal lies, so no network can predict that shift: its mean is 0
        and leaving it out takes a part in N off the variance of the loss. moving, exists (B, N) bool.
        """
        target = self.target(clean, x, t)
        shift = ((target - x) * exists[..., None]).sum(1, keepdim=True) / exists.sum(1).clamp(min=1)[:, None, None]
        free = (moving | ~exists).all(1)[:, None, None]
        return target - torch.where(free, shift, 0.0)
