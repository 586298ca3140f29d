"""The deterministic schedulers of `diffusers` as solvers of the probability-flow ODE of a VP process, each with the
options that bear on its accuracy. A development-only dependency: pip install "diffusers>=0.30".

Fair to them: the law's exact output is evaluated at the scheduler's own noise level, where a pipeline would round it to
a timestep, and their discrete process is ours at t = (i + 1) / 1000, so that both sides solve one ODE from one start.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from typing import Any

import diffusers
import torch
from torch import Tensor

from benchmarks.mixtures import Mixture
from unisci.processes.gaussian import Gaussian

diffusers.logging.set_verbosity_error()
TRAIN = 1000
Options = dict[str, Any]


def axis(name: str, *values: Any) -> list[Options]:
    return [{name: v} for v in values]


LINSPACE, LEADING, TRAILING = axis("timestep_spacing", "linspace", "leading", "trailing")
KARRAS, EXPONENTIAL = {"use_karras_sigmas": True}, {"use_exponential_sigmas": True}
GRIDS = [LEADING, TRAILING, KARRAS, EXPONENTIAL]
GRIDS_AND_ENDS = [*GRIDS, KARRAS | {"finish": True}, EXPONENTIAL | {"finish": True}]
LOW = axis("lower_order_final", True, False)
ENDS = [*LOW, {"euler_at_final": True}, {"lower_order_final": False, "finish": True}]
SMALL = axis("final_sigmas_type", "sigma_min")
FINISH = axis("finish", False, True)
ORDERS = axis("solver_order", 1, 2, 3, 4)
DPM = [{"algorithm_type": a, "solver_type": b} for a in ("dpmsolver", "dpmsolver++") for b in ("midpoint", "heun")]
UNIPC = [{"solver_type": b, "predict_x0": d} for b, d in (("bh1", False), ("bh1", True), ("bh2", True))]
ADAMS = [{"predictor_order": p, "corrector_order": c} for p, c in ((1, 2), (2, 4), (4, 2), (4, 3))]
ADAMS_FORM = axis("algorithm_type", "data_prediction", "noise_prediction")

# By class: the axes whose product is tried. They are what mattered in a sweep of 2,888 configurations: what is left out
# (grids "beta" and "lu", the end at sigma 0 by other means than `finish`, more orders of SA-Solver, EDM's copies of the
# same formulas and grids) never took 1 % off the best error of a cell of the table.
PLANS: dict[str, list[list[Options]]] = {
    "DDIM": [axis("clip_sample", False), [LEADING, TRAILING]],
    "EulerDiscrete": [SMALL, [LEADING, TRAILING, EXPONENTIAL]],
    "HeunDiscrete": [[LINSPACE, LEADING, TRAILING]],
    "KDPM2Discrete": [[TRAILING, EXPONENTIAL]],
    "LMSDiscrete": [[LINSPACE, LEADING, TRAILING]],
    "PNDM": [axis("skip_prk_steps", True), axis("set_alpha_to_one", True, False), [LEADING, TRAILING], FINISH],
    "IPNDM": [],
    "DEISMultistep": [ORDERS[1:3], GRIDS, LOW, FINISH],
    "DPMSolverSinglestep": [ORDERS[1:3], DPM, SMALL, [{}, KARRAS, EXPONENTIAL]],
    "DPMSolverMultistep": [ORDERS[1:3], DPM, SMALL, [LEADING, TRAILING, KARRAS], ENDS],
    "UniPCMultistep": [ORDERS, UNIPC, SMALL, GRIDS_AND_ENDS, LOW],
    "SASolver": [axis("tau_func", lambda t: 0), ADAMS, ADAMS_FORM, GRIDS, LOW],  # tau = 0 is the ODE
}


@dataclass(frozen=True)
class Peer:
    """A scheduler class and its options; `finish` replaces what its last call leads to by E[x_0 | x_t]."""

    family: str
    options: Options = field(default_factory=dict)
    finish: bool = False

    def __str__(self) -> str:
        shown = [str(v) if isinstance(v, str) else f"{k}={v}" for k, v in self.options.items() if not callable(v)]
        return f"{self.family}({', '.join(shown + ['finish'] * self.finish)})"

    def scheduler(self, process: Gaussian) -> Any:
        cls = getattr(diffusers, f"{self.family}Scheduler")
        return cls(**self.options) if self.family == "IPNDM" else cls(trained_betas=betas(process), **self.options)


def peers() -> Iterator[Peer]:
    """Every configuration of `PLANS`."""
    for family, axes in PLANS.items():
        for choice in product(*axes):
            options = {k: v for part in choice for k, v in part.items()}
            yield Peer(family, options, options.pop("finish", False))


def defaults() -> list[Peer]:
    """Each class as it comes, but for what would stop it here: clipping to [-1, 1], which is for images; noise, where
    the ODE is solved; and the Runge-Kutta start of PNDM, which takes 12 calls."""
    needed = {"DDIM": {"clip_sample": False}, "SASolver": {"tau_func": lambda t: 0}, "PNDM": {"skip_prk_steps": True}}
    return [Peer(family, needed.get(family, {})) for family in PLANS]


@cache
def betas(process: Gaussian) -> list[float]:
    """The betas whose products of 1 - beta are alpha^2 at t = (i + 1) / TRAIN; the linear ones are these to 1 %."""
    alpha, _ = process.level(torch.arange(TRAIN + 1, dtype=torch.float64) / TRAIN)
    return (1 - (alpha[1:] / alpha[:-1]) ** 2).tolist()


def level(scheduler: Any, i: int, t: Tensor) -> tuple[Tensor, Tensor]:
    """alpha and sigma, with alpha^2 + sigma^2 = 1, of call i, which the scheduler has at timestep t; float64."""
    if isinstance(scheduler, diffusers.IPNDMScheduler):
        return scheduler.alphas[i].double(), scheduler.betas[i].double()
    if not hasattr(scheduler, "sigmas"):
        kept = scheduler.alphas_cumprod[int(t)].double()
        return kept.sqrt(), (1 - kept).sqrt()
    between = isinstance(scheduler, diffusers.KDPM2DiscreteScheduler) and not scheduler.state_in_first_order
    ratio = (scheduler.sigmas_interpol if between else scheduler.sigmas)[i].double()
    return 1 / (1 + ratio**2).sqrt(), ratio / (1 + ratio**2).sqrt()


def set_calls(scheduler: Any, calls: int) -> bool:
    """Set the most steps that take `calls` evaluations or fewer; False where even one step takes more."""
    for steps in range(calls, 0, -1):
        scheduler.set_timesteps(steps)
        if len(scheduler.timesteps) <= calls:
            return True
    return False


def solve(peer: Peer, scheduler: Any, law: Mixture, x: Tensor, calls: int) -> Tensor | None:
    """The endpoint from x at t = 1 by at most `calls` evaluations; None where the peer has none: a step takes more, or
    a grid ends in the same level twice and makes its equations singular."""
    if not set_calls(scheduler, calls):
        return None
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    x, used = x * float(scheduler.init_noise_sigma), 0
    for i, t in enumerate(scheduler.timesteps):
        y, (alpha, sigma) = scheduler.scale_model_input(x, t), level(scheduler, i, t)
        clean, used = law.clean(y, alpha, sigma), used + 1
        if peer.finish and i == len(scheduler.timesteps) - 1:
            x = clean
            break
        noise = (y - alpha * clean) / sigma
        output = alpha * noise - sigma * clean if peer.family == "IPNDM" else noise  # IPNDM asks for the velocity
        try:
            x = scheduler.step(output, t, x, return_dict=False)[0]
        except torch.linalg.LinAlgError:
            return None
    if used > calls:
        raise RuntimeError(f"{peer} made {used} evaluations where {calls} were allowed")
    return x if bool(x.isfinite().all()) else None
