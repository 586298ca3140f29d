"""Langevin refinement at one noise level (TSDiff's refiner, Kollovieh et al., arXiv 2307.11494, section 3.3).

    x <- x + eta (alpha s_t(x_t) + grad log p(y | x)) + sqrt(2 eta gamma) xi,    x_t = alpha x + sigma eps

eps is drawn afresh at every step, and alpha s_t is the gradient of log p_t(x_t) in x. So at temperature gamma = 1 and
for small eta the x are draws of p(y | x) exp E_eps log p_t(alpha x + sigma eps), the posterior under a prior as smooth
as t says: for data ~ N(m, S) that prior is N(m, S + r^2 I), r = sigma / alpha. gamma = 0 climbs to its maximum. The
paper differentiates |eps - eps_hat|^2 through the network instead.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unisci.inverse.red_diff import noised
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, processes, standard_normal
from unisci.solvers.score import check_gaussian, score_of, time_for
from unisci.state import State, beside, fieldwise


@torch.no_grad()
def langevin(
    denoise: Denoise,
    likelihood_gradient: Callable[[State], State],
    init: State,
    t: Tensor,
    rng: Rng,
    steps: int = 20,
    eta: float = 0.1,
    gamma: float = 0.1,
) -> State:
    """x after `steps` steps from `init` (B, ...), one evaluation each, of no gradient.

    likelihood_gradient: x -> grad log p(y | x), as `log_likelihood_gradient(operator, y, sigma_y)` or of any reward.
    t: () or (B,), the level. eta: in square units of the state; steps are stable below 2 over the largest precision,
    about 2 sigma_y^2. gamma: the temperature. Step k draws from rng.at(k). Raises ValueError for noise that is not
    Gaussian, a t without noise or without signal, and settings out of range.
    """
    check_gaussian(denoise, "Langevin refinement")
    if not all(bool((level > 0).all()) for process in processes(denoise).values() for level in process.level(t)):
        raise ValueError(f"the level t must have alpha > 0 and sigma > 0, got t = {t.tolist()}")
    if steps < 1 or eta <= 0 or gamma < 0:
        raise ValueError(f"need steps >= 1, eta > 0 and gamma >= 0, got {steps}, {eta} and {gamma}")
    x, t = init, beside(t, init)
    for k in range(steps):
        eps, xi = (standard_normal(x, rng.at(k), draw, denoise.schema) for draw in (0, 1))
        x_t = fieldwise(noised, x, eps, denoise.process, t)
        prior = fieldwise(_climb, denoise(x_t, time_for(t, x)), x_t, denoise.process, t)
        move = lambda x, a, b, xi: x + eta * (a + b) + (2 * eta * gamma) ** 0.5 * xi
        x = fieldwise(move, x, prior, likelihood_gradient(x), xi)
    return x


def _climb(clean: Tensor, x_t: Tensor, process: Gaussian, t: Tensor) -> Tensor:
    """alpha s_t."""
    return level_for(process, t, x_t)[0] * score_of(clean, x_t, process, t)
