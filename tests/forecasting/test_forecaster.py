"""From tables to forecasts, filled gaps, refined ones, synthetic windows and backtests, by a small trained model."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.forecasting.exact_windows import panel
from unisci.domains.series_frames import read_frame
from unisci.forecasting import forecaster as module
from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.scenarios import At, Total
from unisci.forecasting.trained import Trained
from unisci.networks.window_mlp import WindowMLPConfig
from unisci.training.fit import FitConfig

H, STEPS = 6, 96
NET = WindowMLPConfig(1, width=32, hidden=32, blocks=1, condition=8)
FIT = FitConfig(steps=150, batch_size=16, lr=5e-3, warmup=5, ema=0.9, checkpoint_every=0)
QUICK = FitConfig(steps=2, batch_size=8, warmup=1, ema=0.5, checkpoint_every=0)


def waves(names="abc", steps=STEPS, freq="h", id="unique_id"):
    """Sines of a day, of other phases, sizes and levels."""
    parts, t = [], np.arange(steps)
    for k, name in enumerate(names):
        y = 10.0**k * (5 + np.sin(2 * np.pi * (t + 5 * k) / 24) + 0.02 * np.random.default_rng(k).normal(size=steps))
        parts.append(pd.DataFrame({id: name, "ds": pd.date_range("2024", periods=steps, freq=freq), "y": y}))
    return pd.concat(parts, ignore_index=True)


@pytest.fixture(scope="module")
def trained():
    return Forecaster(H, 24, NET, FIT, steps=5).fit(waves().groupby("unique_id").head(STEPS - H), "h", progress=False)


def quick(df, **options):
    return Forecaster(4, 8, NET, QUICK, steps=2).fit(df, progress=False, **options)


def test_a_trained_model_beats_the_last_value(trained):
    frame = trained.predict(n_paths=20).frame
    truth = waves().groupby("unique_id").tail(H)
    joined = frame.merge(truth, on=["unique_id", "ds"])
    assert len(joined) == 3 * H
    last = waves().groupby("unique_id")["y"].nth(STEPS - H - 1).to_numpy().repeat(H)
    unit = 10.0 ** np.arange(3).repeat(H)
    error = lambda x: np.abs((x - joined["y"].to_numpy()) / unit).mean()
    assert error(joined["unisci"].to_numpy()) < 0.7 * error(last)


def test_forecasts_come_in_the_users_terms(trained):
    users = pl.from_pandas(waves("xy").rename(columns={"unique_id": "item_id"}))
    found = trained.predict(3, users, n_paths=3, levels=(50,))
    assert isinstance(found.frame, pl.DataFrame)
    assert found.frame.columns == ["item_id", "ds", "unisci", "unisci-lo-50", "unisci-hi-50"]
    assert found.frame["ds"].dtype == users["ds"].dtype and len(found.frame) == 6
    alone = Forecaster.of(trained.trained, "mine").predict(2, waves("a"), n_paths=2, quantiles=(0.5,))
    assert list(alone.frame) == ["unique_id", "ds", "mine", "0.5"]
    assert np.array_equal(alone.draws[0], trained.predict(2, waves("a"), n_paths=2).draws[0])


def test_a_path_is_the_same_whatever_else_is_asked(trained):
    df = waves("pqr")
    whole = trained.predict(H, df, n_paths=6).draws
    one = trained.predict(3, df[df["unique_id"] == "q"], n_paths=2, levels=(10,)).draws[0]
    assert np.array_equal(one, whole[1][:2, :3])
    rolled = trained.predict(15, df, n_paths=6, roll=True).draws
    assert np.array_equal(rolled[2][:, :H], whole[2])
    alone = trained.predict(15, df[df["unique_id"] == "q"], n_paths=6, roll=True).draws[0]
    assert np.array_equal(rolled[1], alone)
    assert not np.isclose(trained.predict(H, df, n_paths=6, seed=1).draws[0], whole[0]).any()


def test_a_bad_series_never_stops_the_others(trained):
    df = waves("pqrstu")
    df.loc[df["unique_id"] == "q", "y"] = np.nan
    df.loc[(df["unique_id"] == "r") & (df.index % STEPS > 60), "y"] = np.nan
    df.loc[(df["unique_id"] == "s"), "y"] *= 1e290
    df.loc[(df["unique_id"] == "t") & (df.index % STEPS > 1), "unique_id"] = "v"
    df.loc[df["unique_id"] == "u", "ds"] += pd.to_timedelta(np.arange(STEPS) % 3 * 7, "min")
    found = trained.predict(3, df, n_paths=2)
    assert [s.name for s in found.panel] == ["p", "t", "v"]
    assert sorted(found.rejects["unique_id"]) == ["q", "r", "s", "u"]
    alone = trained.predict(3, df[df["unique_id"] == "p"], n_paths=2)
    assert np.array_equal(found.draws[0], alone.draws[0])
    broken = quick(df).predict(n_paths=2)
    assert [s.name for s in broken.panel] == ["p", "t", "v"] and np.isfinite(broken.stacked).all()


BEFORE = {
    "predict": lambda f: f.predict(3),
    "condition": lambda f: f.condition(3, []),
    "fill": lambda f: f.fill(waves()),
    "refine": lambda f: f.refine(waves()),
    "synthesize": lambda f: f.synthesize(3),
    "backtest": lambda f: f.backtest(waves()),
}


@pytest.mark.parametrize("name", BEFORE)
def test_nothing_goes_before_fit(name):
    with pytest.raises(ValueError, match=r"not trained: call fit\(df\) first, or unisci.load"):
        BEFORE[name](Forecaster())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda f: f.predict(H + 1),
            r"h = 7 is beyond the trained horizon of 6: give roll=True, or train a longer one",
        ),
        (lambda f: f.backtest(h=H + 1), "h = 7 is beyond the trained horizon"),
        (lambda f: f.predict(0), "h must be at least 1, got 0"),
        (lambda f: f.predict(n_paths=0), "n_paths must be at least 1, got 0"),
        (lambda f: f.fill(n_paths=0), "n_paths must be at least 1, got 0"),
        (lambda f: f.refine(waves(), n_paths=0), "n_paths >= 1"),
        (lambda f: f.synthesize(0), "n must be at least 1, got 0"),
        (lambda f: f.predict(levels=(0.8, 120)), "levels are percents"),
        (lambda f: f.predict(X=waves()), "X goes with df"),
        (lambda f: f.predict(df=read_frame(waves()), X=waves()), "X goes with a table"),
        (lambda f: f.predict(df=waves("a", freq="D")), "in steps of 'D', the model was trained on steps of 'h'"),
        (lambda f: f.predict(df=panel(np.zeros((40, 2)))), "channels a, b, the model has 1: give one column"),
        (lambda f: f.backtest(windows=40), "40 windows leave out"),
        (lambda f: f.condition(3, [At(3, 1.0)]), "not in the horizon, whose steps are 0 to 2"),
    ],
)
def test_bad_questions_have_one_clear_answer(call, words, trained):
    with pytest.raises(ValueError, match=words):
        call(trained)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"horizon": 0}, "horizon must be at least 1, got 0"),
        ({"context": -1}, "context must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"network": "mlp"}, "network must be one of WindowMLPConfig, .*, got 'mlp'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ValueError, match=words):
        Forecaster(**options)


def test_weights_without_series_ask_for_them(trained):
    with pytest.raises(ValueError, match="these weights hold no series: give df"):
        Forecaster.of(trained.trained, "mine").predict(3)


def test_a_model_of_many_kinds_takes_any_frequency(trained):
    one = trained.trained
    many = Forecaster.of(Trained(one.model, None, one.moments, None, one.steps, {}), "many")
    assert len(many.predict(3, waves("a", freq="D"), n_paths=2).frame) == 3
    assert len(many.condition(3, [At(1, 7.0)], waves("a", freq="D"), n_paths=2).frame) == 3


def test_weeks_may_end_on_other_days():
    f = quick(waves("a", 60, "W-SUN"))
    assert len(f.predict(2, waves("a", 60, "W-MON"), n_paths=2).frame) == 2
    with pytest.raises(ValueError, match="in steps of 'ME', the model was trained on steps of 'W-SUN'"):
        f.predict(2, waves("a", 60, "ME"))


def test_covariates_go_with_the_series():
    df = waves("ab", 40).assign(promo=lambda f: f.index % 3, rain=lambda f: f.index % 5)
    ahead = waves("ab", 48).groupby("unique_id").tail(8).assign(promo=1.0)[["unique_id", "ds", "promo"]]
    static = pd.DataFrame({"unique_id": ["a", "b"], "size": [1.0, 2.0]})
    f = quick(df, X=ahead, past=["rain"], future=["promo"], static=static)
    assert len(f.predict(n_paths=2).frame) == 8
    other = f.predict(4, df, X=ahead.assign(promo=5.0), n_paths=2)
    assert not np.isclose(other.stacked, f.predict(4, n_paths=2).stacked).all()
    bare = read_frame(df)
    with pytest.raises(ValueError, match="0 covariates and 0 static numbers, the model was trained with 2 and 1"):
        f.predict(df=bare)
    with pytest.raises(ValueError, match="no column 'rain'"):
        f.predict(df=df.drop(columns="rain"))


def test_scenarios_of_several_channels_and_a_shorter_horizon():
    df = waves("ab", 40).assign(v=lambda f: -f["y"])
    f = quick(df, targets=["y", "v"])
    found = f.condition(3, [At(1, 77.0, "v"), Total(12.0, 0.5, "y")], n_paths=3)
    assert np.array(found.draws).shape == (2, 3, 3, 2) and (found.stacked[:, :, 1, 1] == 77.0).all()
    with pytest.raises(ValueError, match="no channel is named 'z'"):
        f.condition(3, [At(1, 77.0, "z")])


def test_gaps_are_filled(trained):
    df = waves("ab")
    df.loc[40:45, "y"] = np.nan
    found = trained.fill(df, n_paths=9)
    frame = found.frame
    kept = ~frame["filled"].to_numpy()
    assert kept.sum() == 2 * STEPS - 6 and (frame["y"][kept] == df["y"][kept]).all()
    true = waves("ab")["y"][40:46]
    line = np.interp(np.arange(40, 46), [39, 46], df["y"][[39, 46]])
    assert np.abs(frame["y"][40:46] - true).mean() < 3 * np.abs(line - true).mean() < 3
    assert len(found.paths) == 9 * 2 * STEPS and not len(found.rejects)
    assert len(trained.fill(n_paths=2).frame) == 3 * (STEPS - H)


def test_another_forecast_is_refined(trained):
    base = trained.predict(4, n_paths=3).paths.rename(columns={"unisci": "other"})
    found = trained.refine(base, seed=1)
    assert found.stacked.shape == (3, 3, 4, 1) and list(found.frame)[2] == "unisci"
    points = trained.predict(4, n_paths=3).mean
    assert trained.refine(points, n_paths=5).stacked.shape == (3, 5, 4, 1)


def test_synthetic_windows_have_the_units_of_the_series(trained):
    table = trained.synthesize(60)
    assert len(table) == 60 * 30 and list(table) == ["unique_id", "ds", "y"]
    level = table.groupby("unique_id")["y"].mean()
    assert set(np.round(np.log10(level / 5))) <= {0, 1, 2} and level.max() > 300 > 10 > level.min()


def test_a_backtest_is_forecasts_from_earlier(trained):
    df = waves("ab")
    found = trained.backtest(df, 3, windows=2, step=2, n_paths=4)
    assert found.cutoffs == (5, 3) and len(found.frame) == 2 * 2 * 3
    early = trained.predict(3, df.groupby("unique_id").head(STEPS - 5), n_paths=4)
    assert np.array_equal(found.forecasts[0].stacked, early.stacked)
    assert found.metrics().keys() == {"unisci", "seasonal naive"}


def test_a_panel_may_be_given_in_place_of_a_table(trained):
    df = waves("ab")
    assert np.array_equal(
        trained.predict(2, read_frame(df), n_paths=2).stacked, trained.predict(2, df, n_paths=2).stacked
    )
    assert trained.read(None) is trained.panel and quick(read_frame(df)).columns == {}


def test_scenarios_take_more_calls_than_forecasts(trained, monkeypatch):
    """With few, what a scenario measures varies less than its tolerance says."""
    seen, draw = [], module.draw_paths
    monkeypatch.setattr(module, "draw_paths", lambda *args, **options: seen.append(args[5]) or draw(*args, **options))
    trained.predict(2, n_paths=2)
    trained.condition(2, [Total(1.0, 1.0)], waves("a"), n_paths=2)
    assert [p.nfe for p in seen] == [trained.steps, module.GUIDED] and module.GUIDED >= 50 > trained.steps
    assert [p.name for p in seen] == ["ancestral", "dpm++2m"]
