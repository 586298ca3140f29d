"""Levels of quantiles and of central intervals, as columns of result tables name them."""

from collections.abc import Sequence

import numpy as np


def quantile_of(paths: np.ndarray, levels: Sequence[float]) -> np.ndarray:
    """Quantiles (Q, n, h, C) of paths (n, S, h, C) at ranks q (S + 1), on a line between neighbours."""
    return np.quantile(paths, levels, axis=1, method="weibull")


def interval_bounds(levels: Sequence[float]) -> dict[str, float]:
    """The quantile of each bound, "-lo-95" first, "-hi-95" last."""
    below = dict(sorted(tails(levels).items()))
    low = {f"-lo-{level:g}": tail for level, tail in reversed(below.items())}
    return low | {f"-hi-{level:g}": 1 - tail for level, tail in below.items()}


def tails(levels: Sequence[float]) -> dict[float, float]:
    """By level in percent, the probability below its interval. Raises ValueError for one outside (0, 100)."""
    if not all(0 < level < 100 for level in levels):
        raise ValueError(f"levels are percents between 0 and 100, such as 80, got {tuple(levels)}")
    return {level: (1 - level / 100) / 2 for level in levels}


def shares(quantiles: Sequence[float]) -> Sequence[float]:
    """The levels themselves. Raises ValueError for one outside (0, 1)."""
    if not all(0 < q < 1 for q in quantiles):
        raise ValueError(f"quantiles lie between 0 and 1, such as 0.9, got {tuple(quantiles)}")
    return quantiles
