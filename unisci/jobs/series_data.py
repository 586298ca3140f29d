"""Series for jobs: tables by file or embedded name, what is held out of them, and what judges it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd

from unisci.domains.calendar import season_length
from unisci.domains.series import Panel, Series
from unisci.domains.series_frames import melt_wide, read_file, read_frame
from unisci.domains.synthetic_series import mixtures
from unisci.forecasting.backtesting import run_backtest
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs.config import ConfigError, SourceConfig, TableConfig
from unisci.jobs.weights_file import digest
from unisci.metrics.forecast_baselines import seasonal_naive_paths
from unisci.metrics.forecasts import coverage, mase, path_quantiles, weighted_quantile_loss
from unisci.metrics.metric import Metric


def synthetic(series: int = 8, steps: int = 1440) -> Panel:
    """Sums of a day's and a week's sinusoid and AR(1) noise of correlation .8, hourly, the same at each call."""
    rng = np.random.default_rng(0)
    times = pd.date_range("2024-01-01", periods=steps, freq="h")
    hour, found = np.arange(steps), []
    for k in range(series):
        level, day, week = rng.uniform(20, 60), rng.uniform(3, 8), rng.uniform(1, 4)
        noise, shift = rng.normal(size=steps), rng.uniform(0, 2 * np.pi, 2)
        for i in range(1, steps):
            noise[i] = 0.8 * noise[i - 1] + 0.6 * noise[i]
        y = level + day * np.sin(2 * np.pi * hour / 24 + shift[0]) + week * np.sin(2 * np.pi * hour / 168 + shift[1])
        found.append(Series(f"synthetic-{k}", times, (y + noise)[:, None], ("y",), "h"))
    return Panel(tuple(found))


def eeg() -> Panel:
    """An electroencephalogram: 4 series of 800 steps, from the sample data of matplotlib."""
    from matplotlib.cbook import get_sample_data

    with get_sample_data("eeg.dat") as file:
        values = np.frombuffer(file.read()).reshape(800, 4)
    one = lambda k: Series(f"eeg-{k}", pd.RangeIndex(800), values[:, k : k + 1].astype(float), ("y",), "1")
    return Panel(tuple(one(k) for k in range(4)))


EMBEDDED: dict[str, Callable[[], Panel]] = {"synthetic": synthetic, "mixtures": mixtures, "eeg": eeg}


def read_table(table: TableConfig) -> Panel:
    """The series of a file or an embedded set. Raises ConfigError, with its name, where it cannot be used."""
    c = table
    try:
        if c.series in EMBEDDED:
            if c.model_dump(include={*TableConfig.model_fields} - {"series"}, exclude_defaults=True):
                raise ConfigError("an embedded set has its own freq, columns and layout: leave them out")
            return EMBEDDED[c.series]()
        if Path(c.series).suffix.lower() not in (".csv", ".parquet"):
            raise ConfigError(f"give a .csv or .parquet file, or one of {sorted(EMBEDDED)}")
        frame = read_file(c.series)
        frame = _without(frame, c.missing)
        if c.counted:
            frame = frame.drop(columns=_dates(frame))
        if c.wide:
            return melt_wide(frame, c.freq, time=c.time, targets=c.targets or None)
        return read_frame(frame, c.freq, id=c.id, time=c.time, targets=c.targets or None)
    except ValueError as error:
        known = str(error).startswith(c.series)
        raise ConfigError(str(error) if known else f"{c.series}: {error}") from error


def _without(frame: pd.DataFrame, missing: tuple[float, ...]) -> pd.DataFrame:
    """The numbers `missing` as nan."""
    numbers = frame.select_dtypes("number")
    return frame.assign(**numbers.mask(numbers.isin(missing))) if missing else frame


def _dates(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if pd.api.types.is_datetime64_any_dtype(frame[name])]


def fingerprint(table: TableConfig) -> str:
    """What tells the same data from others: an embedded name, or the hash of a file, which has been read."""
    return table.series if table.series in EMBEDDED else digest(Path(table.series))


@dataclass(frozen=True, eq=False)
class Held:
    """One source: the series to train on, and all of them with the `hold_out` last steps that judge (0: none)."""

    name: str
    train: Panel
    whole: Panel
    hold_out: int
    weight: float
    season: int

    @classmethod
    def of(cls, source: SourceConfig) -> "Held":
        """Raises ConfigError where the source cannot be used, or no series is longer than what is held out."""
        panel = read_table(source)
        longest = max(len(s) for s in panel)
        if longest <= source.hold_out:
            raise ConfigError(
                f"{source.series}: hold_out is {source.hold_out}, and the longest series has {longest} steps: "
                "hold out less"
            )
        season = source.season or season_length(panel.freq)
        return cls(source.series, panel.before(source.hold_out), panel, source.hold_out, source.weight, season)

    def counts(self) -> dict:
        """What a card says of it."""
        steps = sum(len(s) for s in self.train)
        found = {"series": len(self.train), "steps": steps, "rejected": len(self.train.rejects)}
        return found | {"hold_out": self.hold_out, "freq": self.train.freq, "weight": self.weight}

    def judge(self, forecaster: Forecaster, windows: int, n_paths: int, seed: int) -> dict[str, tuple[Metric, ...]]:
        """Metrics of at most `windows` forecasts of held-out steps, even over series and time, and of the seasonal
        naive forecasts of the same."""
        h = forecaster.trained.model.shape.horizon
        names = [s.name for s in self.train]
        panel = self.whole.select(names[:: -(-len(names) // windows)])
        origins = min(self.hold_out // h, max(1, windows // len(panel)))
        left = np.linspace(self.hold_out, h, origins).astype(int).tolist()
        forecast = partial(forecaster.predict, h, n_paths=n_paths, seed=seed)
        paths, truth, histories = run_backtest(forecast, panel, left).arrays()
        naive = seasonal_naive_paths(histories, h, self.season, n_paths, seed)
        score = partial(_scores, truth=truth, histories=histories, season=self.season, seed=seed)
        return {forecaster.name: score(paths), "seasonal naive": score(naive)}


def _scores(
    paths: np.ndarray, truth: np.ndarray, histories: list[np.ndarray], season: int, seed: int
) -> tuple[Metric, ...]:
    median = np.median(paths, axis=1)
    return (
        weighted_quantile_loss(path_quantiles(paths), truth, seed=seed),
        mase(median, truth, histories, season, seed),
        *(coverage(paths, truth, level) for level in (0.5, 0.8, 0.9)),
    )
