"""Cells as numbers: a lower-triangular lattice and six reals without bounds, one to one.

    L = [[a, 0, 0], [u a, b, 0], [v a, w b, c]]       rows a, b, c; a, b, c > 0
    raw = (log a', log b', log c', u, v, w),   a' = a / n^(1/3) for n sites,   cell = (raw - MEAN) / STD

Every six numbers are a right-handed cell. A cell's size grows with its number of sites, so lengths are taken for one
site; a Niggli-reduced cell has |u|, |w| up to 1/2 or little more. MEAN and STD make a unit normal a fair prior: they
are those of the inorganic crystals of MP-20, rounded.
"""

from functools import lru_cache

import torch
from torch import Tensor

MEAN = (0.85, 0.91, 1.16, 0.08, 0.08, -0.03)
STD = (0.25, 0.22, 0.34, 0.34, 0.33, 0.31)


def wrap(x: Tensor) -> Tensor:
    """x less its nearest integers: a difference of fractional coordinates, in [-1/2, 1/2]."""
    return x - x.round()


@lru_cache
def _mean_std(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """MEAN and STD on a device, kept there: a copy from the host would wait for it each time."""
    with torch.inference_mode(False):
        return torch.tensor(MEAN, dtype=dtype, device=device), torch.tensor(STD, dtype=dtype, device=device)


def cell_matrix(cell: Tensor, sites: Tensor) -> Tensor:
    """Lattices (B, 3, 3), rows a, b, c in angstrom, of cells (B, 6) with `sites` (B,) sites. Differentiable."""
    mean, std = _mean_std(cell.dtype, cell.device)
    raw = cell * std + mean
    a, b, c = (raw[:, :3].exp() * sites[:, None].to(cell) ** (1 / 3)).unbind(1)
    u, v, w = raw[:, 3:].unbind(1)
    zero = torch.zeros_like(a)
    return torch.stack([a, zero, zero, u * a, b, zero, v * a, w * b, c], 1).unflatten(1, (3, 3))


def cell_numbers(lattice: Tensor, sites: Tensor) -> Tensor:
    """Cells (B, 6) of lower-triangular lattices (B, 3, 3) in angstrom; the inverse of `cell_matrix`."""
    a, b, c = lattice.diagonal(dim1=1, dim2=2).unbind(1)
    lengths = torch.stack([a, b, c], 1) / sites[:, None].to(lattice) ** (1 / 3)
    shape = torch.stack([lattice[:, 1, 0] / a, lattice[:, 2, 0] / a, lattice[:, 2, 1] / b], 1)
    raw = torch.cat([lengths.log(), shape], 1)
    mean, std = _mean_std(raw.dtype, raw.device)
    return (raw - mean) / std
