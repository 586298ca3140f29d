"""Baselines of forecasts: the seasonal naive by hand and by its law, fallbacks, and statsforecast's models."""

import math
import time
from statistics import NormalDist

import numpy as np
import pytest

from unisci.metrics import forecast_baselines
from unisci.metrics.forecast_baselines import (
    auto_arima,
    auto_ets,
    seasonal_naive,
    seasonal_naive_paths,
    seasonal_naive_quantiles,
    statistical,
    with_fallback,
)
from unisci.metrics.forecasts import LEVELS, coverage, crps, mase

NAN = math.nan
Z = np.array([NormalDist().inv_cdf(q) for q in LEVELS])


def test_point_is_the_last_season_by_hand():
    history = [np.array([9.0, 1, 2, 3]), np.array([4.0, 5, 6, 7, 8, 9, 10]), np.array([4.0, 5])]
    expected = [[1, 2, 3, 1, 2], [8, 9, 10, 8, 9], [5, 4, 5, 5, 4]]  # of a short one: the newest where nothing is known
    assert seasonal_naive(history, 5, 3).tolist() == expected
    assert seasonal_naive(history, 2, 1).tolist() == [[3, 3], [10, 10], [5, 5]]


def test_missing_values_take_the_season_before_and_then_the_newest():
    y = np.array([1, 2, NAN, 4, NAN, NAN, NAN, 8, NAN])
    assert seasonal_naive([y], 4, 3).tolist() == [[4, 8, 8, 4]]
    assert seasonal_naive([np.array([NAN, NAN, 3, NAN])], 3, 2).tolist() == [[3, 3, 3]]


def test_channels_are_forecast_one_by_one():
    y = np.random.default_rng(0).normal(size=(3, 20, 2))
    y[1, 15:, 1] = NAN
    both = [f(y, 5, 4) for f in (seasonal_naive, seasonal_naive_quantiles)]
    assert both[0].shape == (3, 5, 2) and both[1].shape == (3, 9, 5, 2)
    for c in range(2):
        assert np.array_equal(both[0][..., c], seasonal_naive(y[..., c], 5, 4))
        np.testing.assert_allclose(both[1][..., c], seasonal_naive_quantiles(y[..., c], 5, 4), rtol=1e-12)
    assert seasonal_naive(y[..., :1], 5, 4).shape == (3, 5, 1)
    assert seasonal_naive_paths(y, 5, 4, 7).shape == (3, 7, 5, 2)
    assert seasonal_naive_paths(y[..., 0], 5, 4, 7).shape == (3, 7, 5)


def test_spread_grows_with_the_root_of_the_seasons_ahead():
    y = np.random.default_rng(1).normal(size=40)
    y[[3, 20]] = NAN
    gaps = [y[t] - y[t - 4] for t in range(4, 40) if not np.isnan(y[t] - y[t - 4])]
    sigma = math.sqrt(np.mean(np.square(gaps)))
    quantiles = seasonal_naive_quantiles([y], 10, 4)[0]
    point = seasonal_naive([y], 10, 4)[0]
    k = np.array([1, 1, 1, 1, 2, 2, 2, 2, 3, 3])
    np.testing.assert_allclose(quantiles, point + Z[:, None] * sigma * np.sqrt(k), rtol=1e-12)


def test_spread_of_a_series_shorter_than_a_season():
    quantiles = seasonal_naive_quantiles([np.array([1.0, 3, 2]), np.array([5.0])], 2, 24, [0.5, 0.9])
    z = NormalDist().inv_cdf(0.9)
    np.testing.assert_allclose(quantiles[0], [[2, 2], [2 + z * math.sqrt(2.5)] * 2])  # differences 2 and -1
    np.testing.assert_allclose(quantiles[1], 5)


def test_paths_have_the_law_of_the_quantiles_and_walk_from_season_to_season():
    y = np.random.default_rng(2).normal(size=(2, 60)).cumsum(1)
    paths, point = seasonal_naive_paths(y, 7, 3, 40_000, seed=3), seasonal_naive(y, 7, 3)
    quantiles = seasonal_naive_quantiles(y, 7, 3, [0.1, 0.5, 0.9])
    found = np.quantile(paths, [0.1, 0.5, 0.9], axis=1).swapaxes(0, 1)
    spread = (quantiles[:, 2] - quantiles[:, 0])[:, None]
    assert (np.abs(found - quantiles) / spread).max() < 0.02
    noise = paths[0] - point[0]
    correlation = np.corrcoef(noise.T)
    for i in range(7):
        for j in range(i, 7):
            k, m = 1 + i // 3, 1 + j // 3
            expected = math.sqrt(k / m) if i % 3 == j % 3 else 0  # a sum of k steps of a walk of m
            assert correlation[i, j] == pytest.approx(expected, abs=0.03)


def test_paths_of_a_series_do_not_depend_on_the_others():
    y = np.random.default_rng(4).normal(size=(3, 20))
    one, other = seasonal_naive_paths(y, 5, 4, 9, seed=1), seasonal_naive_paths([y[0], y[2][5:]], 5, 4, 9, seed=1)
    assert np.array_equal(one[0], other[0])
    assert not np.array_equal(one, seasonal_naive_paths(y, 5, 4, 9, seed=2))
    noise = (one - seasonal_naive(y, 5, 4)[:, None])[:2]
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.6  # two series, two draws


def test_seasonal_random_walk_is_covered_and_scaled_right():
    """Series that follow the law: coverage holds its level, MASE is 1 within the first season."""
    rng = np.random.default_rng(5)
    y = rng.normal(size=(200, 40, 6)).cumsum(1).reshape(200, 240)
    past, truth = y[:, :-12], y[:, -12:]
    paths = seasonal_naive_paths(past, 12, 6, 99)
    row = coverage(paths, truth, 0.8)
    assert row.low <= 0.8 <= row.high and row.high - row.low < 0.06
    first = mase(seasonal_naive(past, 6, 6), truth[:, :6], past, 6)
    assert first.low <= 1 <= first.high
    assert crps(paths, truth).high < crps(paths * 1.5, truth).value


def bad_input():
    y = np.ones((2, 9))
    yield dict(history=y, h=0, season=3), "h must be >= 1, got 0"
    yield dict(history=y, h=3, season=0), "season >= 1"
    yield dict(history=[], h=3, season=3), "season >= 1 and histories"
    yield dict(history=[y[0], y], h=3, season=3), "histories"
    yield dict(history=np.ones((1, 2, 3, 4)), h=3, season=3), "histories"
    gone = np.stack([y, y], -1)
    gone[1, :, 1] = NAN
    yield dict(history=gone, h=3, season=3), "history 1 has no observed value in channel 1"


@pytest.mark.parametrize(("arguments", "message"), list(bad_input()))
def test_bad_input_is_refused_at_the_door(arguments, message):
    for function in (seasonal_naive, seasonal_naive_quantiles, seasonal_naive_paths):
        with pytest.raises(ValueError, match=message):
            function(**arguments)
    with pytest.raises(ValueError, match=message):
        with_fallback(model=lines, **arguments)


def test_bad_settings_are_refused_at_the_door():
    with pytest.raises(ValueError, match="n_paths must be >= 1"):
        seasonal_naive_paths(np.ones((1, 4)), 2, 2, 0)
    with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
        seasonal_naive_quantiles(np.ones((1, 4)), 2, 2, [1.0])


def lines(y, h, season, levels):
    """A model that goes on along a line, and fails on marked series."""
    assert not np.isnan(y).any()
    if y[0] == 13:
        raise ArithmeticError("unlucky")
    if y[0] == 17:
        time.sleep(600)
    if y[0] == 19:
        return np.full((len(levels), h), NAN)
    slope = (y[-1] - y[0]) / (len(y) - 1)
    return y[-1] + slope * np.arange(1, h + 1) + np.array(levels)[:, None] * season


def test_fallback_is_the_seasonal_naive_and_is_counted():
    history = np.arange(12.0)[None, :, None] + np.array([[0.0, 13], [17, 2], [19, 3]])[:, None]
    start = time.monotonic()
    found = with_fallback(history, 4, 5, lines, [0.25, 0.5], workers=2, limit=4)
    assert time.monotonic() - start < 50  # for the one that sleeps, the limit given
    naive = seasonal_naive_quantiles(history, 4, 5, [0.25, 0.5])
    assert found.failures == {"ArithmeticError: unlucky": 1, "time out": 1, "ValueError: forecast not finite": 1}
    assert found.quantiles.shape == (3, 2, 4, 2)
    for i, c in ((0, 1), (1, 0), (2, 0)):
        assert np.array_equal(found.quantiles[i, ..., c], naive[i, ..., c])
    for i, c in ((0, 0), (1, 1), (2, 1)):
        expected = history[i, -1, c] + np.arange(1, 5) + np.array([[0.25], [0.5]]) * 5
        np.testing.assert_allclose(found.quantiles[i, ..., c], expected)


def test_gaps_are_bridged_and_missing_steps_at_the_end_are_forecast():
    y = np.arange(12.0)
    y[[0, 4, 5, 10, 11]] = NAN
    found = with_fallback([y], 3, 5, lines, [0.5], workers=1, limit=60)
    assert found.failures == {} and found.quantiles.shape == (1, 1, 3)
    np.testing.assert_allclose(found.quantiles[0, 0], [12 + 2.5, 13 + 2.5, 14 + 2.5])


def test_without_statsforecast_the_error_names_the_fix(monkeypatch):
    monkeypatch.setattr(forecast_baselines, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'unisci\[forecast\]'"):
        statistical(np.ones((1, 30)), 3, 4)


def seasonal_series(rng, n, t):
    return 10 + 3 * np.sin(2 * np.pi * np.arange(t) / 12) + 0.5 * rng.standard_normal((n, t))


@pytest.mark.slow
def test_seasonal_naive_is_that_of_statsforecast():
    models = pytest.importorskip("statsforecast.models")
    y = np.random.default_rng(6).normal(size=50)
    found = models.SeasonalNaive(season_length=7).forecast(y=y, h=20, level=[80, 40])
    ours = seasonal_naive_quantiles([y], 20, 7, [0.1, 0.3, 0.7, 0.9])[0]
    np.testing.assert_allclose(seasonal_naive([y], 20, 7)[0], found["mean"])
    np.testing.assert_allclose(ours, [found[k] for k in ("lo-80", "lo-40", "hi-40", "hi-80")])


@pytest.mark.slow
@pytest.mark.parametrize("model", [auto_ets, auto_arima])
def test_automatic_models_are_calibrated_and_beat_the_seasonal_naive(model):
    """A sine with white noise of sd 0.5: nine levels, ordered, an 80 % interval about 2 * 1.28 * 0.5 wide."""
    pytest.importorskip("statsforecast")
    y = seasonal_series(np.random.default_rng(7), 4, 132)
    past, truth = y[:, :-12], y[:, -12:]
    found = statistical([*past[:3], np.where(np.arange(120) == 60, NAN, past[3])], 12, 12, model)
    assert found.failures == {} and found.quantiles.shape == (4, 9, 12)
    assert (np.diff(found.quantiles, axis=1) > 0).all()
    width = (found.quantiles[:, -1] - found.quantiles[:, 0]).mean()
    assert width == pytest.approx(2 * 1.2816 * 0.5, rel=0.3)
    ours = mase(found.quantiles[:, 4], truth, past, 12).value
    assert ours < 0.9 * mase(seasonal_naive(past, 12, 12), truth, past, 12).value


@pytest.mark.slow
def test_what_a_model_cannot_fit_falls_back():
    pytest.importorskip("statsforecast")
    history = [np.arange(5.0), seasonal_series(np.random.default_rng(8), 1, 60)[0]]  # the first is too short for ETS
    found = statistical(history, 3, 12, auto_ets, [0.1, 0.9])
    assert found.failures == {"NotImplementedError: tiny datasets": 1}
    assert np.array_equal(found.quantiles[0], seasonal_naive_quantiles(history[:1], 3, 12, [0.1, 0.9])[0])


@pytest.mark.slow
def test_quantiles_are_the_ends_of_the_models_intervals():
    models = pytest.importorskip("statsforecast.models")
    y = seasonal_series(np.random.default_rng(9), 1, 60)[0]
    found = models.AutoETS(season_length=12).forecast(y=y, h=4, level=[95, 80, 40])
    expected = [found[k] for k in ("hi-80", "lo-40", "lo-95", "mean", "hi-40")]
    np.testing.assert_allclose(auto_ets(y, 4, 12, (0.9, 0.3, 0.025, 0.5, 0.7)), expected, rtol=1e-9)
