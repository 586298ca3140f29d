"""Integrators against exact flows: orders of ODE steps, weak orders of SDE steps, both ways in time."""

import math

import pytest
import torch

from tests.oracles import Given
from tests.solvers.test_orders import slope
from unisci.batch import Field
from unisci.rng import Rng
from unisci.solvers.integrate import euler, euler_maruyama, heun, integrate, integrate_sde, rk4, stochastic_heun

F64 = torch.float64
ODE = [(euler, 1), (heun, 2), (rk4, 4)]
SDE = [(euler_maruyama, 1), (stochastic_heun, 2)]


@pytest.mark.parametrize("ends", [(0.0, 1.5), (1.5, 0.0)], ids=["rising", "falling"])
@pytest.mark.parametrize(("step", "order"), ODE, ids=lambda v: getattr(v, "__name__", ""))
def test_order(step, order, ends):
    """x' = x^2 cos t, so that -1 / x - sin t is kept; on an uneven grid."""
    x, errors = torch.tensor([0.3, -0.4], dtype=F64), {}
    exact = 1 / (1 / x + math.sin(ends[0]) - math.sin(ends[1]))
    for n in (40, 80, 160):
        u = torch.linspace(0, 1, n + 1, dtype=F64)
        times = ends[0] + (u + 0.2 * torch.sin(math.pi * u) ** 2) * (ends[1] - ends[0])
        errors[n] = (integrate(lambda x, t: x**2 * torch.cos(t), x, times, step) - exact).abs().max().item()
    assert slope(errors) == pytest.approx(order, abs=0.15)


def linear_variance(step, n: int, ends: tuple[float, float]) -> float:
    """The variance at the end of dx = k(t) x dt + g(t) dw from variance .5, free of sampling error: the noises add."""
    times = torch.linspace(*ends, n + 1, dtype=F64)
    x, unit = torch.zeros(n + 1, 1, dtype=F64), torch.eye(n + 1, dtype=F64)[1:, :, None]
    x[0] = math.sqrt(0.5)
    out = integrate_sde(lambda x, t: (t - 2) * x, lambda t: 1 + t**2, x, times, Given(unit), step)
    return out.square().sum().item()


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)], ids=["rising", "falling"])
@pytest.mark.parametrize(("step", "order"), SDE, ids=lambda v: getattr(v, "__name__", ""))
def test_weak_order_with_levels_that_change(step, order, ends):
    """Against the equation of the variance, V' = 2 k V + g^2 (falling: V' = 2 k V - g^2 for falling t), by rk4."""
    sign = 1 if ends[1] > ends[0] else -1
    rhs = lambda v, t: 2 * (t - 2) * v + sign * (1 + t**2) ** 2
    exact = integrate(rhs, torch.tensor(0.5, dtype=F64), torch.linspace(*ends, 401, dtype=F64), rk4).item()
    errors = {n: abs(linear_variance(step, n, ends) - exact) for n in (20, 40, 80)}
    assert slope(errors) == pytest.approx(order, abs=0.2)


def benes_error(step, h: float, function) -> float:
    """One step of dx = tanh(x) dt + dw from .4, averaged over the noise by quadrature, against its exact law,
    p(x) = cosh(x) / cosh(x_0) e^(-h / 2) N(x; x_0, h)."""
    xi = torch.linspace(-9, 9, 4001, dtype=F64)
    weight = torch.exp(-xi.square() / 2) / math.sqrt(2 * math.pi) * (xi[1] - xi[0])
    x_0 = 0.4
    y = x_0 + math.sqrt(h) * xi
    exact = (weight * torch.cosh(y) / math.cosh(x_0) * math.exp(-h / 2) * function(y)).sum()
    out = step(lambda x, t: torch.tanh(x), torch.full_like(xi, x_0), 0.0, h, (1.0, 1.0), xi)
    return abs((weight * function(out)).sum() - exact).item()


@pytest.mark.parametrize("function", [torch.square, lambda x: x**3, torch.cos], ids=["square", "cube", "cos"])
@pytest.mark.parametrize(("step", "order"), SDE, ids=lambda v: getattr(v, "__name__", ""))
def test_local_weak_order_of_a_nonlinear_drift(step, order, function):
    """The error of one step falls with h to the power order + 1. Stochastic Heun with both stages at the far end, as in
    the published code, falls as h^2."""
    errors = {1 / h: benes_error(step, h, function) for h in (0.08, 0.04, 0.02)}
    assert slope(errors) == pytest.approx(order + 1, abs=0.25)


def test_dicts_of_fields():
    """A point and its log density side by side, as a likelihood integrates them; d log p / dt = -div."""
    field = lambda s, t: {"x": -3 * s["x"] * t, "logp": 3 * t.expand_as(s["logp"])}
    x = {"x": torch.tensor([[1.0], [-2.0]], dtype=F64), "logp": torch.zeros(2, dtype=F64)}
    for step in (heun, rk4):
        out = integrate(field, x, torch.linspace(0, 1, 101, dtype=F64), step)
        torch.testing.assert_close(out["x"], x["x"] * math.exp(-1.5), rtol=1e-3, atol=0)
        torch.testing.assert_close(out["logp"], torch.full((2,), 1.5, dtype=F64), rtol=1e-3, atol=0)


def test_noise_belongs_to_the_sample_the_step_and_the_field():
    times, zero = torch.tensor([0.0, 0.5, 2.0]), lambda x, t: {k: 0 * v for k, v in x.items()}
    schema = {"x": Field("whole", (2,)), "bond": Field("pair"), "y": Field("whole", (2,))}
    rng, x = Rng(3, torch.arange(5)), {"x": torch.zeros(5, 2), "bond": torch.zeros(5, 3, 3), "y": torch.zeros(5, 2)}
    out = integrate_sde(zero, torch.ones_like, x, times, rng, euler_maruyama, schema)
    assert torch.equal(out["bond"], out["bond"].transpose(1, 2)) and not torch.equal(out["x"], out["y"])
    literal = sum(math.sqrt(h) * rng.at(k).normal("x", 0, (5, 2), 0) for k, h in enumerate((0.5, 1.5)))
    torch.testing.assert_close(out["x"], literal)
    keep = torch.tensor([3, 0])
    drift = lambda x, t: torch.sin(x) * t
    bare = integrate_sde(drift, torch.ones_like, x["x"], times, rng)
    assert torch.equal(bare[keep], integrate_sde(drift, torch.ones_like, x["x"][keep], times, rng[keep]))
    assert bare.dtype == torch.float32


def test_fields_see_scalar_times_of_the_state_s_dtype():
    seen = []
    field = lambda x, t: seen.append(t) or x
    integrate(field, torch.ones(2, dtype=torch.float32), torch.tensor([1.0, 0.5, 0.0], dtype=F64), rk4)
    assert [t.item() for t in seen] == [1, 0.75, 0.75, 0.5, 0.5, 0.25, 0.25, 0]
    assert all(t.shape == () and t.dtype == torch.float32 for t in seen)


@pytest.mark.parametrize("times", [[0.0], [0.0, 0.0], [0.0, 1.0, 0.5], [[0.0, 1.0]], [0.0, math.nan]])
def test_bad_grids_are_refused(times):
    for solve in (
        lambda: integrate(lambda x, t: x, torch.ones(2), torch.tensor(times)),
        lambda: integrate_sde(
            lambda x, t: x, torch.ones_like, torch.ones(2), torch.tensor(times), Rng(0, torch.arange(2))
        ),
    ):
        with pytest.raises(ValueError, match="must rise or fall strictly"):
            solve()


def test_bad_noise_is_refused():
    times, x, rng = torch.tensor([0.0, 0.5]), torch.ones(2), Rng(0, torch.arange(2))
    for diffusion in (lambda t: -t - 1, lambda t: 1 / t, lambda t: (t - 0.1).sqrt()):
        with pytest.raises(ValueError, match=r"the diffusion must be finite and >= 0.*t = \[0"):
            integrate_sde(lambda x, t: x, diffusion, x, times, rng)
    with pytest.raises(ValueError, match="pass rng"):
        integrate_sde(lambda x, t: x, torch.ones_like, x, times, None)
    with pytest.raises(ValueError, match=r"fields \['a'\] needs their layout"):
        integrate_sde(lambda x, t: x, torch.ones_like, {"a": x}, times, rng)
