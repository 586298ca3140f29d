"""The ways of the GDSS benchmark from noise to graphs: a solver of unisci.solvers and the times of its steps."""

import torch
from torch import Tensor

from benchmarks.gdss_models import Model
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver
from unisci.solvers.s4 import S4, SecondOrderS4
from unisci.solvers.sample import Solver

END = 0.05
START = 0.98  # the first time: alpha is 0 at t = 1 in the cosine process
DECIDED = (0.25, 0.12)  # where the last atoms and bonds of a molecule become certain, and Langevin steps mend them
COLD = 0.7  # the share of Langevin's noise, that of the paper's models; fewer corrections mend as much where it is less
S4S = {
    "s4": S4(),
    "s4-2": SecondOrderS4(),
    "s4-langevin": S4(snr=0.2, scale=COLD),
    "s4-2-langevin": SecondOrderS4(snr=0.3, scale=0.5),
}


def way(name: str, calls: int, model: Model, end: float) -> tuple[Solver, Tensor]:
    """A solver and its times, of `calls` evaluations of the network, or up to two more where a step takes several.

    Times are uniform in t from START to `end`, from where the last step jumps to clean points; with Langevin steps a
    sixth of them lies above DECIDED, and the others there.
    """
    process = model.denoiser.product.processes["bond"]
    steps = -(-calls // {"s4-2": 2, "s4-2-langevin": 3}.get(name, 1))
    if "langevin" in name:
        above, (high, low) = max(1, steps // 6), DECIDED
        body = torch.linspace(high, low, steps - above, dtype=torch.float64)
        times = torch.cat([torch.linspace(START, high, above + 1, dtype=torch.float64)[:-1], body])
    else:
        times = grid(process, steps - 1, "time", START, end)
    times = torch.cat([times, times.new_zeros(1)])
    return (S4S[name] if name in S4S else compile_solver(process, times, name)), times
