"""Fractional coordinates: noise on the torus, a Gaussian process and a flow.

`Torus`, the wrapped normal (DiffCSP, Jiao et al., arXiv 2309.04475):

    x_t = x_0 + sigma(t) n   modulo 1,      grad log p(x_t | x_0) = (m - x_t) / sigma^2,
    m = sum_k w_k (x_0 + k),   w_k ∝ exp(-(x_0 + k - x_t)^2 / 2 sigma^2)     over the images k of every coordinate

Lifted to the real line, data on a torus is a lattice of images, and this noise is an ordinary variance-exploding one:
the wrapped score is the score of the lifted law, so every linear solver runs on it unchanged, and the result is wrapped
at the end. The clean value that a denoiser predicts is then the mean of the images around x_t, which is m when x_0 is
known. Where sigma is small m is the image nearest to x_t (the minimum-image form); where it is large, x_t itself.

`TorusFlow`, the geodesic from uniform noise e (FlowMM, Miller et al., arXiv 2406.04713):

    x_t = x_0 + t wrap(e - x_0)   modulo 1,      clean value near x_t:  x_t + wrap(x_0 - x_t)

of the scale family x_0 + sigma(t) n too, n uniform with variance 1, so the same deterministic solvers run on it.
`aligned` noise makes the geodesics short: what no network can tell apart is matched before the path is drawn.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from unisci.lattice import wrap
from unisci.processes.gaussian import VE, Gaussian
from unisci.rng import Rng
from unisci.state import pad

UNIFORM_DEVIATION = 12**-0.5  # of a coordinate uniform in [0, 1)
ALIGNMENT_ROUNDS = 2
IMAGES = 3  # a wrapped normal of sigma <= .5 has less than 1e-10 of its mass further out


@dataclass(frozen=True)
class Torus(Gaussian):
    """base: a process with alpha = 1 and, at t = 1, a sigma of at least .4: uniform to a part in 20, or 1.4 % at .5;
    origin: whether the coordinates have one, so that a shift of all of them means something.

    Raises ValueError for another base.
    """

    base: Gaussian = field(default_factory=lambda: VE(0.005, 0.5))
    origin: bool = False

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


@dataclass(frozen=True)
class TorusFlow(Gaussian):
    """alpha = 1, sigma = t / sqrt(12), noise uniform: no SDE and no score, flows only. origin: as for `Torus`."""

    origin: bool = False

    is_gaussian: ClassVar[bool] = False

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t * UNIFORM_DEVIATION

    def time(self, at: Tensor) -> Tensor:
        return (-at).exp() / UNIFORM_DEVIATION

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """x_t in [0, 1) on the way to independent noise; see `aligned` for the shorter way."""
        return self.between(clean, rng.uniform(name, 0, tuple(clean.shape), axes).to(clean.dtype), t)

    def between(self, clean: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t in [0, 1) of the geodesic from clean at t = 0 to noise at t = 1; the clean value itself at t = 0."""
        x = clean + pad(t, clean).to(clean.dtype) * wrap(noise - clean)
        return torch.where(pad(t, clean) <= 0, clean, x - x.floor())

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """Uniform in [0, 1)."""
        return rng.uniform(name, 1, tuple(like.shape), axes).to(like.dtype)

    def target(self, clean: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """The image of the clean value nearest to x."""
        return x + wrap(clean - x)


def centred_target(
    process: Torus | TorusFlow, clean: Tensor, x: Tensor, t: Tensor, moving: Tensor, exists: Tensor
) -> Tensor:
    """`process.target` of sites (B, N, 3), less the mean shift from x of samples all of whose sites move, where the
    coordinates have no origin.

    Where everything moves nothing tells where the crystal lies, so no network can predict that shift: its mean is 0
    and leaving it out takes a part in N off the variance of the loss. moving, exists (B, N) bool.
    """
    target = process.target(clean, x, t)
    if process.origin:
        return target
    shift = ((target - x) * exists[..., None]).sum(1, keepdim=True) / exists.sum(1).clamp(min=1)[:, None, None]
    free = (moving | ~exists).all(1)[:, None, None]
    return target - torch.where(free, shift, 0.0)


def aligned(noise: Tensor, clean: Tensor, kind: Tensor, exists: Tensor, starts: int = 4) -> Tensor:
    """The noise (B, N, 3), shifted as a whole and exchanged among sites of one kind, near to clean: (B, N, 3).

    Uniform noise has the same law after both, so a flow may use it wherever the whole crystal moves and a site is told
    by its kind (B, N) alone (equivariant optimal transport: Klein et al., arXiv 2306.15030). By turns the best exchange
    (Hungarian, squared distances on the torus) and the best shift, the best of so many `starts`, each of which puts one
    site of the rarest kind onto another: a bound on the optimum that depends little on where the crystal lies, which
    the network is not told. exists (B, N) bool. On the CPU, sample by sample.
    """
    e, x = (v.detach().cpu().double().numpy() for v in (noise, clean))
    kinds, here = kind.cpu().numpy(), exists.cpu().numpy()
    out = e.copy()
    for b, mask in enumerate(here):
        if mask.any():
            out[b, mask] = _aligned(e[b, mask], x[b, mask], kinds[b, mask], starts)
    return torch.from_numpy(out - np.floor(out)).to(noise)


def exchanged(noise: Tensor, clean: Tensor, kind: Tensor, moving: Tensor) -> Tensor:
    """The noise (B, N, 3), exchanged among sites moving (B, N) that are of one kind (B, N), near to clean: `aligned`
    where other sites are known and so no shift is free."""
    from scipy.optimize import linear_sum_assignment

    e, x = (v.detach().cpu().double().numpy() for v in (noise, clean))
    kinds, out = kind.cpu().numpy(), e.copy()
    for b, here in enumerate(moving.cpu().numpy()):
        apart = 1e3 * (kinds[b, here, None] != kinds[b, here])
        cost = (_wrap(e[b, here] - x[b, here, None]) ** 2).sum(-1) + apart
        out[b, here] = e[b, here][linear_sum_assignment(cost)[1]]
    return torch.from_numpy(out).to(noise)


def _aligned(e: np.ndarray, x: np.ndarray, kind: np.ndarray, starts: int) -> np.ndarray:
    """`aligned` of one sample's n sites."""
    from scipy.optimize import linear_sum_assignment

    _, which, counts = np.unique(kind, return_inverse=True, return_counts=True)
    rarest = np.flatnonzero(which == counts.argmin())
    apart = 1e3 * (kind[:, None] != kind)
    best, found = np.inf, e
    for site in rarest[:starts]:
        z = e - (e[site] - x[rarest[0]])
        for _ in range(ALIGNMENT_ROUNDS):
            z = z[linear_sum_assignment((_wrap(z - x[:, None]) ** 2).sum(-1) + apart)[1]]
            z = z - _wrap(z - x).mean(0)
        cost = (_wrap(z - x) ** 2).sum()
        if cost < best:
            best, found = cost, z
    return found


def _wrap(d: np.ndarray) -> np.ndarray:
    return d - np.round(d)
