"""Time series from tables and back: pandas or polars, long or wide, with the names of columns that the user has.

What concerns one series makes it a row of `Panel.rejects`, with its reason, and the others go on; what concerns the
whole table raises a ValueError.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

import narwhals as nw
import numpy as np
import pandas as pd
from pandas.api import types

from unisci.domains.series import Columns, Panel
from unisci.domains.series_grid import on_grid
from unisci.domains.series_rows import Rows, described, joined, read_rows

IDS, TIMES, TARGETS = ("unique_id", "item_id"), ("ds", "timestamp", "date", "datetime", "time"), ("y", "target")


def read_frame(
    df,
    freq: str | None = None,
    *,
    id: str | None = None,
    time: str | None = None,
    targets: str | Sequence[str] | None = None,
    past: Sequence[str] = (),
    future: Sequence[str] = (),
    static=None,
    X=None,
) -> Panel:
    """The series of a table, a frame of pandas or polars (or another that narwhals takes), with a row for each time.

    freq: an alias of pandas, "1" for integer times; None infers one for all series, which a series with mostly longer
        steps does not share. Missing steps become nan, on a regular grid.
    id: the column that tells the series apart; "unique_id" or "item_id" where None, and without one the table is one
        series, named by its target, or "y" if there are several.
    time: dates, text of dates, or integers; where None "ds", "timestamp", "date", "datetime" or "time", the index of
        pandas, or the only column of dates. Without any the rows are counted from 0, in their order, in each series.
    targets: the columns of values, several of them as channels of each series; where None "y" or "target", and without
        an id all columns of numbers that are left. See `melt_wide` for one series a column.
    past, future: columns of covariates, known for the past only, or ahead too.
    X: a frame of id, time and the future covariates after a series's last time (earlier rows are not used).
    static: a frame with a row for each id; all its other columns are numbers.

    Raises ValueError for what concerns the whole table, and where no series can be used.
    """
    frame, backend = _pandas(df, "the table")
    columns = _columns(frame, id, time, targets, past, future)
    known = _types(df)
    columns = replace(columns, id_type=known.get(columns.id), time_type=known.get(columns.time))
    name = columns.targets[0] if len(columns.targets) == 1 else "y"
    rows = read_rows(frame, columns.id, columns.time, (*columns.targets, *columns.past, *columns.future), name)
    if X is not None:
        if not columns.future:
            raise ValueError("X gives future covariates: name its columns, future=(...)")
        table = _with(_pandas(X, "X")[0], (columns.id, columns.time, *columns.future), "X")
        ahead = read_rows(table, columns.id, columns.time, columns.future, name)
        rows = joined(rows, ahead, len(columns.targets) + len(columns.past))
    if static is not None:
        table = _with(_pandas(static, "static")[0], (columns.id,), "static")
        columns = replace(columns, static=tuple(name for name in table if name != columns.id))
        rows = described(rows, read_rows(table, columns.id, None, columns.static, name))
    if columns.time is None:
        rows = replace(rows, times=pd.Index(pd.Series(rows.codes).groupby(rows.codes).cumcount()))
    return _panel(rows, freq, columns, backend)


def melt_wide(df, freq: str | None = None, *, time: str | None = None, targets: Sequence[str] | None = None) -> Panel:
    """One series for each column of a wide table, named by it, each with the channel "y".

    time, freq: as in `read_frame`. targets: the columns; None takes all of numbers. Raises as `read_frame` does.
    """
    frame, backend = _pandas(df, "the table")
    wide = _columns(frame, None, time, targets, (), (), alone=True)
    long = frame[list(wide.targets)]
    long.columns = range(len(wide.targets))
    long = long.assign(ds=np.arange(len(frame)) if wide.time is None else frame[wide.time])
    long = long.melt("ds", var_name="unique_id", value_name="y")
    long["unique_id"] = np.array(wide.targets, object)[long["unique_id"].astype(int)]
    rows = read_rows(long, "unique_id", "ds", ("y",), "y")
    columns = Columns(None, wide.time, ("y",), wide=True, time_type=_types(df).get(wide.time))
    return _panel(rows, freq, columns, backend)


def to_user(panel: Panel, frame: pd.DataFrame):
    """A frame with the columns "unique_id" and "ds" of results, and others, in the library, names and types of the
    user's table. Of a table without an id the column is dropped, but kept where each column was a series."""
    columns = panel.columns
    names = {"unique_id": columns.id or "unique_id", "ds": columns.time or "ds"}
    if columns.id is None and not columns.wide:
        frame = frame.drop(columns="unique_id", errors="ignore")
    native = nw.from_native(frame.rename(columns=names).reset_index(drop=True), eager_only=True)
    if panel.backend != "pandas":
        native = nw.from_arrow(native.to_arrow(), backend=panel.backend)
    present = {names["unique_id"]: columns.id_type, names["ds"]: columns.time_type}
    casts = [nw.col(name).cast(kind) for name, kind in present.items() if kind is not None and name in native.columns]
    return native.with_columns(*casts).to_native()


def read_file(path: str | Path) -> pd.DataFrame:
    """The table of a .csv or .parquet; of a .csv the columns with a usual name of times become dates where all cells
    can be read as such. Raises ValueError where the file is missing, empty, or of another kind."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind not in (".csv", ".parquet"):
        raise ValueError(f"{path} is of kind {kind or 'none'!r}: known are .csv and .parquet")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    try:
        frame = pd.read_csv(path) if kind == ".csv" else pd.read_parquet(path)
    except Exception as error:  # of foreign bytes any error may come
        raise ValueError(f"{path} cannot be read as {kind}: {error}") from error
    for name in frame:
        if kind == ".csv" and str(name).lower() in TIMES and types.is_string_dtype(frame[name]):
            with suppress(ValueError):
                frame[name] = pd.to_datetime(frame[name], format="ISO8601")
    return frame


def _pandas(df, what: str) -> tuple[pd.DataFrame, str]:
    """The frame as pandas, with a named index or one of dates as columns, and the name of its library."""
    try:
        native = nw.from_native(df, eager_only=True)
    except TypeError:
        kind = type(df).__name__
        raise ValueError(f"{what} is a {kind}: give a frame of pandas or polars, a lazy one collected") from None
    frame = native.to_pandas()
    if isinstance(frame.index, pd.DatetimeIndex | pd.PeriodIndex) and frame.index.name is None:
        frame = frame.rename_axis("ds")
    levels = [name for name in frame.index.names if name is not None and name not in frame]
    frame = frame.reset_index(levels) if levels else frame
    if not len(frame):
        raise ValueError(f"{what} has no rows")
    return frame.reset_index(drop=True), native.implementation.value


def _types(df) -> dict[str, object]:
    """narwhals' type of each column that results are cast back to: dates, and integers."""
    schema = nw.from_native(df, eager_only=True).schema
    return {name: kind for name, kind in schema.items() if kind.is_integer() or kind in (nw.Date, nw.Datetime)}


def _columns(frame: pd.DataFrame, id, time, targets, past, future, alone: bool = False) -> Columns:
    """Detects what is None. alone: each target is a series of its own, so that there is no id and no usual name."""
    id = id if alone else id or next((name for name in IDS if name in frame), None)
    time = time or _time(frame)
    past, future = ((one,) if isinstance(one, str) else tuple(one) for one in (past, future))
    targets = (targets,) if isinstance(targets, str) else tuple(targets or ())
    targets = targets or (() if alone else tuple(name for name in TARGETS if name in frame)[:1])
    _with(frame, (id, time, *targets, *past, *future), "the table")
    used = {id, time, *past, *future}
    if not targets and id is None:
        targets = tuple(name for name in frame if name not in used and types.is_numeric_dtype(frame[name]))
    if not targets:
        raise ValueError(f"no column is a target: give targets=, of the columns {list(frame)}")
    roles = [*targets, *past, *future, *(name for name in (id, time) if name is not None)]
    if twice := {name for name in roles if roles.count(name) > 1}:
        raise ValueError(f"the columns {sorted(twice)} have two roles: each is an id, a time, a target or a covariate")
    return Columns(id, time, targets, past, future)


def _time(frame: pd.DataFrame) -> str | None:
    named = [name for usual in TIMES for name in frame if str(name).lower() == usual]
    dates = [name for name in frame if types.is_datetime64_any_dtype(frame[name])]
    return named[0] if named else dates[0] if len(dates) == 1 else None


def _with(frame: pd.DataFrame, names: Sequence[str | None], what: str) -> pd.DataFrame:
    """The frame, or a ValueError where it lacks one of the names."""
    for name in names:
        if name is not None and name not in frame:
            near = get_close_matches(str(name), list(map(str, frame)), 1, 0.5)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{what} has no column {name!r} but {list(frame)}{hint}")
    return frame


def _panel(rows: Rows, freq: str | None, columns: Columns, backend: str) -> Panel:
    series, flaws = on_grid(rows, freq, columns)
    rejects = [(rows.names[code], reason) for code, reason in sorted(flaws.items())]
    if not series:
        first = "; ".join(f"{name!r}: {reason}" for name, reason in rejects[:3])
        raise ValueError(f"no series of {len(rejects)} can be used: {first}")
    return Panel(tuple(series), pd.DataFrame(rejects, columns=["unique_id", "reason"], dtype=str), columns, backend)
