"""A grid for each sample: programs of one shape stacked, their coefficients gathered by sample.

program = stack([compile_solver(process, times, "dpm++2m") for times in grids], which)     # which (B,)
clean = run(denoise, x, program)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unisci.solvers.program import Program
from unisci.solvers.tape import Number, Row


def stack(programs: Sequence[Program], which: Tensor) -> Program:
    """One program in which sample i follows programs[which[i]]: times and coefficients are tensors (B,), made here.

    A shorter program waits at its end: its samples stay as they are
    while the denoiser, still called for all, is not listened to. Raises ValueError where the programs differ in process
    or in the stages of a step, or where `which` names one that is not there.
    """
    first = programs[0]
    if any(p.process != first.process for p in programs):
        raise ValueError(
            f"programs of {sorted({str(p.process) for p in programs})} cannot be stacked; take one process"
        )
    if which.numel() and not 0 <= int(which.min()) <= int(which.max()) < len(programs):
        raise ValueError(f"which must hold indices below {len(programs)}, got {int(which.min())} to {int(which.max())}")
    longest = max(programs, key=lambda p: len(p.steps))
    steps = []
    for k, like in enumerate(longest.steps):
        rows = [_as_long(p.steps[k] if k < len(p.steps) else (), like, p.grid[-1]) for p in programs]
        if any(tuple(r.time is None for r in rs) != tuple(r.time is None for r in like) for rs in rows):
            raise ValueError(f"step {k} has other stages in one program than in another; take one scheme for all")
        steps.append(tuple(_gather([r[j] for r in rows], which) for j in range(len(like))))
    name = f"{first.name} by sample"
    reached = [[p.grid[min(k, len(p.steps))] for p in programs] for k in range(len(longest.grid))]
    grid = tuple(_column(times, which) for times in reached)
    return Program(name, first.process, grid, tuple(steps), min(p.order for p in programs))


def _as_long(rows: Sequence[Row], like: Sequence[Row], end: float) -> tuple[Row, ...]:
    """The rows of a step, with rows between them that change nothing, so that they evaluate where `like` does (there at
    a time above 0). Rows that look further back than the newest point must come first."""
    out, left = [], list(rows)
    for r in like:
        fits = left and (left[0].time is None) == (r.time is None)
        fits = fits and (len(out) == len(rows) - len(left) or all(back == 0 for back, _ in left[0].points))
        waiting = Row(None if r.time is None else max(end, 1e-3), ((0, 1.0),), (), None)
        out.append(left.pop(0) if fits else waiting)
    return (*out, *left)


def _column(values: Sequence[float], which: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=which.device)[which]


def _gather(rows: Sequence[Row], which: Tensor) -> Row:
    def terms(part: int) -> tuple[tuple[int, Number], ...]:
        backs = sorted({back for row in rows for back, _ in row[part]})
        return tuple((back, _column([dict(row[part]).get(back, 0.0) for row in rows], which)) for back in backs)

    time = None if rows[0].time is None else _column([row.time for row in rows], which)
    noise = None if all(row.noise is None for row in rows) else _column([row.noise or 0.0 for row in rows], which)
    return Row(time, terms(1), terms(2), noise)
