"""Paths of windows: many draws for each series, in chunks, each path with noise of its own.

Path j of a series called n is drawn from the number crc32(n) + j mod 2^32: the same whatever other series, paths or
chunks there are.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.generate import fill_group
from unisci.batch import Batch
from unisci.forecasting.gpd import CLEAN, Conditioner
from unisci.forecasting.scales import Scaled
from unisci.forecasting.window_model import WindowModel
from unisci.forecasting.windows import Source, WindowShape
from unisci.rng import MASK, Rng
from unisci.solvers.program import Program
from unisci.solvers.sample import Denoise

ROWS = 2048  # windows at once

Told = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
Guide = Callable[[Denoise, Scaled], Denoise]


def path_ids(names: Sequence[str], paths: int) -> Tensor:
    """The numbers (n, S) whose noise the paths have."""
    first = torch.tensor([zlib.crc32(name.encode()) for name in names], dtype=torch.int64)
    return (first[:, None] + torch.arange(paths)) & MASK


def draw_windows(
    model: WindowModel,
    batch: Batch,
    known: Tensor,
    wanted: Tensor,
    program: Program,
    rng: Rng,
    conditioner: Conditioner = CLEAN,
    guide: Guide | None = None,
    basis: Tensor | None = None,
) -> Tensor:
    """`WindowModel.complete` in chunks of rows, (B, N) float64. rng holds the number of each row, known and wanted and
    basis are (B, N)."""
    options = {} if guide is None else {"guide": guide}
    parts = []
    for rows in torch.arange(len(batch)).split(ROWS):
        filled = fill_group(rows)
        own = None if basis is None else basis[filled]
        part = model.complete(
            batch[filled], known[filled], wanted[filled], program, rng[filled], conditioner, own, **options
        )
        parts.append(part[: len(rows)])
    return torch.cat(parts)


def draw_paths(
    model: WindowModel,
    source: Source,
    names: Sequence[str],
    h: int,
    paths: int,
    program: Program,
    seed: int,
    conditioner: Conditioner = CLEAN,
    guide: Guide | None = None,
    told: Told = lambda y, known: (y, known),
) -> np.ndarray:
    """The h steps after the last of every series, (n, S, h, C) float64; a horizon is drawn after another, each path
    after its own past. told(y, known): values of the horizon that are known (B, N), and which."""
    shape, n = model.shape, len(names)
    series = torch.arange(n).repeat_interleave(paths)
    ids = path_ids(names, paths).flatten()
    lengths = source.end - source.first
    drawn = torch.zeros(n * paths, shape.channels, 0, dtype=torch.float64)
    for block in range(-(-h // shape.horizon)):
        origin = lengths + block * shape.horizon
        batch = source.cut(shape, torch.arange(n), origin)[series]
        y = _with_past(batch.state["y"], drawn, shape)
        past = shape.steps() < shape.context
        old = torch.zeros(shape.channels, shape.length, dtype=torch.bool)
        old[:, max(0, shape.context - drawn.shape[2]) : shape.context] = True
        known = past & (batch.given["observed"] | old.flatten())
        y, known = told(y, known) if block == 0 else (y, known)
        batch = batch.replace(y=torch.where(known, y, 0.0))
        rng = Rng(seed, ids).at(block)
        wanted = ~past.expand_as(known) & ~known
        out = draw_windows(model, batch, known, wanted, program, rng, conditioner, guide, known & past)
        future = out.unflatten(1, (shape.channels, shape.length))[..., shape.context :]
        drawn = torch.cat([drawn, future], 2)
    return drawn[..., :h].transpose(1, 2).reshape(n, paths, h, shape.channels).numpy()


def _with_past(y: Tensor, drawn: Tensor, shape: WindowShape) -> Tensor:
    """y (B, N) with what was drawn already (B, C, d) at the end of its context."""
    d = min(drawn.shape[2], shape.context)
    if not d:
        return y
    y = y.unflatten(1, (shape.channels, shape.length)).clone()
    y[..., shape.context - d : shape.context] = drawn[..., drawn.shape[2] - d :]
    return y.flatten(1)


def unusable(source: Source, shape: WindowShape, names: Sequence[str]) -> dict[str, str]:
    """Why which series cannot be forecast: a channel without a value in its last context steps, or values whose squares
    are infinite."""
    batch = source.cut(shape, torch.arange(len(names)), source.end - source.first)
    past = batch.given["observed"] & (shape.steps() < shape.context)
    empty = ~past.unflatten(1, (shape.channels, -1)).any(-1)
    large = ~source.spread.isfinite()
    reasons = {"has values beyond 1e150: take other units": large}
    reasons |= {f"has no value among its last {shape.context} steps, from which it would be forecast": empty}
    return {names[i]: why for why, bad in reasons.items() for i in bad.any(1).nonzero()[:, 0].tolist()}
