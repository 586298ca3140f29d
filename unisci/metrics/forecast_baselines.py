"""What a forecast must beat: the seasonal naive one, and automatic ETS and ARIMA of statsforecast (an extra).

Seasonal naive (Hyndman and Athanasopoulos, "Forecasting: Principles and Practice", 3rd edition, 5.2 and 5.5), j >= 1:
    y_{T+j} = y_{T+j-m} + e,   e ~ N(0, sigma^2),   sigma^2 = mean (y_t - y_{t-m})^2,
so the forecast is the last season over and over, with variance k sigma^2, k = 1 + floor((j - 1) / m) seasons ahead.
Residuals are Gaussian as in statsforecast, so that paths and quantiles are of one law; those of one season are
independent, which is a poor joint law where series are smooth.

history, everywhere: n arrays (T_i,) or (T_i, C), or one (n, T[, C]); NaN where not observed. Of each channel, steps of
the season that were never observed take its last observed value; sigma is that of first differences where no pair of
values is a season apart, and 0 where there is no such pair either.
Raise ValueError where a channel has no observed value, shapes differ, or h or season is < 1.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from unisci.metrics.forecast_arrays import histories, quantile_levels
from unisci.metrics.forecasts import LEVELS
from unisci.metrics.workers import Workers, nothing

Model = Callable[[np.ndarray, int, int, tuple[float, ...]], np.ndarray]  # y (T,), h, season, levels -> (Q, h)
LIMIT = 120.0  # seconds for one series; ARIMA at season 24 takes up to 30 on one core


class Forecast(NamedTuple):
    """Quantiles (n, Q, h[, C]), and why how many series (of one channel) have those of the seasonal naive instead."""

    quantiles: np.ndarray
    failures: dict[str, int]


def seasonal_naive(history: Sequence[np.ndarray], h: int, season: int) -> np.ndarray:
    """The last season over and over, (n, h[, C])."""
    last, _ = _fit(history, h, season)
    return _as_given(last[:, np.arange(h) % season], history)


def seasonal_naive_quantiles(
    history: Sequence[np.ndarray], h: int, season: int, levels: Sequence[float] = LEVELS
) -> np.ndarray:
    """Quantiles (n, Q, h[, C]). Raises ValueError where a level lies outside (0, 1)."""
    last, sigma = _fit(history, h, season)
    z = np.array([NormalDist().inv_cdf(q) for q in quantile_levels(levels)])
    steps = np.arange(h)
    spread = np.sqrt(1 + steps // season)[:, None] * sigma[:, None]
    return _as_given(last[:, None, steps % season] + z[:, None, None] * spread[:, None], history)


def seasonal_naive_paths(
    history: Sequence[np.ndarray], h: int, season: int, n_paths: int = 100, seed: int = 0
) -> np.ndarray:
    """Sample paths (n, n_paths, h[, C]); those of a series depend on its place i and the seed, on no other series.

    Raises ValueError for n_paths < 1.
    """
    if n_paths < 1:
        raise ValueError(f"n_paths must be >= 1, got {n_paths}")
    last, sigma = _fit(history, h, season)
    seasons, channels = -(-h // season), last.shape[2]
    paths = np.empty((len(last), n_paths, h, channels))
    for i in range(len(last)):
        noise = np.random.default_rng([seed, i]).standard_normal((n_paths, seasons, season, channels))
        walk = last[i] + sigma[i] * noise.cumsum(1)
        paths[i] = walk.reshape(n_paths, seasons * season, channels)[:, :h]
    return _as_given(paths, history)


def auto_ets(y: np.ndarray, h: int, season: int, levels: tuple[float, ...] = LEVELS) -> np.ndarray:
    """Quantiles (Q, h) of the exponential smoothing model with the best AICc for y (T,), all observed.

    Some 0.4 s for 336 steps at season 24. In statsforecast 2.0.1 its additive seasonal models take the spread of the
    last of the h steps' seasons for all steps: within one season, h <= season, it is exact.
    """
    from statsforecast.models import AutoETS

    return _quantiles(AutoETS(season_length=season), y, h, levels)


def auto_arima(y: np.ndarray, h: int, season: int, levels: tuple[float, ...] = LEVELS) -> np.ndarray:
    """Quantiles (Q, h) of the seasonal ARIMA model with the best AICc for y (T,), all observed, by stepwise search.

    Some 5 to 30 s for 336 steps at season 24.
    """
    from statsforecast.models import AutoARIMA

    return _quantiles(AutoARIMA(season_length=season), y, h, levels)


def statistical(
    history: Sequence[np.ndarray],
    h: int,
    season: int,
    model: Model = auto_ets,
    levels: Sequence[float] = LEVELS,
    workers: int = 2,
    limit: float = LIMIT,
) -> Forecast:
    """Quantiles of `auto_ets` or `auto_arima`, each series and channel in one of `workers` processes, `limit` seconds
    each; what fails, takes longer or is not finite is that of the seasonal naive, and counted by its reason.

    Gaps of a history are filled by a line between their ends; unobserved steps at its end are forecast too.
    Raises ModuleNotFoundError where statsforecast is not installed.
    """
    if find_spec("statsforecast") is None:
        fix = "automatic ETS and ARIMA need statsforecast: pip install 'unisci[forecast]'"
        raise ModuleNotFoundError(fix, name="statsforecast")
    return with_fallback(history, h, season, model, levels, workers, limit, _prepare)


def with_fallback(
    history: Sequence[np.ndarray],
    h: int,
    season: int,
    model: Model,
    levels: Sequence[float] = LEVELS,
    workers: int = 2,
    limit: float = LIMIT,
    prepare: Callable[[], None] = nothing,
) -> Forecast:
    """`statistical` for any model, a function of a module; prepare: see `Workers`."""
    quantiles = seasonal_naive_quantiles(history, h, season, levels)
    rows = quantiles.reshape(*quantiles.shape[:3], -1).copy()
    levels = tuple(float(q) for q in levels)
    series = [y[:, c] for y in histories(history, season) for c in range(rows.shape[3])]
    with Workers(workers, limit, prepare) as pool:
        answers = pool.map(_forecast, [(model, y, h, season, levels) for y in series])
    failures = Counter(answer.reason for answer in answers if answer.reason)
    for place, answer in enumerate(answers):
        if answer.reason is None:
            rows[place // rows.shape[3], :, :, place % rows.shape[3]] = answer.value
    return Forecast(rows.reshape(quantiles.shape), dict(failures))


def _fit(history: Sequence[np.ndarray], h: int, season: int) -> tuple[np.ndarray, np.ndarray]:
    """Values of the coming season (n, season, C), and sigma (n, C)."""
    if h < 1:
        raise ValueError(f"the horizon h must be >= 1, got {h}")
    series = histories(history, season)
    for i, y in enumerate(series):
        if np.isnan(y).all(0).any():
            raise ValueError(
                f"history {i} has no observed value in channel {np.isnan(y).all(0).argmax()}; leave it out"
            )
    return np.stack([_last_season(y, season) for y in series]), np.stack([_sigma(y, season) for y in series])


def _last_season(y: np.ndarray, season: int) -> np.ndarray:
    """(season, C) the last observed value of y (T, C) at each step of the season that follows it."""
    blank = np.full((-len(y) % season, y.shape[1]), np.nan)
    blocks = np.concatenate([blank, y]).reshape(-1, season, y.shape[1])
    newest = len(blocks) - 1 - (~np.isnan(blocks[::-1])).argmax(0)
    last = np.take_along_axis(blocks, newest[None], 0)[0]
    return last if season == 1 else np.where(np.isnan(last), _last_season(y, 1), last)


def _sigma(y: np.ndarray, season: int) -> np.ndarray:
    """(C,) root mean square of the observed y_t - y_{t - season} of y (T, C)."""
    squares = np.square(y[season:] - y[:-season])
    pairs = (~np.isnan(squares)).sum(0)
    sigma = np.sqrt(np.nansum(squares, 0) / np.maximum(pairs, 1))
    return sigma if season == 1 else np.where(pairs, sigma, _sigma(y, 1))


def _as_given(forecast: np.ndarray, history: Sequence[np.ndarray]) -> np.ndarray:
    """Without the axis of channels where the history has none."""
    return forecast if np.ndim(history[0]) == 2 else forecast[..., 0]


def _prepare() -> None:
    """Import in a new worker what its tasks need."""
    import statsforecast.models  # noqa: F401


def _forecast(model: Model, y: np.ndarray, h: int, season: int, levels: tuple[float, ...]) -> np.ndarray:
    """model's quantiles (Q, h) of y (T,), which has gaps."""
    known = np.flatnonzero(~np.isnan(y))
    start, end = known[0], known[-1] + 1
    filled = np.interp(np.arange(start, end), known, y[known])
    quantiles = model(filled, len(y) - end + h, season, levels)[:, len(y) - end :]
    if not np.isfinite(quantiles).all():
        raise ValueError("forecast not finite")
    return quantiles


def _quantiles(model: Any, y: np.ndarray, h: int, levels: tuple[float, ...]) -> np.ndarray:
    """The end of the model's central interval at each level: level q ends the one that holds |2 q - 1|."""
    percent = [round(abs(200 * q - 100), 6) for q in levels]
    found = model.forecast(y=y, h=h, level=sorted(set(percent)))
    return np.stack([found[f"{'lo' if q < 0.5 else 'hi'}-{p}"] for q, p in zip(levels, percent, strict=True)])
