"""Where a run turned non-finite."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from unisci.rng import Rng
from unisci.solvers.sample import Denoise
from unisci.state import State, Time

if TYPE_CHECKING:
    from unisci.solvers.program import Program


def fields(x: State) -> dict[str, Tensor]:
    """The fields of a state; a bare tensor is the field "x"."""
    return x if isinstance(x, dict) else {"x": x}


def blame(denoise: Denoise, x: State, program: "Program", rng: Rng | None, after: Callable | None) -> str:
    """Where a run turned non-finite: it is made again, which gives the same numbers, and looked at closely."""
    found: list[str] = []

    def look(what: str, state: State) -> None:
        for name, v in fields(state).items():
            bad = (~v.isfinite()).flatten(1).any(1).nonzero().flatten().tolist()
            if bad and not found:
                found.append(f"{what} is not finite in field {name!r} of samples {bad[:8]} (of {len(v)})")

    class Watched:
        process, schema = denoise.process, denoise.schema

        def __call__(self, x: State, t: Time) -> State:
            out = denoise(x, t)
            look(f"the denoiser's output at step {k}, t = {float(t.max()):.4g},", out)
            return out

    look("the start", x)
    memory = None
    for k, s in enumerate(program.times[1:]):
        x, memory = program.advance(Watched(), x, memory, rng.at(k) if program.stochastic else rng)
        x = x if after is None else after(x, s)
        look(f"the state after step {k}", x)
        if found:
            break
    return f"{program.name}: {found[0] if found else 'the result is not finite, but a second run was'}"
