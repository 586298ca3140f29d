"""Gaps filled by draws from one model of windows, each draw jointly over all that is missing.

Windows go from left to right in steps of half their length; what one has filled is known to the next, path by path. A
gap near a window's right end is left to the next window, which sees what follows it. Then they go back from right to
left, for what comes before the first value.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unisci.domains.series import Panel, values_frame
from unisci.domains.series_frames import to_user
from unisci.forecasting.drawing import draw_windows, path_ids
from unisci.forecasting.levels import interval_bounds, quantile_of, tails
from unisci.forecasting.moments import Moments
from unisci.forecasting.window_model import WindowModel
from unisci.forecasting.windows import Source, WindowShape
from unisci.rng import Rng
from unisci.solvers.program import Program


def fill_paths(
    model: WindowModel, panel: Panel, moments: Moments, paths: int, program: Program, seed: int
) -> list[np.ndarray]:
    """Of each series all values (S, T, C), those that are missing drawn; nan stays in a channel without any value, and
    where values are beyond 1e150. Raises ValueError where paths < 1."""
    if paths < 1:
        raise ValueError(f"n_paths must be at least 1, got {paths}")
    shape, source = model.shape, Source.of(panel, 0, moments)
    values = [np.repeat(s.y[None], paths, 0) for s in panel]
    blocks = range(max(len(_begins(len(s), shape)) for s in panel))
    sound = source.spread.isfinite().all(1).tolist()
    for turn, order in enumerate((blocks, reversed(blocks))):
        for block in order:
            gaps = [_gaps(v[0], _begins(v.shape[1], shape), block, shape) for v in values]
            wanted = {i: g for i, g in enumerate(gaps) if sound[i] and g.any()}
            if wanted:
                _fill(model, source, panel, wanted, block, values, program, seed, 2 * block + turn)
    return values


def _begins(steps: int, shape: WindowShape) -> list[int]:
    """The first rows of the windows of a series of so many steps; negative where it is shorter than one."""
    last = steps - shape.length
    return [*range(0, max(last, 0), max(shape.length // 2, 1)), last]


def _gaps(y: np.ndarray, begins: list[int], block: int, shape: WindowShape) -> np.ndarray:
    """(L, C) bool: what window number `block` is to fill of the values y (T, C), nothing where there is no such
    window."""
    gaps = np.zeros((shape.length, shape.channels), bool)
    if block >= len(begins):
        return gaps
    first = begins[block]
    rows = np.arange(max(first, 0), first + shape.length)
    gaps[rows - first] = np.isnan(y[rows])
    gaps[:, ~(~np.isnan(y[rows])).any(0)] = False  # a channel without any value there has no scale
    if block < len(begins) - 1:
        gaps[3 * shape.length // 4 :] = False
    return gaps


def _fill(
    model: WindowModel,
    source: Source,
    panel: Panel,
    wanted: dict[int, np.ndarray],
    block: int,
    values: list[np.ndarray],
    program: Program,
    seed: int,
    stream: int,
) -> None:
    """Fill the gaps `wanted` (L, C), by series, of window number `block`, in place."""
    shape, paths, todo = model.shape, len(values[0]), list(wanted)
    first = [_begins(len(panel.series[i]), shape)[block] for i in todo]
    series = torch.tensor(todo)
    batch = source.cut(shape, series, torch.tensor(first) + shape.context)[
        torch.arange(len(todo)).repeat_interleave(paths)
    ]
    y = torch.stack([_window(values[i], f, shape) for i, f in zip(todo, first, strict=True)]).flatten(0, 1)
    known = ~y.isnan()
    want = torch.from_numpy(np.stack(list(wanted.values()))).transpose(1, 2).flatten(1).repeat_interleave(paths, 0)
    batch = batch.replace(y=torch.where(known, y, 0.0))
    ids = path_ids([panel.series[i].name for i in todo], paths).flatten()
    empty = ~known.unflatten(1, (shape.channels, -1)).any(-1)  # a channel with nothing known and nothing wanted
    basis = known | empty[..., None].expand(-1, -1, shape.length).flatten(1)
    rng = Rng(seed, ids).at(stream)
    out = draw_windows(model, batch, known, want, program, rng, basis=basis).numpy()
    out = out.reshape(len(todo), paths, shape.channels, shape.length).swapaxes(2, 3)
    for row, (i, f) in enumerate(zip(todo, first, strict=True)):
        rows = slice(max(f, 0), f + shape.length)
        inside = wanted[i][max(-f, 0) :]
        values[i][:, rows][:, inside] = out[row][:, max(-f, 0) :][:, inside]


def _window(values: np.ndarray, first: int, shape: WindowShape) -> Tensor:
    """(S, N) of values (S, T, C) from row `first` on, nan before the series."""
    window = np.full((len(values), shape.length, shape.channels), np.nan)
    window[:, max(-first, 0) :] = values[:, max(first, 0) : first + shape.length]
    return torch.from_numpy(window).transpose(1, 2).flatten(1)


@dataclass(frozen=True, eq=False, repr=False)
class Filled:
    """S sample paths of every series of a panel, which differ where a value was missing.

    values: of each series (S, T, C) float64 in the user's units. levels: of the intervals of `frame`, in percent.
    Tables come in the library and the names of the user's. Raises ValueError for levels outside (0, 100).
    """

    panel: Panel
    values: tuple[np.ndarray, ...]
    levels: tuple[float, ...] = (80,)

    def __post_init__(self) -> None:
        tails(self.levels)

    def __repr__(self) -> str:
        gaps = sum(int(np.isnan(s.y).sum()) for s in self.panel)
        return f"Filled(series={len(self.panel)}, paths={len(self.values[0])}, missing={gaps})"

    @property
    def frame(self):
        """The table id, time, the targets, where a value was missing the median of its paths, for each target its
        intervals (the value itself where it was known), and whether a row had a gap, "filled"."""
        wanted, numbers = interval_bounds(self.levels), {}
        quantiles = [quantile_of(v[None], list(wanted.values()))[:, 0] for v in self.values]
        for k, name in enumerate(self.panel.channels):
            numbers[name] = [np.median(v[..., k], 0) for v in self.values]
            numbers |= {name + end: [q[i, :, k] for q in quantiles] for i, end in enumerate(wanted)}
        frame = values_frame(self.panel, numbers)
        frame["filled"] = np.concatenate([np.isnan(s.y).any(1) for s in self.panel])
        return to_user(self.panel, frame)

    @property
    def paths(self):
        """The table id, time, sample_id and the targets: a row for each step of each path."""
        s = len(self.values[0])
        lengths = [len(one) for one in self.panel]
        numbers = {"sample_id": [np.repeat(np.arange(s), t) for t in lengths]}
        numbers |= {name: [v[..., k].ravel() for v in self.values] for k, name in enumerate(self.panel.channels)}
        times = [one.times.take(np.tile(np.arange(len(one)), s)) for one in self.panel]
        return to_user(self.panel, values_frame(self.panel, numbers, times))

    @property
    def rejects(self):
        """The table id, reason: series that could not be used, and those some of whose gaps stay."""
        reason = "keeps gaps: it has a channel without any value, or values beyond 1e150"
        bad = [s.name for s, v in zip(self.panel, self.values, strict=True) if np.isnan(v).any()]
        rejects = pd.DataFrame({"unique_id": bad, "reason": [reason] * len(bad)}, dtype=str)
        return to_user(self.panel, pd.concat([self.panel.rejects, rejects], ignore_index=True))
