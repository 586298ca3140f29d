"""Frames of point sets in space: one that a set has of its own, and one drawn of the Haar measure by quaternions.

a = r_2 / |r_2|,    b ~ r_k - (a . r_k) a,    c = a x b          r_1 = 0, k: the first point off the line through a
"""

import torch
from torch import Tensor

from unisci.rng import Rng

OFF = 0.05  # angstrom from the line, from which on a point settles the frame


def own_frame(x: Tensor, first: Tensor) -> Tensor:
    """Rotations (B, 3, 3) whose columns are a, b, c, so that x @ frame are the coordinates in it.

    x (B, S, 3): points in angstrom; the one at `first` (B,) and all that do not count are 0, and r_2 follows it. Where
    all lie on a line, or there is but one, b (and a) are as good as any.
    """
    rows, axes = torch.arange(len(x), device=x.device), torch.eye(3, dtype=x.dtype, device=x.device)
    second = x[rows, (first + 1).clamp(max=x.shape[1] - 1)]
    a = torch.where(second.norm(dim=1, keepdim=True) > 0, second, axes[0])
    a = a / a.norm(dim=1, keepdim=True)
    away = lambda v: v - (v * a[:, None]).sum(-1, keepdim=True) * a[:, None]
    side = away(x)
    off = side.norm(dim=2) > OFF
    other = away(axes[a.abs().argmin(1)][:, None])[:, 0]
    b = torch.where(off.any(1, keepdim=True), side[rows, off.int().argmax(1)], other)
    b = b / b.norm(dim=1, keepdim=True)
    return torch.stack([a, b, torch.linalg.cross(a, b)], 2)


def random_rotation(rng: Rng) -> Tensor:
    """(B, 3, 3)."""
    q = rng.normal("turn", 0, (len(rng.ids), 4), 0)
    w, x, y, z = (q / q.norm(dim=1, keepdim=True)).unbind(1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, 1) for row in rows], 1)
