"""Exponential integrators in lam = log(alpha / sigma): the one update behind DDIM, DPM-Solver, DPM-Solver++, UniPC and
their SDE forms (Unified Sampling Framework, Liu et al., arXiv 2312.07243).

With h = lam_s - lam_t > 0, the linear part is solved exactly and the denoiser's output (or the noise) is a polynomial
in lam, given by its derivatives at t:

    data:   x_s = (sigma_s / sigma_t) e^(-eta h) x + alpha_s  sum_k (1 + eta) h^(k+1) phi_{k+1}(-(1 + eta) h) D^(k)
                  + sigma_s sqrt(1 - e^(-2 eta h)) xi
    noise:  x_s = (alpha_s / alpha_t) x - sigma_s sum_k h^(k+1) phi_{k+1}(h) e^(k)

eta = 0 is the probability-flow ODE, eta = 1 the reverse SDE. D, e and x only meet numbers, + and -, so that the same
lines run on tensors and on the linear forms of a trace.
"""

from collections.abc import Sequence
from math import exp, expm1, factorial, sqrt
from typing import Any

import numpy as np

from unisci.solvers.level import Level


def phi(k: int, z: float) -> float:
    """phi_0 = e^z, phi_k(z) = (phi_{k-1}(z) - 1 / (k-1)!) / z; where that cancels the series sum_j z^j / (j + k)!."""
    if k == 0:
        return exp(z)
    if abs(z) < 0.5:
        return sum(z**j / factorial(j + k) for j in range(18))
    value = expm1(z) / z
    for j in range(1, k):
        value = (value - 1 / factorial(j)) / z
    return value


def data_step(x: Any, t: Level, s: Level, d: Sequence[Any], eta: float = 0.0, xi: Any = None) -> Any:
    """x_s from x_t and d = [D, D', D'', ...], derivatives in lam at t; eta > 0 needs the noise xi. alpha_t may be 0,
    where h is infinite: then d = [D] alone."""
    h = s.lam - t.lam
    decay = exp(-eta * h) if eta else 1.0
    x = s.sigma / t.sigma * decay * x - s.alpha * expm1(-(1 + eta) * h) * d[0]
    for k, derivative in enumerate(d[1:], 1):
        x = x + s.alpha * (1 + eta) * h ** (k + 1) * phi(k + 1, -(1 + eta) * h) * derivative
    return x if eta == 0 else x + s.sigma * sqrt(-expm1(-2 * eta * h)) * xi


def noise_step(x: Any, t: Level, s: Level, e: Sequence[Any]) -> Any:
    """x_s from x_t and e = [e, e', e'', ...], derivatives in lam of the noise in x at t."""
    h = s.lam - t.lam
    x = s.alpha / t.alpha * x
    for k, derivative in enumerate(e):
        x = x - s.sigma * h ** (k + 1) * phi(k + 1, h) * derivative
    return x


def derivatives(here: Any, others: Sequence[tuple[float, Any]]) -> list[Any]:
    """[f, f', f'', ...] at a point, of the polynomial through f = `here` and the other (distance in lam, value)s."""
    if not others:
        return [here]
    powers = range(1, len(others) + 1)
    moments = np.array([[delta**i / factorial(i) for delta, _ in others] for i in powers])
    weights = np.linalg.inv(moments)  # sum_j w_jk delta_j^i / i! = [i = k]
    out = [here]
    for k in range(len(others)):
        terms = [float(weights[j, k]) * (value - here) for j, (_, value) in enumerate(others)]
        out.append(sum(terms[1:], terms[0]))
    return out
