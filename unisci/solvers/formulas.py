"""The formula of each linear solver: one step from level t to level s, written once, and the table of their names.

`model` is a `Tape` when a formula is traced into a table (`unisci.solvers.program`), or anything else that has
`clean(x, t)`, `noise()` and `level(lam)`; x and what `clean` returns only meet numbers, + and -. `past` is what the
scheme itself returned from its previous step, None at the first. D is the denoiser E[x_0 | x_t], e the noise in x,
xi fresh noise, lam = log(alpha / sigma).
"""

from collections.abc import Callable
from functools import partial
from math import log1p, sqrt
from typing import Any, NamedTuple

from unisci.processes.gaussian import to_noise, to_score
from unisci.solvers.dpm_solver import (
    NOISE,
    bh1,
    bh2,
    dpm2,
    dpm3,
    dpmpp_2s,
    dpmpp_3s,
    multistep,
    unipc,
)
from unisci.solvers.level import Level


class Scheme(NamedTuple):
    """A formula; its order: of the endpoint error of an ODE scheme, of the strong error of an SDE scheme; and its
    evaluations a step. 3m and dpm3m have theirs from t = 1, where D hardly moves in their first steps, and 2 from
    further down."""

    formula: Callable[..., tuple[Any, Any]]
    order: int
    evaluations: int = 1


def ddim(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
    """DDIM (arXiv 2010.02502), which is DPM-Solver-1: x_s = alpha_s D + sigma_s e. Order 1, one evaluation."""
    e = to_noise(d := model.clean(x, t), x, t.alpha, t.sigma)
    return s.alpha * d + s.sigma * e, None


def euler_maruyama(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
    """Reverse SDE of arXiv 2011.13456: x_s = x - (f x - g^2 score) dt + g sqrt(dt) xi. Order 1, one evaluation."""
    score = to_score(model.clean(x, t), x, t.alpha, t.sigma)
    dt = t.time - s.time
    return x - dt * (t.f * x - t.g2 * score) + sqrt(t.g2 * dt) * model.noise(), None


def reverse_diffusion(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
    """The forward step x_t = a x_s + sqrt(v) xi, reversed as the SDE is (arXiv 2011.13456, appendix E):
    x_s = (2 - a) x + v score + sqrt(v) xi, a = alpha_t / alpha_s, v = sigma_t^2 - a^2 sigma_s^2. Order 1, one
    evaluation.

    For VE v = sigma_t^2 - sigma_s^2, for VP a = sqrt(1 - v), as in the paper.
    """
    a = t.alpha / s.alpha
    v = t.sigma**2 - a**2 * s.sigma**2
    score = to_score(model.clean(x, t), x, t.alpha, t.sigma)
    return (2 - a) * x + v * score + sqrt(v) * model.noise(), None


def ancestral(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
    """Ancestral step of DDPM (arXiv 2006.11239) for any schedule: x_s = alpha_s D + sigma_s (sqrt(1 - tau) e
    + sqrt(tau) xi), tau = 1 - (alpha_t sigma_s / (alpha_s sigma_t))^2. Order 1, one evaluation."""
    tau = 1 - (t.alpha * s.sigma / (s.alpha * t.sigma)) ** 2
    e = to_noise(d := model.clean(x, t), x, t.alpha, t.sigma)
    return s.alpha * d + s.sigma * (sqrt(1 - tau) * e + sqrt(tau) * model.noise()), None


def heun(model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, None]:
    """Heun of EDM (arXiv 2206.00364, algorithm 1) on dy/dnu = e, y = x / alpha, nu = sigma / alpha.
    Order 2, two evaluations."""
    y, h = x / t.alpha, s.sigma / s.alpha - t.sigma / t.alpha
    e = to_noise(model.clean(x, t), x, t.alpha, t.sigma)
    u = s.alpha * (y + h * e)
    e_u = to_noise(model.clean(u, s), u, s.alpha, s.sigma)
    return s.alpha * (y + h / 2 * (e + e_u)), None


def edm_heun(model: Any, x: Any, t: Level, s: Level, past: Any, churn: float = 1.0) -> tuple[Any, None]:
    """EDM's stochastic sampler (arXiv 2206.00364, algorithm 2): raise nu = sigma / alpha to (1 + gamma) nu by fresh
    noise, then a step of Heun. Order 1, two evaluations.

    gamma = min(churn h, sqrt(2) - 1), h the step in lam, so that refining the grid converges: the paper's S_churn is
    churn times the whole range of lam. The level is never raised above that of t = 1.
    """
    gamma = min(churn * (s.lam - t.lam), sqrt(2) - 1)
    raised = model.level(t.lam - log1p(gamma))
    more = max(0.0, (raised.sigma / raised.alpha) ** 2 - (t.sigma / t.alpha) ** 2)
    x = model.point(raised.alpha * (x / t.alpha + sqrt(more) * model.noise()))
    return heun(model, x, raised, s, None)


SCHEMES = {
    "ddim": Scheme(ddim, 1),
    "heun": Scheme(heun, 2, 2),
    "dpm2": Scheme(dpm2, 2, 2),
    "dpm3": Scheme(dpm3, 3, 3),
    "dpm2m": Scheme(partial(multistep, order=2, form=NOISE), 2),
    "dpm3m": Scheme(partial(multistep, order=3, form=NOISE), 3),
    "dpm++2s": Scheme(dpmpp_2s, 2, 2),
    "dpm++3s": Scheme(dpmpp_3s, 3, 3),
    "dpm++2m": Scheme(partial(multistep, order=2, factor=bh2), 2),
    "2m": Scheme(partial(multistep, order=2), 2),
    "3m": Scheme(partial(multistep, order=3), 3),
    "4m": Scheme(partial(multistep, order=4), 2),  # as dpm4m
    "3m(damping=.5)": Scheme(partial(multistep, order=3, damping=0.5), 2),
    "dpm4m": Scheme(partial(multistep, order=4, form=NOISE), 2),  # its first step's order; 3 to 4 from t = 1
    "unipc2": Scheme(partial(unipc, order=2), 3),
    "unipc3": Scheme(partial(unipc, order=3), 3),
    "unipc4": Scheme(partial(unipc, order=4), 3),
    "sa-solver": Scheme(partial(unipc, order=4, degree=2), 3),  # predictor of 4 and corrector of 3 points
    "unipc1-noise": Scheme(partial(unipc, order=1, form=NOISE, factor=bh1), 2),
    "unipc2-noise": Scheme(partial(unipc, order=2, form=NOISE, factor=bh1), 3),
    "unipc4-noise": Scheme(partial(unipc, order=4, form=NOISE, factor=bh1), 3),
    "euler_maruyama": Scheme(euler_maruyama, 1),
    "reverse_diffusion": Scheme(reverse_diffusion, 1),
    "ancestral": Scheme(ancestral, 1),
    "edm-heun": Scheme(edm_heun, 1, 2),
    "sde-dpm++2m": Scheme(partial(multistep, order=2, factor=bh2, eta=1.0), 1),
    "sde-2m": Scheme(partial(multistep, order=2, eta=1.0), 1),
    "sde-dpm++3m": Scheme(partial(multistep, order=3, eta=1.0), 1),
}


def advance(formula: Callable[..., Any], model: Any, x: Any, t: Level, s: Level, past: Any) -> tuple[Any, Any]:
    """One step of `formula`; a step to sigma = 0 returns D, the limit of each first-order step (lam is infinite)."""
    if s.sigma == 0:
        return s.alpha * model.clean(x, t), None
    return formula(model, x, t, s, past)
