"""Windows of series: what a model of them is trained on and completes. A window has L = context + horizon time steps of
C channels, N = C L sites, channel-major: site c L + l is channel c at step l. Its origin is the first step of the
horizon.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.batch import Batch, Field, Schema
from unisci.domains.calendar import phases
from unisci.domains.series import Panel
from unisci.forecasting.anchors import LAGS, series_structure
from unisci.forecasting.bounds import bounds
from unisci.forecasting.moments import Moments, covariates, resized, statics


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
    fields |= {"spread": Field("whole", (channels,)), "bounds": Field("whole", (channels, 2))}
    fields["anchor"] = Field("site", (3,))
    sized = {"phase": ("whole", phase), "static": ("whole", static), "covariates": ("site", covariates)}
    return fields | {k: Field(kind, (size,)) for k, (kind, size) in sized.items() if size}


@dataclass(frozen=True, eq=False)
class Source:
    """The series of a panel end to end, each followed by `ahead` empty rows, to cut windows from: R rows in all.

    values (R, C) and covariates (R, K) float64, nan where nothing is known; the last `future` of the covariates are
    known ahead. phases (R, P) float32; static (S, Q); both this and the covariates standardised. first and end (S,):
    the rows of each series, without the empty ones; spread (S, C), structure (S, C, LAGS) and bounds (S, C, 2): see
    `unisci.forecasting.anchors` and `unisci.forecasting.bounds`."""

    values: Tensor
    covariates: Tensor
    future: int
    phases: Tensor
    static: Tensor
    first: Tensor
    end: Tensor
    spread: Tensor
    structure: Tensor
    bounds: Tensor
    ahead: int

    @classmethod
    def of(cls, panel: Panel, ahead: int, moments: Moments) -> "Source":
        """All series of a panel. Raises ValueError where it has other covariates than the moments."""
        shapes = [stack.shape[1] for stack in (covariates(panel.series[0], 0), statics(panel))]
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
            values=stack(lambda s: resized(s.y, len(s) + ahead)),
            covariates=standard(stack(lambda s: covariates(s, ahead)), moments.covariates),
            future=0 if one.future is None else one.future.shape[1],
            phases=standard(stack(lambda s: phases(times(s), s.freq)), moments.phases).float(),
            static=standard(torch.from_numpy(statics(panel)), moments.static),
            first=first,
            end=first + torch.from_numpy(lengths),
            spread=torch.from_numpy(np.stack([_spread(s.y) for s in panel])),
            structure=torch.stack([series_structure(s.y) for s in panel]),
            bounds=torch.from_numpy(np.stack([bounds(s.y) for s in panel])),
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
        given["bounds"] = self.bounds[series]
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


def _spread(y: np.ndarray) -> np.ndarray:
    """Standard deviation of what is observed of each channel (C,); 0 where nothing is, inf beyond 1e154."""
    seen = ~np.isnan(y)
    count = np.maximum(seen.sum(0), 1)
    mean = np.where(seen, y, 0.0).sum(0) / count
    with np.errstate(over="ignore"):  # inf says that they are too large
        return np.sqrt(np.where(seen, (y - mean) ** 2, 0.0).sum(0) / count)
