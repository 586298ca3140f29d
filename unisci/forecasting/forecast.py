"""What a forecaster returns: joint sample paths of every series, and the tables, odds, figures and scores made of them.

With X_1 <= ... <= X_S the sorted paths at a step, the quantile q is X_k at k = q (S + 1), between neighbours on a line,
the first or last beyond them. So a truth that is one more draw of the law lies in the interval of level p with
probability p, where S >= 2 / (1 - p) - 1 (Hyndman and Fan, DOI 10.1080/00031305.1996.10473566, their sixth).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import narwhals as nw
import numpy as np
import pandas as pd

from unisci.domains.calendar import season_length
from unisci.domains.series import Panel, values_frame
from unisci.domains.series_frames import to_user
from unisci.forecasting.levels import interval_bounds, quantile_of, shares, tails
from unisci.forecasting.truth import values_at

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from unisci.metrics.metric import Metric


@dataclass(frozen=True, eq=False, repr=False)
class Forecast:
    """S joint sample paths of every series of a panel, over h steps and C channels: a path is one possible future.

    draws: for each series (S, h, C) float64 in the user's units, path j the same whatever the other series are; S and h
    are those of all series. model: the name of result columns; of several channels a column is "<model>-<channel>".
    levels: of the intervals of `frame`, in percent; quantiles: where given, its columns in place of intervals.

    Tables come in the library, the names and the order of the user's. Raises ValueError where shapes, levels or
    quantiles are wrong, a value is not finite, or a result column has the name of one of the user's.
    """

    panel: Panel
    draws: tuple[np.ndarray, ...]
    model: str = "unisci"
    levels: tuple[float, ...] = (80, 95)
    quantiles: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        shapes = {np.shape(d) for d in self.draws}
        shape = next(iter(shapes), ())
        if len(self.draws) != len(self.panel) or len(shapes) != 1 or len(shape) != 3 or 0 in shape:
            raise ValueError(
                f"{len(self.draws)} draws of shapes {sorted(shapes)[:4]} for {len(self.panel)} series: "
                "give one (S, h, C) for each, of the same shape"
            )
        if shape[2] != len(self.panel.channels):
            raise ValueError(f"draws have {shape[2]} channels where the panel has {self.panel.channels}")
        bad = next((s.name for s, d in zip(self.panel, self.draws, strict=True) if not np.isfinite(d).all()), None)
        if bad is not None:
            raise ValueError(f"the draws of series {bad!r} are not finite")
        tails(self.levels)
        shares(self.quantiles or ())
        if self.model in {"sample_id", self.panel.columns.id, self.panel.columns.time}:
            raise ValueError(f"model {self.model!r} has the name of a column of the table: give it another")

    def __repr__(self) -> str:
        s, h, c = self.draws[0].shape
        return f"Forecast(series={len(self.panel)}, paths={s}, steps={h}, channels={c}, model={self.model!r})"

    @cached_property
    def stacked(self) -> np.ndarray:
        """All draws, (n, S, h, C)."""
        return np.stack(self.draws)

    @property
    def horizon(self) -> int:
        """h."""
        return self.draws[0].shape[1]

    @cached_property
    def times(self) -> tuple[pd.Index, ...]:
        """The h times of each series."""
        return tuple(s.ahead(self.horizon) for s in self.panel)

    @property
    def paths(self):
        """The table id, time, sample_id, <model>: a row for each step of each path, a path's steps together. Rows with
        one sample_id are one joint future: of all steps and channels of a series, not of several series."""
        s, h, _ = self.draws[0].shape
        steps, sample = np.tile(np.arange(h), s), np.repeat(np.arange(s), h)
        numbers = {"sample_id": [sample] * len(self.panel)}
        numbers |= {column: [d[..., k].ravel() for d in self.draws] for k, column in enumerate(self._columns)}
        return to_user(self.panel, values_frame(self.panel, numbers, [t.take(steps) for t in self.times]))

    @property
    def frame(self):
        """The table id, time, <model>, the median, and for levels such as 80 and 95 <model>-lo-95, <model>-lo-80,
        <model>-hi-80, <model>-hi-95; or, where `quantiles` are given, "0.1" and so on ("<channel>-0.1")."""
        own = self.quantiles
        wanted = interval_bounds(self.levels) if own is None else {f"{q:g}": q for q in own}
        return self._table(self._points(np.median(self.stacked, axis=1)) | self._spread(wanted))

    @property
    def mean(self):
        """The table id, time, <model>: the mean of the paths at each step."""
        return self._table(self._points(self.stacked.mean(1)))

    @property
    def median(self):
        """The table id, time, <model>: the median of the paths at each step."""
        return self._table(self._points(np.median(self.stacked, axis=1)))

    def quantile(self, *levels: float):
        """The table id, time and a column for each level in (0, 1), "0.1" and so on. Raises ValueError for others."""
        return self._table(self._spread({f"{q:g}": q for q in shares(levels)}))

    def interval(self, *levels: float):
        """The table id, time, <model>-lo-<level>, <model>-hi-<level> of levels in percent, such as 80. Raises
        ValueError for one outside (0, 100)."""
        return self._table(self._spread(interval_bounds(levels)))

    def prob(self, event: Callable[[np.ndarray], bool]):
        """How likely an event is, by the share of paths: the table id, prob, prob-lo-95, prob-hi-95, n_paths.

        event(path) -> bool, with path (h,), or (h, C) of several channels, such as lambda path: path.sum() > 100. The
        interval is Wilson's: what S paths tell of the model's own probability. Raises ValueError for another answer.
        """
        from unisci.metrics.intervals import proportion

        one = len(self.panel.channels) == 1
        hits = [sum(_answer(event(path[:, 0] if one else path)) for path in d) for d in self.draws]
        n = len(self.draws[0])
        low, high = np.array([proportion(k, n) for k in hits]).T
        names = pd.Series([s.name for s in self.panel], dtype=str)
        columns = {"prob": np.array(hits) / n, "prob-lo-95": low, "prob-hi-95": high, "n_paths": n}
        return to_user(self.panel, pd.DataFrame({"unique_id": names, **columns}))

    @property
    def rejects(self):
        """The table id, reason: series that could not be forecast."""
        return to_user(self.panel, self.panel.rejects)

    def to_csv(self, path: str | Path) -> None:
        """Writes `paths`."""
        nw.from_native(self.paths, eager_only=True).write_csv(path)

    def to_parquet(self, path: str | Path) -> None:
        """Writes `paths`."""
        nw.from_native(self.paths, eager_only=True).write_parquet(path)

    def evaluate(self, truth, season: int | None = None, seed: int = 0) -> tuple[Metric, ...]:
        """`unisci.metrics.forecasts.forecast_report` of the paths against what came to be.

        truth: a Panel, or a table with the columns of the user's (one without times holds the steps that follow, from
        the first on), its other rows and series are not used. season: in steps, for MASE; None takes that of the
        frequency. Raises ValueError where no forecast step is in truth.
        """
        from unisci.metrics.forecasts import forecast_report

        actual = values_at(truth, self.panel, self.times)
        if np.isnan(actual).all():
            raise ValueError(
                f"truth has no value at a forecast step: for {self.panel.series[0].name!r} these are "
                f"{self.times[0][0]} to {self.times[0][-1]}"
            )
        one = len(self.panel.channels) == 1
        paths, history = self.stacked, [s.y for s in self.panel]
        if one:
            paths, actual, history = paths[..., 0], actual[..., 0], [y[:, 0] for y in history]
        return forecast_report(paths, actual, history, season or season_length(self.panel.freq), seed)

    def plot(self, series: Sequence[str] | None = None, n: int = 4, history: int | None = None) -> Figure:
        """Fans, see `unisci.forecasting.fan.fan_plot`. Needs matplotlib."""
        from unisci.forecasting.fan import fan_plot

        return fan_plot(self, series, n, history)

    @property
    def _columns(self) -> list[str]:
        channels = self.panel.channels
        return [self.model] if len(channels) == 1 else [f"{self.model}-{c}" for c in channels]

    def _points(self, values: np.ndarray) -> dict[str, np.ndarray]:
        """values (n, h, C) by column."""
        return {column: values[..., k] for k, column in enumerate(self._columns)}

    def _spread(self, wanted: Mapping[str, float]) -> dict[str, np.ndarray]:
        """Quantiles (n, h) by column; wanted: the level of each ending of a column's name, "-lo-80" or "0.1"."""
        found = quantile_of(self.stacked, list(wanted.values()))
        channels = [""] if len(self.panel.channels) == 1 else [f"{c}-" for c in self.panel.channels]
        columns = {}
        for k, (column, channel) in enumerate(zip(self._columns, channels, strict=True)):
            names = [column + end if end.startswith("-") else channel + end for end in wanted]
            columns |= dict(zip(names, found[..., k], strict=True))
        return columns

    def _table(self, numbers: Mapping[str, np.ndarray]):
        return to_user(self.panel, values_frame(self.panel, numbers, self.times))


def _answer(answer: object) -> bool:
    if not isinstance(answer, bool | np.bool_):
        raise ValueError(f"an event tells True or False of a path, got {answer!r}: end it with .any() or .all()")
    return bool(answer)
