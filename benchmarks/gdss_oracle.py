"""Solvers of the reverse system on Gaussian data whose denoiser is exact: (X, A) ~ N(0, C), one number each.

    python -m benchmarks.gdss_oracle

A step is a linear map of the state and of the noises it draws, so the covariance that it leaves is computed, not
sampled: `covariance` feeds the solver the unit vectors of state and noise, one a row of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from unisci.batch import Field, Schema
from unisci.processes.gaussian import VP, Gaussian
from unisci.solvers.program import compile_solver
from unisci.solvers.s4 import S4, SecondOrderS4
from unisci.solvers.sample import Solver
from unisci.state import State, Time, pick

NAMES = ("X", "A")
C = torch.tensor([[2.0, 0.9], [0.9, 0.5]], dtype=torch.float64)
STEPS = (100, 200, 400, 800)
DRAWS = 3  # the most draws of a field in a step


class JointGaussian:
    """E[X, A | X_t, A_t] for (X, A) ~ N(0, C), each field (B, 1) with its own process."""

    schema: ClassVar[Schema] = {"X": Field("whole", (1,)), "A": Field("whole", (1,))}

    def __init__(self, process: dict[str, Gaussian], covariance: Tensor = C):
        self.process, self.covariance = process, covariance

    def marginal(self, t: Time) -> Tensor:
        """The covariance of (X_t, A_t), (2, 2)."""
        alpha, sigma = self._levels(t)
        return alpha[:, None] * self.covariance * alpha + torch.diag(sigma**2)

    def __call__(self, x: State, t: Time) -> State:
        alpha, _ = self._levels(t)
        gain = self.covariance * alpha @ torch.linalg.inv(self.marginal(t))
        out = torch.cat([x[k] for k in NAMES], 1) @ gain.T
        return {k: out[:, i : i + 1] for i, k in enumerate(NAMES)}

    def _levels(self, t: Time) -> tuple[Tensor, Tensor]:
        levels = [self.process[k].level(pick(t, k)) for k in NAMES]
        return torch.stack([a for a, _ in levels]), torch.stack([s for _, s in levels])


@dataclass(frozen=True)
class UnitNoise:
    """An Rng of a batch whose row 2 + 2 k + i has noise 1 in draw k of field i, and no other noise."""

    def at(self, stream: int) -> "UnitNoise":
        return self

    def normal(self, field: str, step: int, shape: tuple[int, ...], axes: int = 1) -> Tensor:
        out = torch.zeros(shape, dtype=torch.float64)
        out[2 + 2 * step + NAMES.index(field)] = 1.0
        return out


def covariance(solver: Solver, oracle: JointGaussian, times: Sequence[Tensor]) -> Tensor:
    """The covariance (2, 2) of the solver's samples at the last time, started from the marginal at the first."""
    p, memory = oracle.marginal(times[0]), None
    rows = torch.cat([torch.eye(2, dtype=torch.float64), torch.zeros(2 * DRAWS, 2, dtype=torch.float64)])
    for t, s in pairwise(times):
        x = {k: rows[:, i : i + 1] for i, k in enumerate(NAMES)}
        x, memory = solver.step(oracle, x, t, s, memory, UnitNoise())
        moved = torch.cat([x[k] for k in NAMES], 1)
        p = moved[:2].T @ p @ moved[:2] + moved[2:].T @ moved[2:]
    return p


def error(solver: Solver, oracle: JointGaussian, times: Sequence[Tensor]) -> float:
    """max |covariance - exact covariance| at the last of the times."""
    return float((covariance(solver, oracle, times) - oracle.marginal(times[-1])).abs().max())


def solvers(process: Gaussian, times: Tensor) -> dict[str, Solver]:
    """Those of the table, for fields of one process."""
    return {
        "Euler-Maruyama": compile_solver(process, times, "euler_maruyama"),
        "S4, released variance": S4(legacy=True),
        "S4": S4(),
        "S4, second order": SecondOrderS4(),
    }


def table(steps: Sequence[int] = STEPS) -> str:
    """Errors at t = 1e-3 under VP(.1, 20) from t = 1, and the order between the last two."""
    oracle = JointGaussian({"X": VP(), "A": VP()})
    lines = [f"{'steps':22s}" + "".join(f"{n:10d}" for n in steps) + f"{'order':>8s}"]
    errors: dict[str, list[float]] = {}
    for n in steps:
        times = torch.linspace(1, 1e-3, n + 1, dtype=torch.float64)
        for name, solver in solvers(VP(), times).items():
            errors.setdefault(name, []).append(error(solver, oracle, times))
    for name, e in errors.items():
        order = torch.tensor(e[-2] / e[-1]).log2()
        lines.append(f"{name:22s}" + "".join(f"{v:10.5f}" for v in e) + f"{float(order):8.2f}")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
