"""Intervals: exact cases, and how often they hold the truth on simulated data."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unisci.metrics.intervals import (
    bootstrap_mean,
    clustered_proportion,
    distinct,
    jackknife,
    median_interval,
    proportion,
    student,
)

RUNS = 400


def coverage(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])


@pytest.mark.parametrize(("p", "n"), [(0.5, 50), (0.9, 200), (0.99, 1000)])
def test_proportion_covers_bernoulli(p, n):
    draws = np.random.default_rng(0).binomial(n, p, RUNS)
    assert 0.92 <= coverage(p, [proportion(int(k), n) for k in draws]) <= 0.985


def test_bootstrap_covers_bernoulli():
    rng = np.random.default_rng(1)
    intervals = [bootstrap_mean(rng.random(150) < 0.8, seed=i, resamples=300) for i in range(RUNS)]
    assert 0.91 <= coverage(0.8, intervals) <= 0.98


def test_proportion_by_hand():
    assert proportion(10, 10) == (pytest.approx(10 / (10 + 1.959964**2)), 1.0)  # Wilson: n / (n + z^2) at p = 1
    assert proportion(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert all(math.isnan(x) for x in proportion(0, 0))
    with pytest.raises(ValueError, match=r"0\.\.3, got 4"):
        proportion(4, 3)


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_proportion_holds_its_value(n, p):
    k = round(n * p)
    low, high = proportion(k, n)
    assert 0 <= low <= k / n <= high <= 1 and low < high


@pytest.mark.parametrize("kinds", [20, 300, 5000])
def test_distinct_covers_the_expected_share(kinds):
    """Draws from a skewed law over `kinds` kinds; the truth is the mean share, exactly 1/n sum_k 1 - (1 - p_k)^n."""
    n, rng = 300, np.random.default_rng(2)
    p = 1 / np.arange(1, kinds + 1)
    p /= p.sum()
    truth = np.sum(1 - (1 - p) ** n) / n
    intervals = []
    for _ in range(RUNS):
        counts = Counter(rng.choice(kinds, n, p=p).tolist())
        intervals.append(distinct(len(counts), sum(c == 1 for c in counts.values()), n))
    assert coverage(truth, intervals) >= 0.93
    assert np.mean([high - low for low, high in intervals]) < 0.15


def test_distinct_equals_the_delete_one_jackknife():
    items = list("aaabbcdefgh") * 1 + list("xyz") * 2
    n, counts = len(items), Counter(items)
    shares = [len(set(items[:i] + items[i + 1 :])) / (n - 1) for i in range(n)]
    variance = (n - 1) / n * np.square(shares - np.mean(shares)).sum()
    s = sum(c == 1 for c in counts.values()) / n
    assert variance == pytest.approx(s * (1 - s) / (n - 1))  # the closed form, before the four added samples
    low, high = distinct(len(counts), round(s * n), n)
    assert low < len(counts) / n < high
    low, high = distinct(10_000, 10_000, 10_000)
    assert 0 < 1 - low < 4e-4 and high == 1


def test_jackknife_covers_a_nonlinear_statistic():
    """The coefficient of variation of an exponential law is 1."""
    rng = np.random.default_rng(3)
    intervals = []
    for i in range(RUNS):
        x = rng.exponential(size=400)
        intervals.append(jackknife(lambda k, x=x: x[k].std() / x[k].mean(), len(x), seed=i)[1:])
    assert 0.9 <= coverage(1, intervals) <= 0.98


def test_too_few_samples_have_no_interval():
    assert jackknife(lambda i: 3.0, 1)[0] == 3 and math.isnan(jackknife(lambda i: 3.0, 1)[1])
    assert all(math.isnan(x) for x in jackknife(lambda i: 3.0, 0))
    assert all(math.isnan(x) for x in (*bootstrap_mean(np.ones(1)), *distinct(1, 1, 1)))


@pytest.mark.parametrize(("degrees", "exact"), [(4, 2.776), (9, 2.262), (19, 2.093)])
def test_student(degrees, exact):
    assert student(degrees) == pytest.approx(exact, rel=0.01)


def test_a_clustered_proportion_at_the_ends():
    low, high = clustered_proportion(np.full(10, 24), np.full(10, 24))
    assert (low, high) == (pytest.approx(10 / (10 + 1.959964**2)), 1.0)  # ten clusters, not 240 entries
    one = clustered_proportion(np.array([12]), np.array([24]))
    assert one[1] - one[0] > 0.8
    same = clustered_proportion(np.full(10, 12), np.full(10, 24))
    assert 0.1 < same[1] - same[0] < 0.16


def test_the_median_interval_holds_the_median_19_times_in_20():
    rng = np.random.default_rng(0)
    inside = [low <= np.log(2) <= high for low, high in map(median_interval, rng.exponential(size=(1000, 25)))]
    assert 0.94 < np.mean(inside) < 0.99
    assert np.isnan(median_interval(np.arange(5.0))).all()
