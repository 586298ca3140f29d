"""TSDiff: forecasts by an unconditional model and self-guidance, and refinement of other models' forecasts (Kollovieh
et al., arXiv 2307.11494). With D = E[x_0 | x_t], x_t = alpha x_0 + sigma eps, and y the known entries,

    score += -s grad E(x_t),    E_MS = sum (y - D)^2,    E_Q = sum max(k (y - D), (k - 1) (y - D))
    score += grad log N(y; D, C + sigma_y^2)             what E stands for, C = Cov(x_0 | x_t): `exact`
    E(x) = |eps - eps_hat(alpha x + sigma eps, t)|^2 + R(x),    x <- x - eta grad E + sqrt(2 eta gamma) xi

The terms are for `guided(denoise, term)`. s has no units: it depends on the scale of the data and the number of known
entries; the paper takes 1 to 8 by data set. Windows, y and where are as in `unisci.forecasting.prompts`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unisci.forecasting.prompts import cleared, values
from unisci.guidance.conditional import quantile
from unisci.guidance.observation import Observation, Reward
from unisci.guidance.terms import Scale
from unisci.inverse.red_diff import noised
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, standard_normal
from unisci.solvers.score import check_gaussian, time_for, total
from unisci.state import State, Time, beside, fieldwise

Regulariser = Callable[[State], Tensor]  # windows (B, N) -> R (B,)
LEVELS = torch.arange(1, 101, dtype=torch.float64) / 100  # the paper's 100 steps


def exact(y: State, where: Tensor, sigma_y: float | Tensor = 0.05, iterations: int = 16) -> Observation:
    """Known entries y + noise of standard deviation sigma_y, whose likelihood owns the variance of what x_t does not
    tell: Bayes' rule where data are Gaussian. One backward pass for each of the `iterations` of conjugate gradients,
    and no strength to choose. sigma_y in units of y. Raises ValueError as `cleared` and `Observation`."""
    known = values(cleared(y, where))
    operator = lambda clean: torch.where(where, values(clean), 0.0)
    return Observation(operator=operator, y=known, sigma_y=sigma_y, iterations=iterations)


def mean_square(y: State, where: Tensor, scale: Scale) -> Reward:
    """-s E_MS, s = scale: the paper's self-guidance by squared errors. The same as an observation of unit variance,
    whatever the noise, at scale 2 s; a large s diverges. Raises ValueError as `cleared`."""
    return Reward(log_h=lambda clean: -squared_error(y, where)(clean), scale=scale)


def quantiles(y: State, where: Tensor, levels: float | Tensor, scale: Scale) -> Reward:
    """-s E_Q, s = scale, with the level k of each sample (B,), see `path_levels`: the paper's self-guidance by
    quantiles. Its pull does not grow with the distance, so that it does not diverge. Raises ValueError as `cleared`,
    and for levels outside (0, 1)."""
    log_h = quantile(values(cleared(y, where)), levels, where)
    return Reward(log_h=lambda clean: log_h(values(clean)), scale=scale)


def path_levels(paths: int) -> Tensor:
    """k_j = j / (S + 1) for the j-th of S paths, (S,) float64. Raises ValueError where S < 1."""
    if paths < 1:
        raise ValueError(f"a forecast needs one path or more, got {paths}")
    return torch.arange(1, paths + 1, dtype=torch.float64) / (paths + 1)


def squared_error(y: State, where: Tensor) -> Regulariser:
    """sum (y - x)^2 over the known entries: the future is free. Raises ValueError as `cleared`."""
    known = values(cleared(y, where))
    return lambda x: torch.where(where, known.to(values(x)) - values(x), 0.0).square().sum(1)


def pinball(base: State, levels: float | Tensor) -> Regulariser:
    """sum max(k (b - x), (k - 1) (b - x)) over all entries of a base forecast b, its future too, with the level k of
    each sample (B,): sort the S paths of the base at each step, and path j has level j / (S + 1)."""
    log_h = quantile(values(base), levels)
    return lambda x: -log_h(values(x))


def denoising_loss(denoise: Denoise, x: State, t: Time, eps: State) -> Tensor:
    """|eps - eps_hat(alpha x + sigma eps, t)|^2 (B,), summed over the entries."""
    x_t = fieldwise(noised, x, eps, denoise.process, t)
    clean = denoise(x_t, time_for(t, x))
    return total(fieldwise(_missed, x, clean, denoise.process, t))


def _missed(x: Tensor, clean: Tensor, process: Gaussian, t: Tensor) -> Tensor:
    """(eps - eps_hat)^2 = (alpha / sigma (D - x))^2."""
    alpha, sigma = level_for(process, t, x)
    return (alpha / sigma * (clean - x)).square()


@torch.no_grad()
def representative_level(denoise: Denoise, data: State, rng: Rng, times: Tensor = LEVELS) -> Tensor:
    """The time () among `times` (n,) whose loss is closest to the mean loss over them all: where to refine. data: clean
    windows (B, N), one draw of eps for each; n evaluations. Raises ValueError for noise that is not Gaussian, and times
    outside (0, 1]."""
    check_gaussian(denoise, "representative_level")
    if times.ndim != 1 or len(times) == 0 or not bool(((times > 0) & (times <= 1)).all()):
        raise ValueError(f"times (n,) must lie in (0, 1], one or more, got {times.tolist()}")
    eps = standard_normal(data, rng, 0, denoise.schema)
    losses = torch.stack([denoising_loss(denoise, data, beside(t, data), eps).mean() for t in times])
    return times[(losses - losses.mean()).abs().argmin()]


def refine_langevin(
    denoise: Denoise,
    base: State,
    regulariser: Regulariser,
    t: Tensor,
    rng: Rng,
    steps: int = 20,
    eta: float = 0.1,
    gamma: float = 0.1,
    on_step: Callable[[State], None] | None = None,
) -> State:
    """Draws (B, N) near exp(-E / gamma) after `steps` steps from the windows `base`: known entries and the forecast of
    any other model. Fresh eps and xi at every step; one evaluation and one backward pass each.

    regulariser: R, `squared_error` or `pinball`, or its multiple. t: () the level, see `representative_level`. eta: in
    square units of the state. `unisci.inverse.langevin` does without the backward pass. on_step(x) watches. Raises
    ValueError for noise that is not Gaussian, a t outside (0, 1], and settings out of range.
    """
    check_gaussian(denoise, "refinement")
    if not bool(((t > 0) & (t <= 1)).all()):
        raise ValueError(f"the level t must lie in (0, 1], got {t.tolist()}")
    if steps < 1 or eta <= 0 or gamma < 0:
        raise ValueError(f"need steps >= 1, eta > 0 and gamma >= 0, got {steps}, {eta} and {gamma}")
    x, t = fieldwise(Tensor.detach, base), beside(t, base)
    for k in range(steps):
        eps, xi = (standard_normal(x, rng.at(k), number, denoise.schema) for number in (0, 1))
        slope = gradient(lambda x, eps=eps: denoising_loss(denoise, x, t, eps) + regulariser(x), x)
        x = fieldwise(lambda x, g, xi: x - eta * g + (2 * eta * gamma) ** 0.5 * xi, x, slope, xi)
        if on_step is not None:
            on_step(x)
    return x


def refine_map(
    denoise: Denoise,
    base: State,
    regulariser: Regulariser,
    t: Tensor,
    rng: Rng,
    steps: int = 20,
    eta: float = 0.1,
    on_step: Callable[[State], None] | None = None,
) -> State:
    """The same at temperature gamma = 0: gradient descent to the most likely windows."""
    return refine_langevin(denoise, base, regulariser, t, rng, steps, eta, 0.0, on_step)


def gradient(energy: Callable[[State], Tensor], x: State) -> State:
    """The gradient at x of an energy (B,), each sample's own."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = fieldwise(lambda v: v.detach().clone().requires_grad_(), x)
        fields = list(leaves.values()) if isinstance(leaves, dict) else [leaves]
        found = iter(torch.autograd.grad(energy(leaves).sum(), fields))
    return fieldwise(lambda v: next(found), x)
