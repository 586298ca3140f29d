"""The rows of a long table of series, as arrays of all series at once, with the reason for each that cannot be used.

Row r is of series names[codes[r]]; the rows of a series follow each other once they are sorted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from warnings import catch_warnings

import numpy as np
import pandas as pd
from pandas.api import types

MISSING = np.iinfo(np.int64).min  # the integer of a time that is not known, as pandas has it for dates

Flaw = tuple[np.ndarray, Callable[[int], str]]  # (R,) which rows have it, and the reason at one


@dataclass(frozen=True, eq=False)
class Rows:
    """names: of N series. codes (R,): the series of a row. times (R,): dates, or integers. numbers (R, V): the
    targets, then past, then future covariates. ahead (R,): whether it tells future covariates only. flaws: the reason
    for each code that cannot be used; its rows are gone. static (N, S), or None."""

    names: tuple[str, ...]
    codes: np.ndarray
    times: pd.Index
    numbers: np.ndarray
    ahead: np.ndarray
    flaws: dict[int, str]
    static: np.ndarray | None = None

    @property
    def stamps(self) -> np.ndarray:
        """(R,) the times as integers that grow with them."""
        return self.times.asi8 if isinstance(self.times, pd.DatetimeIndex) else self.times.to_numpy()

    @cached_property
    def starts(self) -> np.ndarray:
        """(n,) the first row of each series that has rows; these must be sorted."""
        return np.flatnonzero(np.diff(self.codes, prepend=-1))

    @property
    def sizes(self) -> np.ndarray:
        """(n,) how many rows each of these has."""
        return np.diff(self.starts, append=len(self.codes))

    def take(self, rows: np.ndarray) -> "Rows":
        """The rows of these indices or this mask."""
        parts = {name: getattr(self, name)[rows] for name in ("codes", "times", "numbers", "ahead")}
        return replace(self, **parts)

    def without(self, *flaws: Flaw) -> "Rows":
        """Drops each series with a flaw; the first flaw, at the first row that has it, gives the reason."""
        found = {}
        for wrong, reason in flaws:
            at = np.flatnonzero(wrong)
            codes, first = np.unique(self.codes[at], return_index=True)
            for code, row in zip(codes.tolist(), at[first].tolist(), strict=True):
                if code not in found:
                    found[code] = reason(row)
        if not found:
            return self
        return replace(self, flaws=found | self.flaws).take(~np.isin(self.codes, list(found)))

    def sorted(self) -> "Rows":
        """By series, then by time; rows of the table before those that lie ahead."""
        codes, stamps = np.diff(self.codes), np.diff(self.stamps)
        if ((codes > 0) | (codes == 0) & (stamps > 0)).all():
            return self
        return self.take(np.lexsort((self.ahead, self.stamps, self.codes)))


def read_rows(table: pd.DataFrame, id: str | None, time: str | None, numbers: Sequence[str], name: str) -> Rows:
    """The rows of these columns of a table; name: of the one series where id is None. time None: all times are 0.

    Raises ValueError where the column of times holds neither dates nor integers, or dates of several zones.
    """
    codes, names = np.zeros(len(table), int), (name,)
    if id is not None:
        codes, found = pd.factorize(table[id])
        merged, texts = pd.factorize(np.array([str(value) for value in found], object))
        codes, names = np.append(merged, len(texts))[codes], (*texts, "") if (codes < 0).any() else tuple(texts)
    times = pd.Index(np.zeros(len(table), int)) if time is None else _times(table[time])
    values, flaws = np.empty((len(table), len(numbers))), []
    for k, column in enumerate(numbers):
        values[:, k], wrong = _numbers(table[column])
        flaws.append((wrong, lambda r, c=column: f"its {c!r} is {str(table[c].iloc[r])!r} in row {r}: no number"))
    rows = Rows(names, codes, times, values, np.zeros(len(table), bool), {})
    nameless = np.zeros(len(table), bool) if id is None else table[id].isna().to_numpy()
    no_time = lambda r: f"its {time!r} is {str(table[time].iloc[r])!r} in row {r}: no time"
    return rows.without(
        (nameless, lambda r: f"{nameless.sum()} rows have no {id!r}, the first is row {r}"),
        (rows.stamps == MISSING, no_time),
        *flaws,
    )


def _numbers(column: pd.Series) -> tuple[np.ndarray, np.ndarray]:
    """(R,) float64, and where the cell holds something that is no number."""
    if types.is_numeric_dtype(column) and not types.is_complex_dtype(column):
        values = column.to_numpy(np.float64, na_value=np.nan)
        return values, np.isinf(values)
    known = column.notna().to_numpy()
    if not (types.is_string_dtype(column) or types.is_object_dtype(column)):
        return np.full(len(column), np.nan), known
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    return values, np.isinf(values) | (known & np.isnan(values))


def _times(column: pd.Series) -> pd.Index:
    """(R,) dates with NaT, or integers with MISSING."""
    column = column.infer_objects()
    if types.is_float_dtype(column) and not (column.dropna() % 1).any():
        column = column.astype("Int64")
    if types.is_integer_dtype(column):
        return pd.Index(column.to_numpy(np.int64, na_value=MISSING))
    if isinstance(column.dtype, pd.PeriodDtype):
        column = column.dt.to_timestamp()
    if types.is_string_dtype(column) or types.is_object_dtype(column):
        column = _parsed(column)
    if not types.is_datetime64_any_dtype(column):
        raise ValueError(f"the column {column.name!r} is {column.dtype}: times are dates, text of dates, or integers")
    times = pd.DatetimeIndex(column, freq=None)
    try:
        return times.as_unit("ns")
    except pd.errors.OutOfBoundsDatetime:
        return times.as_unit("us")


def _parsed(column: pd.Series) -> pd.Series:
    """Dates of text or of objects; what cannot be read is NaT."""
    cells = column.dropna() if types.is_object_dtype(column) else ()
    zones = {str(cell.tzinfo) for cell in cells if hasattr(cell, "tzinfo")}
    try:
        dates = pd.to_datetime(column, errors="coerce", format="ISO8601")
        if dates.isna().all():
            with catch_warnings(action="ignore"):  # that the format is guessed
                dates = pd.to_datetime(column, errors="coerce")
    except ValueError:
        zones = {"several", "of them"}
    if len(zones) > 1:
        raise ValueError(f"the column {column.name!r} mixes times of several zones, or with and without: make them one")
    if dates.isna().all():
        raise ValueError(f"the column {column.name!r} holds no dates; its first is {column.iloc[0]!r}")
    return dates


def described(rows: Rows, facts: Rows) -> Rows:
    """The rows with facts' numbers as `static`: one row of these for each series, or it is a flaw."""
    places = pd.Index(facts.names).get_indexer(pd.Index(rows.names))
    counts = np.bincount(facts.codes, minlength=len(facts.names) + 1)[places]
    first = np.zeros(len(facts.names), int)
    first[facts.codes] = np.arange(len(facts.codes))
    flaws = {}
    for code in np.flatnonzero(counts != 1).tolist():
        told = facts.flaws.get(int(places[code]))
        flaws[code] = f"in static, {told}" if told else f"has {counts[code]} rows in static, not one"
    if not len(facts.codes):
        return replace(rows, flaws=flaws | rows.flaws).take(np.zeros(len(rows.codes), bool))
    static = facts.numbers[first[places]]
    return replace(rows, static=static, flaws=flaws | rows.flaws).take(~np.isin(rows.codes, list(flaws)))


def joined(rows: Rows, ahead: Rows, before: int) -> Rows:
    """The rows of a table and those that tell its future covariates; these follow `before` other numbers.

    Raises ValueError where one has dates and the other integers, or their time zones differ.
    """
    kinds = [str(getattr(t, "tz", "integer")) for t in (rows.times, ahead.times)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"the times of X are {ahead.times.dtype}, those of the table {rows.times.dtype}: make them alike"
        )
    places = pd.Index(rows.names).get_indexer(pd.Index(ahead.names))
    unknown = [name for name, place in zip(ahead.names, places, strict=True) if place < 0]
    places[places < 0] = len(rows.names) + np.arange(len(unknown))
    flaws = {len(rows.names) + k: "is in X but not in the table" for k in range(len(unknown))} | rows.flaws
    flaws = {int(places[code]): f"in X, {reason}" for code, reason in ahead.flaws.items()} | flaws
    numbers = np.full((len(ahead.codes), rows.numbers.shape[1]), np.nan)
    numbers[:, before:] = ahead.numbers
    both = Rows(
        (*rows.names, *unknown),
        np.concatenate([rows.codes, places[ahead.codes]]),
        rows.times.append(ahead.times),
        np.concatenate([rows.numbers, numbers]),
        np.repeat([False, True], [len(rows.codes), len(ahead.codes)]),
        flaws,
    )
    return both.take(~np.isin(both.codes, list(flaws)))
