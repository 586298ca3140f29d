"""Forecasts as figures: fans of central intervals around the median, with the history and some paths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unisci.forecasting.forecast import Forecast
from unisci.forecasting.levels import quantile_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BANDS = (0.95, 0.8, 0.5)
PATHS = 3
COLOUR = "tab:blue"
SHADES = ("#d6e6f2", "#a9cbe4", "#7cb0d5")  # of the bands, widest first


def fan_plot(forecast: Forecast, series: Sequence[str] | None = None, n: int = 4, history: int | None = None) -> Figure:
    """One panel for each series and channel: the last `history` steps (four horizons where None), the median, the 50,
    80 and 95 % intervals and a few paths.

    series: their names; the first n where None. Raises KeyError for a name that no series has, and ValueError where
    there is nothing to draw, or history < 0.
    """
    from matplotlib.figure import Figure

    names = [s.name for s in forecast.panel]
    series = names[:n] if series is None else [series] if isinstance(series, str) else list(series)
    history = 4 * forecast.horizon if history is None else history
    if not series or history < 0:
        raise ValueError(f"need a series or more, and history >= 0, got {series} and {history}")
    chosen = [names.index(forecast.panel[name].name) for name in series]
    channels = forecast.panel.channels
    figure = Figure(figsize=(6.4 * len(channels), 2.6 * len(chosen)), layout="constrained")
    axes = figure.subplots(len(chosen), len(channels), squeeze=False)
    for row, i in zip(axes, chosen, strict=True):
        for k, ax in enumerate(row):
            _fan(ax, forecast, i, k, history)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), fontsize="small", frameon=False)
    return figure


def _fan(ax: Axes, forecast: Forecast, i: int, k: int, history: int) -> None:
    """The k-th channel of the i-th series."""
    one, columns, draws = forecast.panel.series[i], forecast.panel.columns, forecast.draws[i][..., k]
    past, ahead = _clock(one.times)[max(len(one) - history, 0) :], _clock(forecast.times[i])
    ax.plot(past, one.y[len(one) - len(past) :, k], color="black", linewidth=1, label="history")
    for shade, band in zip(SHADES, BANDS, strict=True):
        low, high = quantile_of(draws[None], [(1 - band) / 2, (1 + band) / 2])[:, 0]
        ax.fill_between(ahead, low, high, color=shade, linewidth=0, label=f"{100 * band:g} %")
    ax.plot(ahead, np.median(draws, axis=0), color=COLOUR, linewidth=1.5, label="median")
    ax.plot(ahead, draws[:PATHS].T, color=COLOUR, linewidth=0.5, alpha=0.8)
    ax.set_title(one.name, fontsize="medium")
    ax.set_xlabel(columns.time or "step")
    ax.set_ylabel(one.channels[k])
    ax.tick_params(axis="x", labelrotation=30 if isinstance(one.times, pd.DatetimeIndex) else 0)


def _clock(times: pd.Index) -> np.ndarray:
    """Times on the clock on the wall, which is what an axis shows."""
    return times.tz_localize(None).to_numpy() if isinstance(times, pd.DatetimeIndex) else times.to_numpy()
