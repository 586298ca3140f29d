"""The one loop, programs as solvers inside it, and fields of different processes side by side."""

import pytest
import torch

from tests.oracles import GaussianOracle
from unisci.batch import Field
from unisci.processes.gaussian import EDM, VP, Linear
from unisci.rng import Rng
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Together, perturbed, sample
from unisci.state import fieldwise

SCHEMA = {"position": Field("site", (3,)), "cell": Field("whole", (2,))}
PROCESS = {"position": VP(), "cell": Linear()}
ORACLE = GaussianOracle(PROCESS, {"position": 0.0, "cell": 1.0}, {"position": 0.5, "cell": 0.2}, SCHEMA)


def alone(name):
    """The law of one field of ORACLE by itself."""
    only = lambda values: {name: values[name]}
    return GaussianOracle(only(PROCESS), only(ORACLE.mean), only(ORACLE.std), only(SCHEMA))


def prior(rng):
    like = {"position": torch.zeros(6, 4, 3), "cell": torch.zeros(6, 2)}
    return {k: PROCESS[k].prior(v, rng, k, SCHEMA[k].axes) for k, v in like.items()}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("end", [0.0, 1e-2])
def test_run_is_sample(name, end):
    """Bit for bit, on a bare tensor and on a dict, with and without `after`."""
    process, rng = VP(), Rng(3, torch.arange(6))
    program = compile_solver(process, grid(process, 7, end=end), name)
    for denoise, x in (
        (GaussianOracle(process, 0.3, 0.5), prior(rng)["position"]),
        (alone("position"), {"position": prior(rng)["position"]}),
    ):
        for after in (None, lambda x, s: fieldwise(torch.round, x)):
            ran = run(denoise, x, program, rng, after)
            sampled = sample(denoise, x, program.times, program, rng, after)
            torch.testing.assert_close(ran, sampled, rtol=0, atol=0)


def test_a_dict_of_one_field_is_the_bare_tensor():
    """Up to the noise, which is keyed by the field's name."""
    program, x = compile_solver(VP(), grid(VP(), 9), "dpm++2m"), prior(Rng(0, torch.arange(6)))["position"]
    bare = run(GaussianOracle(VP(), 0.0, 0.5), x, program)
    assert torch.equal(run(alone("position"), {"position": x}, program)["position"], bare)


@pytest.mark.parametrize("solvers", [("ddim", "dpm++2m"), ("dpm++2m", "ancestral"), ("sde-dpm++2m", "sde-dpm++2m")])
def test_together_is_each_alone(solvers):
    """Two Gaussian fields of different processes on one evaluation a step: each takes the path that it takes alone."""
    times = torch.linspace(0.98, 0, 13, dtype=torch.float64)
    rng = Rng(7, torch.arange(6))
    x = prior(rng)
    programs = {k: compile_solver(PROCESS[k], times, name) for k, name in zip(PROCESS, solvers, strict=True)}
    calls = []

    class Watched(GaussianOracle):
        def __call__(self, x, t):
            calls.append(sorted(x))
            return super().__call__(x, t)

    denoise = Watched(PROCESS, ORACLE.mean, ORACLE.std, SCHEMA)
    joint = sample(denoise, x, times, Together(**programs), rng)
    assert calls == [["cell", "position"]] * 12
    for k, program in programs.items():
        torch.testing.assert_close(joint[k], run(alone(k), {k: x[k]}, program, rng)[k], rtol=0, atol=1e-6)


def test_together_refuses_a_second_evaluation():
    times = grid(VP(), 5, end=1e-2)
    solvers = Together(position=compile_solver(VP(), times, "heun"), cell=compile_solver(Linear(), times, "ddim"))
    with pytest.raises(RuntimeError, match="once per step"):
        sample(ORACLE, prior(Rng(0, torch.arange(6))), times, solvers)


def test_together_with_a_solver_that_asks_twice_at_its_state():
    """Is answered from memory: one joint evaluation all the same."""
    calls = []

    class Watched(GaussianOracle):
        def __call__(self, x, t):
            calls.append(t)
            return super().__call__(x, t)

    class Twice:
        def step(self, denoise, x, t, s, memory, rng):
            return {k: (v + denoise(x, t)[k]) / 2 for k, v in denoise(x, t).items()}, None

    x, times = prior(Rng(0, torch.arange(6))), grid(VP(), 3, end=1e-2)
    denoise = Watched(PROCESS, ORACLE.mean, ORACLE.std, SCHEMA)
    end = sample(denoise, x, times, Together(position=Twice(), cell=Twice()))
    assert len(calls) == 3 and end.keys() == x.keys()


def test_perturbed_is_each_field_by_its_process():
    """Keyed by its name and sites; t by field, and t = 0 changes nothing."""
    rng, t = Rng(5, torch.arange(6)), {"position": torch.tensor(0.4), "cell": torch.tensor(0.0)}
    clean = prior(Rng(0, torch.arange(6)))
    noised = perturbed(ORACLE, clean, t, rng)
    want = PROCESS["position"].perturb(clean["position"], t["position"], rng, "position", 1)
    assert torch.equal(noised["position"], want) and torch.equal(noised["cell"], clean["cell"])
    bare = perturbed(GaussianOracle(VP()), clean["cell"], t["position"], rng)
    assert torch.equal(bare, VP().perturb(clean["cell"], t["position"], rng))


def test_one_program_for_two_processes_is_refused():
    program = compile_solver(VP(), grid(VP(), 5), "ddim")
    with pytest.raises(ValueError, match=r"'cell' has Linear.*Together"):
        run(ORACLE, prior(Rng(0, torch.arange(6))), program)


def test_other_times_are_refused():
    program, denoise, x = compile_solver(VP(), grid(VP(), 5), "ddim"), GaussianOracle(VP()), torch.ones(2, 1)
    with pytest.raises(ValueError, match=r"time 1 of ddim is .* pass program\.times"):
        sample(denoise, x, torch.linspace(1, 0, 6), program)
    with pytest.raises(ValueError, match=r"time 0 of ddim is .* pass program\.times"):
        program.step(denoise, x, program.times[1], program.times[1], None, None)
    with pytest.raises(ValueError, match="all are done"):
        memory, times = None, program.times
        for k in range(6):
            x, memory = program.step(denoise, x, times[min(k, 4)], times[min(k, 4) + 1], memory, None)


def test_hooks_and_memory():
    """`after` pins what `on_step` then sees; memory is returned, so that one program serves runs that interleave."""
    process, seen = EDM(), []
    program, denoise = compile_solver(process, grid(process, 6), "dpm++2m"), GaussianOracle(process, 0.3, 0.5)
    x = process.prior(torch.zeros(3, 2), Rng(0, torch.arange(3)))
    pin = lambda x, s: torch.cat([torch.full_like(x[:, :1], 0.7), x[:, 1:]], 1)
    out = run(denoise, x, program, after=pin, on_step=lambda x, s: seen.append((s.item(), x)))
    assert [s for s, _ in seen] == program.times[1:].tolist()
    assert torch.equal(seen[-1][1], out) and all((x[:, 0] == 0.7).all() for _, x in seen)
    free = run(denoise, x, program)
    assert torch.equal(free[:, 1:], out[:, 1:])
    states, memories = [x, -x], [None, None]
    for t, s in zip(program.times[:-1], program.times[1:], strict=True):
        for i in (0, 1):
            states[i], memories[i] = program.step(denoise, states[i], t, s, memories[i], None)
    assert torch.equal(states[0], free) and torch.equal(states[1], run(denoise, -x, program))
    assert memories[0].done == 6 and len(memories[0].points) == 0 and len(memories[0].cleans) <= 2


def test_sample_draws_a_new_stream_each_step():
    drawn = []

    class Solver:
        def step(self, denoise, x, t, s, memory, rng):
            drawn.append(rng.normal("x", 0, (2, 1), 0))
            return x, (memory or 0) + 1

    x = sample(None, torch.zeros(2, 1), torch.linspace(1, 0, 5), Solver(), Rng(0, torch.arange(2)))
    assert torch.equal(x, torch.zeros(2, 1)) and len(drawn) == 4
    assert len({round(d.item(), 5) for v in drawn for d in v.flatten()}) == 8
