"""What a series and a panel hold, cut and refuse."""

import numpy as np
import pandas as pd
import pytest

from unisci.domains.series import Panel, Series, values_frame

DAYS = pd.date_range("2024-01-30", periods=4, freq="D")
Y = np.arange(8.0).reshape(4, 2)


def series(name="a", times=DAYS, y=Y, channels=("u", "v"), freq="D", past=None, future=None, static=None):
    return Series(name, times, y, channels, freq, past, future, static)


def test_times_ahead():
    assert series().ahead(2).equals(pd.DatetimeIndex(["2024-02-03", "2024-02-04"]))
    months = pd.DatetimeIndex(["2024-01-31", "2024-02-29", "2024-03-31", "2024-04-30"])
    assert series(times=months, freq="M").ahead(1)[0] == pd.Timestamp("2024-05-31")
    assert series(times=pd.RangeIndex(5, 9), freq=1).ahead(3).tolist() == [9, 10, 11]
    hours = pd.date_range("2024-03-30 22:00", periods=4, freq="h", tz="Europe/Berlin")
    assert series(times=hours, freq="H").ahead(2).hour.tolist() == [3, 4] and series(times=hours, freq="H").freq == "h"
    assert len(series().ahead(0)) == 0


def test_before_leaves_the_future_known():
    s = series(past=Y[:, :1], future=np.arange(5.0)[:, None], static=np.ones(3))
    cut = s.before(3)
    assert cut.times.equals(DAYS[:1]) and (cut.y == Y[:1]).all() and (cut.past == Y[:1, :1]).all()
    assert cut.future is s.future and cut.static is s.static and len(s.before(0)) == 4
    for k in (4, -1):
        with pytest.raises(ValueError, match=f"series 'a': cannot leave out {k} of 4 steps"):
            s.before(k)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": Y[:3]}, "give \\(T, C\\)"),
        ({"y": Y[:, :1]}, "2 channels"),
        ({"y": Y[:0], "times": DAYS[:0]}, "0 times"),
        ({"y": Y.astype("f4")}, "y is float32 of 2 axes: give a float64 array of 2"),
        ({"y": Y.tolist()}, "y is a list"),
        ({"y": Y + np.array([0, np.inf])}, "y holds an infinite value"),
        ({"channels": ("u", "u")}, "must differ"),
        ({"past": Y[:3]}, "past has 3 rows for 4"),
        ({"past": Y - np.inf}, "past holds"),
        ({"future": Y[:3]}, "future has 3 rows: give at least 4"),
        ({"future": Y[:, 0]}, "future is float64 of 1 axes"),
        ({"static": Y}, "static is float64 of 2 axes: give a float64 array of 1"),
        ({"times": DAYS[[0, 1, 2, 2]]}, "steps of 'D'"),
        ({"times": DAYS[::-1]}, "steps of 'D'"),
        ({"times": DAYS[[0, 1, 3]].append(DAYS[3:] + pd.Timedelta("1D"))}, "steps of 'D'"),
        ({"freq": "h"}, "steps of 'h'"),
        ({"freq": "1"}, "give dates, or integers with freq '1'"),
        ({"times": pd.RangeIndex(4)}, "give dates"),
        ({"times": pd.RangeIndex(0, 8, 2), "freq": "1"}, "steps of '1'"),
        ({"times": pd.Index([0, 1, 2, 4]), "freq": "1"}, "steps of '1'"),
        ({"times": pd.Index(list("abcd")), "freq": "1"}, "give dates, or integers"),
        ({"times": pd.Index([0.0, 1, 2, 3]), "freq": "1"}, "give dates, or integers"),
        ({"times": DAYS[:3].append(pd.DatetimeIndex([pd.NaT]))}, "steps of"),
    ],
)
def test_a_wrong_series_is_named(change, message):
    with pytest.raises(ValueError, match=f"series 'a': .*{message}"):
        series(**change)


def test_gaps_and_plain_integers_are_fine():
    assert np.isnan(series(y=Y * np.nan).y).all()
    assert series(times=pd.Index([4, 5, 6, 7]), freq="1").ahead(1).tolist() == [8]
    assert len(series(times=pd.DatetimeIndex(DAYS, freq=None))) == 4


def test_panel_by_name_and_order():
    panel = Panel((series("b"), series("a", times=DAYS + pd.Timedelta("3D")), series("c", DAYS[:2], Y[:2])))
    assert [s.name for s in panel] == ["b", "a", "c"] and len(panel) == 3 and panel["c"].name == "c"
    assert [s.name for s in panel.select(["c", "b"])] == ["c", "b"]
    assert (panel.freq, panel.channels, len(panel.rejects), panel.backend) == ("D", ("u", "v"), 0, "pandas")
    cut = panel.before(2)
    assert [(s.name, len(s)) for s in cut] == [("b", 2), ("a", 2)]
    assert cut.rejects.values.tolist() == [["c", "has 2 steps: too few to leave out 2"]]
    with pytest.raises(KeyError, match="no series is named 'd'; there are 3, the first is 'b'"):
        panel["d"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (series("b", channels=("u", "w")), "channels \\('u', 'w'\\)"),
        (series("b", DAYS[:1], Y[:1], freq="W-TUE"), "freq W-TUE where 'a' has D"),
        (series("b", DAYS.tz_localize("UTC")), "time zone UTC"),
        (series("b", past=Y), "past 2"),
        (series("b", future=Y), "future 2"),
        (series("b", static=Y[0]), "static 2 where 'a' has None"),
        (series("a"), "'a' comes twice"),
    ],
)
def test_a_panel_is_of_one_kind(other, message):
    with pytest.raises(ValueError, match=f"series .*{message}"):
        Panel((series("a"), other))


def test_an_empty_panel():
    with pytest.raises(ValueError, match="at least one"):
        Panel(())


def test_values_frame():
    panel = Panel((series("b"), series("a", DAYS[:2], Y[:2])))
    frame = values_frame(panel)
    assert frame.columns.tolist() == ["unique_id", "ds", "u", "v"] and frame["unique_id"].tolist() == list("bbbbaa")
    assert frame["ds"].tolist() == [*DAYS, *DAYS[:2]] and frame["v"].tolist() == [1, 3, 5, 7, 1, 3]
    ahead = values_frame(panel, {"lo": [Y[0], Y[1]], "hi": [Y[2], Y[3]]}, [s.ahead(2) for s in panel])
    assert ahead["ds"].tolist() == [*series().ahead(2), DAYS[2], DAYS[3]] and ahead["hi"].tolist() == [4, 5, 6, 7]
    for numbers in ({"lo": [Y[0], Y[1]]}, {"lo": [Y[:, 0]]}):
        with pytest.raises(ValueError, match="'lo' does not have one array"):
            values_frame(panel, numbers)
    with pytest.raises(ValueError, match="'times' does not"):
        values_frame(panel, None, [DAYS])
