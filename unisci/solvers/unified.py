"""The Unified Sampling Framework (Liu et al., arXiv 2312.07243): a solver is a list of decisions, one for each step.

With h = lam_s - lam_t and z = -h on the data, +h on the noise, every step is the exponential update of
`unisci.solvers.exponential`; a decision says how the derivatives are had:

    order p      the polynomial through the last p outputs
    form         whether the data or the noise is that polynomial
    factor       the relaxation R(z) = 1 + O(z) of the derivative of a two-point formula
    corrected    whether the next output, once there, makes the step again with a degree more; it costs no evaluation

DDIM, DPM-Solver(++) multistep and UniPC are lists of equal decisions; `unisci.solvers.search` looks for better ones.
"""

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, NamedTuple

from unisci.processes.gaussian import to_noise
from unisci.solvers.dpm_solver import DATA, NOISE, Form, Formula, bh1, bh2, relaxed, taylor
from unisci.solvers.exponential import derivatives
from unisci.solvers.level import Level

FACTORS = (taylor, bh1, bh2)
FORMS = (DATA, NOISE)


class Decision(NamedTuple):
    """How one step is made, see above."""

    order: int = 2
    form: Form = DATA
    factor: Callable[[float], float] = bh2
    corrected: bool = False


class Seen(NamedTuple):
    """An evaluation: the level, the point and the output."""

    at: Level
    x: Any
    d: Any


def _value(form: Form, seen: Seen) -> Any:
    return seen.d if form is DATA else to_noise(seen.d, seen.x, seen.at.alpha, seen.at.sigma)


def _step(x: Any, base: Seen, s: Level, others: Sequence[Seen], choice: Decision) -> Any:
    """From x at the level of `base` to s, with the polynomial through the outputs of base and the others."""
    form, t = choice.form, base.at
    stencil = [(other.at.lam - t.lam, _value(form, other)) for other in others if isfinite(other.at.lam)]
    known = relaxed(derivatives(_value(form, base), stencil), form.sign * (s.lam - t.lam), choice.factor)
    return form.step(x, t, s, known)


def unified(decisions: Sequence[Decision]) -> Formula:
    """The formula whose step k follows decisions[k]. Raises ValueError for an order above the history there is."""
    for k, choice in enumerate(decisions):
        if not 1 <= choice.order <= k + 1:
            raise ValueError(f"step {k} has {k + 1} outputs to build on, order {choice.order} needs 1 to that many")

    def formula(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
        before, seen = past or (None, [])
        k = len(seen)
        here = Seen(t, x, model.clean(x, t))
        if k and decisions[k - 1].corrected and isfinite(seen[0].at.lam):
            choice = decisions[k - 1]
            x = model.point(_step(before, seen[0], t, [here, *seen[1 : choice.order]], choice))
        seen = [here, *seen]
        return _step(x, here, s, seen[1 : decisions[k].order], decisions[k]), (x, seen)

    return formula


def uniform(n: int, choice: Decision) -> list[Decision]:
    """n equal decisions, with lower orders while the history is short."""
    return [choice._replace(order=min(choice.order, k + 1)) for k in range(n)]
