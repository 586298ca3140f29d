"""The series that forecasts are judged on: ETTh1, ETTm1, exchange rates, M4 hourly and weather, from one folder.

    ett/{ETTh1,ETTm1}.parquet  exchange_rate/exchange_rate.parquet  m4/hourly.parquet  weather/weather.parquet

The last quarter of every series is for validation (of M4 the last horizon), the rest for training. Exchange rates and
M4 come without dates: the first are of working days, the second count their hours. -9999 in weather is a value not
taken."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from unisci.domains.series import Panel, Series

NOT_TAKEN = -9999.0


@dataclass(frozen=True)
class Set:
    """A file, its frequency ("1": integers), season, context and horizon in steps, and the windows of each series that
    judge. Slow models are judged by each `slow`-th window, of M4, whose series have one, by each `slow`-th series.
    """

    file: str
    freq: str
    season: int
    context: int
    horizon: int
    windows: int
    slow: int = 8


SETS = {
    "ETTh1": Set("ett/ETTh1.parquet", "h", 24, 336, 24, 41),
    "ETTm1": Set("ett/ETTm1.parquet", "15min", 96, 384, 24, 41),
    "exchange": Set("exchange_rate/exchange_rate.parquet", "B", 5, 360, 30, 41),
    "M4 hourly": Set("m4/hourly.parquet", "1", 24, 312, 48, 1, 10),
    "weather": Set("weather/weather.parquet", "10min", 144, 288, 24, 17),
}


@dataclass(frozen=True, eq=False)
class Task:
    """train: what may be learnt from; judged: series that end where a forecast begins, and truth (n, h) after them;
    few: the rows that judge slow models."""

    train: Panel
    judged: Panel
    truth: np.ndarray
    few: np.ndarray

    @property
    def histories(self) -> list[np.ndarray]:
        return [s.y[:, 0] for s in self.judged]


def columns(folder: Path, spec: Set) -> dict[str, np.ndarray]:
    """The series of a set by name, in the order of the file."""
    table = pd.read_parquet(folder / spec.file)
    if {"id", "y"} <= set(table):
        return {str(name): part["y"].to_numpy(float) for name, part in table.groupby("id", observed=True)}
    table = table.drop(columns="date", errors="ignore").astype(float)
    return {name: table[name].where(table[name] > NOT_TAKEN).to_numpy() for name in table}


def task(folder: Path, name: str, earlier: bool = False) -> Task:
    """A set, divided. earlier: what is for validation is cut off first, so that settings can be chosen on the part
    before it."""
    spec = SETS[name]
    values = columns(folder, spec)
    if earlier:
        values = {k: y[: training_steps(y, spec)] for k, y in values.items()}
    train, judged, truth, few = [], [], [], []
    for k, (series, y) in enumerate(values.items()):
        end = training_steps(y, spec)
        train.append(one(series, y[:end], spec.freq))
        for i, origin in enumerate(np.linspace(end, len(y) - spec.horizon, spec.windows).astype(int)):
            few.append((k if spec.windows == 1 else i) % spec.slow == 0)
            judged.append(one(f"{series} {origin}", y[:origin], spec.freq))
            truth.append(y[origin : origin + spec.horizon])
    return Task(Panel(tuple(train)), Panel(tuple(judged)), np.stack(truth), np.flatnonzero(few))


def training_steps(y: np.ndarray, spec: Set) -> int:
    return len(y) - spec.horizon if spec.windows == 1 else len(y) * 3 // 4


def one(name: str, y: np.ndarray, freq: str) -> Series:
    """A series of one channel. Dates are made up but for their steps: those of the files begin on other days."""
    times = pd.RangeIndex(len(y)) if freq == "1" else pd.date_range("2016-07-01", periods=len(y), freq=freq)
    return Series(name, times, y[:, None], ("y",), freq)
