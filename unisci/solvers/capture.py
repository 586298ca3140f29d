"""A whole run of a program as one CUDA graph, replayed without the host's cost of launching each kernel.

    replay = capture(denoise, x, program)         # warms up, records
    clean = replay(x)                             # any x of the same shapes

A program has no branch on data and its loop never waits for the device, so all of it can be recorded. The denoiser must
keep to that too, and must not change between replays except in place.
"""

from collections.abc import Callable

import torch

from unisci.rng import Rng
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise
from unisci.state import State, fieldwise


def capture(denoise: Denoise, like: State, program: Program, rng: Rng | None = None) -> Callable[[State], State]:
    """A function x -> run(denoise, x, program, rng) of states shaped as `like`, on one CUDA device.

    A stochastic program draws the same noise at each replay, that of `rng`: capture again for another. The result is
    the caller's own. Off a GPU there is nothing to record and the function runs the program. Unlike `run` it does not
    ask whether the result is finite.
    """
    if not next(iter(like.values()) if isinstance(like, dict) else iter([like])).is_cuda:
        return lambda x: run(denoise, x, program, rng, check=False)
    held = fieldwise(torch.clone, like)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side), torch.no_grad():
        for _ in range(3):  # allocations and library handles settle before the recording
            run(denoise, held, program, rng, check=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        out = run(denoise, held, program, rng, check=False)

    def replay(x: State) -> State:
        fieldwise(lambda target, value: target.copy_(value), held, x)
        graph.replay()
        return fieldwise(torch.clone, out)

    return replay
