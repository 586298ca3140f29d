"""Scores of crystal structure prediction from matches of n compounds with k predictions each.

Of one prediction (the first): match rate, RMSE, cRMSE and METRe, see unisci.metrics.structure_match. Of several: the
best of all k, and the curve over j <= k predictions, the mean over all choices of j among the k: with the values
v_(1) <= ... <= v_(k) of one compound,

    E[min of j] = sum_r v_(r) C(k - r, j - 1) / C(k, j).
"""

from __future__ import annotations

from collections import Counter
from math import comb

import numpy as np

from unisci.metrics.intervals import bootstrap_mean, proportion
from unisci.metrics.metric import Metric
from unisci.metrics.structure_match import Matching


def expected_minimum(values: np.ndarray, j: int) -> np.ndarray:
    """(n,) the mean of the least of j values, over all choices of j among the k of values (n, k).

    Raises ValueError where 1 <= j <= k fails.
    """
    k = values.shape[1]
    if not 1 <= j <= k:
        raise ValueError(f"j must lie in 1..{k}, got {j}")
    weights = np.array([comb(k - r, j - 1) / comb(k, j) for r in range(1, k + 1)])
    return np.sort(values, 1) @ weights


def scores(matching: Matching, stol: float, prefix: str = "", suffix: str = "", seed: int = 0) -> list[Metric]:
    """match_rate, rmse (of the matched) and crmse (stol where missed), each name between prefix and suffix."""
    rms, failures = matching.rms, dict(sorted(Counter(r for r in matching.reasons if r).items()))
    n, found = len(rms), rms[np.isfinite(rms)]
    corrected = np.where(np.isfinite(rms), rms, stol)
    rate = len(found) / n if n else float("nan")
    return [
        Metric(f"{prefix}match_rate{suffix}", rate, *proportion(len(found), n), n, failures),
        _mean(f"{prefix}rmse{suffix}", found, seed),
        _mean(f"{prefix}crmse{suffix}", corrected, seed),
    ]


def curve(rms: np.ndarray, stol: float, suffix: str = "", seed: int = 0) -> list[Metric]:
    """match_rate and crmse at j = 1, 2, 5, 10, 20, ... predictions below the k of rms (n, k)."""
    k = rms.shape[1]
    missed, corrected = np.isnan(rms).astype(float), np.where(np.isnan(rms), stol, rms)
    steps = [m * 10**e for e in range(len(str(k))) for m in (1, 2, 5) if m * 10**e < k]
    result = []
    for j in steps:
        matched, least = 1 - expected_minimum(missed, j), expected_minimum(corrected, j)
        result.append(_mean(f"match_rate_at_{j}{suffix}", matched, seed))
        result.append(_mean(f"crmse_at_{j}{suffix}", least, seed))
    return result


def _mean(name: str, values: np.ndarray, seed: int) -> Metric:
    value = float(values.mean()) if len(values) else float("nan")
    return Metric(name, value, *bootstrap_mean(values, seed), len(values))
