"""DPM-Solver (Lu et al., arXiv 2206.00927), DPM-Solver++ (2211.01095) and UniPC (Zhao et al., 2302.04867).

Each formula is one step from level t to level s, see `unisci.solvers.formulas`. Singlestep formulas (dpm2, dpm3,
dpm++2s, dpm++3s) make new evaluations inside the step; multistep ones remember the outputs of the steps before, in
`past`, newest first, as (level, output).
"""

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

from unisci.processes.gaussian import to_noise
from unisci.solvers.exponential import data_step, derivatives, noise_step, phi
from unisci.solvers.level import Level

Formula = Callable[..., tuple[Any, Any]]


def _noise(model: Any, x: Any, t: Level) -> Any:
    return to_noise(model.clean(x, t), x, t.alpha, t.sigma)


def _data(model: Any, x: Any, t: Level) -> Any:
    return model.clean(x, t)


class Form(NamedTuple):
    """What is taken for a polynomial in lam, the data or the noise; its step; and the sign of z in phi(z)."""

    output: Callable[[Any, Any, Level], Any]
    step: Callable[..., Any]
    sign: int


DATA, NOISE = Form(_data, data_step, -1), Form(_noise, noise_step, 1)


def _single_2(form: Form) -> Formula:
    output, step, _ = form

    def formula(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
        r = model.level(t.lam + (s.lam - t.lam) / 2)
        u = step(x, t, r, [output(model, x, t)])
        return step(x, t, s, [output(model, u, r)]), None

    return formula


def _single_3(form: Form) -> Formula:
    output, step, _ = form

    def formula(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
        h = s.lam - t.lam
        first, second = model.level(t.lam + h / 3), model.level(t.lam + 2 * h / 3)
        f = output(model, x, t)
        u = step(x, t, first, [f])
        v = step(x, t, second, derivatives(f, [(h / 3, output(model, u, first))]))
        return step(x, t, s, derivatives(f, [(2 * h / 3, output(model, v, second))])), None

    return formula


# Algorithms 1 and 2 of arXiv 2206.00927 (r_1 = 1/2; r_1 = 1/3, r_2 = 2/3), and the same on the data.
dpm2, dpm3, dpmpp_2s, dpmpp_3s = _single_2(NOISE), _single_3(NOISE), _single_2(DATA), _single_3(DATA)


def taylor(z: float) -> float:
    """The derivative as it is."""
    return 1.0


def bh1(z: float) -> float:
    """UniPC's B_1(h) = h, as a factor 1 + O(z) on the one derivative of a two-point formula, which keeps order 2."""
    return 0.5 / phi(2, z)


def bh2(z: float) -> float:
    """UniPC's B_2(h) = e^z - 1, which is DPM-Solver++(2M): the polynomial's value halfway stands for all of it."""
    return 0.5 * phi(1, z) / phi(2, z)


def relaxed(known: list[Any], z: float, factor: Callable[[float], float]) -> list[Any]:
    """The derivatives of a two-point formula with their one slope relaxed; others as they are."""
    return [known[0], factor(z) * known[1]] if len(known) == 2 else known


def _stencil(past: Any, t: Level, size: int) -> list[tuple[float, Any]]:
    # Where alpha was 0 lam is infinite: too far away to say anything about a slope.
    return [(u.lam - t.lam, f) for u, f in (past or ())[:size] if isfinite(u.lam)]


def multistep(
    model: Any,
    x: Any,
    t: Level,
    s: Level,
    past: Any,
    order: int,
    form: Form = DATA,
    factor: Callable[[float], float] = taylor,
    eta: float = 0.0,
    damping: float = 1.0,
) -> tuple[Any, Any]:
    """The data, or the noise, is the polynomial through its last `order` values; eta = 1, on the data, is the reverse
    SDE.

    Order 2 with `bh2` is DPM-Solver++(2M), algorithm 2, and its SDE form, section 5, which starts as `ancestral`; on
    the noise it is DEIS (arXiv 2204.13902) with polynomials in lam. `damping` multiplies the second derivative: the
    published third-order formulas hold half of it (.5), an order less in the limit, and often better at few steps.
    """
    output, step, sign = form
    f = output(model, x, t)
    known = relaxed(derivatives(f, _stencil(past, t, order - 1)), sign * (1 + eta) * (s.lam - t.lam), factor)
    if len(known) > 2:
        known[2] = damping * known[2]
    fresh = (eta, model.noise()) if eta else ()
    return step(x, t, s, known, *fresh), [(t, f), *(past or ())][: order - 1]


def unipc(
    model: Any,
    x: Any,
    t: Level,
    s: Level,
    past: Any,
    order: int,
    form: Form = DATA,
    factor: Callable[[float], float] = bh2,
    degree: int | None = None,
) -> tuple[Any, Any]:
    """UniPC-p on the data or on the noise: the output at t first corrects the step that led there, then predicts
    (degree p - 1). past = (x before that step, outputs). One evaluation a step: the output at the uncorrected point is
    kept.

    degree: of the correction, p by default; p - 2 is SA-Solver (arXiv 2309.05019) without its noise.
    """
    output, step, sign = form
    f, outputs = output(model, x, t), []
    if past is not None:
        before, outputs = past
        u, f_u = outputs[0]
    if outputs and isfinite(u.lam):
        h = t.lam - u.lam
        known = derivatives(f_u, [(h, f), *_stencil(outputs[1:], u, (order if degree is None else degree) - 1)])
        x = model.point(step(before, u, t, relaxed(known, sign * h, factor)))
    known = derivatives(f, _stencil(outputs, t, order - 1))
    return step(x, t, s, relaxed(known, sign * (s.lam - t.lam), factor)), (x, [(t, f), *outputs][:order])


def fast(nfe: int) -> list[str]:
    """DPM-Solver-fast (arXiv 2206.00927, section 3.4): the names of the singlestep formulas that spend `nfe` calls."""
    if nfe < 1:
        raise ValueError(f"DPM-Solver-fast needs one call or more, got {nfe}")
    thirds, rest = divmod(nfe, 3)
    if rest == 0:
        return ["dpm3"] * (thirds - 1) + ["dpm2", "ddim"]
    return ["dpm3"] * thirds + [{1: "ddim", 2: "dpm2"}[rest]]
