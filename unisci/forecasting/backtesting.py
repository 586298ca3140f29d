"""Backtests: forecasts from earlier points in time, beside the seasonal naive ones, judged by what came."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import narwhals as nw
import numpy as np
import pandas as pd

from unisci.domains.calendar import season_length
from unisci.domains.series import Columns, Panel
from unisci.domains.series_frames import to_user
from unisci.forecasting.forecast import Forecast
from unisci.metrics.forecast_baselines import seasonal_naive_paths
from unisci.metrics.forecasts import forecast_report
from unisci.metrics.metric import Metric, markdown


@dataclass(frozen=True, eq=False)
class Backtest:
    """forecasts and cutoffs: one of each for each window, the latest last; truth: the panel that was forecast."""

    forecasts: tuple[Forecast, ...]
    cutoffs: tuple[int, ...]  # steps left out
    truth: Panel

    @property
    def frame(self):
        """The user's columns, "cutoff" (the last time that was known), the truth, and the forecast's columns."""
        parts = []
        for forecast in self.forecasts:
            part = replace(forecast, panel=replace(forecast.panel, columns=Columns(), backend="pandas")).frame
            h = forecast.horizon
            rows = [self.truth[s.name].y[len(s) : len(s) + h] for s in forecast.panel]
            last = [s.times[-1:].repeat(h) for s in forecast.panel]
            part.insert(2, "cutoff", last[0].append(last[1:]))
            for k, name in enumerate(self.truth.channels):
                part.insert(3 + k, name, np.concatenate(rows)[:, k])
            parts.append(part)
        table = nw.from_native(to_user(self.truth, pd.concat(parts, ignore_index=True)), eager_only=True)
        kind = self.truth.columns.time_type
        return table.with_columns(*([] if kind is None else [nw.col("cutoff").cast(kind)])).to_native()

    def arrays(self) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
        """Paths (n, S, h, C), truth (n, h, C) and histories of all windows."""
        draws = np.stack([d for f in self.forecasts for d in f.draws])
        histories = [s.y for f in self.forecasts for s in f.panel]
        names = [(s.name, len(s)) for f in self.forecasts for s in f.panel]
        truth = np.stack([self.truth[name].y[end : end + draws.shape[2]] for name, end in names])
        return draws, truth, histories

    def metrics(self, seed: int = 0) -> dict[str, tuple[Metric, ...]]:
        """The metrics of the forecasts and of the seasonal naive ones, by name."""
        draws, truth, histories = self.arrays()
        season = season_length(self.truth.freq)
        naive = seasonal_naive_paths(histories, draws.shape[2], season, draws.shape[1], seed)
        found = {self.forecasts[0].model: draws, "seasonal naive": naive}
        return {name: forecast_report(paths, truth, histories, season, seed) for name, paths in found.items()}

    def report(self) -> str:
        """The metrics as tables of Markdown."""
        return "\n".join(f"{name}\n\n{markdown(found)}" for name, found in self.metrics().items())


def cutoffs(panel: Panel, h: int, windows: int, step: int) -> tuple[int, ...]:
    """How many steps each window leaves out, most first. Raises ValueError where the longest series is too short."""
    if min(windows, step, h) < 1:
        raise ValueError(f"h, windows and step must be at least 1, got {h}, {windows} and {step}")
    left = tuple(h + k * step for k in reversed(range(windows)))
    longest = max(len(s) for s in panel)
    if longest <= left[0]:
        raise ValueError(
            f"{windows} windows leave out {left[0]} steps, and the longest series has {longest}: take fewer"
        )
    return left


def run_backtest(forecast, panel: Panel, left: Sequence[int]) -> Backtest:
    """forecast(panel) -> Forecast, from each cutoff."""
    return Backtest(tuple(forecast(panel.before(k)) for k in left), tuple(left), panel)
