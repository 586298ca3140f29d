"""A captured run is the run."""

import pytest
import torch

from tests.oracles import GaussianOracle
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.capture import capture
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
    ),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", ["dpm++2m", "unipc3", "heun", "sde-dpm++2m"])
def test_replay_is_the_run(device, name):
    process, ids = VP(), torch.arange(8, device=device)
    denoise, program, rng = (
        GaussianOracle(process, 0.3, 0.5),
        compile_solver(process, grid(process, 8), name),
        Rng(0, ids),
    )
    x = process.prior(torch.zeros(8, 3, device=device), rng)
    replay = capture(denoise, x, program, rng)
    for start in (x, 2 * x):
        first = replay(start)
        kept = first.clone()
        torch.testing.assert_close(first, run(denoise, start, program, rng), rtol=1e-6, atol=1e-6)
        replay(3 * start)
        assert torch.equal(first, kept)  # the caller's own
