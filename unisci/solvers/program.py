"""A linear solver is a table. `compile_solver` traces a formula (`unisci.solvers.formulas`) on linear forms over past
points, denoiser outputs and noises into a frozen `Program`; `run` executes any of them, without looking at data.

    times = grid(VP(), 20)
    clean = run(denoise, VP().prior(like, rng), compile_solver(VP(), times, "dpm++2m"))
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian
from unisci.processes.mean_reverting import Shifted
from unisci.rng import Rng
from unisci.solvers.blame import blame, fields
from unisci.solvers.dpm_solver import Formula
from unisci.solvers.formulas import SCHEMES, advance
from unisci.solvers.level import levels
from unisci.solvers.sample import Denoise, processes, standard_normal
from unisci.solvers.tape import SINGULAR, Form, Number, Row, Tape
from unisci.state import State, Time, pad


class Past(NamedTuple):
    """What a program carries from step to step: how many steps are done, and the points and outputs still needed,
    newest first."""

    done: int
    points: tuple[State, ...]
    cleans: tuple[State, ...]


@dataclass(frozen=True)
class Program:
    """A compiled solver, which is a `Solver`: n steps over `grid` (n + 1 times), each the rows of its stages.

    Coefficients are float64. A program belongs to one process; fields of different processes step side by side in
    `Together`, one program each, on equal grids and with one evaluation a step. `model` says what a searched program
    was searched for, in any words (a digest of the weights, a guidance scale); empty: it fits any denoiser.
    """

    name: str
    process: Gaussian
    grid: tuple[Number, ...]
    steps: tuple[tuple[Row, ...], ...]
    order: int
    model: str = ""

    @property
    def times(self) -> Tensor:
        """The grid as a float64 tensor (n + 1,) on the CPU, for `sample`; (n + 1, B) where each sample has its own."""
        if isinstance(self.grid[0], Tensor):
            return torch.stack(self.grid)
        return torch.tensor(self.grid, dtype=torch.float64)

    @cached_property
    def nfe(self) -> int:
        """The number of denoiser evaluations of a whole run."""
        return sum(row.time is not None for rows in self.steps for row in rows)

    @cached_property
    def stages(self) -> int:
        """The largest number of evaluations in a step."""
        return max(sum(row.time is not None for row in rows) for rows in self.steps)

    @cached_property
    def stochastic(self) -> bool:
        """Whether any row draws noise."""
        return any(row.noise is not None for rows in self.steps for row in rows)

    @cached_property
    def depth(self) -> tuple[int, int]:
        """How many points and how many denoiser outputs must be kept."""
        rows = [row for rows in self.steps for row in rows]
        return tuple(max((1 + back for row in rows for back, _ in row[i]), default=1) for i in (1, 2))

    def cooled(self, temperature: float) -> "Program":
        """The same steps with so many times the noise. Started at so many times the noise too, a linear denoiser's
        samples have that many times their distance from its mean, exactly."""
        cool = lambda row: row if row.noise is None else row._replace(noise=temperature * row.noise)
        return replace(self, steps=tuple(tuple(cool(row) for row in rows) for rows in self.steps))

    def step(
        self, denoise: Denoise, x: State, t: Time, s: Time, memory: Past | None, rng: Rng | None
    ) -> tuple[State, Past]:
        """The next step of the program, whose times t and s must be. Raises ValueError where they are not (on the CPU;
        reading them from another device would wait for it), where processes differ, and where noise has no rng."""
        if memory is None:
            self.check(denoise, x, rng)
        k = 0 if memory is None else memory.done
        if k >= len(self.steps):
            raise ValueError(f"{self.name} has {len(self.steps)} steps and all are done; compile a longer grid")
        self._check_time(k, t)
        self._check_time(k + 1, s)
        return self.advance(denoise, x, memory, rng)

    def advance(self, denoise: Denoise, x: State, memory: Past | None, rng: Rng | None) -> tuple[State, Past]:
        """The next step, unchecked."""
        k, older, cleans = memory or (0, (), ())
        points, (keep_points, keep_cleans) = (x, *older), self.depth
        for stage, row in enumerate(self.steps[k]):
            if row.time is not None:
                cleans = (denoise(points[0], _time(row.time, x)), *cleans[: keep_cleans - 1])
            terms = [_times(c, points[back]) for back, c in row.points]
            terms += [_times(c, cleans[back]) for back, c in row.cleans]
            if row.noise is not None:
                terms.append(_times(row.noise, standard_normal(x, rng, stage, denoise.schema)))
            points = (_total(terms), *points[:keep_points])
        return points[0], Past(k + 1, points[1:keep_points], cleans)

    def check(self, denoise: Denoise, x: State, rng: Rng | None) -> None:
        """Raise ValueError where `denoise` has another process, or noise lacks its rng or the layout of the fields."""
        for name, process in processes(denoise).items():
            if process is not self.process and process != self.process:
                fix = "compile one program for each process and step them in Together"
                if isinstance(process, Shifted):
                    fix = "compile for its base and step in Framed(program)"
                raise ValueError(
                    f"{self.name} was compiled for {self.process}, but field {name!r} has {process}; {fix}"
                )
        if self.stochastic and rng is None:
            raise ValueError(f"{self.name} draws noise; pass rng=Rng(seed, ids)")
        if self.stochastic and isinstance(x, dict) and denoise.schema is None:
            raise ValueError(f"{self.name} draws noise for fields {sorted(x)}; denoise.schema must give their layout")

    def _check_time(self, k: int, t: Time) -> None:
        for given in t.values() if isinstance(t, dict) else (t,):
            known = not isinstance(given, Tensor) or given.device.type == "cpu"
            if known and bool((torch.as_tensor(given, dtype=torch.float64) - self.grid[k]).abs().max() > 1e-6):
                raise ValueError(f"time {k} of {self.name} is {self.grid[k]}, got {given}; pass program.times")


def _time(t: Number, x: State) -> Tensor:
    """t as a tensor on x's device, () or (B,)."""
    like = next(iter(x.values())) if isinstance(x, dict) else x
    return t.to(like.dtype) if isinstance(t, Tensor) else _scalar(t, like.dtype, like.device)


@lru_cache(maxsize=4096)
def _scalar(t: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Filled in place: a copy from the host would wait for the device. Kept, as a run asks for the same again."""
    with torch.inference_mode(False):  # else no later call could save it for a backward pass
        return torch.full((), t, dtype=dtype, device=device)


def _times(c: Number, v: State) -> State:
    """c v. A product is rounded before it is added: a fused kernel may round the lanes of a vector unlike its tail, and
    then a sample would depend on its batch."""
    if isinstance(v, dict):
        return {k: _times(c, field) for k, field in v.items()}
    if isinstance(c, Tensor):
        return pad(c, v).to(v.dtype) * v
    return v if c == 1 else v * _number(c)


@lru_cache(maxsize=4096)
def _number(c: float) -> Tensor:
    """c as a scalar on the CPU, which multiplies a tensor on any device as c does, bit for bit, and sooner."""
    with torch.inference_mode(False):
        return torch.tensor(c, dtype=torch.float64)


def _total(terms: list[State]) -> State:
    if isinstance(terms[0], dict):
        return {k: _total([term[k] for term in terms]) for k in terms[0]}
    out = terms[0]
    for term in terms[1:]:
        out = out + term
    return out


def trace(name: str, formula: Formula | Sequence[Formula], order: int, process: Gaussian, times: Tensor) -> Program:
    """The program of a formula, or of one for each step, on a grid; see `compile_solver`."""
    if not isinstance(process, Gaussian):
        raise ValueError(f"{name} steps Gaussian processes, not {process}; for a Shifted one, compile for its base")
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2:
        raise ValueError(f"a grid has one axis and two times or more, got shape {tuple(times.shape)}")
    if not bool((times[:-1] > times[1:]).all()) or not 0 <= float(times[-1]) < float(times[0]) <= 1:
        raise ValueError(f"times must decrease strictly within [0, 1], without repeats, got {times.tolist()}")
    formulas = [formula] * (len(times) - 1) if callable(formula) else list(formula)
    if len(formulas) != len(times) - 1:
        raise ValueError(f"{name} names the formulas of {len(formulas)} steps, the grid has {len(times) - 1}")
    tape, x, past, before, steps = Tape(process), Form({("x", 0): 1.0}), None, formulas[0], []
    for (t, s), formula in zip(pairwise(levels(process, times)), formulas, strict=True):
        past = past if formula is before else None  # another formula keeps another past
        try:
            x, past = advance(formula, tape, x, t, s, past)
        except (ZeroDivisionError, np.linalg.LinAlgError) as error:
            raise ValueError(f"{name} at t = {t.time:.6g}: {SINGULAR}") from error
        x, before = tape.land(x), formula
        steps.append(tuple(tape.rows))
        tape.rows = []
    if not process.is_gaussian and any(row.noise is not None for rows in steps for row in rows):
        raise ValueError(f"{name} adds Gaussian noise, which {process} does not have; take a deterministic scheme")
    return Program(name, process, tuple(times.tolist()), tuple(steps), order)


def compile_solver(process: Gaussian, times: Tensor, name: str | Sequence[str]) -> Program:
    """The program of the scheme `name` for a process on a grid of strictly decreasing times (n + 1,), see `grid`.

    name: a key of SCHEMES, or one for each step (`unisci.solvers.dpm_solver.fast`). Raises ValueError for an unknown
    name, times that are unsorted, repeated or outside [0, 1], a scheme that is singular at the first time, and one that
    adds Gaussian noise to a process of another noise.
    """
    names = [name] if isinstance(name, str) else list(name)
    for known in names:
        if known not in SCHEMES:
            raise ValueError(f"unknown solver {known!r}; known are {', '.join(SCHEMES)}")
    if isinstance(name, str):
        return trace(name, SCHEMES[name].formula, SCHEMES[name].order, process, times)
    formulas, order = [SCHEMES[n].formula for n in names], min(SCHEMES[n].order for n in names)
    return trace("+".join(names), formulas, order, process, times)


def run(
    denoise: Denoise,
    x: State,
    program: Program,
    rng: Rng | None = None,
    after: Callable[[State, Time], State] | None = None,
    on_step: Callable[[State, Time], None] | None = None,
    check: bool = True,
) -> State:
    """Solve from x at the program's first time to its last; equal to `sample` with the program as its solver.

    x: a tensor or a dict of Gaussian fields. Step k draws its noise from rng.at(k). `after(x, s)` pins or projects the
    state after a step; `on_step(x, s)` then watches it. Makes program.nfe evaluations. Raises as `Program.check`, and
    ValueError where the result is not finite: which step's output, of which field and samples, was the first to blame.
    On an accelerator that is the one place that waits for it; check = False leaves it out.
    """
    program.check(denoise, x, rng)
    start, memory, times = x, None, program.times
    for k in range(len(program.steps)):
        x, memory = program.advance(denoise, x, memory, rng.at(k) if program.stochastic else rng)
        if after is not None:
            x = after(x, times[k + 1])
        if on_step is not None:
            on_step(x, times[k + 1])
    if check and not all(bool(v.isfinite().all()) for v in fields(x).values()):
        raise ValueError(blame(denoise, start, program, rng, after))
    return x
