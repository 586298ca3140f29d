"""S^3, solver schedule search (Liu et al., arXiv 2312.07243): the program that ends closest to a fine reference within
a number of calls, found on common noises and judged on noises that the search never saw.

1. Evolution over `Schedule`s, a grid and one `Decision` for each step; a learned predictor of a schedule's error
   (`unisci.solvers.predictor`) picks which children are worth an evaluation.
2. Refinement (`unisci.solvers.refine`): the best schedule's table, fitted in all its coefficients and times.

A searched program belongs to its denoiser. Fitness is the distance to the ODE's endpoint, not to the data.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam, time
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.predictor import Predictor, Schedule, features
from unisci.solvers.program import Program, trace
from unisci.solvers.refine import Problem, Start, refine
from unisci.solvers.sample import Denoise
from unisci.solvers.unified import FACTORS, FORMS, Decision, unified, uniform

PARENTS, CHILDREN = 12, 8
STARTS = (0.95, 0.85, 0.75, 0.6)
TAKEN = (0.75, 0.6, 0.4, 0.25)  # with a start in closed form


def compile_schedule(process: Gaussian, schedule: Schedule) -> Program:
    """The program of a schedule."""
    order = min(d.order for d in schedule.decisions)
    return trace("unified", unified(schedule.decisions), order, process, torch.tensor(schedule.times).double())


def founders(process: Gaussian, nfe: int, starts: Sequence[float] = STARTS) -> list[Schedule]:
    """The published choices on the usual grids, which the search starts from. Starting below t = 1 skips a stretch in
    which the denoiser says nothing; ending above 0 saves the call of the last jump."""
    out = []
    for kind in ("lambda", "time", "karras"):
        for start in starts:
            for end in (0.05, 0.02, 0.005):
                times = tuple(grid(process, nfe, kind, start, end).tolist())
                for form in FORMS:
                    for order in (1, 2, 3):
                        choice = Decision(order, form, FACTORS[(order + 1) % 3], corrected=True)
                        out.append(Schedule(times, tuple(uniform(nfe, choice))))
    return out


class Dice:
    """Host-side uniforms of a search, from the counter-based stream of its seed."""

    def __init__(self, rng: Rng):
        self.rng, self.k = Rng(rng.seed, torch.zeros(1, dtype=torch.int64)), 0

    def floats(self, n: int) -> list[float]:
        self.k += 1
        return self.rng.uniform("search", self.k, (1, n), 0)[0].tolist()

    def integer(self, n: int) -> int:
        return int(self.floats(1)[0] * n)


def mutate(process: Gaussian, mother: Schedule, father: Schedule, dice: Dice) -> Schedule:
    """A child: decisions of either parent, a redrawn decision now and then, times jittered in lam."""
    which, times, decisions = dice.floats(4), mother.times, list(mother.decisions)
    n = len(decisions)
    if which[0] < 0.3:
        decisions = [b if u < 0.5 else a for a, b, u in zip(decisions, father.decisions, dice.floats(n), strict=True)]
    if which[1] < 0.3:
        times = father.times
    if which[2] < 0.5:
        k = dice.integer(n)
        order = 1 + dice.integer(min(4, k + 1))
        decisions[k] = Decision(order, FORMS[dice.integer(2)], FACTORS[dice.integer(3)], dice.integer(4) > 0)
    if which[3] < 0.7:
        at = lam(process, torch.tensor(times, dtype=torch.float64))
        gaps = at.diff()
        width = 0.4 * dice.floats(1)[0]
        shift = (dice.floats(1)[0] - 0.5) * width
        gaps = gaps * torch.exp((torch.tensor(dice.floats(n), dtype=torch.float64) - 0.5) * 2 * width)
        at = at[0] + shift + torch.cat([torch.zeros(1), gaps.cumsum(0)]).double()
        moved = time(process, at).clamp(1e-4, 1.0)
        times = tuple(moved.tolist()) if bool((moved.diff() < 0).all()) else times
    return Schedule(times, tuple(decisions))


def evolve(problem: Problem, nfe: int, budget: int, dice: Dice) -> list[tuple[float, Schedule]]:
    """(error, schedule) of all that `budget` evaluations have seen, best first."""
    process = problem.process
    first = founders(process, nfe, STARTS if problem.start is None else TAKEN)
    picked = sorted(range(len(first)), key=dice.floats(len(first)).__getitem__)[: max(1, budget // 2)]
    seen = [(problem.error(compile_schedule(process, first[i])), first[i]) for i in picked]
    while len(seen) < budget:
        seen.sort(key=lambda pair: pair[0])
        parents = [schedule for _, schedule in seen[:PARENTS]]
        pairs = [(dice.integer(len(parents)), dice.integer(len(parents))) for _ in range(4 * CHILDREN)]
        children = [mutate(process, parents[a], parents[b], dice) for a, b in pairs]
        predictor = Predictor.fit(process, seen)
        children.sort(key=lambda child: predictor(features(process, child)))
        for child in children[: min(CHILDREN, budget - len(seen))]:
            seen.append((problem.error(compile_schedule(process, child)), child))
    return sorted(seen, key=lambda pair: pair[0])


def search(
    denoise: Denoise,
    process: Gaussian,
    noises: Tensor,
    reference: Tensor,
    nfe: int,
    budget: int,
    rng: Rng,
    start: Start | None = None,
    model: str = "",
) -> Program:
    """Search a program of `nfe` calls that takes noises (n, ...) at t = 1 to reference (n, ...), the endpoints of a
    fine solve of the same noises.

    The first half of the noises is searched on, the other half chooses among the best found: some samples end far off
    because they took another mode, so take hundreds or more. budget: evaluations of a program on half of the noises, a
    quarter of them for evolution. start: takes x_1 to the program's first time in closed form. model: kept in the
    program, see `Program.model`. Raises ValueError where nfe < 1, budget < 8, noises and reference do
    not match or are not finite, or the denoiser has another process or several fields.
    """
    _check(denoise, process, noises, reference, nfe, budget)
    train, held_out = (
        Problem(denoise, process, noises[half], reference[half], start)
        for half in (slice(None, len(noises) // 2), slice(len(noises) // 2, None))
    )
    with torch.no_grad():
        seen = evolve(train, nfe, budget // 4, Dice(rng))
        best = [replace(compile_schedule(process, schedule), model=model) for _, schedule in seen[:4]]
        best += refine(best[0], train, budget - budget // 4, model)
        return min(best, key=held_out.error)


def _check(denoise: Denoise, process: Gaussian, noises: Tensor, reference: Tensor, nfe: int, budget: int) -> None:
    if nfe < 1 or budget < 8:
        raise ValueError(f"a search needs nfe >= 1 and budget >= 8, got nfe = {nfe}, budget = {budget}")
    if isinstance(noises, dict) or isinstance(denoise.process, dict):
        raise ValueError("a search takes one field as a bare tensor; wrap the denoiser to show it one field")
    if denoise.process != process:
        raise ValueError(f"the denoiser has {denoise.process}, the search is for {process}; pass the denoiser's own")
    if noises.shape != reference.shape or len(noises) < 4:
        raise ValueError(
            f"noises {tuple(noises.shape)} and reference {tuple(reference.shape)}: give one shape, of 4 samples or more"
        )
    if not bool(noises.isfinite().all() and reference.isfinite().all()):
        raise ValueError("noises or reference are not finite; solve the reference again with more steps")
