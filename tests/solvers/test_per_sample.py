"""A grid for each sample equals each sample alone."""

import pytest
import torch

from tests.oracles import GaussianOracle, three_modes
from unisci.batch import Field
from unisci.processes.gaussian import EDM, VP
from unisci.rng import Rng
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.grids import grid
from unisci.solvers.per_sample import stack
from unisci.solvers.program import compile_solver, run

WHICH = torch.tensor([0, 2, 1, 1, 0, 2])


def programs(name, lengths=(6, 6, 6)):
    p = VP()
    grids = [grid(p, lengths[0]), grid(p, lengths[1], "time", 0.9), grid(p, lengths[2], "karras", 0.95)]
    return [compile_solver(p, times, name) for times in grids]


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("lengths", [(6, 6, 6), (6, 3, 5)])
def test_each_sample_follows_its_program(name, lengths):
    """Also where some are done before others, and wait."""
    denoise, rng = three_modes(VP()), Rng(3, torch.arange(6))
    x = VP().prior(torch.zeros(6, 2), rng).double()
    each = programs(name, lengths)
    out = run(denoise, x, stack(each, WHICH), rng)
    for i, k in enumerate(WHICH.tolist()):
        alone = run(denoise, x[i : i + 1], each[k], Rng(3, torch.tensor([i])))
        torch.testing.assert_close(out[i : i + 1], alone, rtol=0, atol=1e-9)


def test_fields_and_times():
    """Coefficients reach every field; `after` and `on_step` see each sample's own time."""
    schema = {"a": Field("site", (3,)), "b": Field("whole", (2,))}
    denoise, rng, times = GaussianOracle(VP(), 0.3, 0.5, schema), Rng(0, torch.arange(6)), []
    x = {"a": torch.ones(6, 4, 3), "b": torch.ones(6, 2)}
    each = programs("dpm++2m")
    out = run(denoise, x, stack(each, WHICH), rng, on_step=lambda x, s: times.append(s))
    alone = run(denoise, {k: v[1:2] for k, v in x.items()}, each[2])
    torch.testing.assert_close({k: v[1:2] for k, v in out.items()}, alone)
    assert torch.stack(times).shape == (6, 6)
    assert torch.stack(times)[:, 1].tolist() == list(each[2].grid[1:])


def test_bad_stacks_are_refused():
    each = programs("dpm++2m")
    with pytest.raises(ValueError, match="take one process"):
        stack([each[0], compile_solver(EDM(), grid(EDM(), 6), "dpm++2m")], WHICH)
    with pytest.raises(ValueError, match="indices below 3"):
        stack(each, WHICH + 1)
    with pytest.raises(ValueError, match="other stages"):
        stack([each[0], programs("heun")[1]], torch.tensor([0, 1]))
