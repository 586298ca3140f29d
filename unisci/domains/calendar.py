"""The steps of regular time series: frequencies, grids of times, seasons, and the phases of the day, week and year.

A frequency is an alias of pandas, with a multiple or none ("h", "15min", "D", "B", "W-SUN", "ME", "QS-JAN", "2YE-DEC"),
or "1" for integer times. Steps of hours and less are elapsed time, so that a change of the clocks moves nothing; days
and longer follow the calendar and the clock on the wall.
"""

import re
from collections.abc import Hashable
from functools import lru_cache
from math import gcd

import numpy as np
import pandas as pd
from pandas.tseries.frequencies import to_offset
from pandas.tseries.offsets import BaseOffset

FIXED = ("h", "min", "s", "ms", "us", "ns")
# Of each step of the calendar: the season (steps that repeat) and the mean days of a step.
CALENDAR = {"D": (7, 1.0), "B": (5, 1.0), "W": (52, 7.0)} | {
    business + unit + end: (season, 365.25 / season)
    for business in ("", "B")
    for unit, season in (("M", 12), ("Q", 4), ("Y", 1))
    for end in "SE"
}
OLD = {"H": "h", "T": "min", "S": "s", "L": "ms", "U": "us", "N": "ns", "M": "ME", "Q": "QE", "A": "YE", "Y": "YE"}
OLD |= {"AS": "YS", "BM": "BME", "BQ": "BQE", "BA": "BYE", "BY": "BYE", "BAS": "BYS", "d": "D", "w": "W", "mo": "MS"}
LONGEST = 3600  # steps of a season; where a day has more, the hour, minute or second counts
NANOS = {"ns": 1, "us": 10**3, "ms": 10**6, "s": 10**9}
SECOND, MINUTE, HOUR, DAY = 10**9, 60 * 10**9, 3600 * 10**9, 86400 * 10**9
WEEKDAYS = ("MON", "TUE", "WED", "THU", "FRI", "SAT", "SUN")
MONTHS = ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")


def alias(freq: Hashable) -> str:
    """The frequency as pandas now writes it: "H" is "h", "M" is "ME", "W" is "W-SUN"; 1 and "1" are "1".

    freq: a text, or an offset or timedelta. Raises ValueError where it is none, not positive, or not supported.
    """
    return "1" if str(freq) == "1" else offset(freq).freqstr


@lru_cache(256)
def offset(freq: Hashable) -> BaseOffset:
    """The step of a frequency other than "1". Raises ValueError as `alias` does."""
    name = freq
    if isinstance(freq, str) and (parts := re.fullmatch(r"(-?\d*)([A-Za-z]+)(-[A-Z]{3})?", freq.strip())):
        name = parts[1] + OLD.get(parts[2], parts[2]) + (parts[3] or "")
    try:
        step = to_offset(name)
    except (ValueError, TypeError):
        step = None
    if step is None or _root(step) not in {*FIXED, *CALENDAR}:
        raise ValueError(
            f"freq {freq!r} is not known: give an alias of pandas, such as 'min', 'h', 'D', 'B', 'W', 'ME', 'QE', 'YE' "
            "with a multiple or none, or '1' for integer times"
        )
    if step.n <= 0:
        raise ValueError(f"freq {freq!r} must be positive")
    return step


def _root(step: BaseOffset) -> str:
    return step.rule_code.split("-")[0]


def _fixed(step: BaseOffset) -> bool:
    return _root(step) in FIXED


def step_days(freq: str) -> float:
    """The length of a step in days, a mean where months are not equal. ValueError for integer times."""
    step = offset(freq)
    return step.nanos / DAY if _fixed(step) else step.n * CALENDAR[_root(step)][1]


def grid(start: pd.Timestamp | int, periods: int, freq: str) -> pd.Index:
    """(periods,) times from start on; the first is later than start where start is off the grid of freq."""
    if freq == "1":
        return pd.RangeIndex(start, start + periods)
    step, zone = offset(freq), start.tz
    if not _fixed(step):
        return _on_wall(pd.date_range(start.tz_localize(None), periods=periods, freq=step, unit=start.unit), zone)
    times = pd.date_range(start if zone is None else start.tz_convert("UTC"), None, periods, step, unit=start.unit)
    return times if zone is None else times.tz_convert(zone)


def _on_wall(wall: pd.DatetimeIndex, zone) -> pd.DatetimeIndex:
    """The instants at which the clocks of the zone show wall: an hour that is skipped ends, one that is twice is the
    first."""
    if zone is None:
        return wall
    return wall.tz_localize(zone, ambiguous=np.ones(len(wall), bool), nonexistent="shift_forward")


def positions(times: pd.Index, first: np.ndarray, freq: str) -> np.ndarray:
    """(R,) steps from times[first[r]] to times[r], -1 where that is no whole number of steps or off the calendar.

    times (R,): dates or integers without gaps in them; first (R,): for each row the earliest of its series.
    """
    if freq == "1":
        return np.asarray(times) - np.asarray(times)[first]
    step = offset(freq)
    if _fixed(step):
        unit = NANOS[times.unit]
        common = gcd(unit, step.nanos)
        whole, rest = np.divmod((times.asi8 - times.asi8[first]) * (unit // common), step.nanos // common)
        return np.where(rest == 0, whole, -1)
    wall = times.tz_localize(None)
    days = wall.to_numpy().astype("M8[D]")
    clock = wall.to_numpy() - days
    calendar = pd.date_range(days.min(), days.max(), freq=step.base, unit="us").to_numpy().astype("M8[D]")
    if not len(calendar):
        return np.full(len(times), -1)
    at = np.minimum(np.searchsorted(calendar, days), len(calendar) - 1)
    on = (calendar[at] == days) & (clock == clock[first])
    if times.tz is not None:  # a skipped hour moves the time of one day
        on |= (calendar[at] == days) & (_on_wall(pd.DatetimeIndex(days + clock[first]), times.tz) == times)
    whole, rest = np.divmod(at - at[first], step.n)
    return np.where(on & on[first] & (rest == 0), whole, -1)


def infer(times: pd.Index) -> str | None:
    """The frequency whose step is the median step of times (T,), increasing; None where T < 3.

    A median of 28 days and more is one of months where all times are first or last days (or business days) of months.
    """
    if len(times) < 3:
        return None
    if not isinstance(times, pd.DatetimeIndex):
        return "1"
    wall = times.tz_localize(None).to_numpy()
    days = wall.astype("M8[D]")
    count, rest = divmod(_median(np.diff(wall)), np.timedelta64(1, "D"))
    if count == 0 or rest:
        return to_offset(pd.Timedelta(_median(np.diff(times.asi8)), times.unit)).freqstr
    if count >= 28 and (months := _months(days, round(count / 30.4375))):
        return months
    weekday = np.unique(_weekday(days))
    if count % 7 == 0 and len(weekday) == 1:
        return alias(f"{count // 7}W-{WEEKDAYS[weekday[0]]}")
    if count == 1 and weekday[-1] < 5 and np.diff(days).max() > np.timedelta64(2, "D"):
        return "B"
    return alias(f"{count}D")


def _months(days: np.ndarray, count: int) -> str | None:
    """The frequency of count months whose anchor all days (T,) share, or None."""
    month = days.astype("M8[M]")
    starts, ends = month.astype("M8[D]"), (month + 1).astype("M8[D]") - 1
    anchors = {"S": starts, "E": ends}
    anchors |= {"BS": np.busday_offset(starts, 0, "forward"), "BE": np.busday_offset(ends, 0, "backward")}
    for anchor, at in anchors.items():
        if (days == at).all():
            business, end = anchor[:-1], anchor[-1]
            first = int(month[0].astype(int)) % 12
            if count % 12 == 0:
                return alias(f"{count // 12}{business}Y{end}-{MONTHS[first]}")
            if count == 3:
                return alias(f"{business}Q{end}-{MONTHS[first % 3 + 9 * (end == 'E')]}")
            return alias(f"{count}{business}M{end}")
    return None


def _median(values: np.ndarray):
    """The lower median, one of the values."""
    middle = (len(values) - 1) // 2
    return np.partition(values, middle)[middle]


def _weekday(days: np.ndarray) -> np.ndarray:
    return (days.astype(int) + 3) % 7  # 0 is Monday; 1970-01-01 was a Thursday


def season_length(freq: str) -> int:
    """The steps of the shortest season that has more than one: "h" 24, "15min" 96, "s" 3600 (the hour: a day would pass
    3600 steps), "D" 7, "B" 5, "W" 52, "ME" 12, "QE" 4; 1 where no season is a whole number of steps, and for "1"."""
    if freq == "1":
        return 1
    step = offset(freq)
    if not _fixed(step):
        season, rest = divmod(CALENDAR[_root(step)][0], step.n)
        return 1 if rest else season
    for period in (DAY, HOUR, MINUTE, SECOND):
        season, rest = divmod(period, step.nanos)
        if not rest and 1 < season <= LONGEST:
            return season
    season, rest = divmod(7 * DAY, step.nanos)
    return 1 if rest or step.nanos < DAY else season


def phases(times: pd.Index, freq: str) -> np.ndarray:
    """(T, 6): the sines and cosines of 2 pi times the share of the day, of the week and of the year that has passed on
    the clock on the wall; zeros for a period that is no longer than a step, and all zeros for integer times."""
    found = np.zeros((len(times), 3, 2))
    if freq == "1":
        return found.reshape(-1, 6)
    wall = times.tz_localize(None).to_numpy()
    days, year = wall.astype("M8[D]"), wall.astype("M8[Y]")
    day = (wall - days) / np.timedelta64(1, "D")
    passed = (wall - year) / ((year + 1).astype("M8[D]") - year.astype("M8[D]"))
    shares = (1, day), (7, (_weekday(days) + day) / 7), (365, passed)
    for k, (period, share) in enumerate(shares):
        if step_days(freq) < period:
            angle = 2 * np.pi * share
            found[:, k] = np.stack([np.sin(angle), np.cos(angle)], 1)
    return found.reshape(-1, 6)
