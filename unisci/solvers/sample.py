"""The one loop of every solver, and `Together`, which steps mixed fields on one joint evaluation."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Protocol

from unisci.batch import Schema
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.known import Known
from unisci.state import State, Time, beside, fieldwise, pick


class Denoise(Protocol):
    """All that a solver or a guidance term sees: E[clean | x_t], or logits over the clean classes of a discrete field.

    `process` is the process of a bare state, or one process per field; `schema` the layout of the fields, None for a
    bare state.
    """

    process: Process | dict[str, Process]
    schema: Schema | None

    def __call__(self, x: State, t: Time) -> State: ...


class Solver(Protocol):
    """One step from time t to time s < t. Memory (None at first) is returned, never stored."""

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]: ...


def sample(
    denoise: Denoise,
    x: State,
    times: Sequence[Time],
    solver: Solver,
    rng: Rng | None = None,
    after: Callable[[State, Time], State] | None = None,
) -> State:
    """Solve from times[0] down to times[-1], starting at x. `after(x, s)` pins or projects the state after each step.

    Step k draws from the stream rng.at(k).
    """
    memory = None
    for k, (t, s) in enumerate(pairwise(times)):
        x, memory = solver.step(denoise, x, t, s, memory, None if rng is None else rng.at(k))
        if after is not None:
            x = after(x, s)
    return x


def processes(denoise: Denoise) -> dict[str, Process]:
    """The process of each field; that of a bare state is named "x"."""
    return denoise.process if isinstance(denoise.process, dict) else {"x": denoise.process}


def draw_keys(x: State, schema: Schema | None) -> Any:
    """The name and number of site axes that key the draws of each field, or of a bare tensor, which is "x"."""
    if not isinstance(x, dict):
        return ("x", 0)
    return {k: (k, 0 if schema is None else schema[k].axes) for k in x}


def standard_normal(x: State, rng: Rng, step: int, schema: Schema | None) -> State:
    """Standard normal noise for every field of x, draw number `step` of the stream; a bare tensor is drawn as "x"."""
    if not isinstance(x, dict):
        return rng.normal("x", step, tuple(x.shape), 0).to(x.dtype)
    return {k: rng.normal(k, step, tuple(v.shape), schema[k].axes).to(v.dtype) for k, v in x.items()}


def perturbed(denoise: Denoise, x: State, t: Time, rng: Rng) -> State:
    """A draw of x_t given the clean x, every field by its process."""
    noise = lambda v, process, t, key: process.perturb(v, t, rng, *key)
    return fieldwise(noise, x, denoise.process, beside(t, x), draw_keys(x, denoise.schema))


class Together:
    """Step each field with its own solver on one joint evaluation: Together(position=program, atom=Ancestral())."""

    def __init__(self, **solvers: Solver):
        self.solvers = solvers

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]:
        """One step of every field. Raises ValueError where the solvers do not name the state's fields, and RuntimeError
        where one evaluates the denoiser at another state than its x."""
        if x.keys() != self.solvers.keys():
            raise ValueError(
                f"Together has solvers for {sorted(self.solvers)}, the state has {sorted(x)}: one for each"
            )
        clean, memory, out = denoise(x, beside(t, x)), memory or {}, {}
        for name, solver in self.solvers.items():
            only = lambda fields, name=name: {name: fields[name]}
            own, schema = only(x), None if denoise.schema is None else only(denoise.schema)
            known = Known(only(denoise.process), schema, only(clean), own)
            out[name] = solver.step(known, own, pick(t, name), pick(s, name), memory.get(name), rng)
        return {k: v[0][k] for k, v in out.items()}, {k: v[1] for k, v in out.items()}
