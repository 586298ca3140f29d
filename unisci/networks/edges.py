"""Geometry of pairs of sites, periodic or not. This is the one place that asks whether there is a cell.

    d_ij = f_j - f_i, wrapped to [-1/2, 1/2)                                      fractional coordinates f
    r_ij^2 = min over s in {-1, 0, 1}^3 of (d + s) G (d + s)^T,    G = L L^T      rows of L: a, b, c

The 27 images suffice where the cell is reduced. Differences alone are used, so all is free of where the origin is; of
a cell only G is used, so all is free of how it is turned. Fourier features of d as in DiffCSP (arXiv 2309.04475).
Products with the cell keep their precision under autocast.
"""

import contextlib
import math
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.lattice import wrap


def differences(position: Tensor, periodic: bool) -> Tensor:
    """f_j - f_i, (B, N, N, 3) at [i, j], of position (B, N, 3); wrapped where periodic."""
    d = position[:, None] - position[:, :, None]
    return wrap(d) if periodic else d


def images(reach: list[int], like: Tensor) -> Tensor:
    """All integer shifts (S, 3) of at most reach[k] cells along axis k."""
    return torch.cartesian_prod(*[torch.arange(-k, k + 1, device=like.device, dtype=like.dtype) for k in reach])


def squares(d: Tensor, lattice: Tensor, shifts: Tensor) -> Tensor:
    """|(d + s) L|^2 of d (B, N, N, 3) and shifts (S, 3): (B, N, N, S), without the vectors themselves."""
    s, flat = shifts.expand(len(d), -1, -1), d.flatten(1, 2)
    with _full_precision(d.device.type):
        gram = lattice @ lattice.transpose(1, 2)
        d_gram, s_gram = flat @ gram, s @ gram
        # |d + s|^2 = d G d + 2 d G s + s G s
        cross = torch.baddbmm((s_gram * s).sum(-1)[:, None], d_gram, s.transpose(1, 2), alpha=2)
    return (cross + (d_gram * flat).sum(-1, keepdim=True)).unflatten(1, d.shape[1:3])


def _full_precision(device: str) -> contextlib.AbstractContextManager:
    """Products of matrices as they are, where autocast would round them; some devices know no autocast."""
    available = torch.amp.is_autocast_available(device)
    return torch.autocast(device, enabled=False) if available else contextlib.nullcontext()


def distances(d: Tensor, lattice: Tensor | None = None) -> Tensor:
    """Shortest distance (B, N, N) of the differences d; lattice (B, 3, 3), None where they are Cartesian.

    Not below 1e-3, so that the distance of a site to itself has a derivative, 0.
    """
    r2 = (d * d).sum(-1) if lattice is None else squares(d, lattice, images([1, 1, 1], d)).amin(-1)
    return r2.clamp(min=1e-6).sqrt()


def shortest(d: Tensor, lattice: Tensor | None = None) -> Tensor:
    """Shortest vectors (B, N, N, 3) from i to j, Cartesian, angstrom where the lattice is."""
    if lattice is None:
        return d
    shifts = images([1, 1, 1], d)
    return (d + shifts[squares(d, lattice, shifts).argmin(-1)]) @ lattice[:, None]


def spacing(lattice: Tensor, sites: Tensor) -> Tensor:
    """(V / N)^(1/3), the edge (B,) of the cube that a site has for itself; sites (B,)."""
    a, b, c = lattice.unbind(1)
    return ((torch.linalg.cross(a, b) * c).sum(-1).abs() / sites) ** (1 / 3)


def fourier(d: Tensor, frequencies: int) -> Tensor:
    """sin and cos of 2 pi k d, k = 1, ..., frequencies: (..., 3) -> (..., 6 frequencies)."""
    k = torch.arange(1, frequencies + 1, device=d.device, dtype=d.dtype)
    angle = (2 * math.pi * d[..., None] * k).flatten(-2)
    return torch.cat([angle.sin(), angle.cos()], -1)


def radial(r: Tensor, count: int, largest: float) -> Tensor:
    """Gaussians of r at `count` centres from 0 to `largest`, as wide as these are apart: (...) -> (..., count)."""
    centres = torch.linspace(0, largest, count, device=r.device, dtype=r.dtype)
    return torch.exp(-0.5 * ((r[..., None] - centres) * ((count - 1) / largest)) ** 2)


class Edges(NamedTuple):
    """Edges of E pairs for sparse networks, in the convention of PyG.

    index (2, E): source and target, counting the sites that exist, as in position[mask]; shift (E, 3): integers such
    that position[source] + shift - position[target] is the edge from target to source, fractional where periodic;
    sample (nodes,): which sample each node is of.
    """

    index: Tensor
    shift: Tensor
    sample: Tensor


def to_edge_index(position: Tensor, mask: Tensor, lattice: Tensor | None, cutoff: float) -> Edges:
    """All pairs (position (B, N, 3), mask (B, N)) within `cutoff`, through every image of the cell, of skewed ones too.

    A site is no neighbour of itself, though of its own images. Waits for the device: the number of edges is data.
    Raises ValueError where the cutoff is not positive.
    """
    if not cutoff > 0:
        raise ValueError(f"the cutoff must be a positive distance, got {cutoff}")
    position = position.detach()
    raw = position[:, None] - position[:, :, None]
    if lattice is None:
        shifts, near = position.new_zeros(1, 3), (raw * raw).sum(-1, keepdim=True) <= cutoff**2
        whole = torch.zeros_like(raw)
    else:
        whole = raw.round()
        shifts = images(_reach(lattice.detach(), cutoff), position)
        near = squares(raw - whole, lattice.detach(), shifts) <= cutoff**2
    itself = torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    near &= (mask[:, :, None] & mask[:, None])[..., None]
    near &= ~(itself[..., None] & (shifts == 0).all(-1))
    b, i, j, s = near.nonzero(as_tuple=True)
    node = mask.flatten().cumsum(0).unflatten(0, mask.shape) - 1
    return Edges(torch.stack([node[b, j], node[b, i]]), shifts[s] - whole[b, i, j], mask.nonzero()[:, 0])


def _reach(lattice: Tensor, cutoff: float) -> list[int]:
    """How many cells along each axis can bring a wrapped difference within the cutoff in one of the lattices."""
    # |d_k + s_k| <= cutoff / h_k, where h_k is the height of the cell over the face of the two other axes.
    over_height = torch.linalg.inv(lattice).norm(dim=1)
    return (cutoff * over_height + 0.5).floor().amax(0).long().tolist()
