"""Tables, odds, scores and figures of sample paths, in the user's own terms."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.domains.series import Columns, Panel, Series
from unisci.domains.series_frames import melt_wide, read_frame
from unisci.forecasting.forecast import Forecast
from unisci.metrics.forecasts import coverage, forecast_report

S, H = 99, 3
DRAWS = np.random.default_rng(0).permuted(np.arange(1.0, S + 1)[:, None] + 1000 * np.arange(H), axis=0)


def table(names=("a", "b"), periods=30, id="unique_id", time="ds", y="y"):
    days = pd.date_range("2024-01-30", periods=periods, freq="D")
    parts = [pd.DataFrame({id: n, time: days, y: np.arange(periods) ** 2 % 11 + 10.0 * k}) for k, n in enumerate(names)]
    return pd.concat(parts, ignore_index=True)


def forecast(panel=None, draws=None, **options):
    panel = read_frame(table()) if panel is None else panel
    c = len(panel.channels)
    draws = [np.repeat((DRAWS + 1e4 * k)[..., None], c, 2) for k in range(len(panel))] if draws is None else draws
    return Forecast(panel, tuple(draws), **options)


def two_channels():
    frame = table().assign(v=lambda f: -f["y"])
    return read_frame(frame, targets=["y", "v"])


def test_the_frame_holds_the_median_and_intervals_at_their_ranks():
    found = forecast(levels=(95, 80)).frame
    columns = ["unisci", "unisci-lo-95", "unisci-lo-80", "unisci-hi-80", "unisci-hi-95"]
    assert list(found) == ["unique_id", "ds", *columns]
    # Of 1..99 the quantile at rank q (S + 1) is 100 q.
    assert found.loc[0, columns].tolist() == pytest.approx([50, 2.5, 10, 90, 97.5])
    assert found.loc[5, columns].tolist() == pytest.approx([12050, 12002.5, 12010, 12090, 12097.5])
    assert found["unique_id"].tolist() == ["a"] * 3 + ["b"] * 3
    assert found["ds"][:3].equals(pd.Series(pd.date_range("2024-02-29", periods=3, freq="D"), name="ds"))


def test_quantiles_in_place_of_intervals():
    found = forecast(quantiles=(0.1, 0.5), model="m").frame
    assert list(found) == ["unique_id", "ds", "m", "0.1", "0.5"]
    assert found.loc[1, ["m", "0.1", "0.5"]].tolist() == pytest.approx([1050, 1010, 1050])
    assert list(forecast().quantile(0.9, 0.25)) == ["unique_id", "ds", "0.9", "0.25"]
    assert forecast().quantile(0.9, 0.25).loc[0, ["0.9", "0.25"]].tolist() == pytest.approx([90, 25])
    assert list(forecast().interval(50)) == ["unique_id", "ds", "unisci-lo-50", "unisci-hi-50"]
    assert forecast().interval(50).iloc[0, 2:].tolist() == pytest.approx([25, 75])


def test_mean_is_not_the_median():
    skewed = [np.array([0.0, 0, 9])[:, None, None] + np.zeros((3, H, 1))] * 2
    found = forecast(draws=skewed)
    assert found.mean["unisci"].tolist() == [3.0] * 6 and found.median["unisci"].tolist() == [0.0] * 6
    assert found.frame["unisci"].tolist() == [0.0] * 6


def test_paths_keep_their_steps_together():
    found = forecast()
    paths = found.paths
    assert list(paths) == ["unique_id", "ds", "sample_id", "unisci"] and len(paths) == 2 * S * H
    for k, name in enumerate("ab"):
        own = paths[paths["unique_id"] == name].pivot(index="sample_id", columns="ds", values="unisci")
        assert (own.to_numpy() == found.draws[k][..., 0]).all() and own.columns.is_monotonic_increasing
    assert paths["sample_id"].dtype == np.int64


def test_channels_have_columns_of_their_own():
    panel = two_channels()
    draws = [np.stack([DRAWS, -DRAWS], 2)] * 2
    found = forecast(panel, draws, levels=(80,))
    ends = ["", "-lo-80", "-hi-80"]
    assert set(found.frame) == {"unique_id", "ds", *(f"unisci-{c}{e}" for c in "yv" for e in ends)}
    row = found.frame.loc[0, ["unisci-y", "unisci-y-lo-80", "unisci-v", "unisci-v-lo-80", "unisci-v-hi-80"]]
    assert row.tolist() == pytest.approx([50, 10, -50, -90, -10])
    assert list(found.paths) == ["unique_id", "ds", "sample_id", "unisci-y", "unisci-v"]
    assert (found.paths["unisci-v"] == -found.paths["unisci-y"]).all()
    assert list(found.quantile(0.1)) == ["unique_id", "ds", "y-0.1", "v-0.1"]
    assert found.prob(lambda path: bool((path.sum(1) == 0).all() and path.shape == (H, 2)))["prob"].tolist() == [1, 1]


def test_odds_are_of_whole_paths():
    rising = np.array([[0.0, 1, 2], [2, 1, 0], [0, 1, 3], [5, 5, 5]])[..., None]
    found = forecast(draws=[rising, -rising]).prob(lambda path: (np.diff(path) > 0).all())
    assert list(found) == ["unique_id", "prob", "prob-lo-95", "prob-hi-95", "n_paths"]
    assert found["prob"].tolist() == [0.5, 0.25] and found["n_paths"].tolist() == [4, 4]
    # Wilson, p = 1/2, n = 4, z = 1.959964: .5 -+ z sqrt(1/16 + z^2/64) / (1 + z^2/4).
    assert found.loc[0, ["prob-lo-95", "prob-hi-95"]].tolist() == pytest.approx([0.150036, 0.849964], abs=1e-5)
    with pytest.raises(ValueError, match=r"True or False.*\.any\(\)"):
        forecast().prob(lambda path: path > 3)


def test_the_users_library_names_and_order_come_back():
    frame = pl.from_pandas(table(["z", "b"], id="shop", time="day", y="sold"))
    found = forecast(read_frame(frame, id="shop", time="day", targets="sold"))
    for one in (found.frame, found.paths, found.mean, found.quantile(0.1), found.prob(lambda p: True)):
        assert isinstance(one, pl.DataFrame) and one.columns[0] == "shop"
    assert found.frame.columns[1] == "day" and found.frame["day"].dtype == frame["day"].dtype
    assert set(found.frame["shop"]) == {"z", "b"} and isinstance(found.rejects, pl.DataFrame)
    wide = pd.DataFrame({"u": np.arange(9.0), "v": 1.0, "w": 2.0}, index=pd.date_range("2024", periods=9, freq="h"))
    assert forecast(melt_wide(wide)).frame["unique_id"].unique().tolist() == ["u", "v", "w"]
    alone = forecast(read_frame(table("a").drop(columns="unique_id")))
    assert list(alone.mean) == ["ds", "unisci"] and "unique_id" not in alone.prob(lambda p: True)


def test_integer_times():
    frame = pd.DataFrame({"unique_id": 7, "ds": np.arange(5, 15), "y": np.arange(10.0)})
    found = forecast(read_frame(frame))
    assert found.frame["ds"].tolist() == [15, 16, 17] and found.paths["ds"].dtype == np.int64
    assert found.frame["unique_id"].dtype == np.int64
    assert [text.get_text() for text in found.plot().axes[0].texts] == [] and len(found.plot().axes) == 1


def test_rejects_are_told():
    frame = pd.concat([table(), pd.DataFrame({"unique_id": "c", "ds": ["2024-01-01"], "y": [np.nan]})])
    found = forecast(read_frame(frame.assign(ds=pd.to_datetime(frame["ds"])), "D"))
    assert found.rejects["unique_id"].tolist() == ["c"] and "missing" in found.rejects["reason"][0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_files_hold_the_paths(tmp_path, kind):
    for library in (lambda f: f, pl.from_pandas):
        found = forecast(read_frame(library(table())))
        getattr(found, f"to_{kind}")(tmp_path / "paths")
        back = getattr(pd, f"read_{kind}")(tmp_path / "paths")
        assert list(back) == ["unique_id", "ds", "sample_id", "unisci"]
        assert back["unisci"].tolist() == found.paths["unisci"].to_list()


def test_scores_are_those_of_the_metrics():
    whole = table(periods=33)
    past = read_frame(whole[whole["ds"] < "2024-02-29"])
    found = forecast(past)
    shuffled = whole.sample(frac=1, random_state=0)
    truth = np.array([[9.0, 4, 1], [19, 14, 11]])
    expected = forecast_report(found.stacked[..., 0], truth, [s.y[:, 0] for s in past], 7, 3)
    assert found.evaluate(shuffled, seed=3) == expected == found.evaluate(read_frame(whole), seed=3)
    assert found.evaluate(whole, season=1) != found.evaluate(whole)


def test_truth_may_lack_steps_and_series():
    whole = table(["b", "x"], periods=32)
    found = forecast()
    scored = {m.name: m for m in found.evaluate(whole)}
    assert scored["coverage_80"].failures == {"entry not observed": 4} and scored["coverage_80"].n == 1
    for late in (table(periods=30), table(["q"], periods=40)):
        with pytest.raises(ValueError, match="no value at a forecast step"):
            found.evaluate(late)
    other = two_channels()
    with pytest.raises(ValueError, match="channels"):
        found.evaluate(other)
    several = forecast(other)
    assert {m.name for m in several.evaluate(table(periods=33).assign(v=0.0))} >= {"crps", "mase"}


def test_truth_without_times_is_what_follows():
    found = forecast(read_frame(pd.DataFrame({"y": np.arange(10.0)})))
    scored = {m.name: m for m in found.evaluate(pd.DataFrame({"y": [50.0, 1050, 2051]}))}
    assert scored["nd"].value == pytest.approx(1 / 3151)


def test_a_wide_truth():
    wide = pd.DataFrame({"u": np.arange(9.0), "v": 1.0}, index=pd.date_range("2024", periods=9, freq="h"))
    found = forecast(melt_wide(wide[:6]))
    assert {m.name: m for m in found.evaluate(wide)}["coverage_80"].n == 2


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([9, 19, 39, 99]), st.integers(0, 99))
def test_intervals_cover_one_more_draw_as_the_metric_counts(paths, seed):
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=(2, paths, H, 1))
    truth = rng.normal(size=(2, H))
    frame = forecast(draws=list(draws), levels=(80,)).frame
    inside = (frame["unisci-lo-80"] <= truth.ravel()) & (truth.ravel() <= frame["unisci-hi-80"])
    assert inside.mean() == coverage(draws[..., 0], truth, 0.8).value


def test_the_figure():
    figure = forecast(two_channels()).plot(["b"], history=5)
    assert len(figure.axes) == 2
    ax = figure.axes[1]
    assert (ax.get_title(), ax.get_xlabel(), ax.get_ylabel()) == ("b", "ds", "v")
    history, median, *paths = ax.lines
    assert history.get_ydata().tolist() == [-10.0 - k**2 % 11 for k in range(25, 30)] and len(paths) == 3
    assert median.get_ydata().tolist() == [10050, 11050, 12050] and len(ax.collections) == 3
    low, high = (f(ax.collections[0].get_paths()[0].vertices[:, 1]) for f in (min, max))
    assert (low, high) == pytest.approx((10002.5, 12097.5))  # the widest band is the 95 % one
    assert len(forecast().plot().axes) == 2 and len(forecast().plot(n=1).axes) == 1
    assert len(forecast().plot("a", history=0).axes[0].lines[0].get_ydata()) == 0
    with pytest.raises(KeyError, match="q"):
        forecast().plot(["q"])
    with pytest.raises(ValueError, match="a series or more"):
        forecast().plot([])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draws": [DRAWS[..., None]]}, "1 draws"),
        ({"draws": [DRAWS[..., None], DRAWS[:5, :, None]]}, "same shape"),
        ({"draws": [DRAWS, DRAWS]}, "shapes"),
        ({"draws": [np.zeros((0, 3, 1))] * 2}, "shapes"),
        ({"draws": [np.zeros((2, 3, 2))] * 2}, "2 channels"),
        ({"draws": [DRAWS[..., None], DRAWS[..., None] * np.nan]}, "series 'b' are not finite"),
        ({"levels": (80, 100)}, "percents between 0 and 100"),
        ({"quantiles": (10,)}, "between 0 and 1"),
        ({"model": "ds"}, "'ds' has the name of a column"),
        ({"model": "unique_id"}, "'unique_id' has the name of a column"),
        ({"model": "sample_id"}, "'sample_id' has the name of a column"),
    ],
)
def test_bad_input_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        forecast(**options)


def test_levels_are_checked_where_asked():
    with pytest.raises(ValueError, match="percents"):
        forecast().interval(0)
    with pytest.raises(ValueError, match="between 0 and 1"):
        forecast().quantile(1.0)


def test_its_text_is_short():
    assert repr(forecast()) == "Forecast(series=2, paths=99, steps=3, channels=1, model='unisci')"


def test_time_zones_and_the_name_of_a_series():
    times = pd.date_range("2024-03-30", periods=24, freq="h", tz="Europe/Berlin")
    panel = Panel((Series("a", times, np.zeros((24, 1)), ("y",), "h"),), columns=Columns())
    found = forecast(panel)
    assert found.frame["ds"].dt.hour.tolist() == [0, 1, 3]
    assert found.plot().axes[0].get_title() == "a"
