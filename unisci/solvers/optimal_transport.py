"""DPM-OT: an expressway from noise to level M by semi-discrete optimal transport (arXiv 2307.11308, ICCV 2023).

The targets y_i = alpha_M x_i + sigma_M eps_i, i = 1..n, are data noised to level M. The Brenier potential

    u_h(z) = max_i (<z, y_i> + h_i)      T(z) = grad u_h(z) = y_i of the cell W_i that z lies in

maps N(0, I) to them once each cell has mass 1 / n: h minimises E(h) = int u_h dN - sum_i h_i / n, whose gradient is
dE / dh_i = N(W_i) - 1 / n. A solver then runs the last levels alone, from x_M = T(z).

    y = noised_targets(process, x, t, Rng(0, torch.arange(n)))
    ot = SemiDiscreteMap.fit(y, Rng(1, torch.arange(4096)), steps=4000)
    clean = run(denoise, transport_start(ot, like, rng), compile_solver(process, grid(process, 10, start=t), name), rng)

x_M is a noised training sample: take a level whose noise drowns the distance between neighbours, and a solver that
draws fresh noise, for a deterministic one turns n targets into n samples. `memorisation` measures what came of it. Over
many z, x_M has the law of targets picked at random; the map adds that near noise gives near samples. The cost <z, y>
knows no symmetry: align molecules first, or transport invariants. Work is O(n S D) for S points a step.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian
from unisci.rng import Rng

ENTRIES = 2**22  # of a matrix of scores at once


def _cells(z: Tensor, targets: Tensor, h: Tensor) -> Tensor:
    """argmax_i <z, y_i> + h_i of z (S, D), (S,), over chunks of the targets (n, D)."""
    best = z.new_full((len(z),), -torch.inf)
    cell = torch.zeros(len(z), dtype=torch.long, device=z.device)
    chunk = max(1, ENTRIES // len(z))
    for start in range(0, len(targets), chunk):
        value, index = torch.addmm(h[start : start + chunk], z, targets[start : start + chunk].T).max(1)
        cell = torch.where(value > best, index + start, cell)
        best = torch.maximum(best, value)
    return cell


@dataclass(frozen=True, eq=False)
class SemiDiscreteMap:
    """targets y (n, ...), heights h (n,). Raises ValueError where they do not match or are not finite."""

    targets: Tensor
    h: Tensor

    def __post_init__(self) -> None:
        if self.targets.ndim < 2 or self.h.shape != self.targets.shape[:1] or not len(self.h):
            raise ValueError(f"targets {tuple(self.targets.shape)} need heights (n,), got {tuple(self.h.shape)}")
        if not bool(self.targets.isfinite().all() & self.h.isfinite().all()):
            raise ValueError("targets and heights must be finite; drop rows with nan or inf")

    @classmethod
    def fit(cls, targets: Tensor, rng: Rng, steps: int = 4000, lr: float = 0.05) -> "SemiDiscreteMap":
        """Heights by Adam on the dual, with S = len(rng.ids) fresh points of N(0, I) a step.

        lr falls linearly to 0, in units of the targets' spread, so that scaled targets have scaled heights. Raises
        ValueError for targets that are not finite, or fewer than 1 step.
        """
        if steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}")
        y = targets.detach().flatten(1)
        centred = y - y.mean(0)
        spread = centred.square().mean().sqrt()
        # The heights of Gaussian targets with this spread. From 0 all but the outermost targets would start empty.
        h = -centred.square().sum(1) / (2 * spread).clamp(min=torch.finfo(y.dtype).tiny)
        cls(targets, h)
        m, v = torch.zeros_like(h), torch.zeros_like(h)
        for k in range(steps):
            z = rng.normal("source", k, (len(rng.ids), y.shape[1]), 0).to(y)
            gradient = dual_gradient(z, centred, h)
            m, v = m.lerp(gradient, 0.1), v.lerp(gradient.square(), 0.001)
            unit = m / (1 - 0.9 ** (k + 1)) / ((v / (1 - 0.999 ** (k + 1))).sqrt() + 1e-8)
            h = h - lr * (1 - k / steps) * spread * unit
            h = h - h.mean()
        return cls(targets, h)

    def cells(self, z: Tensor) -> Tensor:
        """The index of the target of each z (B, ...), (B,)."""
        y = self.targets.to(z).flatten(1)
        return _cells(z.flatten(1), y, self.h.to(z))

    def map(self, z: Tensor) -> Tensor:
        """T(z) of noise z (B, ...) shaped as the targets."""
        return self.targets.to(z)[self.cells(z)]

    def masses(self, z: Tensor) -> Tensor:
        """n times the share of z (S, ...) in each cell, (n,): near 1 after a good fit, 0 for an empty cell."""
        counts = self.h.new_zeros(len(self.h)).scatter_add(0, self.cells(z), self.h.new_ones(len(z)))
        return counts * (len(self.h) / len(z))


def dual(z: Tensor, targets: Tensor, h: Tensor) -> Tensor:
    """E(h) = mean_z u_h(z) - mean_i h_i, for points z (S, D) and targets (n, D)."""
    cell = _cells(z, targets, h)
    return ((z * targets[cell]).sum(1) + h[cell]).mean() - h.mean()


def dual_gradient(z: Tensor, targets: Tensor, h: Tensor) -> Tensor:
    """dE / dh (n,): the share of z in each cell, less 1 / n."""
    cell = _cells(z, targets, h)
    share = torch.zeros_like(h).scatter_add(0, cell, h.new_full((len(z),), 1 / len(z)))
    return share - 1 / len(h)


def transport_start(ot: SemiDiscreteMap, like: Tensor, rng: Rng, name: str = "x") -> Tensor:
    """x_M (B, ...) of noise shaped as `like`, from the stream of the process's prior."""
    return ot.map(rng.normal(name, 1, tuple(like.shape), 0).to(like))


def _nearest(x: Tensor, y: Tensor, k: int = 1) -> Tensor:
    """The distance from each x (m, ...) to its k-th nearest of y (n, ...), (m,)."""
    x, y = x.flatten(1), y.flatten(1)
    chunks = x.split(max(1, ENTRIES // len(y)))
    return torch.cat([torch.cdist(chunk, y).kthvalue(k, dim=1).values for chunk in chunks])


def noised_targets(process: Gaussian, clean: Tensor, t: Tensor, rng: Rng, allow_copies: bool = False) -> Tensor:
    """y_i = alpha x_i + sigma eps_i of data `clean` (n, ...) at time t (), with rng.ids the ids of the data.

    Raises ValueError where sigma / alpha is below the median distance of a sample to its nearest neighbour, where x_M
    still tells which sample it was, unless allow_copies.
    """
    alpha, sigma = process.level(t.double())
    if not allow_copies:
        if len(clean) < 2:
            raise ValueError(f"one target is its own copy; got {len(clean)} samples, give more")
        noise, apart = float(sigma / alpha), float(_nearest(clean, clean, k=2).median())
        if noise < apart:
            raise ValueError(
                f"at this level sigma / alpha = {noise:.3g}, below the {apart:.3g} between nearest neighbours, so that "
                "samples would be near copies of the data; take a noisier level, or pass allow_copies=True"
            )
    return process.perturb(clean, t, rng)


class Memorisation(NamedTuple):
    """Median distances to the nearest training sample, of the samples and of held-out data; their ratio, near 1 for
    new samples and near 0 for copies; and the share of samples nearer than all but 1 % of the held-out data, about
    0.01 for new samples."""

    samples: float
    held_out: float
    ratio: float
    copies: float


def memorisation(samples: Tensor, train: Tensor, held_out: Tensor) -> Memorisation:
    """How near samples (m, ...) lie to the training data (n, ...), against held-out data (k, ...)."""
    own, other = _nearest(samples, train), _nearest(held_out, train)
    a, b = float(own.median()), float(other.median())
    return Memorisation(a, b, a / b if b > 0 else float("nan"), float((own < other.quantile(0.01)).double().mean()))
