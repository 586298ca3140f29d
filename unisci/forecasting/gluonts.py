"""A forecaster as a GluonTS predictor (Alexandrov et al., arXiv 1906.05264), and its samples as GluonTS's evaluators
read them. GluonTS itself is not needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pandas as pd

from unisci.domains.calendar import FIXED, alias

if TYPE_CHECKING:
    from unisci.forecasting.forecast import Forecast

BATCH = 256  # series forecast at once

Entry = dict[str, Any]  # "start" pd.Period, "target" (T,) or (C, T), "item_id" if there is one


class Forecaster(Protocol):
    """What a predictor needs of a forecaster."""

    def predict(
        self, h: int, df: pd.DataFrame, freq: str | None = None, *, n_paths: int = 100, seed: int = 0
    ) -> Forecast: ...


@dataclass(frozen=True, eq=False)
class SampleForecast:
    """Samples of the steps after a series, with the attributes of GluonTS's class of this name.

    samples (S, h), or (S, h, C). A quantile is the sample whose rank is nearest to q (S - 1), as GluonTS has it.
    """

    samples: np.ndarray
    start_date: pd.Period
    item_id: str | None = None
    info: dict[str, str] | None = None

    @property
    def prediction_length(self) -> int:
        """h."""
        return self.samples.shape[1]

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.samples)

    @property
    def freq(self):
        return self.start_date.freq

    @property
    def index(self) -> pd.PeriodIndex:
        """The h periods."""
        return pd.period_range(self.start_date, periods=self.prediction_length, freq=self.start_date.freq)

    @property
    def mean(self) -> np.ndarray:
        """(h,) or (h, C)."""
        return self.samples.mean(0)

    @property
    def median(self) -> np.ndarray:
        """(h,) or (h, C)."""
        return self.quantile(0.5)

    def quantile(self, q: float | str) -> np.ndarray:
        """(h,) or (h, C) of a level: 0.1, "0.1", or "p10". Raises ValueError outside [0, 1]."""
        level = float(q[1:]) / 100 if isinstance(q, str) and q.startswith("p") else float(q)
        if not 0 <= level <= 1:
            raise ValueError(f"a quantile lies between 0 and 1, got {q!r}")
        return self._sorted[round((self.num_samples - 1) * level)]

    def dim(self) -> int:
        """C."""
        return 1 if self.samples.ndim == 2 else self.samples.shape[2]

    def __getitem__(self, name: str) -> np.ndarray:
        """ "mean", "median" or a quantile."""
        return getattr(self, name) if name in ("mean", "median") else self.quantile(name)

    @cached_property
    def _sorted(self) -> np.ndarray:
        return np.sort(self.samples, axis=0)


@dataclass(frozen=True)
class Predictor:
    """forecaster.predict as GluonTS's `Predictor.predict`. targets: the names of the C channels of the forecaster's
    table. Raises ValueError for a prediction_length below 1."""

    forecaster: Forecaster
    prediction_length: int
    targets: tuple[str, ...] = ("y",)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.prediction_length < 1:
            raise ValueError(f"prediction_length must be at least 1, got {self.prediction_length}")

    def predict(self, dataset: Iterable[Entry], num_samples: int = 100) -> Iterator[SampleForecast]:
        """A SampleForecast for each entry, in their order; of one that cannot be forecast the samples are nan, and info
        says why. Targets may hold nan; covariates of entries are not used. Raises ValueError for targets of another
        number of channels, and for series that differ in frequency.
        """
        entries, done = iter(dataset), 0
        while chunk := list(islice(entries, BATCH)):
            yield from self._chunk(chunk, done, num_samples)
            done += len(chunk)

    def _chunk(self, chunk: list[Entry], done: int, num_samples: int) -> Iterator[SampleForecast]:
        # An item may come twice, with its history cut at several points, so that its number is its name.
        freq, names = chunk[0]["start"].freqstr, [str(done + k) for k in range(len(chunk))]
        other = next((e["start"].freqstr for e in chunk if e["start"].freqstr != freq), freq)
        if other != freq:
            raise ValueError(f"series differ in frequency, {freq!r} and {other!r}: predict them apart")
        df = pd.concat([self._rows(e, name) for e, name in zip(chunk, names, strict=True)], ignore_index=True)
        found = self.forecaster.predict(
            self.prediction_length, df, freq=alias(freq), n_paths=num_samples, seed=self.seed
        )
        draws = {s.name: d for s, d in zip(found.panel, found.draws, strict=True)}
        rejects = found.panel.rejects
        reasons = dict(zip(rejects["unique_id"], rejects["reason"], strict=True))
        missing = np.full((num_samples, self.prediction_length, len(self.targets)), np.nan)
        for entry, name in zip(chunk, names, strict=True):
            samples = draws.get(name, missing)
            yield SampleForecast(
                samples=samples[..., 0] if np.ndim(entry["target"]) == 1 else samples,
                start_date=entry["start"] + np.shape(entry["target"])[-1],
                item_id=entry.get("item_id"),
                info=None if name in draws else {"reason": reasons.get(name, "was not forecast")},
            )

    def _rows(self, entry: Entry, name: str) -> pd.DataFrame:
        target = np.asarray(entry["target"], float)
        values = np.atleast_2d(target)
        if target.ndim not in (1, 2) or len(values) != len(self.targets):
            raise ValueError(
                f"the target of item {entry.get('item_id', name)!r} has shape {target.shape}: with targets="
                f"{self.targets} it needs {len(self.targets)} channels, (C, T)"
            )
        times = timestamps(entry["start"], values.shape[1])
        return pd.DataFrame({"unique_id": name, "ds": times, **dict(zip(self.targets, values, strict=True))})


def timestamps(start: pd.Period, steps: int) -> pd.DatetimeIndex:
    """The times (steps,) on the grid of the frequency that `alias` makes of a period's: of weeks, months, quarters and
    years the last days, else where periods begin."""
    whole = pd.period_range(start, periods=steps, freq=start.freq)
    if start.freq.base.freqstr in (*FIXED, "D", "B"):
        return whole.to_timestamp(how="start")
    single = pd.PeriodIndex.from_ordinals(whole.asi8, freq=start.freq.base)
    return single.to_timestamp(how="end").normalize()
