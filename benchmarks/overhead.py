"""What a solver costs beside its network: time and allocations for each network call, ours and those of `diffusers`.

Run by `python -m benchmarks.solvers --overhead`. The state is float32 (64, 16, 3); the network returns a tensor made
before. Ours are whole runs of a `Program`; theirs `scheduler.step` alone, without scaling the input, setting the
timesteps or building an output class. Repeats are interleaved, and the median is shown.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.peers import Peer
from unisci.processes.gaussian import VP
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

STEPS = 20
# Ours, and the peer of the same formula.
PAIRS = {
    "ddim": Peer("DDIM", {"clip_sample": False}),
    "dpm++2m": Peer("DPMSolverMultistep", {"solver_order": 2}),
    "3m": Peer("DPMSolverMultistep", {"solver_order": 3}),
    "dpm++2s": Peer("DPMSolverSinglestep", {"solver_order": 2}),
    "dpm3m": Peer("DEISMultistep", {"solver_order": 3}),
    "heun": Peer("HeunDiscrete"),
    "dpm2": Peer("KDPM2Discrete"),
    "unipc2": Peer("UniPCMultistep", {"solver_order": 2}),
    "unipc3": Peer("UniPCMultistep", {"solver_order": 3}),
}


@dataclass(frozen=True)
class Ready:
    """A Denoise whose answer is there already."""

    process: VP
    clean: Tensor
    schema = None

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.clean


@dataclass(frozen=True)
class Cost:
    """For each network call: seconds, allocations, and bytes allocated."""

    seconds: float
    allocations: float
    bytes: float

    def __str__(self) -> str:
        return f"{1e6 * self.seconds:7.1f} us {self.allocations:5.1f} allocations {self.bytes / 2**10:6.1f} KiB"


def ours(name: str, x: Tensor) -> tuple[Callable[[], Callable[[], object]], int]:
    """What prepares a run, giving the function to time; and its number of calls."""
    process = VP()
    program, denoise = compile_solver(process, grid(process, STEPS), name), Ready(process, torch.randn_like(x))
    return lambda: lambda: run(denoise, x, program), program.nfe


def theirs(peer: Peer, x: Tensor) -> tuple[Callable[[], Callable[[], object]], int]:
    scheduler, noise = peer.scheduler(VP()), torch.randn_like(x)

    def prepare() -> Callable[[], object]:
        scheduler.set_timesteps(STEPS)
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(0)
        return steps

    def steps() -> None:
        y = x
        for t in scheduler.timesteps:
            scheduler.scale_model_input(y, t)
            y = scheduler.step(noise, t, y, return_dict=False)[0]

    scheduler.set_timesteps(STEPS)
    return prepare, len(scheduler.timesteps)


def allocations(function: Callable[[], object]) -> tuple[int, int]:
    """How often a function allocates memory for tensors, and how many bytes."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    sizes = [e.nbytes() for e in events if e.name() == "[memory]" and e.nbytes() > 0]
    return len(sizes), sum(sizes)


def measure(repeats: int = 60) -> dict[str, Cost]:
    x = torch.randn(64, 16, 3)
    subjects = {name: ours(name, x) for name in PAIRS} | {str(peer): theirs(peer, x) for peer in PAIRS.values()}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    with torch.inference_mode():
        for _ in range(repeats):
            for name, (prepare, calls) in subjects.items():
                function = prepare()
                began = time.perf_counter()
                function()
                times[name].append((time.perf_counter() - began) / calls)
        allocated = {name: allocations(prepare()) for name, (prepare, _) in subjects.items()}
    return {
        name: Cost(statistics.median(times[name]), *(v / calls for v in allocated[name]))
        for name, (_, calls) in subjects.items()
    }


def report() -> None:
    """Print the cost of each pair and their ratio."""
    costs = measure()
    print(
        f"overhead of a network call: state (64, 16, 3) float32, {STEPS} steps, CPU, {torch.get_num_threads()} thread"
    )
    for name, peer in PAIRS.items():
        mine, other = costs[name], costs[str(peer)]
        print(f"{name:8s} {mine}   {peer!s:38s} {other}   ratio {mine.seconds / other.seconds:.2f}")
    worst = max(costs[name].seconds / costs[str(peer)].seconds for name, peer in PAIRS.items())
    print(f"largest ratio {worst:.2f}")
