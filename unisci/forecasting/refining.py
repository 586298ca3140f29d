"""Refinement of anyone's forecast by the model of windows, the past known (TSDiff, arXiv 2307.11494, section 3.3).

`Restart` noises the base forecast to time t and solves from there (SDEdit, 2108.01073): what the noise hides is drawn
anew, the rest of the base stays. `Langevin` moves it downhill in the paper's energy, |eps - eps_hat|^2 + R, from the
base's paths sorted at each step, so that path j is the quantile j / (S + 1).
"""

from dataclasses import dataclass
from typing import ClassVar, Protocol

import narwhals as nw
import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unisci.autoregression.generate import fill_group
from unisci.domains.series import Panel, Series
from unisci.forecasting.drawing import ROWS, path_ids
from unisci.forecasting.prompts import Prompted
from unisci.forecasting.tsdiff import path_levels, pinball, refine_langevin
from unisci.forecasting.window_model import START, WindowModel
from unisci.forecasting.windows import Source
from unisci.guidance.terms import Start
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Denoise
from unisci.state import State


class Refiner(Protocol):
    """Windows near `base` (B, N), whose known entries are clean. by_level: whether the paths of the base are to be
    sorted at each step, so that levels (B,) is the quantile that each is; else they stay joint paths."""

    by_level: ClassVar[bool]

    def __call__(self, denoise: Denoise, base: State, levels: Tensor, rng: Rng) -> State: ...


@dataclass(frozen=True)
class Restart:
    """From time t in (0, 1] in `steps` calls: a t near 1 forgets the base. Raises ValueError as `Start`."""

    t: float = 0.7
    steps: int = 8
    by_level: ClassVar[bool] = False

    def __post_init__(self) -> None:
        Start({}, self.t)

    def __call__(self, denoise: Denoise, base: State, levels: Tensor, rng: Rng) -> State:
        process = denoise.process["y"]
        times = grid(process, self.steps, start=min(self.t, START))
        return run(denoise, Start(base, self.t).state(denoise, rng), compile_solver(process, times, "dpm++2m"), rng)


RESTART = Restart()


@dataclass(frozen=True)
class Langevin:
    """The paper's refinement at level t, R = weight times the pinball loss to the base at each path's level: `steps`
    calls and passes backward, step size eta, temperature gamma."""

    t: float = 0.1
    steps: int = 20
    eta: float = 0.1
    gamma: float = 0.1
    weight: float = 1.0
    by_level: ClassVar[bool] = True

    def __call__(self, denoise: Denoise, base: State, levels: Tensor, rng: Rng) -> State:
        near = pinball(base, levels)
        t = torch.tensor(self.t, dtype=torch.float64)
        regulariser = lambda x: self.weight * near(x)
        return refine_langevin(denoise, base, regulariser, t, rng, self.steps, self.eta, self.gamma)


@torch.no_grad()
def refine_paths(
    model: WindowModel, source: Source, names: list[str], base: np.ndarray, seed: int, refiner: Refiner
) -> np.ndarray:
    """base (n, S, h, C), S paths of each series after its last value, refined, as (n, S, h, C); h at most the horizon.
    Path j of a series is the same whatever the other series are."""
    n, paths, h, channels = base.shape
    shape = model.shape
    future = np.sort(base, 1) if refiner.by_level else base
    lengths = source.end - source.first
    rows = torch.arange(n).repeat_interleave(paths)
    batch = source.cut(shape, torch.arange(n), lengths)[rows]
    y = batch.state["y"].unflatten(1, (channels, shape.length)).clone()
    y[..., shape.context : shape.context + h] = torch.from_numpy(future).flatten(0, 1).transpose(1, 2)
    batch = batch.replace(y=y.flatten(1))
    past = batch.given["observed"] & (shape.steps() < shape.context)
    wanted = ((shape.steps() >= shape.context) & (shape.steps() < shape.context + h)).expand_as(past)
    ids, levels = path_ids(names, paths).flatten(), path_levels(paths).repeat(n)
    out = []
    for part in torch.arange(n * paths).split(ROWS):
        group = fill_group(part)
        windows, units = model.windows(batch[group], past[group], past[group], (past | wanted)[group])
        # Held too is what does not exist, so that the answers there, which mean nothing, are in no energy.
        denoise = Prompted(model.denoiser.on(windows), windows.state, ~wanted[group])
        drawn = refiner(denoise, windows.state, levels[group], Rng(seed, ids[group]))
        out.append(units.back(drawn["y"])[: len(part)])
    drawn = torch.cat(out).unflatten(1, (channels, shape.length))[..., shape.context : shape.context + h]
    return drawn.transpose(1, 2).reshape(n, paths, h, channels).numpy()


def base_paths(forecast, panel: Panel, value: str | None, n_paths: int, longest: int) -> np.ndarray:
    """The base forecast (n, S, h, 1) of a table with the panel's id and time columns and one of values: paths where it
    has "sample_id", else the same n_paths times. value: its column, where None the only one of numbers.

    Raises ValueError where the panel has several channels, n_paths < 1, a series of the panel is not in the table, has
    times that do not follow the panel's or two values at one, or h and the samples differ by series.
    """
    if len(panel.channels) > 1 or n_paths < 1:
        raise ValueError(f"need one channel and n_paths >= 1, got the channels {panel.channels} and {n_paths} paths")
    try:
        frame = nw.from_native(forecast, eager_only=True).to_pandas()
    except TypeError:
        raise ValueError(f"the forecast is a {type(forecast).__name__}: give a frame of pandas or polars") from None
    key, time = panel.columns.id or "unique_id", panel.columns.time or "ds"
    if key not in frame and len(panel) == 1:
        frame = frame.assign(**{key: panel.series[0].name})
    if missing := [name for name in (key, time) if name not in frame]:
        raise ValueError(f"the forecast has no column {missing[0]!r}, it has {list(frame)}")
    used = {key, time, "sample_id"}
    numbers = [c for c in frame.select_dtypes("number") if c not in used]
    if value is None and len(numbers) != 1:
        raise ValueError(f"the forecast has the columns of numbers {numbers}: say which is the forecast, value=...")
    value = value or numbers[0]
    if value not in frame:
        raise ValueError(f"the forecast has no column {value!r}, it has {list(frame)}")
    samples = frame["sample_id"] if "sample_id" in frame else pd.Series(0, frame.index)
    times = frame[time] if panel.freq == "1" else pd.to_datetime(frame[time])
    frame = pd.DataFrame({"id": frame[key].astype(str), "ds": times, "sample": samples, "y": frame[value]})
    parts = {name: part for name, part in frame.groupby("id", sort=False)}
    found = [_base_of(parts.get(s.name), s, longest) for s in panel]
    if len({v.shape for v in found}) != 1:
        raise ValueError("the forecast must have the same steps and samples for every series")
    base = np.stack(found)
    return base if base.shape[1] > 1 else base.repeat(n_paths, 1)


def _base_of(part: pd.DataFrame | None, series: Series, longest: int) -> np.ndarray:
    """(S, h, 1) of one series."""
    if part is None:
        raise ValueError(f"the forecast has no rows of series {series.name!r}")
    if part.duplicated(["sample", "ds"]).any():
        raise ValueError(f"series {series.name!r}: the forecast has two values at one time: samples need 'sample_id'")
    wide = part.pivot(index="sample", columns="ds", values="y").sort_index(axis=1)
    h = wide.shape[1]
    if h > longest:
        raise ValueError(f"series {series.name!r}: the forecast has {h} steps, the trained horizon is {longest}")
    if list(wide.columns) != list(series.ahead(h)):
        raise ValueError(
            f"series {series.name!r}: the forecast must begin at {series.ahead(1)[0]}, the step after the history, and "
            f"go on in steps of {series.freq!r}; it begins at {wide.columns[0]}"
        )
    base = wide.to_numpy(np.float64, na_value=np.nan)
    if not np.isfinite(base).all():
        raise ValueError(f"series {series.name!r}: the forecast lacks values, or they are infinite")
    return base[..., None]
