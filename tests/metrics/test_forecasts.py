"""Scores of forecasts: closed forms, loops over the definitions, and other libraries (S06, section 2, check 6)."""

import math
from statistics import NormalDist

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.metrics import forecast_arrays
from unisci.metrics.forecasts import (
    LEVELS,
    coverage,
    crps,
    energy_score,
    forecast_report,
    linear_predictive_score,
    mase,
    normalised_deviation,
    path_quantiles,
    quantile_loss,
    shuffled,
    variogram_score,
    weighted_quantile_loss,
)
from unisci.metrics.metric import markdown

NORMAL = NormalDist()


def autoregressive(rng, shape, rho=0.9):
    """Stationary AR(1) of unit variance along the last axis."""
    x = rng.standard_normal(shape)
    for t in range(1, shape[-1]):
        x[..., t] = rho * x[..., t - 1] + math.sqrt(1 - rho**2) * x[..., t]
    return x


def wql(paths, truth):
    return weighted_quantile_loss(path_quantiles(paths), truth)


def small(rng, n=5, s=7, h=4, c=2, missing=0.0):
    paths, truth = rng.normal(2, 1, (n, s, h, c)), rng.normal(2, 1, (n, h, c))
    truth[rng.random(truth.shape) < missing] = np.nan
    return paths, truth


def test_crps_of_the_standard_normal_law_at_its_mean():
    """(sqrt 2 - 1) / sqrt pi = 0.2337, and the bias E |x - x'| / (2 S) = 1 / (S sqrt pi) of few paths."""
    rng = np.random.default_rng(0)
    exact = (math.sqrt(2) - 1) / math.sqrt(math.pi)
    assert exact == pytest.approx(0.2337, abs=1e-4)
    assert crps(rng.standard_normal((1, 400_000, 1)), np.zeros((1, 1))).value == pytest.approx(exact, abs=2e-3)
    few = crps(rng.standard_normal((40_000, 5, 1)), np.zeros((40_000, 1))).value
    assert few == pytest.approx(exact + 1 / (5 * math.sqrt(math.pi)), abs=5e-3)


@pytest.mark.parametrize("q", LEVELS)
def test_quantile_loss_of_the_exact_gaussian_quantile_is_the_density_there(q):
    """E loss(y, z_q) = pdf(z_q), in closed form, and no other quantile does better."""
    y = np.array([[NORMAL.inv_cdf((i + 0.5) / 50_000) for i in range(50_000)]])
    z = NORMAL.inv_cdf(q)
    losses = [quantile_loss(np.full((1, 1, 50_000), v), y, [q]).mean() for v in (z, z - 0.1, z + 0.1)]
    assert losses[0] == pytest.approx(NORMAL.pdf(z), abs=1e-4)
    assert losses[0] < min(losses[1:])


def test_wql_of_exact_gaussian_quantiles():
    """Of N(0, 1) it is the mean of 2 pdf(z_q) / E |y|."""
    y = np.array([[NORMAL.inv_cdf((i + 0.5) / 20_000) for i in range(20_000)]])
    z = np.broadcast_to(np.array([NORMAL.inv_cdf(q) for q in LEVELS])[None, :, None], (1, 9, 20_000))
    expected = np.mean([2 * NORMAL.pdf(NORMAL.inv_cdf(q)) for q in LEVELS]) / math.sqrt(2 / math.pi)
    assert weighted_quantile_loss(z, y).value == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("s", [1, 6, 10, 21, 100])
def test_wql_is_gluonts_in_a_direct_loop(s):
    rng = np.random.default_rng(s)
    paths, truth = small(rng, n=3, s=s, missing=0.2)
    losses = []
    for q in LEVELS:
        total = size = 0.0
        for index in np.ndindex(truth.shape):
            y = truth[index]
            if np.isnan(y):
                continue
            x = sorted(paths[index[0], :, index[1], index[2]])
            yq = x[int(np.round((s - 1) * q))]
            total += 2 * abs((y - yq) * ((y <= yq) - q))
            size += abs(y)
        losses.append(total / size)
    row = wql(paths, truth)
    assert row.value == pytest.approx(np.mean(losses), rel=1e-12)
    assert row.n == 3 and row.failures == {"entry not observed": int(np.isnan(truth).sum())}


@pytest.mark.parametrize("block", [1, 2**23])
def test_scores_of_paths_are_their_definitions(block, monkeypatch):
    monkeypatch.setattr(forecast_arrays, "BLOCK", block)
    rng = np.random.default_rng(2)
    paths, truth = small(rng, missing=0.25)
    one, energy, variogram = [], [], []
    for x, y in zip(paths.reshape(5, 7, -1), truth.reshape(5, -1), strict=True):
        x, y = x[:, ~np.isnan(y)], y[~np.isnan(y)]
        one += list(np.abs(x - y).mean(0) - np.abs(x[:, None] - x[None]).mean((0, 1)) / 2)
        norms = [np.linalg.norm(a - b) for a in x for b in x]
        energy.append(np.mean([np.linalg.norm(a - y) for a in x]) - np.mean(norms) / 2)
        d = range(len(y))
        gaps = [np.mean(np.abs(x[:, i] - x[:, j]) ** 0.7) - abs(y[i] - y[j]) ** 0.7 for i in d for j in d]
        variogram.append(np.square(gaps).sum())
    assert crps(paths, truth).value == pytest.approx(np.mean(one), rel=1e-12)
    assert energy_score(paths, truth).value == pytest.approx(np.mean(energy), rel=1e-12)
    assert variogram_score(paths, truth, p=0.7).value == pytest.approx(np.mean(variogram), rel=1e-12)


@pytest.mark.slow
def test_scores_of_paths_are_those_of_scoringrules():
    sr = pytest.importorskip("scoringrules")
    paths, truth = small(np.random.default_rng(3))
    x, y = paths.reshape(5, 7, -1), truth.reshape(5, -1)
    assert crps(paths, truth).value == pytest.approx(sr.crps_ensemble(y, x, m_axis=1, backend="numpy").mean())
    assert energy_score(paths, truth).value == pytest.approx(sr.es_ensemble(y, x, backend="numpy").mean())
    expected = sr.vs_ensemble(y, x, w=np.ones((5, 8, 8)), p=0.5, backend="numpy").mean()
    assert variogram_score(paths, truth).value == pytest.approx(expected)


def test_scores_of_points_and_quantiles_are_those_of_utilsforecast():
    losses = pytest.importorskip("utilsforecast.losses")
    rng = np.random.default_rng(4)
    point, truth, past = rng.normal(size=(3, 6)), rng.normal(size=(3, 6)), rng.normal(size=(3, 20))
    low, high = point - 0.7, point + 0.7

    def frame(ds, **columns):
        ids = np.repeat(["a", "b", "c"], len(ds))
        return pd.DataFrame({"unique_id": ids, "ds": np.tile(ds, 3)} | {k: v.ravel() for k, v in columns.items()})

    df = frame(np.arange(20, 26), y=truth, m=point, low=low, high=high)
    train = frame(np.arange(20), y=past)
    assert mase(point, truth, past, 4).value == pytest.approx(losses.mase(df, ["m"], 4, train)["m"].mean())
    pinball = losses.quantile_loss(df, {"m": "low"}, q=0.2)["m"].mean()
    assert quantile_loss(low[:, None], truth, [0.2]).mean() == pytest.approx(pinball)
    deviations = losses.nd(df, ["m"])["m"].to_numpy()
    assert [normalised_deviation(point[[i]], truth[[i]]).value for i in range(3)] == pytest.approx(list(deviations))
    scaled = losses.scaled_crps(df[:6], {"m": ["low", "high"]}, quantiles=np.array([0.2, 0.8]))["m"].item()
    both = np.stack([low, high], 1)[:1]
    assert weighted_quantile_loss(both, truth[:1], [0.2, 0.8]).value == pytest.approx(scaled, rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(st.floats(1e-3, 1e3), st.integers(0, 2**32 - 1))
def test_scores_scale_with_the_series(scale, seed):
    paths, truth = small(np.random.default_rng(seed), missing=0.2)
    history = np.random.default_rng(seed).normal(size=(5, 12, 2))
    for score, power in ((wql, 0), (crps, 1), (energy_score, 1), (variogram_score, 1.0)):
        one, other = score(paths, truth), score(scale * paths, scale * truth)
        assert other.value == pytest.approx(scale**power * one.value, rel=1e-9)
        assert (other.low, other.high) == pytest.approx((scale**power * one.low, scale**power * one.high), rel=1e-6)
    point = paths[:, 0]
    one, other = mase(point, truth, history, 3), mase(scale * point, scale * truth, scale * history, 3)
    assert other.value == pytest.approx(one.value, rel=1e-9)


@pytest.mark.parametrize("score", [crps, energy_score, wql])
def test_the_true_law_beats_a_shifted_a_wider_and_a_narrower_one(score):
    rng = np.random.default_rng(5)
    truth, paths = autoregressive(rng, (400, 6)), autoregressive(rng, (400, 50, 6))
    for worse in (paths + 0.5, paths * 2, paths / 2):
        assert score(paths, truth).high < score(worse, truth).value


@pytest.mark.parametrize(("score", "margin"), [(variogram_score, 1.5), (energy_score, 1.02)])
def test_joint_paths_beat_their_shuffled_selves(score, margin):
    rng = np.random.default_rng(6)
    truth, paths = autoregressive(rng, (300, 12)), autoregressive(rng, (300, 40, 12))
    assert margin * score(paths, truth).value < score(shuffled(paths, rng), truth).value


def test_shuffled_keeps_marginals_and_nothing_else():
    rng = np.random.default_rng(7)
    paths = np.repeat(rng.normal(size=(3, 500, 1, 1)), 8, 2).repeat(2, 3)  # all steps and channels are equal
    out = shuffled(paths, np.random.default_rng(1))
    assert np.array_equal(np.sort(out, 1), np.sort(paths, 1))
    assert np.array_equal(out, shuffled(paths, np.random.default_rng(1)))
    for one in out:
        between = np.corrcoef(one.reshape(500, -1).T) - np.eye(16)
        assert np.abs(between).max() < 0.2


def test_mase_of_the_seasonal_naive_on_its_own_history_is_one():
    y = np.random.default_rng(8).normal(size=(6, 60)).cumsum(1)
    y[2, 5:9] = np.nan

    # Where y_{t - 7} is missing there is no forecast.
    row = mase(np.nan_to_num(y[:, :-7]), np.where(np.isnan(y[:, :-7]), np.nan, y[:, 7:]), y, 7)
    assert row.value == pytest.approx(1, rel=1e-12) and row.n == 6
    ragged = [y[0], y[1][10:], y[3]]
    expected = np.mean([np.abs(o[7:]).mean() / np.abs(o[7:] - o[:-7]).mean() for o in ragged])
    truth = np.full((3, 53), np.nan)
    for i, o in enumerate(ragged):
        truth[i, : len(o) - 7] = o[7:]
    assert mase(np.zeros((3, 53)), truth, ragged, 7).value == pytest.approx(expected)


def test_mase_leaves_out_and_counts_what_has_no_scale():
    rng = np.random.default_rng(9)
    history = rng.normal(size=(3, 10, 2))
    history[0, :, 0] = 4.0  # constant
    history[1] = np.nan
    history[1, :2] = 1.0  # no pair a season apart
    truth = rng.normal(size=(3, 4, 2))
    truth[2, :, 1] = np.nan
    point = np.zeros((3, 4, 2))
    row = mase(point, truth, history, 2)
    scale = np.abs(history[:, 2:] - history[:, :-2]).mean(1)
    expected = [np.abs(truth[0, :, 1]).mean() / scale[0, 1], np.abs(truth[2, :, 0]).mean() / scale[2, 0]]
    assert row.value == pytest.approx(np.mean(expected)) and row.n == 2
    assert row.failures == {"entry not observed": 4, "no scale": 3}
    both = mase(point, rng.normal(size=(3, 4, 2)) + 9, rng.normal(size=(3, 10, 2)), 2)
    assert both.value == pytest.approx(9 / (2 / math.sqrt(math.pi)), rel=0.4)  # a mean over channels, not a sum
    nothing = mase(point[:1, :, :1], truth[:1, :, :1], history[:1, :, :1], 2)
    assert math.isnan(nothing.value) and nothing.n == 0 and nothing.failures == {"no scale": 1}


@pytest.mark.parametrize(("s", "level"), [(9, 0.8), (19, 0.8), (99, 0.5), (3, 0.5)])
def test_coverage_of_the_true_law_is_its_level_at_any_number_of_paths(s, level):
    rng = np.random.default_rng(s)
    row = coverage(rng.standard_normal((20_000, s, 2)), rng.standard_normal((20_000, 2)), level)
    assert row.value == pytest.approx(level, abs=0.01)
    assert row.low <= level <= row.high and row.high - row.low < 0.02
    assert row.name == f"coverage_{100 * level:g}" and row.n == 20_000


@pytest.mark.parametrize(("least", "level"), [(9, 0.8), (39, 0.95), (3, 0.5)])
def test_coverage_needs_paths_beyond_the_ends_of_its_interval(least, level):
    paths, truth = np.random.default_rng(18).normal(size=(4, least, 3)), np.zeros((4, 3))
    assert 0 <= coverage(paths, truth, level).value <= 1
    row = coverage(paths[:, 1:], truth, level)
    assert math.isnan(row.value) and row.n == 0 and row.failures == {"too few paths": 4}


@pytest.mark.parametrize("rho", [0.0, 0.95])
def test_coverage_interval_holds_the_level_where_steps_move_together(rho):
    rng, level, s = np.random.default_rng(10), 0.8, 99
    held, widths = [], []
    for _ in range(150):
        row = coverage(rng.standard_normal((30, s, 24)), autoregressive(rng, (30, 24), rho), level)
        held.append(row.low <= level <= row.high)
        widths.append(row.high - row.low)
    assert np.mean(held) > 0.9
    independent = 2 * 1.96 * math.sqrt(0.16 / (30 * 24))
    assert np.mean(widths) == pytest.approx(independent, rel=0.2) if rho == 0 else np.mean(widths) > 2 * independent


def test_linear_predictive_score_of_an_autoregression_is_that_of_its_best_predictor():
    """Of unit variance, step k has error sd sqrt(1 - rho^2k): deviation and size both have the factor sqrt(2 / pi)."""
    rng = np.random.default_rng(11)
    train, test = autoregressive(rng, (20_000, 14)), autoregressive(rng, (20_000, 14))
    exact = np.mean([math.sqrt(1 - 0.81**k) for k in range(1, 7)])
    row = linear_predictive_score(train, test, 8)
    assert row.value == pytest.approx(exact, rel=0.01) and row.n == 20_000
    assert row.low < row.value < row.high
    flat = linear_predictive_score(train, test, 8, ridge=1e9)  # no weights left: the mean
    assert flat.value == pytest.approx(1, rel=0.01)
    noise = rng.permuted(train, axis=0)  # the same marginals, nothing to learn
    assert linear_predictive_score(noise, test, 8).value > 0.98


def test_linear_predictive_score_is_ridge_regression_with_a_free_intercept():
    rng = np.random.default_rng(12)
    train, test = rng.normal(3, 1, (30, 7)), rng.normal(3, 1, (9, 7))
    x, y = train[:, :5] - train[:, :5].mean(0), train[:, 5:] - train[:, 5:].mean(0)
    weights = np.linalg.solve(x.T @ x / 30 + 0.3 * np.eye(5), x.T @ y / 30)
    predicted = (test[:, :5] - train[:, :5].mean(0)) @ weights + train[:, 5:].mean(0)
    expected = np.abs(test[:, 5:] - predicted).sum() / np.abs(test[:, 5:]).sum()
    assert linear_predictive_score(train, test, 5, 0.3).value == pytest.approx(expected, rel=1e-10)
    gaps = [np.concatenate([w, np.full((2, 7), np.nan)]) for w in (train, test)]
    row = linear_predictive_score(*gaps, 5, 0.3)
    assert row.value == pytest.approx(expected, rel=1e-10) and row.n == 9
    assert row.failures == {"training window not complete": 2, "window not complete": 2}


SCORES = {
    "wql": wql,
    "crps": crps,
    "energy": energy_score,
    "variogram": variogram_score,
    "nd": lambda paths, truth: normalised_deviation(np.median(paths, 1), truth),
    "coverage": lambda paths, truth: coverage(paths, truth, 0.5),
}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_what_is_not_observed_counts_as_if_it_were_not_there(score):
    rng = np.random.default_rng(13)
    paths, truth = small(rng, n=6, h=5)
    truth[:, 3:] = np.nan  # the last steps
    paths[:, :, 3:] = np.nan  # whose forecast does not matter
    truth[4] = np.nan  # and one series
    kept = [0, 1, 2, 3, 5]
    row, short = score(paths, truth), score(paths[kept, :, :3], truth[kept, :3])
    assert (row.value, row.low, row.high) == pytest.approx((short.value, short.low, short.high))
    assert row.n == short.n == 5
    assert row.failures == {"entry not observed": 5 * 2 * 2 + 10} and short.failures == {}


def test_interval_is_over_series():
    """Series ten times over have the same wQL, and an interval sqrt(10) times as narrow; more steps do not help."""
    rng = np.random.default_rng(14)
    paths, truth = small(rng, n=40, c=1)
    row = crps(paths, truth)
    series = crps(np.tile(paths, (10, 1, 1, 1)), np.tile(truth, (10, 1, 1)))
    steps = crps(np.tile(paths, (1, 1, 10, 1)), np.tile(truth, (1, 10, 1)))
    assert series.value == pytest.approx(row.value) and steps.value == pytest.approx(row.value)
    assert (series.high - series.low) * math.sqrt(10) == pytest.approx(row.high - row.low, rel=0.4)
    assert steps.high - steps.low == pytest.approx(row.high - row.low, rel=1e-9)


def test_value_is_undefined_where_the_truth_is_zero():
    row = wql(np.ones((2, 3, 4)), np.zeros((2, 4)))
    assert math.isnan(row.value) and math.isnan(row.low)


def test_report_has_every_score_of_one_forecast():
    rng = np.random.default_rng(15)
    paths, truth, history = rng.normal(size=(8, 50, 6)), rng.normal(size=(8, 6)), rng.normal(size=(8, 30))
    truth[0, 2] = np.nan
    rows = forecast_report(paths, truth, history, 3, seed=4)
    names = "wql crps energy_score variogram_score energy_score_shuffled variogram_score_shuffled mase nd"
    assert [row.name for row in rows] == [*names.split(), "coverage_50", "coverage_80", "coverage_95"]
    by_name = {row.name: row for row in rows}
    assert by_name["mase"] == mase(np.median(paths, 1), truth, history, 3, seed=4)
    assert by_name["nd"] == normalised_deviation(np.median(paths, 1), truth, seed=4)
    assert by_name["wql"] == weighted_quantile_loss(path_quantiles(paths), truth, seed=4)
    other = shuffled(paths, np.random.default_rng(4))
    assert by_name["variogram_score_shuffled"].value == variogram_score(other, truth).value
    assert by_name["energy_score_shuffled"].value == energy_score(other, truth).value
    assert all(row.n == 8 and row.failures == {"entry not observed": 1} for row in rows)
    assert markdown(rows).count("\n") == 13
    few = {row.name: row for row in forecast_report(paths[:, :9], truth, history, 3)}
    assert few["coverage_80"].n == 8 and math.isnan(few["coverage_95"].value)
    assert few["coverage_95"].failures == {"too few paths": 8}


@pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)
def test_bad_forecasts_are_refused_at_the_door(score):
    paths, truth = small(np.random.default_rng(16))
    for wrong in (truth[:4], truth[:, :3], truth[..., :1], truth[..., 0]):
        with pytest.raises(ValueError, match=r"need (paths|quantiles|point) \(n, K"):
            score(paths, wrong)
    with pytest.raises(ValueError, match="NaN stands for not observed"):
        score(paths, np.full_like(truth, np.nan))
    with pytest.raises(ValueError, match="NaN stands for not observed"):
        score(paths, np.where(truth > 2, np.inf, truth))
    paths[3, :, 1, 0] = np.nan
    with pytest.raises(ValueError, match=r"1 of 5 series are not finite, the first at row 3"):
        score(paths, truth)


def test_bad_settings_are_refused_at_the_door():
    paths, truth = small(np.random.default_rng(17))
    for levels in ([0.0], [0.5, 1.0], [], [-0.1], [math.nan]):
        with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
            path_quantiles(paths, levels)
        with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
            weighted_quantile_loss(paths, truth, levels)
    with pytest.raises(ValueError, match="levels must lie between 0 and 1"):
        coverage(paths, truth, 1.0)
    with pytest.raises(ValueError, match="hold 7 levels on axis 1, got 9"):
        weighted_quantile_loss(paths, truth)
    for score in (energy_score, variogram_score):
        with pytest.raises(ValueError, match="K >= 2"):
            score(paths[:, :1], truth)
    with pytest.raises(ValueError, match=r"p > 0, got 0"):
        variogram_score(paths, truth, p=0)
    history = np.zeros((5, 9, 2))
    for wrong, season in ((history[:4], 2), (history[..., :1], 2), (history[..., 0], 2)):
        with pytest.raises(ValueError, match="do not fit truth"):
            mase(paths[:, 0], truth, wrong, season)
    with pytest.raises(ValueError, match="season >= 1"):
        mase(paths[:, 0], truth, history, 0)
    windows = np.zeros((4, 6))
    for train, test, context in ((windows, windows[:, :5], 3), (windows, windows, 6), (windows, windows, 0)):
        with pytest.raises(ValueError, match=r"context in 1\.\.L - 1"):
            linear_predictive_score(train, test, context)
    with pytest.raises(ValueError, match="complete windows and ridge >= 0"):
        linear_predictive_score(windows, windows * np.nan, 3)
    with pytest.raises(ValueError, match="complete windows and ridge >= 0"):
        linear_predictive_score(windows, windows, 3, ridge=-1)
