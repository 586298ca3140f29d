"""Windows of series: what a model of them is trained on and completes. A window has L = context + horizon time steps of
C channels, N = C L sites, channel-major: site c L + l is channel c at step l. Its origin is the first step of the
horizon.

Values are scaled by what is known before the origin (or wherever something is known, where gaps are filled):

    x = (y - last) / s,    s = max(standard deviation of the known values, FLOOR spread)

for each window and channel, last the last known value, spread the standard deviation of the whole series. So a forecast
of a y + b is a times the forecast of y, plus b (a > 0), and the level of a random walk is where it was last seen.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.batch import Batch, Field, Schema
from unisci.domains.calendar import phases, step_days
from unisci.domains.series import Panel, Series
from unisci.forecasting.anchors import LAGS, anchors, series_structure
from unisci.forecasting.prompts import normalise

TIMES = 3  # that a season must have been seen
PERIODS = (1.0, 7.0, 365.25)  # days, of the phases
FLOOR = 0.1  # of the series's own spread, below which a quiet history does not push the scale
ROUNDING = 1e-9  # of its mean, below which a column does not vary


@dataclass(frozen=True)
class WindowShape:
    """context and horizon in time steps, channels C. Raises ValueError where one is less than 1."""

    context: int
    horizon: int
    channels: int = 1

    def __post_init__(self) -> None:
        for name in ("context", "horizon", "channels"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def length(self) -> int:
        """L."""
        return self.context + self.horizon

    @property
    def sites(self) -> int:
        """N."""
        return self.channels * self.length

    def steps(self, device: torch.device | str = "cpu") -> Tensor:
        """The time step l of each site, (N,)."""
        return torch.arange(self.length, device=device).repeat(self.channels)


def window_schema(covariates: int, phase: int, static: int, channels: int) -> Schema:
    """The fields of a batch of windows: y, the conditions that there are, "structure" (at site c L + l D of channel c
    at lag l) and "anchor", see `unisci.forecasting.anchors`."""
    fields = {name: Field("site") for name in ("y", "observed", "structure")}
    fields |= {"spread": Field("whole", (channels,)), "anchor": Field("site", (3,))}
    sized = {"phase": ("whole", phase), "static": ("whole", static), "covariates": ("site", covariates)}
    return fields | {k: Field(kind, (size,)) for k, (kind, size) in sized.items() if size}


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of the covariates (K,), those of the past first, of the static numbers (Q,), and of
    the phases (P,): 0 and 1, or inf for a period, such as the year, that no series of training holds TIMES times. The
    phase of such a period tells which day of training it is, and is learnt by heart."""

    covariates: tuple[Tensor, Tensor]
    static: tuple[Tensor, Tensor]
    phases: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, panel: Panel) -> "Moments":
        """Those of all that is told; a column that does not vary keeps its unit."""
        rows = np.concatenate([_covariates(s, 0) for s in panel])
        return cls(_moments(rows), _moments(_static(panel)), _phase_moments(panel))

    def without(self, other: "Moments") -> "Moments":
        """The same with the phases alone that both have."""
        return replace(self, phases=(self.phases[0], torch.maximum(self.phases[1], other.phases[1])))


def _phase_moments(panel: Panel) -> tuple[Tensor, Tensor]:
    days = 0.0 if panel.freq == "1" else max(len(s) for s in panel) * step_days(panel.freq)
    kept = torch.tensor([days >= TIMES * period for period in PERIODS], dtype=torch.bool).repeat_interleave(2)
    return torch.zeros(len(kept), dtype=torch.float64), torch.where(kept, 1.0, torch.inf).double()


def _moments(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    told = ~np.isnan(rows)
    count = np.maximum(told.sum(0), 1)
    mean = np.where(told, rows, 0.0).sum(0) / count
    std = np.sqrt(np.where(told, (rows - mean) ** 2, 0.0).sum(0) / count)
    return torch.from_numpy(mean), torch.from_numpy(np.where(std > ROUNDING * np.abs(mean), std, 1.0))


@dataclass(frozen=True, eq=False)
class Source:
    """The series of a panel end to end, each followed by `ahead` empty rows, to cut windows from: R rows in all.

    values (R, C) and covariates (R, K) float64, nan where nothing is known; the last `future` of the covariates are
    known ahead. phases (R, P) float32; static (S, Q); both this and the covariates standardised. first and end (S,):
    the rows of each series, without the empty ones; spread (S, C), structure (S, C, LAGS): see
    `unisci.forecasting.anchors`."""

    values: Tensor
    covariates: Tensor
    future: int
    phases: Tensor
    static: Tensor
    first: Tensor
    end: Tensor
    spread: Tensor
    structure: Tensor
    ahead: int

    @classmethod
    def of(cls, panel: Panel, ahead: int, moments: Moments) -> "Source":
        """All series of a panel. Raises ValueError where it has other covariates than the moments."""
        shapes = [stack.shape[1] for stack in (_covariates(panel.series[0], 0), _static(panel))]
        known = [len(moments.covariates[0]), len(moments.static[0])]
        if shapes != known:
            raise ValueError(
                f"the series have {shapes[0]} covariates and {shapes[1]} static numbers, the model was trained with "
                f"{known[0]} and {known[1]}: give the same columns"
            )
        lengths = np.array([len(s) for s in panel])
        rows = np.cumsum(lengths + ahead)
        first = torch.from_numpy(rows - lengths - ahead)
        stack = lambda make: torch.from_numpy(np.concatenate([make(s) for s in panel]))
        times = lambda s: s.times.append(s.ahead(ahead)) if ahead else s.times
        standard = lambda rows, moments: (rows - moments[0]) / moments[1]
        one = panel.series[0]
        return cls(
            values=stack(lambda s: _to(s.y, len(s) + ahead)),
            covariates=standard(stack(lambda s: _covariates(s, ahead)), moments.covariates),
            future=0 if one.future is None else one.future.shape[1],
            phases=standard(stack(lambda s: phases(times(s), s.freq)), moments.phases).float(),
            static=standard(torch.from_numpy(_static(panel)), moments.static),
            first=first,
            end=first + torch.from_numpy(lengths),
            spread=torch.from_numpy(np.stack([_spread(s.y) for s in panel])),
            structure=torch.stack([series_structure(s.y) for s in panel]),
            ahead=ahead,
        )

    @property
    def schema(self) -> Schema:
        sizes = self.covariates.shape[1], self.phases.shape[1], self.static.shape[1]
        return window_schema(*sizes, self.values.shape[1])

    def cut(self, shape: WindowShape, series: Tensor, origin: Tensor, ids: Tensor | None = None) -> Batch:
        """Windows (B, N), float64, of the series numbered `series` (B,), whose horizons begin at the rows `origin` (B,)
        of theirs. "observed": which values there are; the others are 0. Covariates that are not known ahead are nan
        from the origin on."""
        rows = self.first[series, None] + origin[:, None] - shape.context + torch.arange(shape.length)
        inside = (rows >= self.first[series, None]) & (rows < self.end[series, None] + self.ahead)
        rows = rows.clamp(0, len(self.values) - 1)
        y = torch.where(inside[..., None], self.values[rows], torch.nan).transpose(1, 2).flatten(1)
        observed = ~y.isnan()
        structure = self.structure[..., : shape.length][series]
        structure = F.pad(structure, (0, max(0, shape.length - LAGS)), value=torch.inf)
        given = {"observed": observed, "spread": self.spread[series], "structure": structure.flatten(1)}
        if self.phases.shape[1]:
            given["phase"] = self.phases[rows[:, -1]]
        if self.static.shape[1]:
            given["static"] = self.static[series].float()
        if k := self.covariates.shape[1]:
            told = torch.where(inside[..., None], self.covariates[rows], torch.nan)
            told[:, shape.context :, : k - self.future] = torch.nan
            given["covariates"] = told.repeat(1, shape.channels, 1).float()
        mask = torch.ones_like(observed)
        return Batch(self.schema, {"y": torch.where(observed, y, 0.0)}, mask, given, ids)

    def origins(self, shape: WindowShape, series: int) -> Tensor:
        """Where a training window of a series may have its origin: with a whole horizon, and a whole context if the
        series is long enough, else at least as much of it as the horizon's length or half of what there is."""
        steps = int(self.end[series] - self.first[series])
        last = steps - shape.horizon
        least = max(min(shape.context, max(shape.horizon, last // 2), last), 1)
        return torch.arange(least, max(last + 1, least))

    def begun(self, shape: WindowShape, series: Tensor, origin: Tensor) -> Tensor:
        """Whether the context of each window has a value of every channel, (B,) bool."""
        seen = torch.cat([torch.zeros_like(self.values[:1]), (~self.values.isnan()).double().cumsum(0)])
        end = self.first[series] + origin
        return (seen[end] > seen[torch.maximum(end - shape.context, self.first[series])]).all(1)


def places(source: Source, shape: WindowShape) -> Batch:
    """Where all training windows are: "series" and "origin", for `at_places`. Raises ValueError where no series is long
    enough."""
    found = [source.origins(shape, i) for i in range(len(source.first))]
    series = torch.arange(len(found)).repeat_interleave(torch.tensor([len(f) for f in found]))
    if not len(series):
        longest = int((source.end - source.first).max())
        raise ValueError(
            f"the longest series has {longest} steps, and a horizon of {shape.horizon} needs at least "
            f"{shape.horizon + 1}: take a shorter horizon"
        )
    schema = {"series": Field("whole"), "origin": Field("whole")}
    given = {"series": series, "origin": torch.cat(found)}
    return Batch(schema, {}, torch.ones(len(series), 1, dtype=torch.bool), given)


def at_places(source: Source, shape: WindowShape, batch: Batch) -> Batch:
    """The windows of a batch of `places`."""
    return source.cut(shape, batch.given["series"], batch.given["origin"], batch.ids)


class Scaled(NamedTuple):
    """Windows (B, N) float32 in units of their histories; loc and scale (B, C, 1 or L) float64 lead back."""

    x: Tensor
    loc: Tensor
    scale: Tensor

    def back(self, x: Tensor) -> Tensor:
        """x (B, N) in the units of y, float64."""
        c = self.loc.shape[1]
        return (x.double().unflatten(1, (c, -1)) * self.scale + self.loc).flatten(1)


def scaled(y: Tensor, basis: Tensor, spread: Tensor) -> Scaled:
    """y (B, N) by the entries `basis` (B, N) bool; spread (B, C): of the whole series. Entries outside 1e3 scales,
    which only a broken history has, are cut off there."""
    c = spread.shape[1]
    y, basis = y.unflatten(1, (c, -1)), basis.unflatten(1, (c, -1))
    mean, deviation = normalise(y, basis)
    at = torch.where(basis, torch.arange(y.shape[-1], device=y.device), -1).amax(-1, keepdim=True)
    last = torch.where(at >= 0, y.gather(-1, at.clamp(min=0)), mean)
    scale = torch.maximum(deviation, FLOOR * spread[..., None])
    return Scaled(((y - last) / scale).clamp(-1e3, 1e3).flatten(1).float(), last, scale)


def relative(units: Scaled, known: Tensor, structure: Tensor) -> tuple[Scaled, Tensor]:
    """Windows whose entries that are not `known` (B, N) count from their anchors in units of the spread, and the
    anchors (B, N, 3): value and log spread in the old units, change. structure (B, N): D in units of y squared."""
    each = lambda v: v.unflatten(1, (units.loc.shape[1], -1))
    found = anchors(each(units.x), each(known), each(structure) / units.scale.square())
    loc, scale = units.loc + units.scale * found.value, units.scale * found.spread
    x = ((each(units.x) - found.value) / found.spread).clamp(-1e3, 1e3).flatten(1).float()
    told = torch.stack([found.value, found.spread.log(), found.change], -1)
    return Scaled(x, loc, scale), told.flatten(1, 2).float()


def _to(rows: np.ndarray, length: int) -> np.ndarray:
    """rows (T, K), cut or followed by rows of nan, (length, K)."""
    out = np.full((length, rows.shape[1]), np.nan)
    out[: min(length, len(rows))] = rows[:length]
    return out


def _covariates(series: Series, ahead: int) -> np.ndarray:
    """(T + ahead, P + K): those of the past, then those known ahead."""
    parts = [_to(v, len(series) + ahead) for v in (series.past, series.future) if v is not None]
    return np.concatenate(parts, 1) if parts else np.zeros((len(series) + ahead, 0))


def _static(panel: Panel) -> np.ndarray:
    """(S, Q)."""
    return np.stack([np.zeros(0) if s.static is None else s.static for s in panel])


def _spread(y: np.ndarray) -> np.ndarray:
    """Standard deviation of what is observed of each channel (C,); 0 where nothing is, inf beyond 1e154."""
    seen = ~np.isnan(y)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, y, 0.0).sum(0) / count
    with np.errstate(over="ignore"):  # inf says that they are too large
        return np.sqrt(np.where(seen, (y - mean) ** 2, 0.0).sum(0) / count)
