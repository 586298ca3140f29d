"""The exponential update and its pieces (S35, S46)."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisci.processes.gaussian import VP
from unisci.solvers.exponential import data_step, derivatives, noise_step, phi
from unisci.solvers.level import levels

T, S = levels(VP(), torch.tensor([0.5, 0.3], dtype=torch.float64))


@given(k=st.integers(1, 4), z=st.floats(-12, 12))
def test_phi_is_its_integral(k, z):
    """phi_k(z) = int_0^1 e^((1 - u) z) u^(k-1) / (k-1)! du, by 2000 midpoints; on both sides of the series' border."""
    u = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    want = (torch.exp((1 - u) * z) * u ** (k - 1) / math.factorial(k - 1)).mean().item()
    assert phi(k, z) == pytest.approx(want, rel=1e-5)


def test_phi_is_continuous_at_the_series():
    for k in (1, 2, 3, 4):
        for z in (-0.5, 0.5):
            assert phi(k, z * (1 - 1e-12)) == pytest.approx(phi(k, z * (1 + 1e-12)), rel=1e-10)
        assert phi(k, 0.0) == pytest.approx(1 / math.factorial(k))
    assert phi(0, 0.7) == math.exp(0.7)


@given(a=st.floats(-2, 2), b=st.floats(-2, 2), c=st.floats(-2, 2), x=st.floats(-2, 2))
def test_polynomials_are_solved_exactly(a, b, c, x):
    """D (or the noise) a quadratic in lam: the step is int e^(lam) D dlam, here by 4000 midpoints."""
    h = S.lam - T.lam
    u = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000 * h
    value = a + b * u + c * u**2 / 2
    data = S.sigma * (x / T.sigma + (torch.exp(T.lam + u) * value).mean().item() * h)
    assert data_step(x, T, S, [a, b, c]) == pytest.approx(data, abs=1e-6)
    noise = S.alpha * (x / T.alpha - (torch.exp(-T.lam - u) * value).mean().item() * h)
    assert noise_step(x, T, S, [a, b, c]) == pytest.approx(noise, abs=1e-6)
    sde = S.sigma * math.exp(-h) * (x / T.sigma + (2 * torch.exp(T.lam + 2 * u) * value).mean().item() * h)
    sde += S.sigma * math.sqrt(-math.expm1(-2 * h)) * 0.7
    assert data_step(x, T, S, [a, b, c], 1.0, 0.7) == pytest.approx(sde, abs=1e-6)


@given(c=st.lists(st.floats(-3, 3), min_size=4, max_size=4), start=st.floats(-1, 1))
def test_derivatives_of_a_cubic(c, start):
    f = lambda u: c[0] + c[1] * u + c[2] * u**2 / 2 + c[3] * u**3 / 6
    others = [(d, f(d)) for d in (0.4 + start / 10, -0.5, -1.1)]
    assert derivatives(f(0.0), others) == pytest.approx(c, abs=1e-9)
    assert derivatives(2.0, []) == [2.0]
