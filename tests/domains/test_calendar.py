"""Frequencies against pandas, grids through changes of the clocks, phases by hand."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.domains.calendar import alias, grid, infer, offset, phases, positions, season_length, step_days

SEASONS = {"h": 24, "2h": 12, "30min": 48, "15min": 96, "10min": 144, "min": 1440, "10s": 360, "s": 3600, "ms": 1000}
SEASONS |= {"us": 1, "D": 7, "24h": 7, "2D": 1, "B": 5, "W": 52, "2W": 26, "W-TUE": 52, "MS": 12, "ME": 12, "2MS": 6}
SEASONS |= {"BME": 12, "QE": 4, "QS-FEB": 4, "YE": 1, "YS": 1, "1": 1, "7h": 1, "36h": 1, "5MS": 1}
FIXED = ["h", "15min", "7s", "36h"]
DAYS = ["D", "3D", "B", "W-SUN", "W-WED", "2W-MON"]
MONTHS = ["MS", "ME", "BMS", "BME", "2MS", "5ME", "6MS", "QS-JAN", "QS-MAR", "QE-DEC", "QE-NOV", "QE-OCT", "BQE-DEC"]
YEARS = ["YS-JAN", "YE-DEC", "YS-APR", "YE-JUN", "2YE-DEC"]
BERLIN = "Europe/Berlin"


@pytest.mark.parametrize("freq", SEASONS)
def test_seasons(freq):
    assert season_length(freq) == SEASONS[freq]


OLD = {"H": "h", "2T": "2min", "S": "s", "M": "ME", "Q": "QE-DEC", "Q-NOV": "QE-NOV", "A-JUN": "YE-JUN", "Y": "YE-DEC"}
OLD |= {"AS": "YS-JAN", "BM": "BME", "1mo": "MS", "1d": "D", "W": "W-SUN", " h ": "h", 1: "1", "1": "1"}
OLD |= {"1h30min": "90min", pd.offsets.MonthEnd(2): "2ME", pd.Timedelta("15min"): "15min"}


@pytest.mark.parametrize("old", OLD)
def test_old_names_and_offsets(old):
    assert alias(old) == OLD[old] == alias(OLD[old])


@pytest.mark.parametrize("freq", ["fortnight", "", "bh", "2", "h-h", None, "W-XXX", "1.5"])
def test_unknown_frequencies_are_named(freq):
    with pytest.raises(ValueError, match="is not known: give an alias"):
        alias(freq)


@pytest.mark.parametrize("freq", ["-1h", "0D", "-2MS", "0min"])
def test_frequencies_are_positive(freq):
    with pytest.raises(ValueError, match=f"freq '{freq}' must be positive"):
        offset(freq)


@pytest.mark.parametrize(("freq", "days"), [("6h", 0.25), ("D", 1), ("2W", 14), ("QE", 91.3125), ("2YS", 730.5)])
def test_days_of_a_step(freq, days):
    assert step_days(freq) == days


@pytest.mark.parametrize("freq", [*FIXED, *DAYS, *MONTHS, *YEARS])
@pytest.mark.parametrize("zone", [None, BERLIN])
@settings(max_examples=5, deadline=None)
@given(start=st.datetimes(pd.Timestamp("1990").to_pydatetime(), pd.Timestamp("2030").to_pydatetime()), data=st.data())
def test_grids_are_inferred_and_measured(freq, zone, start, data):
    day = pd.Timestamp(start).normalize() + pd.Timedelta("9h")  # a clock time that no zone skips
    times = grid(day.tz_localize(zone), 12, freq)
    assert len(times) == 12 and times.tz is (None if zone is None else times.tz)
    zero = np.zeros(12, int)
    assert positions(times, zero, freq).tolist() == list(range(12))
    kept = np.sort(data.draw(st.permutations(range(12)))[:9])
    assert positions(times[kept], zero[:9], freq).tolist() == (kept - kept[0]).tolist()
    if not freq.startswith("B"):  # a few business days may be those of another frequency
        assert infer(times) == freq
        assert positions(times, zero, infer(times[[0, 1, 2, 3, 5, 6, 7, 9, 10, 11]])).tolist() == list(range(12))
    moved = times[:-1].append(times[-1:] + pd.Timedelta("1ms"))
    assert positions(moved, zero, freq)[-1] == -1


def test_business_frequencies_are_inferred():
    for freq in ("B", "BME", "BMS"):
        assert infer(grid(pd.Timestamp("2021-01-01"), 60, freq)) == freq
    assert infer(grid(pd.Timestamp("2024-01-01"), 5, "B")) == "D"  # one week does not tell
    assert infer(grid(pd.Timestamp("2024-01-01"), 2, "D")) is None
    assert infer(pd.Index([3, 4, 9])) == "1"


def test_clocks_that_change_move_no_hour():
    times = grid(pd.Timestamp("2024-03-30 23:00", tz=BERLIN), 5, "h")
    assert times.hour.tolist() == [23, 0, 1, 3, 4]
    back = grid(pd.Timestamp("2024-10-27 00:00", tz=BERLIN), 5, "h")
    assert back.hour.tolist() == [0, 1, 2, 2, 3]
    for t in (times, back):
        assert infer(t) == "h" and positions(t, np.zeros(5, int), "h").tolist() == [0, 1, 2, 3, 4]
        assert (np.diff(t.asi8) == np.diff(t.asi8)[0]).all()
    days = grid(pd.Timestamp("2024-03-29", tz=BERLIN), 5, "D")
    assert days.hour.tolist() == [0] * 5 and infer(days) == "D"
    assert positions(days, np.zeros(5, int), "D").tolist() == [0, 1, 2, 3, 4]


def test_a_midnight_that_is_skipped_or_twice():
    beirut = grid(pd.Timestamp("2024-03-29", tz="Asia/Beirut"), 4, "D")  # 2024-03-31 begins at 01:00
    assert beirut.hour.tolist() == [0, 0, 1, 0]
    assert positions(beirut, np.zeros(4, int), "D").tolist() == [0, 1, 2, 3]
    havana = grid(pd.Timestamp("2024-11-02", tz="America/Havana"), 3, "D")  # midnight of the 3rd comes twice
    assert (np.diff(havana.tz_convert("UTC")) / pd.Timedelta("1h")).tolist() == [24, 25]
    assert positions(havana, np.zeros(3, int), "D").tolist() == [0, 1, 2]


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_units_of_times(unit):
    times = pd.DatetimeIndex(["2024-01-01", "2024-01-01 00:15", "2024-01-01 01:00"]).as_unit(unit)
    assert positions(times, np.zeros(3, int), "15min").tolist() == [0, 1, 4]
    assert positions(times, np.zeros(3, int), "30min").tolist() == [0, -1, 2]
    assert grid(times[0], 3, "15min").unit == unit


def test_series_begin_where_they_like():
    times = pd.DatetimeIndex(["2024-01-01 00:00", "2024-01-01 01:00", "2024-01-01 00:30", "2024-01-01 02:30"])
    assert positions(times, np.array([0, 0, 2, 2]), "h").tolist() == [0, 1, 0, 2]
    weeks = pd.DatetimeIndex(["2024-01-07", "2024-01-21", "2024-01-14", "2024-01-28", "2024-02-04"])
    assert positions(weeks, np.array([0, 0, 2, 2, 2]), "2W").tolist() == [0, 1, 0, 1, -1]
    assert (positions(weeks, np.zeros(5, int), "W-MON") == -1).all()
    assert positions(pd.DatetimeIndex(["2024-01-02"]), np.zeros(1, int), "YS").tolist() == [-1]


def test_phases_by_hand():
    noon = pd.DatetimeIndex(["2024-01-01 12:00"])  # a Monday
    day, week, year = 0.5, 0.5 / 7, 0.5 / 366
    expected = [f(2 * np.pi * x) for x in (day, week, year) for f in (np.sin, np.cos)]
    assert np.allclose(phases(noon, "h"), [expected])
    assert np.allclose(phases(noon, "D"), [[0, 0, *expected[2:]]])
    assert np.allclose(phases(noon, "W"), [[0, 0, 0, 0, *expected[4:]]])
    assert np.allclose(phases(noon, "QE"), [[0, 0, 0, 0, *expected[4:]]])
    assert not phases(noon, "YE").any() and not phases(noon, "12MS").any()
    assert not phases(pd.RangeIndex(3), "1").any() and phases(pd.RangeIndex(3), "1").shape == (3, 6)
    sunday = pd.DatetimeIndex(["2023-12-31 18:00"])
    assert np.allclose(phases(sunday, "h")[0, 2:4], [np.sin(2 * np.pi * 6.75 / 7), np.cos(2 * np.pi * 6.75 / 7)])
    assert np.allclose(phases(sunday, "h")[0, 4], np.sin(2 * np.pi * 364.75 / 365))


def test_phases_are_those_of_the_clock_on_the_wall():
    times = pd.date_range("2024-03-30", periods=50, freq="h", tz=BERLIN)
    assert np.allclose(phases(times, "h"), phases(times.tz_localize(None), "h"))
