"""Tables to panels and back: any order of rows, gaps, both libraries, and a reason for whatever is wrong."""

import datetime

import numpy as np
import pandas as pd
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.domains.series import values_frame
from unisci.domains.series_frames import melt_wide, read_file, read_frame, to_user

HOURS = pd.date_range("2024-01-01", periods=10, freq="h")
ZONES = [None, "UTC", "Europe/Berlin"]


def table(**sizes):
    """A long frame with a series of hours of each name and size; y counts."""
    parts = [pd.DataFrame({"unique_id": n, "ds": HOURS[:k], "y": np.arange(float(k))}) for n, k in sizes.items()]
    return pd.concat(parts, ignore_index=True)


def reasons(panel):
    return dict(panel.rejects.itertuples(index=False))


def same(one, other):
    assert (one.freq, one.channels, reasons(one)) == (other.freq, other.channels, reasons(other))
    assert {s.name for s in one} == {s.name for s in other}
    for s in one:
        o = other[s.name]
        assert s.times.equals(o.times)
        for a, b in ((s.y, o.y), (s.past, o.past), (s.future, o.future), (s.static, o.static)):
            assert (a is None) == (b is None) and (a is None or np.array_equal(a, b, equal_nan=True))


@st.composite
def frames(draw):
    """A long frame of regular series, its frequency, and rows to drop, of each series none or one within."""
    freq = draw(st.sampled_from(["h", "15min", "D", "B", "W-WED", "ME", "MS", "QS-JAN", "2MS", "1"]))
    zone = draw(st.sampled_from(ZONES))
    numbers = st.floats(-1e9, 1e9) | st.just(np.nan)
    parts, drop = [], []
    for name in draw(st.lists(st.text("abc1", min_size=1, max_size=3), min_size=1, max_size=4, unique=True)):
        size, start = draw(st.integers(6, 12)), draw(st.integers(0, 400))
        if freq == "1":
            times = pd.RangeIndex(start, start + size)
        else:
            times = pd.date_range("2019-10-20", periods=start + size, freq=freq, tz=zone)[start:]
        y = [1.0, *draw(st.lists(numbers, min_size=size - 1, max_size=size - 1))]
        gone = draw(st.lists(st.integers(1, size - 2), max_size=1))
        drop += [sum(map(len, parts)) + k for k in gone]
        parts.append(pd.DataFrame({"unique_id": name, "ds": times, "y": y}))
    return pd.concat(parts, ignore_index=True), freq, drop


@settings(max_examples=40, deadline=None)
@given(frames(), st.randoms(use_true_random=False), st.booleans())
def test_round_trip_in_any_order_with_gaps(drawn, random, given_freq):
    frame, freq, drop = drawn
    freq = freq if given_freq or freq == "B" else None  # a few business days look like days
    panel = read_frame(frame, freq)
    assert panel.rejects.empty
    back = to_user(panel, values_frame(panel))
    pd.testing.assert_frame_equal(back, frame, check_freq=False)
    order = list(range(len(frame)))
    random.shuffle(order)
    same(read_frame(frame.iloc[order], freq), panel)
    gaps = frame.drop(index=drop)
    expected = frame.assign(y=frame["y"].where(~frame.index.isin(drop)))
    holes = read_frame(gaps, freq)
    pd.testing.assert_frame_equal(to_user(holes, values_frame(holes)), expected, check_freq=False)


@settings(max_examples=8, deadline=None)
@given(frames())
def test_both_libraries_read_and_give_the_same(drawn):
    frame, freq, _ = drawn
    first, second = read_frame(frame, freq), read_frame(pl.from_pandas(frame, nan_to_null=False), freq)
    same(first, second)
    assert (first.backend, second.backend) == ("pandas", "polars")
    back = to_user(second, values_frame(second))
    assert isinstance(back, pl.DataFrame)
    pd.testing.assert_frame_equal(back.to_pandas(), to_user(first, values_frame(first)), check_freq=False)


def test_names_types_and_units_of_the_user_return():
    dates = [datetime.date(2024, m, 1) for m in (1, 2, 3, 5)]
    df = pl.DataFrame({"item_id": [7] * 4, "timestamp": dates, "target": [1, 2, 3, 4]})
    panel = read_frame(df)
    assert (panel.freq, panel.channels, panel.series[0].name) == ("MS", ("target",), "7")
    back = to_user(panel, values_frame(panel))
    assert back.schema == {"item_id": pl.Int64, "timestamp": pl.Date, "target": pl.Float64}
    assert back["timestamp"].to_list()[3] == datetime.date(2024, 4, 1) and back["target"].to_list()[3] is None
    milli = read_frame(df.with_columns(pl.col("timestamp").cast(pl.Datetime("ms", "UTC"))))
    assert to_user(milli, values_frame(milli)).schema["timestamp"] == pl.Datetime("ms", "UTC")
    mine = df.to_pandas().rename(columns={"item_id": "shop", "timestamp": "day", "target": "sold"})
    own = read_frame(mine, id="shop", time="day", targets="sold")
    assert to_user(own, values_frame(own)).columns.tolist() == ["shop", "day", "sold"]
    assert read_frame(mine, id="shop", targets="sold").columns.time == "day"  # the only dates
    indexed = df.to_pandas().set_index(["item_id", "timestamp"])
    same(read_frame(indexed), panel)
    kept = to_user(
        panel, pd.DataFrame({"unique_id": ["7"], "ds": [pd.Timestamp("2024-06-01")], "lo": [1.5]}, index=[3])
    )
    assert kept.rows() == [(7, datetime.date(2024, 6, 1), 1.5)]


def test_wide_tables():
    wide = pd.DataFrame({"u": np.arange(10.0), "v": 1, "note": "x"}, index=HOURS)
    both = read_frame(wide)
    assert both.channels == ("u", "v") and both.series[0].name == "y" and both.series[0].y.shape == (10, 2)
    assert to_user(both, values_frame(both)).columns.tolist() == ["ds", "u", "v"]
    one = read_frame(wide, targets=["v"])
    assert one.channels == ("v",) and one.series[0].name == "v"
    each = melt_wide(wide)
    assert [s.name for s in each] == ["u", "v"] and each.channels == ("y",) and each["u"].y[3, 0] == 3
    frame = to_user(each, values_frame(each))
    assert frame.columns.tolist() == ["unique_id", "ds", "y"] and len(frame) == 20
    assert [s.name for s in melt_wide(wide, targets=("v",))] == ["v"]
    months = pl.DataFrame(
        {"month": [datetime.date(2024, m, 1) for m in (1, 2, 3)], "y": [1, 2, 3], "x": [1.0, None, 3]}
    )
    each = melt_wide(months)
    assert [s.name for s in each] == ["y", "x"] and np.isnan(each["x"].y[1, 0])
    back = to_user(each, values_frame(each))
    assert back.columns == ["unique_id", "month", "y"] and back.schema["month"] == pl.Date
    assert read_frame(months).channels == ("y",) and melt_wide(wide.reset_index(drop=True)).freq == "1"
    with pytest.raises(ValueError, match="two roles"):
        read_frame(months, targets=("x", "x"))


def test_covariates_and_what_lies_ahead():
    df = table(a=10, b=4).assign(p=2.0, f=1.0)
    later = pd.DataFrame({"unique_id": ["b"] * 4, "ds": HOURS[[7, 3, 5, 4]], "f": [7.0, 3, 5, 4]})
    facts = pl.DataFrame({"unique_id": ["b", "a", "c"], "size": [1.5, 2.5, 9], "open": [True, False, True]})
    panel = read_frame(df, past="p", future=["f"], X=later, static=facts)
    a, b = panel["a"], panel["b"]
    assert a.future.shape == (10, 1) and b.past.tolist() == [[2.0]] * 4 and len(b) == 4
    assert np.array_equal(b.future[:, 0], [1, 1, 1, 1, 4, 5, np.nan, 7], equal_nan=True)  # row 3 of X is of the past
    assert b.static.tolist() == [1.5, 1] and a.static.tolist() == [2.5, 0]
    assert (panel.columns.past, panel.columns.future, panel.columns.static) == (("p",), ("f",), ("size", "open"))
    counted = read_frame(df.drop(columns="ds"), future="f", X=later.drop(columns="ds"))
    assert counted["b"].future[:, 0].tolist() == [1, 1, 1, 1, 7, 3, 5, 4] and counted["b"].times.tolist() == [
        0,
        1,
        2,
        3,
    ]
    alone = read_frame(df[:4].drop(columns="unique_id"), future="f", X=later[["ds", "f"]], static=facts[:1, 1:])
    assert len(alone["y"].future) == 8 and alone["y"].static.tolist() == [1.5, 1]


def test_flaws_of_covariates_are_of_one_series():
    df = table(a=10, b=10, c=10, d=10, e=10).assign(f=1.0)
    later = pd.DataFrame({"unique_id": list("aabbqe"), "ds": HOURS[-1] + pd.to_timedelta([1, 1, 1, 1.5, 1, 1], "h")})
    later["f"] = [1, 1, 1, 1, 1, np.inf]
    facts = pd.DataFrame({"unique_id": list("abdde"), "size": 1})
    found = reasons(read_frame(df, future="f", X=later[2:4]))
    assert list(found) == ["b"] and "2024-01-01 10:30:00 is not on the grid of 'h'" in found["b"]
    panel = read_frame(
        pd.concat([df, table(z=10)]), future="f", X=later, static=pd.concat([facts, facts[:1].assign(unique_id="z")])
    )
    assert [s.name for s in panel] == ["z"]
    assert reasons(panel) == {
        "a": "has two rows at 2024-01-01 10:00:00",
        "b": "its time 2024-01-01 10:30:00 is not on the grid of 'h' that begins at 2024-01-01 00:00:00",
        "c": "has 0 rows in static, not one",
        "d": "has 2 rows in static, not one",
        "e": "in X, its 'f' is 'inf' in row 5: no number",
        "q": "is in X but not in the table",
    }
    rows = pd.DataFrame({"unique_id": list("aacb"), "size": [1, 2, 3, 4]})
    assert read_frame(table(b=5, a=5, c=5), static=rows)["b"].static.tolist() == [4]
    told = read_frame(df, static=facts.assign(size=["1", "many", "1", "1", "1"]))
    assert reasons(told)["b"] == "in static, its 'size' is 'many' in row 1: no number"


CASES = {
    "infinite": ("y", np.inf, "its 'y' is 'inf' in row 3: no number"),
    "text": ("y", "abc", "its 'y' is 'abc' in row 3: no number"),
    "twice": ("ds", HOURS[2], "has two rows at 2024-01-01 02:00:00"),
    "between": ("ds", HOURS[3] + pd.Timedelta("7min"), "its time 2024-01-01 03:07:00 is not on the grid of 'h'"),
    "no time": ("ds", pd.NaT, "its 'ds' is 'NaT' in row 3: no time"),
    "far": ("ds", pd.Timestamp("9999-12-31"), "its 10 rows reach over"),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("library", [pd.DataFrame, pl.from_pandas])
def test_one_bad_cell_rejects_one_series(case, library):
    column, cell, reason = CASES[case]
    bad = table(a=10, b=10)
    if case == "text":
        bad[column] = bad[column].astype(str if library is pl.from_pandas else object)
    bad.loc[3, column] = cell
    panel = read_frame(library(bad))
    assert reasons(panel)["a"].startswith(reason) and len(panel.rejects) == 1
    (good,) = panel
    assert good.name == "b" and good.times.equals(HOURS) and (good.y[:, 0] == np.arange(10)).all()
    with pytest.raises(ValueError, match=f"no series of 1 can be used: 'a': {reason}"):
        read_frame(library(bad[:10]), "h")


def test_more_flaws_of_one_series():
    df = table(a=10, b=10, c=10)
    twofold = df.assign(y=df["y"].where(df.index != 2, np.inf), ds=df["ds"].where(df.index != 5))
    assert reasons(read_frame(twofold)) == {"a": "its 'ds' is 'NaT' in row 5: no time"}  # times come first
    assert set(reasons(read_frame(df.assign(p=1.0, y=df["y"].where(df["unique_id"] != "a")), past="p"))) == {"a"}
    assert reasons(read_frame(df.assign(y=df["y"].where(df["unique_id"] != "b")))) == {
        "b": "has no value: all are missing"
    }
    nameless = df.assign(unique_id=df["unique_id"].where(df.index > 1))
    panel = read_frame(nameless)
    assert reasons(panel) == {"": "2 rows have no 'unique_id', the first is row 0"} and len(panel["a"]) == 8
    text = df.assign(ds=df["ds"].astype(str))
    text.loc[7, "ds"] = "soon"
    assert reasons(read_frame(text)) == {"a": "its 'ds' is 'soon' in row 7: no time"}
    assert read_frame(df.assign(y=1)).rejects.empty  # constant
    numbers = df.assign(ds=[*range(10), *range(0, 20, 2), *range(5, 15)])
    assert list(reasons(read_frame(numbers))) == ["b"] and len(read_frame(numbers, 1)["b"]) == 19


def test_another_frequency_is_no_gap_unless_told():
    df = table(a=10, b=10, c=10)
    df.loc[df["unique_id"] == "b", "ds"] = pd.date_range("2024-01-01", periods=10, freq="D")
    panel = read_frame(df)
    assert panel.freq == "h" and "most of its steps are longer than the others' 'h'" in reasons(panel)["b"]
    assert read_frame(df[10:]).freq == "D" and read_frame(df.iloc[[*range(10, 30), *range(10)]]).freq == "h"
    assert len(read_frame(df, "h")["b"]) == 9 * 24 + 1
    assert set(reasons(read_frame(df, "D"))) == {"a", "c"}
    assert reasons(read_frame(df, "D"))["a"].endswith("its own frequency looks like 'h'")
    short = read_frame(pd.concat([table(a=10), table(b=2)]))
    assert short.rejects.empty and len(short["b"]) == 2


@pytest.mark.parametrize("zone", ZONES[1:])
def test_a_change_of_the_clocks_is_no_gap(zone):
    times = pd.date_range("2024-03-30 12:00", periods=48, freq="h", tz="UTC").tz_convert(zone)
    df = pd.DataFrame({"ds": times, "y": np.arange(48.0)})
    panel = read_frame(df)
    assert panel.freq == "h" and len(panel["y"]) == 48 and not np.isnan(panel["y"].y).any()
    assert str(panel["y"].times.tz) == zone and panel["y"].times.equals(times)
    back = to_user(panel, values_frame(panel))
    assert back["ds"].dtype == df["ds"].dtype and back.equals(df)


def test_what_concerns_the_table_raises():
    df = table(a=10, b=10)
    mixed = df.assign(ds=[t.tz_localize("UTC") if k < 3 else t for k, t in enumerate(df["ds"])])
    text = df.assign(ds=[f"{t}+01:00" if k < 3 else str(t) for k, t in enumerate(df["ds"])])
    for message, call in {
        "no column 'sales' but \\['unique_id', 'ds', 'y'\\]": lambda: read_frame(df, targets="sales"),
        "the table has no column 'uniqe_id' .* did you mean 'unique_id'": lambda: read_frame(df, id="uniqe_id"),
        "X has no column 'ds'": lambda: read_frame(df.assign(f=1), future="f", X=df[["unique_id"]].assign(f=1)),
        "static has no column 'unique_id'": lambda: read_frame(df, static=df[["y"]]),
        "X gives future covariates": lambda: read_frame(df, X=df),
        "the times of X are": lambda: read_frame(
            df.assign(f=1), future="f", X=df.assign(f=1, ds=df["ds"].dt.tz_localize("UTC"))
        ),
        "the times of X": lambda: read_frame(df.assign(f=1), future="f", X=df.assign(f=1, ds=range(20))),
        "mixes times of several zones": lambda: read_frame(mixed),
        "'ds' mixes times": lambda: read_frame(text),
        "'ds' holds no dates; its first is 'x'": lambda: read_frame(df.assign(ds="x")),
        "'ds' is float64: times are dates": lambda: read_frame(df.assign(ds=0.5)),
        "the table has no rows": lambda: read_frame(df[:0]),
        "X has no rows": lambda: read_frame(df.assign(f=1), future="f", X=df[:0]),
        "no series has 3 times; give freq": lambda: read_frame(df.iloc[[0, 1, 10]]),
        "freq '-1h' must be positive": lambda: read_frame(df, "-1h"),
        "freq '1' does not suit times that are dates": lambda: read_frame(df, "1"),
        "freq 'D' does not suit times that are integers": lambda: read_frame(df.assign(ds=range(20)), "D"),
        "the table is a list": lambda: read_frame([1]),
        "the table is a LazyFrame": lambda: read_frame(pl.from_pandas(df).lazy()),
        "no column is a target: give targets=": lambda: read_frame(df.rename(columns={"y": "sales"})),
        "\\['y'\\] have two roles": lambda: read_frame(df, past=("y",)),
        "'y' 2 times": lambda: read_frame(df[["unique_id", "ds", "y", "y"]]),
        "no series of 2 can be used: 'a': has no value: all are missing; 'b': has": lambda: read_frame(
            df.assign(y=np.nan)
        ),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_other_kinds_of_cells():
    df = table(a=10)
    plain = read_frame(df)
    for same_y in (df["y"].astype("f4"), df["y"].astype("Int64"), df["y"].astype(str), df["y"].astype(object)):
        same(read_frame(df.assign(y=same_y)), plain)
    for same_ds in (
        df["ds"].astype(str),
        df["ds"].dt.to_period("h"),
        df["ds"].dt.strftime("%m/%d/%Y %H:%M"),
        df["ds"].dt.as_unit("s"),
    ):
        same(read_frame(df.assign(ds=same_ds)), plain)
    assert np.isnan(read_frame(df.assign(y=df["y"].astype("Int64").where(df.index != 4)))["a"].y[4, 0])
    assert read_frame(df.assign(ds=[0.0, *range(1, 10)])).freq == "1"
    assert read_frame(df.assign(ds=[*range(9), None], b=1).astype({"ds": "Int64"})[:9]).freq == "1"
    assert reasons(read_frame(pd.concat([df, df.assign(unique_id="b", ds=pd.NaT)])))["b"].endswith("no time")
    merged = read_frame(pd.DataFrame({"unique_id": pd.Series([1, "1", 1, "1"], dtype=object), "y": 1.0}))
    assert len(merged["1"]) == 4
    odd = df.assign(y=df["ds"])
    with pytest.raises(ValueError, match="its 'y' is '2024-01-01 00:00:00' in row 0: no number"):
        read_frame(odd)
    date = df.rename(columns={"ds": "Date"}).assign(Date=df["ds"].astype(str))
    assert read_frame(date).columns.time == "Date" and read_frame(date)["a"].times.equals(plain["a"].times)


def test_no_times_are_counted():
    df = table(a=3, b=2).drop(columns="ds").iloc[[0, 3, 1, 4, 2]]
    panel = read_frame(df)
    assert panel.freq == "1" and panel["a"].y[:, 0].tolist() == [0, 1, 2] and panel["b"].times.tolist() == [0, 1]
    assert to_user(panel, values_frame(panel)).columns.tolist() == ["unique_id", "ds", "y"]


def test_files(tmp_path):
    df = table(a=10, b=3)
    df.to_csv(tmp_path / "t.csv", index=False)
    df.to_parquet(tmp_path / "t.parquet")
    assert pd.api.types.is_datetime64_any_dtype(read_file(tmp_path / "t.csv")["ds"])
    for name in ("t.csv", "t.parquet"):
        same(read_frame(read_file(str(tmp_path / name))), read_frame(df))
    df.astype({"ds": str}).replace("2024-01-01 02:00:00", "soon").to_csv(tmp_path / "soon.csv", index=False)
    with pytest.raises(ValueError, match="'a': its 'ds' is 'soon' in row 2: no time; 'b': its 'ds' is 'soon'"):
        read_frame(read_file(tmp_path / "soon.csv"))
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "bad.parquet").write_text("text")
    for name, message in {
        "t.xlsx": "is of kind '.xlsx': known are .csv and .parquet",
        "none": "of kind 'none'",
        "gone.csv": "does not exist",
        "empty.csv": "cannot be read as .csv",
        "bad.parquet": "cannot be read as .parquet",
    }.items():
        with pytest.raises(ValueError, match=message):
            read_file(tmp_path / name)
