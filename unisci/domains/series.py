"""Time series: values on a regular grid of times, in one or several channels, with gaps, and with covariates."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pandas as pd

from unisci.domains.calendar import alias, grid, offset

KIND = ("channels", "freq", "time zone", "past", "future", "static")  # what the series of a panel have in common


@dataclass(frozen=True, eq=False)
class Series:
    """One series of C channels on a regular grid of T >= 1 times. All arrays float64, nan where a value is not known.

    Raises ValueError, with the series's name, where a shape, a type or a step is wrong or a value is infinite.
    """

    name: str
    times: pd.Index  # (T,) a DatetimeIndex, with or without a zone, on the grid of freq; or integers of step 1
    y: np.ndarray  # (T, C)
    channels: tuple[str, ...]  # C names
    freq: str  # alias of pandas, such as "h", "15min", "D", "ME"; "1" for integer times
    past: np.ndarray | None = None  # (T, P) covariates that are known for the past only
    future: np.ndarray | None = None  # (T + F, K) covariates that are known F >= 0 steps ahead too
    static: np.ndarray | None = None  # (S,)

    def __post_init__(self):
        object.__setattr__(self, "freq", alias(self.freq))
        steps, channels = len(self.times), len(self.channels)
        _check(self.name, "y", self.y, 2)
        if not steps or not channels or self.y.shape != (steps, channels):
            raise ValueError(
                f"series {self.name!r}: y has shape {self.y.shape} for {steps} times and {channels} channels: "
                "give (T, C) with T and C at least 1"
            )
        if len(set(self.channels)) < channels:
            raise ValueError(f"series {self.name!r}: channels {self.channels} must differ")
        for name, value, axes in (("past", self.past, 2), ("future", self.future, 2), ("static", self.static, 1)):
            if value is not None:
                _check(self.name, name, value, axes)
        if self.past is not None and len(self.past) != steps:
            raise ValueError(f"series {self.name!r}: past has {len(self.past)} rows for {steps} times: give one each")
        if self.future is not None and len(self.future) < steps:
            raise ValueError(f"series {self.name!r}: future has {len(self.future)} rows: give at least {steps}")
        self._check_times()

    def _check_times(self):
        dates = isinstance(self.times, pd.DatetimeIndex)
        if dates == (self.freq == "1") or not (dates or pd.api.types.is_integer_dtype(self.times)):
            raise ValueError(
                f"series {self.name!r}: times are {self.times.dtype} with freq {self.freq!r}: "
                "give dates, or integers with freq '1'"
            )
        if dates and self.times.freq is not None and self.times.freq == offset(self.freq):
            return
        if isinstance(self.times, pd.RangeIndex) and self.times.step == 1:
            return
        if self.times.hasnans or not self.times.equals(grid(self.times[0], len(self.times), self.freq)):
            raise ValueError(
                f"series {self.name!r}: times do not go in steps of {self.freq!r}: see unisci.domains.series_frames, "
                "which puts rows on a grid"
            )

    def __len__(self) -> int:
        return len(self.times)

    def ahead(self, h: int) -> pd.Index:
        """(h,) the times after the last."""
        return grid(self.times[0], len(self) + h, self.freq)[len(self) :]

    def before(self, k: int) -> "Series":
        """The series without its last k steps; future covariates then reach k steps further. ValueError unless
        0 <= k < T."""
        if not 0 <= k < len(self):
            raise ValueError(f"series {self.name!r}: cannot leave out {k} of {len(self)} steps")
        end = len(self) - k
        past = None if self.past is None else self.past[:end]
        return replace(self, times=self.times[:end], y=self.y[:end], past=past)


def _check(series: str, name: str, value: np.ndarray, axes: int) -> None:
    if not isinstance(value, np.ndarray) or value.dtype != np.float64 or value.ndim != axes:
        found = f"{value.dtype} of {value.ndim}" if isinstance(value, np.ndarray) else f"a {type(value).__name__} of no"
        raise ValueError(f"series {series!r}: {name} is {found} axes: give a float64 array of {axes}")
    if np.isinf(value).any():
        raise ValueError(f"series {series!r}: {name} holds an infinite value: give nan where it is not known")


@dataclass(frozen=True)
class Columns:
    """How the user's table names things, so that results use the same names.

    id: None for a table without one; time: None for rows that were counted. wide: each column was a series of its own.
    id_type and time_type: narwhals' types that results are cast back to; None leaves them text and as read.
    """

    id: str | None = "unique_id"
    time: str | None = "ds"
    targets: tuple[str, ...] = ("y",)
    past: tuple[str, ...] = ()
    future: tuple[str, ...] = ()
    static: tuple[str, ...] = ()
    wide: bool = False
    id_type: object = None
    time_type: object = None


def _no_rejects() -> pd.DataFrame:
    return pd.DataFrame({"unique_id": [], "reason": []}, dtype=str)


@dataclass(frozen=True, eq=False)
class Panel:
    """Series of the same channels, frequency, time zone and covariates, by name or in the order of first appearance.

    rejects: one row (unique_id, reason) for each series that could not be used. backend: the library of the user's
    table as narwhals calls it, such as "polars". Raises ValueError where there is no series, or one is not like the
    first.
    """

    series: tuple[Series, ...]
    rejects: pd.DataFrame = field(default_factory=_no_rejects)
    columns: Columns = Columns()
    backend: str = "pandas"

    def __post_init__(self):
        if not self.series:
            raise ValueError("a panel needs at least one series")
        first = _kind(self.series[0])
        for s in self.series:
            for what, value in _kind(s).items():
                if value != first[what]:
                    raise ValueError(
                        f"series {s.name!r} has {what} {value} where {self.series[0].name!r} has {first[what]}: "
                        "a panel's series are alike"
                    )
        if len(self._places) < len(self):
            twice = next(s.name for k, s in enumerate(self.series) if self._places[s.name] != k)
            raise ValueError(f"series {twice!r} comes twice: give each its own name")

    @cached_property
    def _places(self) -> dict[str, int]:
        return {s.name: k for k, s in enumerate(self.series)}

    def __len__(self) -> int:
        return len(self.series)

    def __iter__(self) -> Iterator[Series]:
        return iter(self.series)

    def __getitem__(self, name: str) -> Series:
        """Raises KeyError for a name that no series has."""
        if name not in self._places:
            raise KeyError(f"no series is named {name!r}; there are {len(self)}, the first is {self.series[0].name!r}")
        return self.series[self._places[name]]

    @property
    def freq(self) -> str:
        return self.series[0].freq

    @property
    def channels(self) -> tuple[str, ...]:
        return self.series[0].channels

    def select(self, names: Sequence[str]) -> "Panel":
        """The panel of these series, in this order. Raises KeyError for a name that no series has."""
        return replace(self, series=tuple(self[name] for name in names))

    def before(self, k: int) -> "Panel":
        """Every series without its last k steps; those of k steps or fewer become rejects."""
        short = [(s.name, f"has {len(s)} steps: too few to leave out {k}") for s in self if len(s) <= k]
        rejects = pd.concat([self.rejects, pd.DataFrame(short, columns=list(self.rejects))], ignore_index=True)
        return replace(self, series=tuple(s.before(k) for s in self if len(s) > k), rejects=rejects)


def _kind(s: Series) -> dict[str, object]:
    widths = [None if value is None else value.shape[-1] for value in (s.past, s.future, s.static)]
    zone = str(getattr(s.times, "tz", None))
    return dict(zip(KIND, (s.channels, s.freq, zone, *widths), strict=True))


def values_frame(
    panel: Panel,
    numbers: Mapping[str, Sequence[np.ndarray]] | None = None,
    times: Sequence[pd.Index] | None = None,
) -> pd.DataFrame:
    """The columns unique_id, ds and one for each of numbers: numbers[column][i] (T_i,) is series i's, at times[i].

    numbers: the channels of y where None. times: those of the series where None; else one index a series, such as
    `series.ahead(h)`. Raises ValueError where lengths differ.
    """
    if numbers is None:
        numbers = {name: [s.y[:, k] for s in panel] for k, name in enumerate(panel.channels)}
    times = [s.times for s in panel] if times is None else list(times)
    lengths = [len(t) for t in times]
    for name, arrays in {"times": times, **numbers}.items():
        if [len(a) for a in arrays] != lengths or len(arrays) != len(panel):
            raise ValueError(f"{name!r} does not have one array for each of {len(panel)} series, each of its length")
    names = np.array([s.name for s in panel], object)
    frame = {"unique_id": pd.Series(np.repeat(names, lengths), dtype=str), "ds": times[0].append(times[1:])}
    return pd.DataFrame(frame | {name: np.concatenate(arrays) for name, arrays in numbers.items()})
