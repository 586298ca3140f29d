"""The unified framework: published solvers are lists of decisions (S46, check 1)."""

from functools import partial

import pytest
import torch

from tests.oracles import normal, three_modes
from unisci.processes.gaussian import VP, Cosine
from unisci.solvers.dpm_solver import DATA, NOISE, bh1, taylor, unipc
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run, trace
from unisci.solvers.unified import Decision, unified, uniform

KNOWN = {
    "ddim": Decision(1),
    "dpm++2m": Decision(2),
    "2m": Decision(2, DATA, taylor),
    "3m": Decision(3, DATA, taylor),
    "dpm2m": Decision(2, NOISE, taylor),
    "dpm3m": Decision(3, NOISE, taylor),
    "unipc2": Decision(2, corrected=True),
    "unipc3": Decision(3, corrected=True),
    "unipc1-noise": Decision(1, NOISE, bh1, corrected=True),
    "unipc4-noise": Decision(4, NOISE, bh1, corrected=True),
}


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("end", [0.0, 1e-2])
def test_published_solvers_are_decisions(name, end):
    process, denoise, x = VP(), three_modes(VP()), normal(8, 2)
    times = grid(process, 7, end=end)
    program = trace("u", unified(uniform(7, KNOWN[name])), 1, process, times)
    want = run(denoise, x, compile_solver(process, times, name))
    torch.testing.assert_close(run(denoise, x, program), want, rtol=0, atol=1e-12)
    assert program.nfe == 7


def test_decisions_act_where_they_are():
    """A change of any one decision changes the result, and orders mix within one run."""
    process, denoise, x = VP(), three_modes(VP()), normal(8, 2)
    times = grid(process, 5, end=1e-2)
    base = uniform(5, Decision(2, DATA, taylor))
    end = lambda decisions: run(denoise, x, trace("u", unified(decisions), 1, process, times))
    for k in range(5):
        for other in (
            base[k]._replace(form=NOISE),
            base[k]._replace(corrected=True),
            base[k]._replace(order=1 + base[k].order % 2),
        ):
            if other.order > k + 1 or (k == 0 and other.form is NOISE) or (k == 4 and other.corrected):
                continue  # nothing to build on; the first step is the same in both forms; the last is not corrected
            assert (end([*base[:k], other, *base[k + 1 :]]) - end(base)).abs().max() > 1e-6, (k, other)


def test_uniform_lowers_the_first_orders():
    assert [d.order for d in uniform(4, Decision(3))] == [1, 2, 3, 3]


def test_an_order_above_the_history_is_refused():
    for bad in ([Decision(2)], [Decision(1), Decision(3)], [Decision(0)]):
        with pytest.raises(ValueError, match="outputs to build on"):
            unified(bad)


def test_a_start_from_pure_noise():
    """Where alpha(1) = 0 that point says nothing about slopes: the stencils leave it out."""
    process, denoise, x = Cosine(), three_modes(Cosine()), normal(8, 2)
    times = grid(process, 10, "time", 1.0)
    out = run(denoise, x, trace("u", unified(uniform(10, Decision(3, corrected=True))), 1, process, times))
    want = run(denoise, x, trace("w", partial(unipc, order=3), 1, process, times))
    assert out.isfinite().all()
    torch.testing.assert_close(out, want, rtol=0, atol=1e-12)
