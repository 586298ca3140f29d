"""Forecaster: data frame in, joint sample paths out, from one diffusion model of windows.

forecaster = Forecaster(horizon=24).fit(df, freq="h")
forecast = forecaster.predict(24)              # .frame, .paths, .quantile(q), .prob(...), .plot()
forecaster.condition(24, [Total(1e3, 10)]); forecaster.refine(other); forecaster.fill(df).frame
forecaster.synthesize(100); forecaster.backtest(windows=3).report()

TSDiff (arXiv 2307.11494) and GPD (2406.02212) in use: see `unisci.forecasting.tsdiff` and `unisci.forecasting.gpd`.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from unisci.domains.series import Panel
from unisci.forecasting.backtesting import Backtest, cutoffs, run_backtest
from unisci.forecasting.drawing import draw_paths
from unisci.forecasting.filling import Filled, fill_paths
from unisci.forecasting.forecast import Forecast
from unisci.forecasting.gpd import CLEAN, Clean, Conditioner
from unisci.forecasting.reading import Table, check_alike, read_panel
from unisci.forecasting.refining import RESTART, Refiner, base_paths, refine_paths
from unisci.forecasting.scenarios import Scenario, guide_by, known_entries
from unisci.forecasting.synthesis import synthetic
from unisci.forecasting.trained import MLP, NETWORKS, TRAINING, Trained, shape_for, train, usable
from unisci.forecasting.window_model import PATTERNS, Patterns
from unisci.networks.window_inputs import WindowConfig
from unisci.training.fit import FitConfig

GUIDED = 50  # calls a path under scenarios: with fewer, what is measured varies less than its tolerance says


class Forecaster:
    """Joint probabilistic forecasts of many series.

    horizon, context: time steps; where None a season of the data (24 where there is none), and seven of them. network:
    its kind and sizes, whose length and inputs are set by the data. steps: network calls a path. name: of the columns
    of results. Raises ValueError for numbers that make no sense."""

    def __init__(
        self,
        horizon: int | None = None,
        context: int | None = None,
        network: WindowConfig = MLP,
        training: FitConfig = TRAINING,
        patterns: Patterns = PATTERNS,
        steps: int = 10,
        name: str = "unisci",
    ):
        for what, value in (("horizon", horizon), ("context", context), ("steps", steps)):
            if value is not None and value < 1:
                raise ValueError(f"{what} must be at least 1, got {value}")
        if type(network) not in NETWORKS:
            raise ValueError(f"network must be one of {', '.join(c.__name__ for c in NETWORKS)}, got {network!r}")
        self.horizon, self.context, self.network, self.training = horizon, context, network, training
        self.patterns, self.steps, self.name = patterns, steps, name
        self.trained: Trained | None = None
        self.panel: Panel | None = None
        self.columns: dict = {}

    @classmethod
    def of(cls, trained: Trained, name: str) -> "Forecaster":
        """One that is trained already."""
        shape, network = trained.model.shape, trained.model.denoiser.network.config
        made = cls(
            shape.horizon, shape.context, network, patterns=trained.model.patterns, steps=trained.steps, name=name
        )
        made.trained, made.columns = trained, trained.columns
        return made

    def fit(
        self,
        df: Table,
        freq: str | None = None,
        *,
        X: Table | None = None,
        folder: str | Path | None = None,
        progress: bool = True,
        device: str = "cpu",
        **columns: Any,
    ) -> "Forecaster":
        """Train on the series of a table, which `predict` then continues. columns: id, time, targets, past, future and
        static as `unisci.domains.series_frames.read_frame`. folder: for checkpoints, a run found there is resumed."""
        panel = read_panel(df, freq, X, columns)
        shape = shape_for(panel, self.horizon, self.context)
        path = None if folder is None else Path(folder)
        options = self.training, self.steps, path, progress, device
        names = {k: v for k, v in columns.items() if k != "static"}
        self.trained = replace(train(panel, shape, self.network, self.patterns, *options), columns=names)
        self.panel, self.columns = panel, columns
        return self

    def predict(
        self,
        h: int | None = None,
        df: Table | None = None,
        freq: str | None = None,
        n_paths: int = 100,
        levels: Sequence[float] = (80, 95),
        quantiles: Sequence[float] | None = None,
        X: Table | None = None,
        seed: int = 0,
        conditioner: Conditioner | None = None,
        roll: bool = False,
    ) -> Forecast:
        """n_paths joint paths of the h steps after the last of every series: those of `fit`, or of df, trained on or
        not.

        h: the trained horizon where None; more than it only with roll, horizon after horizon, each path after its own
        past. levels (percent), quantiles: of the forecast's frame. X: future covariates. conditioner: how the model is
        told the past, see `unisci.forecasting.gpd`; None: `Clean` at the temperature that suits the model. Path j of a
        series and a seed is the same whatever else is drawn.

        Series that cannot be forecast are rows of `.rejects`. Raises ValueError where h or n_paths make no sense, and
        where the series are not like those of `fit`.
        """
        conditioner = conditioner or Clean(self._trained().temperature)
        return self._forecast(h, df, freq, n_paths, levels, quantiles, X, seed, conditioner, roll, ())

    def condition(
        self,
        h: int | None,
        scenarios: Sequence[Scenario],
        df: Table | None = None,
        freq: str | None = None,
        n_paths: int = 100,
        levels: Sequence[float] = (80, 95),
        quantiles: Sequence[float] | None = None,
        X: Table | None = None,
        seed: int = 0,
    ) -> Forecast:
        """Paths that follow scenarios, see `unisci.forecasting.scenarios`: a known sum, a maximum, a fixed value; else
        as `predict`. Within the trained horizon."""
        return self._forecast(h, df, freq, n_paths, levels, quantiles, X, seed, CLEAN, False, tuple(scenarios))

    def _forecast(self, h, df, freq, n_paths, levels, quantiles, X, seed, conditioner, roll, scenarios) -> Forecast:
        trained = self._trained()
        h = self._horizon(h, roll)
        if n_paths < 1:
            raise ValueError(f"n_paths must be at least 1, got {n_paths}")
        panel = self.read(df, freq, X)
        model, shape = trained.model, trained.model.shape
        blocks = -(-h // shape.horizon)
        panel, source = usable(panel, shape, trained.moments, blocks * shape.horizon)
        names = [s.name for s in panel]
        guide, options = None, {}
        if scenarios:
            about = {"channels": panel.channels, "steps": h}
            guide = guide_by(scenarios, shape, **about)
            options = {"told": partial(known_entries, scenarios, shape, **about)}
        program = model.program(max(trained.steps, GUIDED), "dpm++2m") if scenarios else model.program(trained.steps)
        draws = draw_paths(model, source, names, h, n_paths, program, seed, conditioner, guide, **options)
        return Forecast(panel, tuple(draws), self.name, tuple(levels), None if quantiles is None else tuple(quantiles))

    def fill(
        self,
        df: Table | None = None,
        freq: str | None = None,
        n_paths: int = 100,
        levels: Sequence[float] = (80,),
        seed: int = 0,
    ) -> Filled:
        """Gaps filled, missing values and missing time steps, as `.frame` and as joint `.paths`, see
        `unisci.forecasting.filling`. Series that keep gaps are rows of `.rejects`."""
        trained, panel = self._trained(), self.read(df, freq)
        program = trained.model.program(trained.steps)
        values = fill_paths(trained.model, panel, trained.moments, n_paths, program, seed)
        return Filled(panel, tuple(values), tuple(levels))

    def refine(
        self,
        forecast: Table,
        df: Table | None = None,
        freq: str | None = None,
        value: str | None = None,
        n_paths: int = 100,
        refiner: Refiner = RESTART,
        levels: Sequence[float] = (80, 95),
        seed: int = 0,
    ) -> Forecast:
        """Paths from another model's forecast, a table of points or of samples ("sample_id"), value its column, see
        `unisci.forecasting.refining`. One channel."""
        trained, panel = self._trained(), self.read(df, freq)
        shape = trained.model.shape
        panel, source = usable(panel, shape, trained.moments, shape.horizon)
        base = base_paths(forecast, panel, value, n_paths, shape.horizon)
        draws = refine_paths(trained.model, source, [s.name for s in panel], base, seed, refiner)
        return Forecast(panel, tuple(draws), self.name, tuple(levels))

    def synthesize(self, n: int, df: Table | None = None, freq: str | None = None, seed: int = 0) -> pd.DataFrame:
        """n windows of the unconditional model, each in units of a random history of the series: unique_id
        "synthetic-0" and on, ds 0 to length - 1, a column a channel."""
        trained, panel = self._trained(), self.read(df, freq)
        return synthetic(trained.model, panel, trained.moments, n, trained.model.program(trained.steps), seed)

    def backtest(
        self,
        df: Table | None = None,
        h: int | None = None,
        windows: int = 5,
        step: int | None = None,
        freq: str | None = None,
        n_paths: int = 100,
        levels: Sequence[float] = (80, 95),
        seed: int = 0,
    ) -> Backtest:
        """Forecasts from `windows` earlier points, `step` apart (h where None), the last of which leaves out h steps. A
        model that was trained on these steps has seen them: keep them back from `fit`."""
        panel, h = self.read(df, freq), self._horizon(h, False)
        left = cutoffs(panel, h, windows, step or h)
        return run_backtest(lambda part: self.predict(h, part, n_paths=n_paths, levels=levels, seed=seed), panel, left)

    def read(self, df: Table | None, freq: str | None = None, X: Table | None = None) -> Panel:
        """The series of a table like that of `fit`, or those of `fit` where None."""
        trained = self._trained()
        if df is None and self.panel is None:
            raise ValueError("these weights hold no series: give df, the series to forecast")
        if df is None and X is not None:
            raise ValueError("X goes with df: give the history and its future covariates together")
        panel = self.panel if df is None else read_panel(df, freq, X, self.columns)
        check_alike(panel, trained)
        return panel

    def _trained(self) -> Trained:
        if self.trained is None:
            raise ValueError("this forecaster is not trained: call fit(df) first, or unisci.load(weights)")
        return self.trained

    def _horizon(self, h: int | None, roll: bool) -> int:
        longest = self._trained().model.shape.horizon
        h = longest if h is None else h
        if h < 1:
            raise ValueError(f"h must be at least 1, got {h}")
        if h > longest and not roll:
            raise ValueError(
                f"h = {h} is beyond the trained horizon of {longest}: give roll=True, or train a longer one"
            )
        return h
