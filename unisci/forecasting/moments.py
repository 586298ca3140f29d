"""What the covariates, static numbers and phases of a panel are like, which puts them in units of their own."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from unisci.domains.calendar import step_days
from unisci.domains.series import Panel, Series

TIMES = 3  # that a season must have been seen
PERIODS = (1.0, 7.0, 365.25)  # days, of the phases
ROUNDING = 1e-9  # of its mean, below which a column does not vary


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and standard deviation of the covariates (K,), those of the past first, of the static numbers (Q,), and of
    the phases (P,): 0 and 1, or inf for a period, such as the year, that no series of training holds TIMES times. The
    phase of such a period tells which day of training it is, and is learnt by heart."""

    covariates: tuple[Tensor, Tensor]
    static: tuple[Tensor, Tensor]
    phases: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, panel: Panel) -> "Moments":
        """Those of all that is told; a column that does not vary keeps its unit."""
        rows = np.concatenate([covariates(s, 0) for s in panel])
        return cls(_moments(rows), _moments(statics(panel)), _phase_moments(panel))

    def without(self, other: "Moments") -> "Moments":
        """The same with the phases alone that both have."""
        return replace(self, phases=(self.phases[0], torch.maximum(self.phases[1], other.phases[1])))


def _phase_moments(panel: Panel) -> tuple[Tensor, Tensor]:
    days = 0.0 if panel.freq == "1" else max(len(s) for s in panel) * step_days(panel.freq)
    kept = torch.tensor([days >= TIMES * period for period in PERIODS], dtype=torch.bool).repeat_interleave(2)
    return torch.zeros(len(kept), dtype=torch.float64), torch.where(kept, 1.0, torch.inf).double()


def _moments(rows: np.ndarray) -> tuple[Tensor, Tensor]:
    told = ~np.isnan(rows)
    count = np.maximum(told.sum(0), 1)
    mean = np.where(told, rows, 0.0).sum(0) / count
    std = np.sqrt(np.where(told, (rows - mean) ** 2, 0.0).sum(0) / count)
    return torch.from_numpy(mean), torch.from_numpy(np.where(std > ROUNDING * np.abs(mean), std, 1.0))


def resized(rows: np.ndarray, length: int) -> np.ndarray:
    """rows (T, K), cut or followed by rows of nan, (length, K)."""
    out = np.full((length, rows.shape[1]), np.nan)
    out[: min(length, len(rows))] = rows[:length]
    return out


def covariates(series: Series, ahead: int) -> np.ndarray:
    """(T + ahead, P + K): those of the past, then those known ahead."""
    parts = [resized(v, len(series) + ahead) for v in (series.past, series.future) if v is not None]
    return np.concatenate(parts, 1) if parts else np.zeros((len(series) + ahead, 0))


def statics(panel: Panel) -> np.ndarray:
    """(S, Q)."""
    return np.stack([np.zeros(0) if s.static is None else s.static for s in panel])
