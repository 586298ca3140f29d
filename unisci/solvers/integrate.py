"""Plain integrators on a fixed grid, either way in time, for fields that are no denoisers: bridges, likelihoods.

    integrate:       dx = field(x, t) dt                            by `euler`, `heun` or `rk4`, orders 1, 2, 4
    integrate_sde:   dx = drift(x, t) dt + diffusion(t) dw          by `euler_maruyama`, weak order 1 (strong 1), or
                                                                    `stochastic_heun`, weak order 2

The noise is additive. States are tensors or dicts of fields; a field sees the time as a scalar of x's dtype and device.
"""

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.rng import Rng
from unisci.solvers.sample import standard_normal
from unisci.state import State, fieldwise

Field = Callable[[State, Tensor], State]
Step = Callable[[Field, State, float, float], State]


def _plus(x: State, *terms: tuple[float, State]) -> State:
    """x plus the sum of coefficient times state."""
    coefficients, states = zip(*terms, strict=True)
    return fieldwise(lambda x, *vs: x + sum(c * v for c, v in zip(coefficients, vs, strict=True)), x, *states)


def _scalar(t: float, x: State) -> Tensor:
    # Filled in place on x's device: a copy from the host would wait for it.
    like = next(iter(x.values())) if isinstance(x, dict) else x
    return torch.full((), t, dtype=like.dtype, device=like.device)


def euler(field: Field, x: State, t: float, s: float) -> State:
    """x + h f(x, t), h = s - t. Order 1, one evaluation."""
    return _plus(x, (s - t, field(x, _scalar(t, x))))


def heun(field: Field, x: State, t: float, s: float) -> State:
    """The trapezoid with an Euler step as its far end. Order 2, two evaluations."""
    h, f = s - t, field(x, _scalar(t, x))
    g = field(_plus(x, (h, f)), _scalar(s, x))
    return _plus(x, (h / 2, f), (h / 2, g))


def rk4(field: Field, x: State, t: float, s: float) -> State:
    """The classical scheme of Runge and Kutta. Order 4, four evaluations."""
    h, middle = s - t, _scalar((t + s) / 2, x)
    a = field(x, _scalar(t, x))
    b = field(_plus(x, (h / 2, a)), middle)
    c = field(_plus(x, (h / 2, b)), middle)
    d = field(_plus(x, (h, c)), _scalar(s, x))
    return _plus(x, (h / 6, a), (h / 3, b), (h / 3, c), (h / 6, d))


def euler_maruyama(drift: Field, x: State, t: float, s: float, levels: tuple[float, float], xi: State) -> State:
    """x + h f(x, t) + g(t) sqrt(|h|) xi; levels = g(t), g(s). One evaluation."""
    return _plus(x, (s - t, drift(x, _scalar(t, x))), (levels[0] * math.sqrt(abs(s - t)), xi))


def stochastic_heun(drift: Field, x: State, t: float, s: float, levels: tuple[float, float], xi: State) -> State:
    """Heun with one noise n in both stages, var n = |h| (g(t)^2 + g(s)^2) / 2: the far end of the trapezoid is where
    Euler lands *with* n, the drift at x is taken at t and without it. Two evaluations."""
    h, n = s - t, math.sqrt(abs(s - t) * (levels[0] ** 2 + levels[1] ** 2) / 2)
    f = drift(x, _scalar(t, x))
    g = drift(_plus(x, (h, f), (n, xi)), _scalar(s, x))
    return _plus(x, (h / 2, f), (h / 2, g), (n, xi))


def _checked(times: Tensor) -> Tensor:
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    steps = times.diff() if times.ndim == 1 else times.new_zeros(0)
    if len(steps) == 0 or not (bool((steps > 0).all()) or bool((steps < 0).all())):
        raise ValueError(f"times (n + 1,) must rise or fall strictly, two or more of them, got {times.tolist()}")
    return times


def integrate(field: Field, x: State, times: Tensor, step: Step = heun) -> State:
    """x at times[-1] from x at times[0], along the grid (n + 1,), which rises or falls.

    step: `euler`, `heun`, `rk4`, or anything that takes (field, x, t, s) to x at s. Raises ValueError for a grid that
    is not strictly monotone.
    """
    for t, s in pairwise(_checked(times).tolist()):
        x = step(field, x, t, s)
    return x


def integrate_sde(
    drift: Field,
    diffusion: Callable[[Tensor], Tensor],
    x: State,
    times: Tensor,
    rng: Rng,
    step: Callable[..., State] = stochastic_heun,
    schema: Schema | None = None,
) -> State:
    """A draw of x at times[-1] given x at times[0]; for falling times, of the SDE that runs in falling time.

    diffusion(t) (n + 1,) -> g >= 0 of the same shape. step: `euler_maruyama`, `stochastic_heun`. Step k draws from
    rng.at(k); a bare tensor under the name "x" with axes = 0, a dict as `schema` lays its fields out. Raises ValueError
    for a grid that is not strictly monotone, a g that is negative or not finite, and an rng or schema that is missing.
    """
    times = _checked(times)
    g = diffusion(times)
    if not bool((g.isfinite() & (g >= 0)).all()):
        bad = times[~(g.isfinite() & (g >= 0))].tolist()
        raise ValueError(f"the diffusion must be finite and >= 0, but is not at t = {bad}; clip the times or change it")
    if rng is None:
        raise ValueError("an SDE draws noise; pass rng=Rng(seed, ids)")
    if isinstance(x, dict) and schema is None:
        raise ValueError(f"noise for fields {sorted(x)} needs their layout; pass schema")
    for k, ((t, s), levels) in enumerate(zip(pairwise(times.tolist()), pairwise(g.tolist()), strict=True)):
        x = step(drift, x, t, s, levels, standard_normal(x, rng.at(k), 0, schema))
    return x
