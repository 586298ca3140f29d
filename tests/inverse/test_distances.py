"""Distances and pair distributions: what they measure, what changes nothing, and their derivatives."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import normal
from unisci.inverse.distances import PairDistance, PairDistribution

F64 = torch.float64
RADII = torch.linspace(0, 6, 61, dtype=F64)
PAIRS = torch.tensor([[0, 1], [3, 1], [2, 4]])
each = pytest.mark.parametrize("operator", [PairDistribution(RADII, 0.2), PairDistance(PAIRS)], ids=["g", "d"])


def test_what_they_measure():
    x = normal(3, 5, 3)
    d = torch.cdist(x, x)
    torch.testing.assert_close(PairDistance(PAIRS)(x), d[:, PAIRS[:, 0], PAIRS[:, 1]])
    own = torch.stack([PAIRS, PAIRS + 0, torch.tensor([[0, 2], [0, 3], [0, 4]])])
    torch.testing.assert_close(PairDistance(own)(x)[2], d[2, 0, [2, 3, 4]])
    torch.testing.assert_close(PairDistance(own)(x)[1], PairDistance(PAIRS)(x)[1])
    g = PairDistribution(RADII, 0.2)(x)
    spelled = torch.zeros(61, dtype=F64)
    for i in range(5):
        for j in range(i):
            spelled += torch.exp(-((RADII - d[1, i, j]) ** 2) / (2 * 0.04)) / math.sqrt(2 * math.pi * 0.04)
    torch.testing.assert_close(g[1], spelled)
    wide = torch.linspace(0, 20, 2001, dtype=F64)
    total = torch.trapezoid(PairDistribution(wide, 0.05)(3 * x), wide)
    torch.testing.assert_close(total, torch.full((3,), 10.0, dtype=F64), rtol=1e-6, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_nothing_changes_with_the_frame_or_the_order(seed):
    """Rotation, reflection, translation, order of the atoms, and padding of any content."""
    x = normal(2, 6, 3, seed=seed)
    turn = torch.linalg.qr(normal(2, 3, 3, seed=seed + 1)).Q
    order = torch.randperm(6, generator=torch.Generator().manual_seed(seed))
    moved = x @ turn.mT + normal(2, 1, 3, seed=seed + 2)
    g = PairDistribution(RADII, 0.2)
    torch.testing.assert_close(g(moved[:, order]), g(x), rtol=0, atol=1e-10)
    place = order.argsort()
    torch.testing.assert_close(PairDistance(place[PAIRS])(moved[:, order]), PairDistance(PAIRS)(x), rtol=0, atol=1e-10)
    mask = torch.arange(9).expand(2, -1) < 6
    padded = torch.cat([x, normal(2, 3, 3, seed=seed + 3)], 1)
    torch.testing.assert_close(PairDistribution(RADII, 0.2, mask)(padded), g(x), rtol=0, atol=1e-12)
    other = PairDistribution(RADII, 0.2, torch.stack([mask[0], ~mask[0]]))(padded)
    torch.testing.assert_close(other[1:], PairDistribution(RADII, 0.2)(padded[1:, 6:]), rtol=0, atol=1e-12)


@each
def test_derivatives(operator):
    """The adjoint is autograd's, and agrees with the forward derivative: <J v, r> = <v, J^T r>."""
    x, v = normal(2, 5, 3), normal(2, 5, 3, seed=1)
    y, pushed = torch.func.jvp(operator, (x,), (v,))
    r = normal(*y.shape, seed=2)
    back = operator.adjoint(r, x)
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(back, torch.autograd.grad(operator(leaf), leaf, r)[0], rtol=0, atol=1e-12)
    assert (pushed * r).sum().item() == pytest.approx((v * back).sum().item(), rel=1e-10)
    step = 1e-6
    numeric = (operator(x + step * v) - operator(x - step * v)) / (2 * step)
    torch.testing.assert_close(pushed, numeric, rtol=0, atol=1e-6)
    assert operator(x.float()).dtype == torch.float32


def test_atoms_on_one_point_have_a_derivative():
    x = torch.zeros(1, 5, 3, dtype=F64)
    for operator in (PairDistribution(RADII, 0.2), PairDistance(PAIRS)):
        y = operator(x)
        assert bool(y.isfinite().all()) and bool((operator.adjoint(torch.ones_like(y), x) == 0).all())
    assert bool((PairDistance(PAIRS)(x) == 0).all())


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: PairDistribution(RADII, -0.1), "width"),
        (lambda: PairDistribution(RADII, 0.0), "width"),
        (lambda: PairDistribution(-RADII, 0.1), "radii"),
        (lambda: PairDistribution(RADII[:0], 0.1), "radii"),
        (lambda: PairDistribution(RADII, 0.1)(normal(2, 5)), "positions"),
        (lambda: PairDistribution(RADII, 0.1)({"x": normal(2, 5, 3)}), "Field"),
        (lambda: PairDistribution(RADII, 0.1, torch.ones(2, 4, dtype=torch.bool))(normal(2, 5, 3)), "mask"),
        (lambda: PairDistance(torch.tensor([[0.0, 1.0]])), "int64"),
        (lambda: PairDistance(torch.tensor([[0, 1, 2]])), "pairs"),
        (lambda: PairDistance(torch.zeros(0, 2, dtype=torch.int64)), "pairs"),
        (lambda: PairDistance(torch.tensor([[1, 1]])), "different"),
        (lambda: PairDistance(torch.tensor([[-1, 1]])), "different"),
        (lambda: PairDistance(torch.tensor([[0, 5]]))(normal(2, 5, 3)), "do not fit"),
        (lambda: PairDistance(torch.tensor([[[0, 1]]] * 3))(normal(2, 5, 3)), "do not fit"),
        (lambda: PairDistance(torch.tensor([[0, 1]]))(normal(2, 5, 2)), "positions"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
