"""Anomalies by reconstruction from partial noise (the survey of Kazerouni et al., arXiv 2211.07804; AnoDDPM, Wyatt et
al., CVPRW 2022): noise an object to some level and solve back; what the model does not know does not come back.

    x_t = alpha x + sigma eps,     r = solve(x_t, t -> 0),     A(x) = mean_j d(x, r_j) / q_j

The level decides: too little noise copies the anomaly, too much loses the object. Hence a ladder of levels j, each in
units of q_j, a quantile of the distances of objects that are known to be normal and were not trained on.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Denoise, Solver, perturbed, sample
from unisci.solvers.score import counted, total
from unisci.state import State, Time, fieldwise

Distance = Callable[[State, State], Tensor]  # of an object from its reconstruction, (B,)


class Rung(NamedTuple):
    """A level of the ladder: the times from it down to the data, and the solver for them."""

    times: Sequence[Time]
    solver: Solver


def ladder(process: Gaussian, levels: Sequence[float], steps: int = 10, name: str = "dpm++2m") -> list[Rung]:
    """Rungs at the times `levels`, each with a program of `steps` steps, for a state of this one process; others are
    Rung(times, solver) by hand, as Rung(token times, Ancestral()). Raises ValueError as `grid` and `compile_solver`."""
    programs = [compile_solver(process, grid(process, steps, start=t), name) for t in levels]
    return [Rung(program.times, program) for program in programs]


def reconstruct(denoise: Denoise, x: State, rung: Rung, rng: Rng) -> State:
    """x noised to the rung's first time and solved back."""
    noised = perturbed(denoise, x, rung.times[0], rng.at(0))
    return sample(denoise, noised, rung.times, rung.solver, rng.at(1))


def difference(x: State, y: State, axes: Any = 0, mask: Tensor | None = None) -> Tensor:
    """The mean squared difference, or of classes the share that differ, (B,); fields are added.

    axes: site axes by field. mask: (B, N), the sites that exist; others do not count, pairs of sites count once. To set
    them: partial(difference, axes={"atom": 1, "bond": 2}, mask=batch.mask).
    """

    def mean(x: Tensor, y: Tensor, counts: Tensor) -> Tensor:
        apart = (x - y).square() if x.is_floating_point() else (x != y).float()
        return total(counts * apart) / total(counts).clamp(min=1)

    means = fieldwise(mean, x, y, counted(x, axes, mask))
    return sum(means.values()) if isinstance(means, dict) else means


def anomaly_scores(
    denoise: Denoise,
    x: State,
    rungs: Sequence[Rung],
    rng: Rng,
    draws: int = 1,
    distance: Distance = difference,
) -> Tensor:
    """The distance of x from its reconstruction, mean over `draws`, from every rung, (B, rungs).

    Draw m from rung j is of the stream rng.at(j).at(m). Raises ValueError for no rung or no draw.
    """
    if not rungs or draws < 1:
        raise ValueError(f"scores need one rung and one draw or more, got {len(rungs)} and {draws}")
    columns = []
    for j, rung in enumerate(rungs):
        apart = [distance(x, reconstruct(denoise, x, rung, rng.at(j).at(m))) for m in range(draws)]
        columns.append(sum(apart) / draws)
    return torch.stack(columns, 1)


@dataclass(frozen=True, eq=False)
class Calibrated:
    """Scores in units of those of normal objects. unit (L,): q_j; held (n,): their A, ascending."""

    unit: Tensor
    held: Tensor

    @classmethod
    def fit(cls, scores: Tensor, quantile: float = 0.95) -> "Calibrated":
        """From the scores (n, L) of normal objects that were not trained on. Raises ValueError for fewer than 2, scores
        that are not finite, and a level whose quantile is 0."""
        if len(scores) < 2 or not bool(scores.isfinite().all()):
            raise ValueError(f"calibration needs 2 rows or more of finite scores, got {tuple(scores.shape)}")
        unit = torch.quantile(scores, quantile, 0)
        if not bool((unit > 0).all()):
            empty = (unit <= 0).nonzero()[:, 0].tolist()
            raise ValueError(f"normal objects score 0 at levels {empty}, which tell nothing: raise their noise")
        return cls(unit, (scores / unit).mean(1).sort().values)

    def __call__(self, scores: Tensor) -> Tensor:
        """A (B,) of scores (B, L): 1 is as far off as the chosen quantile of normal objects at every level."""
        return (scores / self.unit).mean(1)

    def p_value(self, scores: Tensor) -> Tensor:
        """(1 + how many of n normal objects are as far off or farther) / (n + 1), (B,): at most a share p of normal
        objects gets p or less (nearly, as they set the unit too)."""
        n = len(self.held)
        return (1 + n - torch.searchsorted(self.held, self(scores))) / (n + 1)


def auroc(normal: Tensor, anomalous: Tensor) -> float:
    """The chance that an anomaly scores higher than a normal object, ties counting half: the area under the ROC curve.
    Scores (n,), (m,). Raises ValueError where one is empty or not finite."""
    if not (normal.numel() and anomalous.numel() and bool(normal.isfinite().all() & anomalous.isfinite().all())):
        raise ValueError(f"auroc needs finite scores of both kinds, got {normal.numel()} and {anomalous.numel()}")
    normal = normal.sort().values
    below, upto = (torch.searchsorted(normal, anomalous.contiguous(), right=right).double() for right in (False, True))
    return ((below + upto) / 2).mean().item() / len(normal)


class Ensemble(NamedTuple):
    """Mean and standard deviation of each entry."""

    mean: State
    std: State


def ensemble(draw: Callable[[Rng], State], rng: Rng, members: int) -> Ensemble:
    """Per-entry uncertainty from `members` draws of continuous fields: ensemble(partial(reconstruct, denoise, x, rung),
    rng, 20), or of any posterior sampler. Draw m gets rng.at(m); one is held at a time. Raises ValueError for
    fewer than 2 members."""
    if members < 2:
        raise ValueError(f"a spread needs 2 members or more, got {members}")
    mean = draw(rng.at(0))
    squares = fieldwise(torch.zeros_like, mean)
    for m in range(1, members):
        x = draw(rng.at(m))
        moved = fieldwise(lambda mean, x, m=m: mean + (x - mean) / (m + 1), mean, x)
        squares = fieldwise(lambda s, x, old, new: s + (x - old) * (x - new), squares, x, mean, moved)
        mean = moved
    return Ensemble(mean, fieldwise(lambda s: (s / (members - 1)).sqrt(), squares))
