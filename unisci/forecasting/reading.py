"""Tables for a forecaster: read as series, and like those that it was trained on."""

from typing import Any

from unisci.domains.calendar import season_length, step_days
from unisci.domains.series import Panel
from unisci.domains.series_frames import read_frame
from unisci.forecasting.trained import Trained

Table = Any  # a frame of pandas or polars, or a Panel that was read from one


def read_panel(df: Table, freq: str | None, X: Table | None, columns: dict) -> Panel:
    """The series of a table, or of a panel that was read already."""
    if not isinstance(df, Panel):
        return read_frame(df, freq, X=X, **columns)
    if X is not None:
        raise ValueError("X goes with a table: a Panel holds its future covariates")
    return df


def _pace(freq: str) -> tuple[int, float | None]:
    """The season and the length of a step: those of a week are the same whatever day it ends on."""
    return season_length(freq), None if freq == "1" else step_days(freq)


def check_alike(panel: Panel, trained: Trained) -> None:
    """Raises ValueError where the series have another frequency or other channels than those of training."""
    if trained.freq is not None and _pace(panel.freq) != _pace(trained.freq):
        raise ValueError(
            f"the series go in steps of {panel.freq!r}, the model was trained on steps of {trained.freq!r}: give "
            f"such series, or freq={trained.freq!r} where most of their steps are missing"
        )
    if len(panel.channels) != trained.model.shape.channels:
        raise ValueError(
            f"the series have the channels {', '.join(panel.channels)}, the model has "
            f"{trained.model.shape.channels}: give one column, or see unisci.domains.series_frames.melt_wide"
        )
