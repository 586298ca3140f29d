"""What the scores of unisci.metrics.forecasts share: checks at the door, missing entries, intervals over series."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from unisci.metrics.intervals import bootstrap_mean, jackknife
from unisci.metrics.metric import Metric

BLOCK = 2**23  # numbers of one array worked on at once, 64 MiB; a score makes a handful of such arrays


def flat(values: np.ndarray, truth: np.ndarray, what: str, least: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forecasts (n, K, D), truth (n, D) and where it is observed (n, D), D = H or H C; 0 where it is not.

    values: (n, K, H[, C]); truth: (n, H[, C]). Raises ValueError where they do not fit, K < least, nothing is observed,
    the truth is infinite, or a forecast is not finite where the truth is observed; what: their name in the message.
    """
    values, truth = np.asarray(values, float), np.asarray(truth, float)
    if truth.ndim not in (2, 3) or values.shape[:1] + values.shape[2:] != truth.shape or values.shape[1:2] < (least,):
        raise ValueError(
            f"need {what} (n, K >= {least}, H) and truth (n, H), or both with a last axis C of channels, "
            f"got {values.shape} and {truth.shape}"
        )
    known = ~np.isnan(truth)
    if not known.any() or np.isinf(truth).any():
        raise ValueError("the truth must hold observed, finite values; NaN stands for not observed")
    values, truth = np.where(known[:, None], values, 0), np.where(known, truth, 0)
    bad = ~np.isfinite(values).reshape(len(values), -1).all(1)
    if bad.any():
        raise ValueError(f"{what} of {bad.sum()} of {len(bad)} series are not finite, the first at row {bad.argmax()}")
    n = len(truth)
    return values.reshape(n, values.shape[1], -1), truth.reshape(n, -1), known.reshape(n, -1)


def quantile_levels(levels: Sequence[float]) -> np.ndarray:
    """(Q,) levels. Raises ValueError where there is none, or one lies outside (0, 1)."""
    checked = np.asarray(levels, float)
    if checked.ndim != 1 or not checked.size or not ((checked > 0) & (checked < 1)).all():
        raise ValueError(f"levels must lie between 0 and 1, both excluded, got {levels}")
    return checked


def histories(history: Sequence[np.ndarray], season: int) -> list[np.ndarray]:
    """n arrays (T_i, C) of n arrays (T_i,) or (T_i, C), or of one (n, T[, C]).

    Raises ValueError where there is none, their channels differ, or season < 1.
    """
    arrays = [np.asarray(one, float) for one in history]
    if season < 1 or len({one.shape[1:] for one in arrays}) != 1 or arrays[0].ndim not in (1, 2):
        shapes = sorted({one.shape for one in arrays})[:4]
        raise ValueError(f"need season >= 1 and histories (T,), or all (T, C), got season {season} and shapes {shapes}")
    return [one.reshape(len(one), -1) if one.ndim == 2 else one[:, None] for one in arrays]


def in_blocks(score: Callable[..., np.ndarray], x: np.ndarray, y: np.ndarray, known: np.ndarray) -> np.ndarray:
    """score(x, y, known) (n,), called on as many rows at once as keep its arrays small."""
    step = max(1, BLOCK // x[0].size)
    return np.concatenate(
        [score(x[i : i + step], y[i : i + step], known[i : i + step]) for i in range(0, len(x), step)]
    )


def unseen(known: np.ndarray) -> dict[str, int]:
    """How many entries of the truth were not observed, as the failures of a Metric."""
    count = int((~known).sum())
    return {"entry not observed": count} if count else {}


def ratio_of_sums(name: str, part: np.ndarray, whole: np.ndarray, known: np.ndarray, seed: int) -> Metric:
    """sum part / sum whole, both (n,), over the series with an observed entry; NaN where sum whole is 0."""
    seen = known.any(1)
    part, whole = part[seen], whole[seen]

    def value(i: np.ndarray) -> float:
        total = whole[i].sum()
        return float(part[i].sum() / total) if total > 0 else float("nan")

    return Metric(name, *jackknife(value, len(part), seed), len(part), unseen(known))


def mean_of_series(name: str, values: np.ndarray, failures: dict[str, int], seed: int) -> Metric:
    """Mean of values (n,), one for each series; NaN for n = 0."""
    value = float(values.mean()) if len(values) else float("nan")
    return Metric(name, value, *bootstrap_mean(values, seed), len(values), failures)


def energies(x: np.ndarray, y: np.ndarray, known: np.ndarray) -> np.ndarray:
    """(n,) energy scores of paths x (n, S, D), 0 where not observed like y (n, D); known is not needed then."""
    # Pairs k apart, for every k: there is never an array of S^2 D numbers.
    s = x.shape[1]
    pairs = sum(np.linalg.norm(x[:, k:] - x[:, :-k], axis=-1).sum(1) for k in range(1, s))
    return np.linalg.norm(x - y[:, None], axis=-1).mean(1) - pairs / s**2


def variograms(x: np.ndarray, y: np.ndarray, known: np.ndarray, p: float) -> np.ndarray:
    """(n,) variogram scores of order p of paths x (n, S, D), over the pairs of known entries of y (n, D)."""
    score = np.zeros(len(x))
    for k in range(1, x.shape[2]):
        # Pairs k apart count in both orders.
        gap = (np.abs(x[..., k:] - x[..., :-k]) ** p).mean(1) - np.abs(y[:, k:] - y[:, :-k]) ** p
        score += 2 * (known[:, k:] * known[:, :-k] * gap**2).sum(1)
    return score


def naive_scale(y: np.ndarray, season: int) -> np.ndarray:
    """(C,) mean |y_t - y_{t - season}| of y (T, C) over observed pairs; 0 where there is none."""
    gaps = np.abs(y[season:] - y[:-season])
    return np.nansum(gaps, 0) / np.maximum(1, (~np.isnan(gaps)).sum(0))
