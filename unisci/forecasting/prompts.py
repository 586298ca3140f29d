"""Prompts: the known entries of a window, which a diffusion model completes (GPD, arXiv 2406.02212; TSDiff,
2307.11494).

A model whose times may differ by entry is conditioned exactly, without a gradient: with K the known entries,

    D(x_t; y_K) = E[x_0 | y_K, x_t outside K] = D(x with y at K, t with 0 at K)

A window is a state of one site field: a bare tensor (B, N), or {"y": (B, N)}. y: known values, shaped as the state and
of any value, nan too, at the others. where (B, N) bool: which entries are known; they may differ by sample.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.guidance.particles import prior
from unisci.rng import Rng
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise
from unisci.solvers.score import time_for
from unisci.state import State, Time, fieldwise, pad

ROUNDING = 8  # a spread below so many roundings of the mean is no spread


def values(window: State) -> Tensor:
    """The entries (B, N) of a window: of its field "y", or the bare tensor."""
    return window["y"] if isinstance(window, dict) else window


def cleared(y: State, where: Tensor) -> State:
    """y with 0 at the unknown entries. Raises ValueError where `where` is no bool tensor of y's shape, and where a
    known value is not finite."""
    known = values(y)
    if where.dtype != torch.bool or where.shape != known.shape:
        raise ValueError(f"where must be bool of shape {tuple(known.shape)}, got {where.dtype} {tuple(where.shape)}")
    filled = fieldwise(lambda v: torch.where(where, v, 0.0), y)
    if not bool(values(filled).isfinite().all()):
        rows = (~values(filled).isfinite()).any(1).nonzero()[:, 0].tolist()
        raise ValueError(f"samples {rows[:8]} have known values that are not finite; set where to False there")
    return filled


def hold(x: State, y: State, where: Tensor) -> State:
    """x with the known entries set to their values."""
    return fieldwise(lambda x, y: torch.where(where, y.to(x), x), x, y)


def normalise(y: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    """loc and scale (..., 1) of y (..., L): mean and standard deviation of the known entries along the last axis, those
    of `where`, for each sample and channel. (y - loc) / scale does not change when y becomes a y + b, a > 0.

    Known entries that are all alike have a scale of rounding, 8 eps |loc|, so that their forecast is flat, and nothing
    is nan. Without a known entry loc is 0 and scale 1.
    """
    count = where.sum(-1, keepdim=True)
    mean = lambda v: torch.where(where, v, 0.0).sum(-1, keepdim=True) / count.clamp(min=1)
    loc = mean(y)
    deviation = mean((y - loc).square()).sqrt()
    info = torch.finfo(y.dtype)
    floor = (ROUNDING * info.eps * loc.abs()).clamp(min=info.tiny**0.5)
    return loc, torch.where(count > 0, torch.maximum(deviation, floor), 1.0)


def draw(
    denoise: Denoise,
    like: State,
    program: Program,
    rng: Rng,
    after: Callable[[State, Time], State] | None = None,
) -> State:
    """Windows from pure noise, shaped as `like` (B, N): of an unconditional model, synthetic series. after, and errors:
    as `run`."""
    return run(denoise, prior(denoise, like, rng, 1), program, rng, after)


@dataclass(frozen=True, eq=False)
class Prompted:
    """A Denoise that is conditioned on y at `where`, of one that was trained with times that differ by entry, known
    entries clean at t = 0: these enter so, whatever x holds there, and the prediction for them is y itself. Any solver
    and any further guidance takes it. Exact for the exact model. Raises ValueError as `cleared`.
    """

    denoise: Denoise
    y: State
    where: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "y", cleared(self.y, self.where))

    @cached_property
    def process(self) -> Any:
        return self.denoise.process

    @cached_property
    def schema(self) -> Schema | None:
        return self.denoise.schema

    def __call__(self, x: State, t: Time) -> State:
        """E[x_0 | y, x_t], (B, N)."""
        inputs = hold(x, self.y, self.where)
        times = fieldwise(lambda v, t: torch.where(self.where, 0.0, pad(t, v)), x, time_for(t, x))
        return hold(self.denoise(inputs, times), self.y, self.where)
