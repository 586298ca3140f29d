"""The formula of each linear solver: one step from level t to level s, written once.

`model` is a `Tape` when a formula is traced into a table (`unisci.solvers.program`), or anything else that has
`clean(x, t)`, `noise()` and `level(lam)`; x and what `clean` returns only meet numbers, + and -. `past` is what the
scheme itself returned from its previous step, None at the first. D is the denoiser E[x_0 | x_t], e the noise in x,
xi fresh noise, lam = log(alpha / sigma).
"""

from collections.abc import Callable
from math import exp, expm1, sqrt
from typing import Any, NamedTuple

from unisci.processes.gaussian import to_noise, to_score


class Level(NamedTuple):
    """A process at one time, in Python floats: dx = f x dt + sqrt(g2) dw."""

    time: float
    alpha: float
    sigma: float
    lam: float
    f: float
    g2: float


class Scheme(NamedTuple):
    """A formula and its order: of the endpoint error of an ODE scheme, of the strong error of an SDE scheme."""

    formula: Callable[..., tuple[Any, Any]]
    order: int


def ddim(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """DDIM (arXiv 2010.02502), which is DPM-Solver-1: x_s = alpha_s D + sigma_s e. Order 1, one evaluation."""
    e = to_noise(d := model.clean(x, t), x, t.alpha, t.sigma)
    return s.alpha * d + s.sigma * e, None


def euler_maruyama(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """Reverse SDE of arXiv 2011.13456: x_s = x - (f x - g^2 score) dt + g sqrt(dt) xi. Order 1, one evaluation."""
    score = to_score(model.clean(x, t), x, t.alpha, t.sigma)
    dt = t.time - s.time
    return x - dt * (t.f * x - t.g2 * score) + sqrt(t.g2 * dt) * model.noise(), None


def heun(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """Heun of EDM (arXiv 2206.00364, algorithm 1 without churn) on dy/dnu = e, y = x / alpha, nu = sigma / alpha.
    Order 2, two evaluations."""
    y, h = x / t.alpha, s.sigma / s.alpha - t.sigma / t.alpha
    e = to_noise(model.clean(x, t), x, t.alpha, t.sigma)
    u = s.alpha * (y + h * e)
    e_u = to_noise(model.clean(u, s), u, s.alpha, s.sigma)
    return s.alpha * (y + h / 2 * (e + e_u)), None


def ancestral(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """Ancestral step of DDPM (arXiv 2006.11239) for any schedule: x_s = alpha_s D + sigma_s (sqrt(1 - tau) e
    + sqrt(tau) xi), tau = 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2. Order 1, one evaluation."""
    tau = 1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2
    e = to_noise(d := model.clean(x, t), x, t.alpha, t.sigma)
    return s.alpha * d + s.sigma * (sqrt(1 - tau) * e + sqrt(tau) * model.noise()), None


def dpm2(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """DPM-Solver-2 (arXiv 2206.00927, algorithm 1, r_1 = 1/2): the noise halfway in lam. Order 2, two evaluations."""
    h = s.lam - t.lam
    r = model.level(t.lam + h / 2)
    e = to_noise(model.clean(x, t), x, t.alpha, t.sigma)
    u = r.alpha / t.alpha * x - r.sigma * expm1(h / 2) * e
    e_u = to_noise(model.clean(u, r), u, r.alpha, r.sigma)
    return s.alpha / t.alpha * x - s.sigma * expm1(h) * e_u, None


def _extrapolated(d: Any, h: float, past: Any) -> Any:
    """D at the middle of a step of length h, from this D and the one before: D + (D - D') h / (2 h')."""
    if past is None:
        return d
    d_before, h_before = past
    return d + h / (2 * h_before) * (d - d_before)


def dpmpp_2m(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """DPM-Solver++(2M) (arXiv 2211.01095, algorithm 2): x_s = (sigma_s / sigma_t) x - alpha_s expm1(-h) D.
    Order 2, the first step 1, one evaluation."""
    h = s.lam - t.lam
    d = model.clean(x, t)
    x = s.sigma / t.sigma * x - s.alpha * expm1(-h) * _extrapolated(d, h, past)
    return x, (d, h)


def sde_dpmpp_2m(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """SDE-DPM-Solver++(2M) (arXiv 2211.01095, section 5): x_s = (sigma_s / sigma_t) e^-h x + alpha_s (1 - e^-2h) D
    + sigma_s sqrt(1 - e^-2h) xi. Order 1 (2 in the variance of a Gaussian), one evaluation; starts as `ancestral`."""
    h = s.lam - t.lam
    d = model.clean(x, t)
    xi = model.noise()
    x = s.sigma / t.sigma * exp(-h) * x - s.alpha * expm1(-2 * h) * _extrapolated(d, h, past)
    return x + s.sigma * sqrt(-expm1(-2 * h)) * xi, (d, h)


SCHEMES = {
    "ddim": Scheme(ddim, 1),
    "euler_maruyama": Scheme(euler_maruyama, 1),
    "heun": Scheme(heun, 2),
    "ancestral": Scheme(ancestral, 1),
    "dpm2": Scheme(dpm2, 2),
    "dpm++2m": Scheme(dpmpp_2m, 2),
    "sde-dpm++2m": Scheme(sde_dpmpp_2m, 1),
}


def advance(formula: Callable[..., Any], model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """One step of `formula`; a step to sigma = 0 returns D, the limit of each first-order step (lam is infinite)."""
    if s.sigma == 0:
        return s.alpha * model.clean(x, t), None
    return formula(model, x, t, s, past)
