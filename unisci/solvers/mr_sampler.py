"""MaRS, fast samplers for mean-reverting diffusion (arXiv 2502.07856), by the shift to the frame of mu.

Each of the paper's updates is, with y = (x - mu) / s and D_y = (D - mu) / s, a published step of the base process:

    ODE-1: "ddim"     ODE-2: "2m"     SDE-1 of data, and IR-SDE's posterior sampling: "ancestral"     SDE-2: "sde-2m"

so any solver of the base will do, and its program needs no new table. On a Gaussian "dpm++2m" errs a third as much as
ODE-2 in 10 steps.

    program = compile_solver(VP(), times, "dpm++2m")
    out = sample(denoise, denoise.process.prior(like, rng), program.times, Framed(program), rng)
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from unisci.processes.mean_reverting import Shifted
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, Solver
from unisci.state import State, Time, fieldwise


def _frame(x: Tensor, process: Process) -> Tensor:
    return process.frame(x) if isinstance(process, Shifted) else x


def _unframe(y: Tensor, process: Process) -> Tensor:
    return process.unframe(y) if isinstance(process, Shifted) else y


def _base(process: Process) -> Process:
    return process.base if isinstance(process, Shifted) else process


class _InFrame:
    """A denoiser seen from the frames of its fields. y is the frame's view of x, at which x itself is asked."""

    def __init__(self, denoise: Denoise, x: State, y: State):
        self.denoise, self.schema, self.x, self.y = denoise, denoise.schema, x, y
        p = denoise.process
        self.process = {k: _base(v) for k, v in p.items()} if isinstance(p, dict) else _base(p)

    def __call__(self, y: State, t: Time) -> State:
        process = self.denoise.process
        x = self.x if y is self.y else fieldwise(_unframe, y, process)
        return fieldwise(_frame, self.denoise(x, t), process)


@dataclass(frozen=True)
class Framed:
    """A solver of the base process as one of the `Shifted`; fields of other processes pass as they are.

    x goes into the frame and back at each step, so `after` sees x itself.
    """

    solver: Solver

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]:
        """One step of the solver in the frame. Raises what the solver raises."""
        y = fieldwise(_frame, x, denoise.process)
        y, memory = self.solver.step(_InFrame(denoise, x, y), y, t, s, memory, rng)
        return fieldwise(_unframe, y, denoise.process), memory
