"""Scores from matches: by hand, and the curve against all choices of predictions."""

from itertools import combinations

import numpy as np
import pytest

from unisci.metrics.crystal_prediction import curve, expected_minimum, scores
from unisci.metrics.structure_match import Matching

NAN = float("nan")


@pytest.mark.parametrize("k", [1, 2, 5])
def test_expected_minimum_is_the_mean_over_choices(k):
    values = np.random.default_rng(k).random((7, k))
    for j in range(1, k + 1):
        brute = np.mean([values[:, list(c)].min(1) for c in combinations(range(k), j)], 0)
        np.testing.assert_allclose(expected_minimum(values, j), brute)
    for j in (0, k + 1):
        with pytest.raises(ValueError, match=rf"1..{k}, got {j}"):
            expected_minimum(values, j)


def test_scores_by_hand():
    m = Matching(np.array([0.1, NAN, 0.3, NAN]), (None, "time out", None, "no match"))
    rate, rmse, crmse = scores(m, 0.5, "best_of_3_", "_as_given")
    assert [x.name for x in (rate, rmse, crmse)] == [f"best_of_3_{n}_as_given" for n in ("match_rate", "rmse", "crmse")]
    assert (rate.value, rate.n, rate.failures) == (0.5, 4, {"no match": 1, "time out": 1})
    assert (rmse.value, rmse.n) == (pytest.approx(0.2), 2)
    assert (crmse.value, crmse.n) == (pytest.approx((0.1 + 0.3 + 2 * 0.5) / 4), 4)
    assert 0.1 < rate.low < 0.2 and 0.8 < rate.high < 0.9  # Wilson
    assert crmse.low < crmse.value < crmse.high


def test_scores_of_all_misses():
    rate, rmse, crmse = scores(Matching(np.array([NAN, NAN]), ("no match",) * 2), 0.5)
    assert rate.value == 0 and np.isnan(rmse.value) and rmse.n == 0 and crmse.value == 0.5


def test_curve_by_hand():
    """Of 3 predictions one, none and all match: at 2 the first matches in 2 of 3 choices."""
    rms = np.array([[NAN, 0.2, NAN], [NAN] * 3, [0.1, 0.3, 0.2]])
    m = {x.name: x for x in curve(rms, 0.5)}
    assert list(m) == ["match_rate_at_1", "crmse_at_1", "match_rate_at_2", "crmse_at_2"]
    assert m["match_rate_at_1"].value == pytest.approx((1 / 3 + 0 + 1) / 3)
    assert m["match_rate_at_2"].value == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert m["crmse_at_2"].value == pytest.approx(((0.2 + 0.2 + 0.5) / 3 + 0.5 + (0.1 + 0.1 + 0.2) / 3) / 3)
    assert [x.name for x in curve(np.zeros((2, 21)), 0.5)[::2]] == [f"match_rate_at_{j}" for j in (1, 2, 5, 10, 20)]
    assert curve(np.zeros((2, 1)), 0.5) == []
