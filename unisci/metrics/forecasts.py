"""How good forecasts are: as quantiles, as points, and as joint paths over the horizon and the channels.

GluonTS's mean weighted quantile loss, "the CRPS" of TSDiff (arXiv 2307.11494) and of many others, over levels q:
    wQL = mean_q 2 sum |(y - y_q) (1[y <= y_q] - q)| / sum |y|
CRPS of S paths, 2 times the mean loss of the sorted paths at the levels (s - 1/2) / S (Bröcker, DOI 10.1002/qj.1891).
energy score (Gneiting and Raftery, DOI 10.1198/016214506000001437): E |x - y| - E |x - x'| / 2, x and x' two paths;
variogram score (Scheuerer and Hamill, DOI 10.1175/MWR-D-14-00269.1): sum_ij (E |x_i - x_j|^p - |y_i - y_j|^p)^2.
MASE (Hyndman and Koehler, DOI 10.1016/j.ijforecast.2006.03.001).

Shapes, everywhere: paths (n, S, H) or (n, S, H, C), quantiles the same with Q for S, truth and point (n, H) or
(n, H, C); n series, S paths, H steps, C channels. truth is NaN where not observed: such entries are left out, and
counted in `failures`. The n of every interval is that of the series, for the steps of one series go up and down
together; windows that overlap do so too, and their intervals are too narrow.
Every score raises ValueError where shapes do not fit, nothing is observed, or a forecast is not finite where it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from unisci.metrics.forecast_arrays import (
    energies,
    flat,
    histories,
    in_blocks,
    mean_of_series,
    naive_scale,
    quantile_levels,
    ratio_of_sums,
    unseen,
    variograms,
)
from unisci.metrics.intervals import clustered_proportion
from unisci.metrics.metric import Metric

LEVELS = tuple(q / 10 for q in range(1, 10))
CENTRAL = (0.5, 0.8, 0.95)  # the intervals whose coverage a report gives


def path_quantiles(paths: np.ndarray, levels: Sequence[float] = LEVELS) -> np.ndarray:
    """Quantiles (n, Q, H[, C]) of paths: as in GluonTS, the path whose rank is nearest to q (S - 1), none in between.

    Raises ValueError where a level lies outside (0, 1).
    """
    paths = np.asarray(paths)
    return np.sort(paths, axis=1)[:, np.round((paths.shape[1] - 1) * quantile_levels(levels)).astype(int)]


def quantile_loss(quantiles: np.ndarray, truth: np.ndarray, levels: Sequence[float] = LEVELS) -> np.ndarray:
    """Loss (y - y_q) (q - 1[y < y_q]) >= 0 of each quantile, (n, Q, H[, C]), NaN where not observed.

    Raises ValueError where a level lies outside (0, 1), or their number is not Q.
    """
    x, y, known = flat(quantiles, truth, "quantiles")
    levels = quantile_levels(levels)
    if len(levels) != x.shape[1]:
        raise ValueError(f"quantiles hold {x.shape[1]} levels on axis 1, got {len(levels)} levels")
    gap = y[:, None] - x
    loss = np.maximum(levels[:, None] * gap, (levels[:, None] - 1) * gap)
    return np.where(known[:, None], loss, np.nan).reshape(np.shape(quantiles))


def weighted_quantile_loss(
    quantiles: np.ndarray, truth: np.ndarray, levels: Sequence[float] = LEVELS, seed: int = 0
) -> Metric:
    """wQL over all series and steps; of paths, give `path_quantiles`. NaN where the truth is 0 everywhere."""
    _, y, known = flat(quantiles, truth, "quantiles")
    loss = np.nan_to_num(quantile_loss(quantiles, truth, levels)).reshape(len(y), -1)
    return ratio_of_sums("wql", 2 * loss.sum(1) / len(levels), np.abs(y).sum(1), known, seed)


def normalised_deviation(point: np.ndarray, truth: np.ndarray, seed: int = 0) -> Metric:
    """sum |y - point| / sum |y| over all series and steps: wQL of a forecast without spread."""
    x, y, known = flat(np.asarray(point)[:, None], truth, "point")
    return ratio_of_sums("nd", np.abs(y - x[:, 0]).sum(1), np.abs(y).sum(1), known, seed)


def crps(paths: np.ndarray, truth: np.ndarray, seed: int = 0) -> Metric:
    """Mean CRPS of the empirical law of the S paths, over observed entries, in the unit of the series.

    On average it is that of the law behind the paths plus E |x - x'| / (2 S), so compare it only at equal S.
    """
    x, y, known = flat(paths, truth, "paths")
    levels = (np.arange(x.shape[1]) + 0.5) / x.shape[1]
    values = in_blocks(lambda x, y, _: 2 * quantile_loss(np.sort(x, 1), y, levels).mean(1).sum(1), x, y, known)
    return ratio_of_sums("crps", values, known.sum(1), known, seed)


def energy_score(paths: np.ndarray, truth: np.ndarray, seed: int = 0) -> Metric:
    """Mean over series of the energy score of the whole path, in the unit of the series; the distance is Euclid's.

    A missing entry is a dimension less. Raises ValueError for fewer than 2 paths.
    """
    x, y, known = flat(paths, truth, "paths", least=2)
    return mean_of_series("energy_score", in_blocks(energies, x, y, known)[known.any(1)], unseen(known), seed)


def variogram_score(paths: np.ndarray, truth: np.ndarray, p: float = 0.5, seed: int = 0) -> Metric:
    """Mean over series of the variogram score of order p over all pairs of entries (steps and channels), both orders.

    It sees how entries move together, and not a shift common to all. A pair with a missing entry is left out.
    Raises ValueError for fewer than 2 paths, or p <= 0.
    """
    if not p > 0:
        raise ValueError(f"the order of the variogram score must be p > 0, got {p}")
    x, y, known = flat(paths, truth, "paths", least=2)
    values = in_blocks(lambda x, y, known: variograms(x, y, known, p), x, y, known)
    return mean_of_series("variogram_score", values[known.any(1)], unseen(known), seed)


def mase(point: np.ndarray, truth: np.ndarray, history: Sequence[np.ndarray], season: int, seed: int = 0) -> Metric:
    """Mean over series of mean |y - point| / scale, by channel; scale is the history's mean |y_t - y_{t - season}|.

    history: n arrays (T_i,) or (T_i, C), or one (n, T[, C]); NaN where not observed. A channel without a scale, for a
    constant or too short history, is left out and counted.
    """
    x, y, known = flat(np.asarray(point)[:, None], truth, "point")
    past = histories(history, season)
    shape = (len(past), -1, past[0].shape[1])
    if len(past) != len(y) or np.shape(truth)[2:] != np.shape(history[0])[1:]:
        raise ValueError(f"{len(past)} histories such as {np.shape(history[0])} do not fit truth {np.shape(truth)}")
    error, count = np.abs(y - x[:, 0]).reshape(shape).sum(1), known.reshape(shape).sum(1)
    scale = np.stack([naive_scale(one, season) for one in past])
    used = (scale > 0) & (count > 0)
    ratio = np.divide(error, scale * count, where=used, out=np.zeros_like(error))
    values = np.divide(ratio.sum(1), used.sum(1), where=used.any(1), out=np.full(len(y), np.nan))
    lost = int(((count > 0) & ~used).sum())
    return mean_of_series("mase", values[used.any(1)], unseen(known) | ({"no scale": lost} if lost else {}), seed)


def coverage(paths: np.ndarray, truth: np.ndarray, level: float) -> Metric:
    """Share of observed entries within the central interval of the S paths that should hold `level` of them.

    Its ends are the paths' quantiles at ranks q (S + 1): a truth that is one more draw of the same law lies within with
    probability `level`, at any S. NaN for S < 2 / (1 - level) - 1, where there are no such ranks. Interval: Wilson's at
    the effective number of entries, from n series up to all of them, by the spread between series.
    Raises ValueError where level lies outside (0, 1).
    """
    (level,) = quantile_levels([level])
    x, y, known = flat(paths, truth, "paths")
    name, tail = f"coverage_{100 * level:g}", (1 - level) / 2
    if tail * (x.shape[1] + 1) < 1 - 1e-9:
        return Metric(name, *[float("nan")] * 3, 0, {"too few paths": len(y)})
    low, high = np.quantile(x, [tail, 1 - tail], axis=1, method="weibull")
    hits, sizes = ((low <= y) & (y <= high) & known).sum(1), known.sum(1)
    seen = sizes > 0
    bounds = clustered_proportion(hits[seen], sizes[seen])
    return Metric(name, float(hits.sum() / sizes.sum()), *bounds, int(seen.sum()), unseen(known))


def shuffled(paths: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The same paths at each step and channel, in an order of its own: the same marginals, the joint law destroyed."""
    return rng.permuted(paths, axis=1)


def linear_predictive_score(
    train_windows: np.ndarray, test_windows: np.ndarray, context: int, ridge: float = 0.0, seed: int = 0
) -> Metric:
    """Normalised deviation, on test_windows (n, L), of the linear forecast of steps context..L fitted to train_windows
    (m, L): low where windows generated for training hold what a forecaster needs. Windows come scaled already.

    Least squares with an intercept, plus ridge >= 0 times the squared weights, beside the mean squared error.
    Windows with a NaN are left out and counted. Raises ValueError where L differs, context lies outside 1..L - 1,
    ridge < 0, or no window is complete.
    """
    train, test = np.asarray(train_windows, float), np.asarray(test_windows, float)
    if train.ndim != 2 or test.ndim != 2 or train.shape[1] != test.shape[1] or not 0 < context < train.shape[1]:
        raise ValueError(
            f"need windows (m, L), (n, L) and context in 1..L - 1, got {train.shape}, {test.shape}, {context}"
        )
    fit, real = (w[np.isfinite(w).all(1)] for w in (train, test))
    if not len(fit) or not len(real) or not ridge >= 0:
        raise ValueError(f"need complete windows and ridge >= 0, got {len(fit)}, {len(real)} and ridge {ridge}")
    centre = fit.mean(0)
    past, future = np.split(fit - centre, [context], axis=1)
    penalty = np.sqrt(ridge * len(fit)) * np.eye(context)
    target = np.concatenate([future, np.zeros((context, future.shape[1]))])
    weights = np.linalg.lstsq(np.concatenate([past, penalty]), target, rcond=None)[0]
    error = np.abs((real - centre)[:, :context] @ weights + centre[context:] - real[:, context:]).sum(1)
    size = np.abs(real[:, context:]).sum(1)
    row = ratio_of_sums("linear_predictive_score", error, size, np.ones_like(real, bool), seed)
    left = {"training window not complete": len(train) - len(fit), "window not complete": len(test) - len(real)}
    return replace(row, failures={reason: count for reason, count in left.items() if count})


def forecast_report(
    paths: np.ndarray, truth: np.ndarray, history: Sequence[np.ndarray], season: int, seed: int = 0
) -> tuple[Metric, ...]:
    """wql, crps; energy_score, variogram_score, and both again of `shuffled` paths: a joint law worth having is better
    than that; mase and nd of the median path; coverage_50, _80, _95.

    history, season: see `mase`; seed: of the shuffling and the intervals.
    crps, energy and variogram scores have units: a large series outweighs a small one, so scale them first.
    """
    median = np.median(paths, axis=1)
    other = shuffled(np.asarray(paths), np.random.default_rng(seed))
    joint = [score(x, truth, seed=seed) for x in (paths, other) for score in (energy_score, variogram_score)]
    return (
        weighted_quantile_loss(path_quantiles(paths), truth, seed=seed),
        crps(paths, truth, seed),
        *joint[:2],
        *(replace(row, name=f"{row.name}_shuffled") for row in joint[2:]),
        mase(median, truth, history, season, seed),
        normalised_deviation(median, truth, seed),
        *(coverage(paths, truth, level) for level in CENTRAL),
    )
