"""DPM-Solver (Lu et al., arXiv 2206.00927), DPM-Solver++ (2211.01095) and UniPC (Zhao et al., 2302.04867).

Each formula is one step from level t to level s, see `unisci.solvers.formulas`. Singlestep formulas (dpm2, dpm3, dpm++2s,
dpm++3s) make new evaluations inside the step; multistep ones remember the outputs of the steps before, in `past`, newest
first, as (level, output).
"""

from collections.abc import Callable
from math import isfinite
from typing import Any

from unisci.processes.gaussian import to_noise
from unisci.solvers.exponential import data_step, derivatives, noise_step
from unisci.solvers.level import Level

Formula = Callable[..., tuple[Any, Any]]


def _noise(model: Any, x: Any, t: Level) -> Any:
    return to_noise(model.clean(x, t), x, t.alpha, t.sigma)


def _data(model: Any, x: Any, t: Level) -> Any:
    return model.clean(x, t)


def _single_2(output: Callable[..., Any], step: Callable[..., Any]) -> Formula:
    def formula(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
        r = model.level(t.lam + (s.lam - t.lam) / 2)
        u = step(x, t, r, [output(model, x, t)])
        return step(x, t, s, [output(model, u, r)]), None

    return formula


def _single_3(output: Callable[..., Any], step: Callable[..., Any]) -> Formula:
    def formula(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
        h = s.lam - t.lam
        first, second = model.level(t.lam + h / 3), model.level(t.lam + 2 * h / 3)
        f = output(model, x, t)
        u = step(x, t, first, [f])
        v = step(x, t, second, derivatives(f, [(h / 3, output(model, u, first))]))
        return step(x, t, s, derivatives(f, [(2 * h / 3, output(model, v, second))])), None

    return formula


# Algorithms 1 and 2 of arXiv 2206.00927 (r_1 = 1/2; r_1 = 1/3, r_2 = 2/3), and the same on the data.
dpm2, dpm3 = _single_2(_noise, noise_step), _single_3(_noise, noise_step)
dpmpp_2s, dpmpp_3s = _single_2(_data, data_step), _single_3(_data, data_step)


def halfway(d: list[Any], h: float) -> list[Any]:
    """[D + D' h / 2]: the polynomial's value halfway stands for all of it. A relaxation of D', R = 1 + O(h), that keeps
    order 2; DPM-Solver++(2M) and UniPC's B_2(h) are this."""
    return d if len(d) < 2 else [d[0] + h / 2 * d[1]]


def _stencil(past: Any, t: Level, size: int) -> list[tuple[float, Any]]:
    # Where alpha was 0 lam is infinite: too far away to say anything about a slope.
    return [(u.lam - t.lam, f) for u, f in (past or ())[:size] if isfinite(u.lam)]


def dpmpp_2m(model: Any, x: Any, t: Level, s: Level, past: Any, eta: float = 0.0) -> tuple[Any, Any]:
    """DPM-Solver++(2M), algorithm 2; with eta = 1 SDE-DPM-Solver++(2M), section 5, which starts as `ancestral`."""
    d = model.clean(x, t)
    known = halfway(derivatives(d, _stencil(past, t, 1)), s.lam - t.lam)
    return data_step(x, t, s, known, eta, model.noise() if eta else None), [(t, d)]


def multistep(
    model: Any, x: Any, t: Level, s: Level, past: Any, order: int, eta: float = 0.0, damping: float = 1.0
) -> tuple[Any, Any]:
    """The Taylor form of order 2 or 3: D is the polynomial through the last `order` outputs.

    `damping` multiplies D''. The published third-order multistep formulas hold D'' / 2 where D'' is due (damping .5): an
    order less in the limit, and often better at few steps.
    """
    d = model.clean(x, t)
    known = derivatives(d, _stencil(past, t, order - 1))
    if len(known) == 3:
        known[2] = damping * known[2]
    return data_step(x, t, s, known, eta, model.noise() if eta else None), [(t, d), *(past or ())][: order - 1]


def noise_multistep(model: Any, x: Any, t: Level, s: Level, past: Any, order: int) -> tuple[Any, Any]:
    """The same on the noise: DPM-Solver's multistep form, which is DEIS (arXiv 2204.13902) with polynomials in lam."""
    e = _noise(model, x, t)
    return noise_step(x, t, s, derivatives(e, _stencil(past, t, order - 1))), [(t, e), *(past or ())][: order - 1]


def unipc(model: Any, x: Any, t: Level, s: Level, past: Any, order: int) -> tuple[Any, Any]:
    """UniPC-p, B_2(h), on the data: the output at t first corrects the step that led there (degree p), then predicts.

    past = (x before that step, outputs). One evaluation a step: the output at the uncorrected point is kept.
    """
    d = model.clean(x, t)
    outputs: list[Any] = []
    if past is not None:
        before, outputs = past
        u, d_u = outputs[0]
    if outputs and isfinite(u.lam):
        h = t.lam - u.lam
        known = derivatives(d_u, [(h, d), *_stencil(outputs[1:], u, order - 1)])
        x = model.point(data_step(before, u, t, known if len(known) > 2 else halfway(known, h)))
    known = derivatives(d, _stencil(outputs, t, order - 1))
    out = data_step(x, t, s, known if len(known) > 2 else halfway(known, s.lam - t.lam))
    return out, (x, [(t, d), *outputs][:order])


def fast(nfe: int) -> list[str]:
    """DPM-Solver-fast (arXiv 2206.00927, section 3.4): the names of the singlestep formulas that spend `nfe` calls."""
    if nfe < 1:
        raise ValueError(f"DPM-Solver-fast needs one call or more, got {nfe}")
    thirds, rest = divmod(nfe, 3)
    if rest == 0:
        return ["dpm3"] * (thirds - 1) + ["dpm2", "ddim"]
    return ["dpm3"] * thirds + [{1: "ddim", 2: "dpm2"}[rest]]
