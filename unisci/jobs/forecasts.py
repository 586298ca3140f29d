"""Forecasts and backtests of a table into a folder.

forecast: forecast.csv (median and intervals), paths.parquet (every path), forecast.png (the first series)
backtest: backtest.csv (forecasts beside what came), report.md (metrics, beside the seasonal naive forecast)
both: rejects.csv (series that could not be forecast, and why), manifest.json, and model.safetensors where the model was
    trained on the table
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pandas as pd

from unisci.domains.series import Panel
from unisci.domains.series_frames import to_user
from unisci.forecasting.backtesting import Backtest, cutoffs, run_backtest
from unisci.forecasting.forecast import Forecast
from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.levels import tails
from unisci.forecasting.moments import Moments
from unisci.forecasting.trained import TRAINING, shape_for, usable
from unisci.forecasting.windows import Source, places
from unisci.jobs.config import ConfigError, TableConfig
from unisci.jobs.models import find_weights, load, save
from unisci.jobs.runs import open_folder, write_manifest
from unisci.jobs.series_data import fingerprint, read_table
from unisci.jobs.weights_file import digest

WEIGHTS = "series-base"
FILES = ("forecast.csv", "paths.parquet", "forecast.png", "backtest.csv", "report.md", "rejects.csv")
FILES += ("model.safetensors", "manifest.json")


@dataclass(frozen=True)
class Ask:
    """h steps, n_paths, levels in percent, seed. weights: by name or file; None trains a model on the table first, of
    fit_steps steps. roll: forecast more steps than the weights' horizon, horizon after horizon.

    Raises ValueError where a number makes no sense.
    """

    table: TableConfig
    h: int
    weights: str | None = WEIGHTS
    fit_steps: int = TRAINING.steps
    n_paths: int = 100
    levels: tuple[float, ...] = (80.0, 95.0)
    seed: int = 0
    roll: bool = False

    def __post_init__(self) -> None:
        for name in ("h", "n_paths", "fit_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        tails(self.levels)

    def settings(self) -> dict:
        """What the manifest says of it; the table must be readable."""
        found = self.table.model_dump(mode="json", exclude_defaults=True) | {"data_hash": fingerprint(self.table)}
        found |= {"h": self.h, "paths": self.n_paths, "levels": [float(p) for p in self.levels], "seed": self.seed}
        if self.weights is None:
            return found | {"fit_steps": self.fit_steps}
        found |= {"weights": self.weights, "hash": digest(find_weights(self.weights))}
        return found | ({"roll": True} if self.roll else {})


@dataclass(frozen=True)
class SeriesRun:
    """What a folder holds: total series, and how their forecasts are made."""

    total: int
    told: dict

    def settings(self) -> dict:
        """What the manifest says of it."""
        return self.told


def forecast(ask: Ask, out: Path, progress: bool = True) -> Forecast:
    """Forecast the steps after every series of the table into `out`; the same call again writes the same files.

    Everything is checked before any compute: raises ConfigError where `out` holds something else, ValueError where the
    table, the weights and the horizon do not go together or no series can be forecast.
    """
    began, panel = time.perf_counter(), read_table(ask.table)
    forecaster = _forecaster(ask, panel)
    run = SeriesRun(len(panel) + len(panel.rejects), {"command": "forecast"} | ask.settings())
    open_folder(out, run)
    if ask.weights is None:
        _fit(forecaster, panel, out, progress)
    found = _drawn(forecaster, ask)(panel)
    _write(out / "forecast.csv", lambda path: found.frame.to_csv(path, index=False))
    _write(out / "paths.parquet", found.to_parquet)
    _write(out / "forecast.png", lambda path: found.plot().savefig(path, format="png", dpi=150))
    _finish(out, run, found.rejects, began)
    return found


def backtest(ask: Ask, windows: int, step: int | None, out: Path, progress: bool = True) -> Backtest:
    """Forecast from `windows` earlier points, `step` steps apart (h where None), into `out`. A model that is trained
    first sees nothing of the steps that judge it. Raises as `forecast`, and where the longest series is too short."""
    began, panel, step = time.perf_counter(), read_table(ask.table), ask.h if step is None else step
    left = cutoffs(panel, ask.h, windows, step)
    forecaster = _forecaster(ask, panel.before(left[0]))
    told = {"command": "backtest", "windows": windows, "step": step}
    run = SeriesRun(len(panel) + len(panel.rejects), told | ask.settings())
    open_folder(out, run)
    if ask.weights is None:
        _fit(forecaster, panel.before(left[0]), out, progress)
    found = run_backtest(_drawn(forecaster, ask), panel, left)
    _write(out / "backtest.csv", lambda path: found.frame.to_csv(path, index=False))
    _write(out / "report.md", lambda path: path.write_text(found.report()))
    rejects = pd.concat([f.panel.rejects for f in found.forecasts], ignore_index=True)
    _finish(out, run, to_user(panel, rejects.drop_duplicates("unique_id")), began)
    return found


def _forecaster(ask: Ask, panel: Panel) -> Forecaster:
    """The weights' forecaster, or an untrained one, for which the panel was found fit."""
    if ask.weights is None:
        shape = shape_for(panel, ask.h, None)
        places(Source.of(panel, 0, Moments.of(panel)), shape)
        return Forecaster(ask.h, training=replace(TRAINING, steps=ask.fit_steps, seed=ask.seed))
    found = load(ask.weights)
    if not isinstance(found, Forecaster):
        raise ConfigError(f"{ask.weights} forecasts no series: give weights that do, such as {WEIGHTS}")
    shape, longest = found.trained.model.shape, found.trained.model.shape.horizon
    if ask.h > longest and not ask.roll:
        raise ConfigError(
            f"h = {ask.h} is beyond the horizon of {longest} that {ask.weights} is trained for: give roll (--roll), or "
            "train on the table first (--fit)"
        )
    usable(found.read(panel), shape, found.trained.moments, shape.horizon)
    return found


def _drawn(forecaster: Forecaster, ask: Ask) -> Callable[[Panel], Forecast]:
    options = {"n_paths": ask.n_paths, "levels": ask.levels, "seed": ask.seed, "roll": ask.roll}
    return partial(forecaster.predict, ask.h, **options)


def _fit(forecaster: Forecaster, panel: Panel, out: Path, progress: bool) -> None:
    forecaster.fit(panel, folder=out / "checkpoints", progress=progress)
    save(forecaster, out / "model.safetensors")


def _write(path: Path, write: Callable[[Path], object]) -> None:
    temporary = path.with_name(f"{path.name}.tmp")
    write(temporary)
    temporary.replace(path)


def _finish(out: Path, run: SeriesRun, rejects: pd.DataFrame, began: float) -> None:
    if len(rejects):
        _write(out / "rejects.csv", lambda path: rejects.to_csv(path, index=False))
    (out / "parts").rmdir()  # all is one part
    write_manifest(out, run, run.total, time.perf_counter() - began)
