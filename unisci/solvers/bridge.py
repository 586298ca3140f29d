"""Sampling from stochastic interpolants (arXiv 2303.08797): one trained pair (b, eta), every level of noise, both ways.

    dx = (b + eps s) dt + sqrt(2 eps) dw   for rising t,     dx = (b - eps s) dt + sqrt(2 eps) dw   for falling t

keep the law of x_t for any eps(t) >= 0, where s = -eta / gamma; eps = 0 is the ODE dx = b dt. With an imperfect network
eps > 0 is the safer choice: errors of b and s bound the KL divergence of the SDE's law, and not that of the ODE's.

    fields = fields_of_b(b, eta, gamma)
    x_0 = bridge(fields, x_1, torch.linspace(1, 1e-3, 101), Rng(seed, ids))
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.gaussian import to_noise
from unisci.processes.interpolant import Gamma, Path, Scalar, at
from unisci.rng import Rng
from unisci.solvers.integrate import heun, integrate, integrate_sde, stochastic_heun
from unisci.state import State, fieldwise

Field = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Fields:
    """both: (x, t) -> (b, eta), in one evaluation where it can be; gamma: the coefficient of z in x_t.

    The level of noise comes as rate(t) = eps(t) / gamma(t), so that eps s = -rate eta needs no quotient.
    """

    both: Callable[[State, Tensor], tuple[State, State]]
    gamma: Scalar

    def velocity(self, x: State, t: Tensor) -> State:
        """b, the drift of the ODE."""
        return self.both(x, t)[0]

    def score(self, x: State, t: Tensor) -> State:
        """s = -eta / gamma, which leaves the range of floats at the ends."""
        return fieldwise(lambda eta: -eta / at(self.gamma(t), eta), self.both(x, t)[1])

    def forward(self, rate: Scalar, x: State, t: Tensor) -> State:
        """b + eps s = b - rate eta, the drift of the SDE for rising t."""
        return fieldwise(lambda b, eta: b - at(rate(t), b) * eta, *self.both(x, t))

    def backward(self, rate: Scalar, x: State, t: Tensor) -> State:
        """b - eps s = b + rate eta, the drift of the SDE for falling t."""
        return fieldwise(lambda b, eta: b + at(rate(t), b) * eta, *self.both(x, t))


def fields_of_b(b: Field, eta: Field, gamma: Gamma) -> Fields:
    """From learned b and eta."""
    return Fields(lambda x, t: (b(x, t), eta(x, t)), gamma.level)


def fields_of_v(v: Field, eta: Field, gamma: Gamma) -> Fields:
    """From learned v and eta, b = v + gamma' eta; at times where gamma' is finite."""

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        e = eta(x, t)
        return v(x, t) + at(gamma.slope(t), x) * e, e

    return Fields(both, gamma.level)


def fields_of_denoiser(denoise: Field, path: Path) -> Fields:
    """From D = E[x_0 | x_t] of a one-sided path: eta = (x - alpha D) / beta, b = alpha' D + beta' eta; for t > 0."""

    def both(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        (alpha, beta), (d_alpha, d_beta) = ((at(v, x) for v in pair) for pair in (path.level(t), path.slope(t)))
        d = denoise(x, t)
        e = to_noise(d, x, alpha, beta)
        return d_alpha * d + d_beta * e, e

    return Fields(both, lambda t: path.level(t)[1])


def constant(eps: float, gamma: Scalar) -> Scalar:
    """The rate of a level eps that does not depend on time; infinite where gamma is 0, so clip the times."""
    return lambda t: eps / gamma(t)


def bridge(
    fields: Fields,
    x: State,
    times: Tensor,
    rng: Rng | None = None,
    rate: float | Scalar = 1.0,
    step: Callable[..., State] = stochastic_heun,
    schema: Schema | None = None,
) -> State:
    """From x at times[0] to times[-1]: falling times (n + 1,) generate x_0 from x_1, rising ones go back.

    rate: eps(t) / gamma(t), a number, so that eps = rate gamma, or a function such as `constant`. A rate of 0 is the
    ODE, by Heun; for other steps call `integrate(fields.velocity, ...)`. step: `stochastic_heun` or `euler_maruyama`;
    step k draws from rng.at(k). Fields of a dict need `schema`. Raises ValueError where the times are not monotone,
    where eps is negative or not finite at one of them, and for noise without an rng.
    """
    if not callable(rate) and rate == 0:
        return integrate(fields.velocity, x, times, heun)
    level = rate if callable(rate) else partial(torch.full_like, fill_value=rate)
    drift = partial(fields.forward if float(times[-1]) > float(times[0]) else fields.backward, level)
    return integrate_sde(drift, lambda t: (2 * level(t) * fields.gamma(t)).sqrt(), x, times, rng, step, schema)
