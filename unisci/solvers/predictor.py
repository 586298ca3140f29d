"""A learned predictor of a schedule's quality (S^3, Liu et al., arXiv 2312.07243): which schedules deserve a run.

Kernel ridge regression of the log error on the schedule's grid and decisions; only its ranking is used, and judged by
Kendall's tau.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam
from unisci.solvers.unified import FACTORS, FORMS, Decision


class Schedule(NamedTuple):
    """Times (n + 1) and the decisions of the n steps."""

    times: tuple[float, ...]
    decisions: tuple[Decision, ...]


def features(process: Gaussian, schedule: Schedule) -> Tensor:
    """(F,): lam at the times, the log of their gaps, and each decision as indicators; the same F for n steps."""
    at = lam(process, torch.tensor(schedule.times, dtype=torch.float64)).clamp(-10, 10)
    choices = [
        [float(d.order == p) for p in (1, 2, 3, 4)]
        + [float(d.form is f) for f in FORMS]
        + [float(d.factor is f) for f in FACTORS]
        + [float(d.corrected)]
        for d in schedule.decisions
    ]
    return torch.cat([at, at.diff().clamp(min=1e-3).log(), torch.tensor(choices, dtype=torch.float64).flatten()])


@dataclass(frozen=True, eq=False)
class Predictor:
    """f(z) = mean + sum_i weights_i exp(-|z - z_i|^2 / (2 width^2)) on standardised features z."""

    centre: Tensor
    spread: Tensor
    points: Tensor
    weights: Tensor
    mean: float
    width: float

    @classmethod
    def fit(cls, process: Gaussian, seen: Sequence[tuple[float, Schedule]], ridge: float = 0.1) -> "Predictor":
        """From (error, schedule) pairs; runs that were not finite count as the worst that was."""
        errors = torch.tensor([e for e, _ in seen], dtype=torch.float64)
        finite = errors.isfinite()
        worst = errors[finite].max().item() if bool(finite.any()) else 1.0
        y = errors.nan_to_num(posinf=worst).clamp(max=1.0).log()
        z = torch.stack([features(process, schedule) for _, schedule in seen])
        centre, spread = z.mean(0), z.std(0).clamp(min=1e-6) if len(z) > 1 else torch.ones_like(z[0])
        z = (z - centre) / spread
        width = math.sqrt(z.shape[1])
        gram = torch.exp(-torch.cdist(z, z).square() / (2 * width**2))
        weights = torch.linalg.solve(gram + ridge * torch.eye(len(z), dtype=z.dtype), y - y.mean())
        return cls(centre, spread, z, weights, y.mean().item(), width)

    def __call__(self, z: Tensor) -> float:
        """The predicted log error of a schedule's features (F,)."""
        z = (z - self.centre) / self.spread
        kernel = torch.exp(-(self.points - z).square().sum(1) / (2 * self.width**2))
        return self.mean + (kernel @ self.weights).item()


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau: concordant minus discordant pairs over all pairs of two rankings of the same things."""
    x, y = (torch.tensor(v, dtype=torch.float64) for v in (a, b))
    n = len(x)
    agree = (x[:, None] - x).sign() * (y[:, None] - y).sign()
    return agree.sum().item() / (n * (n - 1))
