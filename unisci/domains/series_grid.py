"""Sorted rows of all series put on regular grids at once; what does not fit one gives the series a reason."""

from collections import Counter

import numpy as np
import pandas as pd

from unisci.domains.calendar import alias, grid, infer, positions
from unisci.domains.series import Columns, Series
from unisci.domains.series_rows import MISSING, Flaw, Rows

SPARSEST = 1000  # steps for each row; more are rather a wrong frequency, or a date far off, than gaps


def on_grid(rows: Rows, freq: str | None, columns: Columns) -> tuple[list[Series], dict[int, str]]:
    """The series, in the order of their codes, and the reasons for the others by code.

    freq: None takes the most common of the series' own.
    Raises ValueError where freq does not suit the kind of times, or is not given and no series has 3 times.
    """
    rows = rows.sorted()
    if not len(rows.codes):
        return [], rows.flaws
    if rows.ahead.any():
        last = np.maximum.reduceat(np.where(rows.ahead, MISSING, rows.stamps), rows.starts)
        rows = rows.take(~rows.ahead | (rows.stamps > np.repeat(last, rows.sizes)))
    rows = rows.without((_repeated(rows), lambda r: f"has two rows at {rows.times[r]}"))
    if not len(rows.codes):
        return [], rows.flaws
    given, freq = freq, _frequency(rows, freq)
    first = np.repeat(rows.starts, rows.sizes)
    at = positions(rows.times, first, freq)
    flaws = [(at < 0, lambda r: _off(rows, r, freq)), _sparse(rows, at, freq)]
    if given is None:
        flaws.append(_coarse(rows, at, freq))
    kept = rows.without(*flaws)
    at = at[~np.isin(rows.codes, list(kept.flaws))]
    empty = np.ones(len(kept.codes), bool)
    if len(at):
        known = np.logical_or.reduceat(~np.isnan(kept.numbers[:, : len(columns.targets)]).all(1), kept.starts)
        empty = np.repeat(~known, kept.sizes)
    full = kept.without((empty, lambda r: "has no value: all are missing"))
    return _series(full, at[~empty], freq, columns), full.flaws


def _repeated(rows: Rows) -> np.ndarray:
    same = (np.diff(rows.codes) == 0) & (np.diff(rows.stamps) == 0)
    return np.append(False, same)


def _frequency(rows: Rows, freq: str | None) -> str:
    dates = isinstance(rows.times, pd.DatetimeIndex)
    if freq is None:
        own = rows.take(~rows.ahead) if rows.ahead.any() else rows
        votes = Counter(infer(own.times[a:b]) for a, b in zip(own.starts, [*own.starts[1:], None], strict=True))
        del votes[None]
        if not votes:
            raise ValueError("the frequency cannot be inferred: no series has 3 times; give freq, such as freq='D'")
        return votes.most_common(1)[0][0]
    freq = alias(freq)
    if dates == (freq == "1"):
        raise ValueError(f"freq {freq!r} does not suit times that are {'dates' if dates else 'integers, which need 1'}")
    return freq


def _off(rows: Rows, row: int, freq: str) -> str:
    times = rows.times[rows.codes == rows.codes[row]]
    own = infer(times)
    looks = "" if own in (None, freq) else f"; its own frequency looks like {own!r}"
    return f"its time {rows.times[row]} is not on the grid of {freq!r} that begins at {times[0]}{looks}"


def _sparse(rows: Rows, at: np.ndarray, freq: str) -> Flaw:
    count = np.repeat(rows.sizes, rows.sizes)
    reason = lambda r: f"its {count[r]} rows reach over {at[r] + 1} steps of {freq!r}: is {rows.times[r]} right?"
    return at >= SPARSEST * count, reason


def _coarse(rows: Rows, at: np.ndarray, freq: str) -> Flaw:
    """Series most of whose steps are longer than one of the frequency that was inferred."""
    inside = np.append(False, (np.diff(rows.codes) == 0) & ~rows.ahead[1:])
    longer = inside & (np.diff(at, prepend=0) > 1)
    steps, long = (np.add.reduceat(mask.astype(int), rows.starts) for mask in (inside, longer))
    reason = f"most of its steps are longer than the others' {freq!r}: where these are gaps, give freq={freq!r}"
    return np.repeat((steps >= 2) & (2 * long > steps), rows.sizes), lambda r: reason


def _series(rows: Rows, at: np.ndarray, freq: str, columns: Columns) -> list[Series]:
    """Scatters the numbers to their steps, all series in one array, and cuts it."""
    if not len(at):
        return []
    totals = at[rows.starts + rows.sizes - 1] + 1
    lengths = np.maximum.reduceat(np.where(rows.ahead, -1, at), rows.starts) + 1
    offsets = np.cumsum(totals) - totals
    place = np.repeat(offsets, rows.sizes) + at
    blocks, widths = [], (len(columns.targets), len(columns.past))
    for part in np.split(rows.numbers, np.cumsum(widths), axis=1):
        block = np.full((totals.sum(), part.shape[1]), np.nan)
        block[place] = part
        blocks.append(block if part.shape[1] else None)
    y, past, future = blocks
    grids, found = {}, []
    for row, offset, length, total in zip(rows.starts.tolist(), offsets, lengths.tolist(), totals, strict=True):
        key = (rows.times[row], length)
        if key not in grids:
            grids[key] = grid(*key, freq)
        code, own = rows.codes[row], slice(offset, offset + length)
        covariates = (
            None if past is None else past[own],
            None if future is None else future[offset : offset + total],
            None if rows.static is None else rows.static[code],
        )
        found.append(Series(rows.names[code], grids[key], y[own], columns.targets, freq, *covariates))
    return found
