"""RED-Diff (Mardani et al., arXiv 2305.04391): an inverse problem solved by optimising a clean estimate mu under a
frozen diffusion prior, without a gradient through the network.

    L(mu) = |y - A(mu)|^2 / (2 sigma_y^2) + lambda w(r) <sg[eps_hat(x_t) - eps], mu>,    r = sigma / alpha
    x_t = alpha mu + sigma eps

sg holds its argument fixed, and eps_hat - eps = (mu - D(x_t)) / r. With w(r) = r, the paper's, the prior pulls mu to
its denoised self, ever more finely as t falls. These are sums: the paper's means over n_y measured and n_x unknown
numbers are strength = lambda n_y / n_x.

The result is one point, an annealed optimum that depends on lr and the times, not a draw of the posterior. With
weight=snr, strength=1, the true sigma_y and times kept low the mean of the last iterates (average=.2) tends to the most
probable x under the prior smoothed by r: for data ~ N(m, S), under N(m, S + r^2 I).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from unisci.inverse.adam import Adam
from unisci.inverse.likelihood import log_likelihood_gradient
from unisci.inverse.operators import Operator
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, processes, standard_normal
from unisci.solvers.score import check_gaussian, time_for
from unisci.state import State, fieldwise

Weight = Callable[[Tensor], Tensor]  # r -> w(r)


def inverse_snr(r: Tensor) -> Tensor:
    """r: the paper's choice, for which the pull is lambda (mu - D)."""
    return r


def sqrt_inverse_snr(r: Tensor) -> Tensor:
    """r^(1/2)."""
    return r.sqrt()


def two_thirds_inverse_snr(r: Tensor) -> Tensor:
    """r^(2/3)."""
    return r ** (2 / 3)


def square_inverse_snr(r: Tensor) -> Tensor:
    """r^2."""
    return r**2


def log_inverse_snr(r: Tensor) -> Tensor:
    """log(1 + r)."""
    return r.log1p()


def truncated_inverse_snr(r: Tensor) -> Tensor:
    """min(r, 1)."""
    return r.clamp(max=1)


def const(r: Tensor) -> Tensor:
    """1."""
    return torch.ones_like(r)


def snr(r: Tensor) -> Tensor:
    """1 / r: the weight of the posterior."""
    return 1 / r


def prior_pull(x: Tensor, clean: Tensor, process: Gaussian, t: Tensor, weight: Weight) -> Tensor:
    """w(r) (eps_hat - eps) = w(r) (x - D) / r, the gradient of the prior's term; clean = D(alpha x + sigma eps)."""
    alpha, sigma = level_for(process, t, x)
    r = sigma / alpha
    return weight(r) / r * (x - clean)


@torch.no_grad()
def red_diff(
    denoise: Denoise,
    operator: Operator,
    y: Tensor,
    init: State,
    times: Tensor,
    rng: Rng,
    sigma_y: float | Tensor = 1.0,
    weight: Weight = inverse_snr,
    strength: float = 0.25,
    lr: float | dict[str, float] = 0.1,
    sigma_x0: float = 0.0,
    average: float = 0.0,
) -> State:
    """mu, shaped as `init` (B, ...), one step of Adam and one evaluation under no_grad at each of the times.

    operator, y (B, ...), sigma_y: as `log_likelihood_gradient`. times (n,), or (n, B) for times of each sample, in the
    paper falling evenly: grid(process, n, "time", end=1e-3). weight, strength: w and lambda. lr: of Adam, in units of
    the state, by field if a dict. sigma_x0: both terms are taken at mu + sigma_x0 xi. average: the share of the last
    iterates whose mean is returned; 0, the last alone. Step k draws from rng.at(k). Periodic coordinates stay unwrapped
    here; wrap them inside the denoiser.

    Raises ValueError for noise that is not Gaussian, times with alpha = 0 or sigma = 0, settings out of range, and a y
    that does not fit the operator.
    """
    _check(denoise, times, strength, sigma_x0, average)
    ascent = log_likelihood_gradient(operator, y, sigma_y)
    adam, mu, past = Adam(lr), init, None
    first = len(times) - max(1, math.ceil(average * len(times)))  # the first step whose iterate counts
    mean = fieldwise(torch.zeros_like, init)
    for k, t in enumerate(times):
        eps, xi = (standard_normal(mu, rng.at(k), draw, denoise.schema) for draw in (0, 1))
        x = fieldwise(lambda mu, xi: mu + sigma_x0 * xi, mu, xi)
        clean = denoise(fieldwise(noised, x, eps, denoise.process, t), time_for(t, x))
        pull = fieldwise(prior_pull, x, clean, denoise.process, t, weight)
        gradient = fieldwise(lambda pull, ascent: strength * pull - ascent, pull, ascent(x))
        mu, past = adam.step(mu, gradient, past)
        if k >= first:
            mean = fieldwise(torch.add, mean, mu)
    return fieldwise(lambda v: v / (len(times) - first), mean)


def noised(x: Tensor, eps: Tensor, process: Gaussian, t: Tensor) -> Tensor:
    """x_t = alpha x + sigma eps."""
    alpha, sigma = level_for(process, t, x)
    return alpha * x + sigma * eps


def _check(denoise: Denoise, times: Tensor, strength: float, sigma_x0: float, average: float) -> None:
    check_gaussian(denoise, "RED-Diff")
    if strength < 0 or sigma_x0 < 0 or not 0 <= average <= 1:
        raise ValueError(
            f"need strength >= 0, sigma_x0 >= 0 and average in [0, 1], got {strength}, {sigma_x0} and {average}"
        )
    if times.ndim not in (1, 2) or len(times) == 0:
        raise ValueError(f"times must be (n,) or (n, B) with n > 0, got {tuple(times.shape)}")
    for process in processes(denoise).values():
        alpha, sigma = process.level(times)
        if not bool(((alpha > 0) & (sigma > 0)).all()):
            raise ValueError(
                f"{process} has alpha = 0 or sigma = 0 at some of the times; keep them between, say, .001 and .999"
            )
