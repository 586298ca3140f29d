"""Every linear operator against its adjoint, and each against what it should measure."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import normal
from unisci.inverse.likelihood import log_likelihood_gradient
from unisci.inverse.operators import Downsample, Field, Fourier, Linear, Mask, Project, pullback

F64 = torch.float64
B, N, D = 3, 6, 4


def linear(seed):
    """One of each, with a shared setting and with one for each sample."""
    own = lambda *shape: normal(*shape, seed=seed)
    return {
        "mask": Mask(own(N, D) > 0),
        "masks": Mask(own(B, N, D) > 0),
        "downsample": Downsample(3),
        "project": Project(own(2, D)),
        "projects": Project(own(B, 5, D)),
        "fourier": Fourier(own(4)),
        "fouriers": Fourier(own(B, 4)),
        "linear": Linear(own(7, N * D)),
        "linears": Linear(own(B, 7, N * D)),
    }


@pytest.mark.parametrize("name", linear(0))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_adjoint(name, seed):
    """<A x, r> = <x, A^T r> for each sample, A is linear, and A^T is what autograd makes of it."""
    operator, x, other = linear(seed)[name], normal(B, N, D, seed=seed + 1), normal(B, N, D, seed=seed + 2)
    y = operator(x)
    r = normal(*y.shape, seed=seed + 3)
    back = operator.adjoint(r, other)
    assert back.shape == x.shape
    inner = lambda a, b: (a * b).reshape(B, -1).sum(1)
    torch.testing.assert_close(inner(y, r), inner(x, back), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(operator(x - 2.5 * other), y - 2.5 * operator(other), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(pullback(operator, r, x), back, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", linear(0))
def test_a_sample_has_its_own_setting(name):
    """Sample i by its own setting alone, in float32 too."""
    operator, x = linear(1)[name], normal(B, N, D).float()
    y = operator(x)
    assert y.dtype == torch.float32
    for i in range(B):
        one = linear(1)[name]
        for f in ("where", "matrix", "frequencies"):
            if name.endswith("s") and hasattr(one, f):
                object.__setattr__(one, f, getattr(one, f)[i : i + 1])
        torch.testing.assert_close(one(x[i : i + 1]), y[i : i + 1], rtol=1e-5, atol=1e-6)


def test_what_they_measure():
    x = normal(B, N, D)
    where = x[0] > 0
    masked = Mask(where)(x)
    assert torch.equal(masked[:, where], x[:, where]) and bool((masked[:, ~where] == 0).all())
    gaps = torch.where(where, x, math.nan)
    assert torch.equal(Mask(where)(gaps), masked)
    assert torch.equal(Downsample(1)(x), x)
    torch.testing.assert_close(Downsample(2)(x)[:, 1], (x[:, 2] + x[:, 3]) / 2)
    torch.testing.assert_close(Linear(normal(5, N * D, seed=2))(x)[1], normal(5, N * D, seed=2) @ x[1].flatten())


def test_fourier_is_the_unitary_transform():
    """All N frequencies are torch's transform, which keeps the norm; half a cycle between two gives neither."""
    x = normal(B, N, D)
    whole = Fourier(torch.fft.fftfreq(N, dtype=F64))(x)
    reference = torch.fft.fft(x, dim=1, norm="ortho")
    torch.testing.assert_close(whole, torch.cat([reference.real, reference.imag], 1), rtol=0, atol=1e-12)
    torch.testing.assert_close(whole.square().sum((1, 2)), x.square().sum((1, 2)))
    wave = torch.cos(2 * math.pi * 0.3 * torch.arange(50, dtype=F64))[None]
    at = lambda f: Fourier(torch.tensor([f], dtype=F64))(wave).norm().item()
    assert at(0.3) == pytest.approx(math.sqrt(50) / 2, rel=1e-6) and at(0.4) < 0.5


def test_views_turn_with_the_structure():
    """The view from another side is the view of the structure turned back: F(S, view R) = F(S R^T, view)."""
    x = normal(B, N, 3)
    turn, views = (torch.linalg.qr(normal(B, 3, 3, seed=s)).Q for s in (1, 2))
    seen = Project((views @ turn)[:, :2])(x)
    torch.testing.assert_close(seen, Project(views[:, :2])(x @ turn.mT), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[1], x[1] @ (views @ turn)[1, :2].T, rtol=0, atol=1e-12)


def test_field():
    """One field is measured, the others get 0 of their own dtype."""
    state = {"position": normal(B, N, 3), "atom": torch.ones(B, N, dtype=torch.int64), "cell": normal(B, 3, 3)}
    operator = Field("position", Downsample(2))
    y = operator(state)
    assert torch.equal(y, Downsample(2)(state["position"]))
    back = operator.adjoint(y, state)
    assert torch.equal(back["position"], Downsample(2).adjoint(y, state["position"]))
    assert back.keys() == state.keys() and all(not back[k].any() for k in ("atom", "cell"))
    by_torch = pullback(operator, y, state)
    for k in state:
        torch.testing.assert_close(by_torch[k], back[k])
        assert by_torch[k].dtype == state[k].dtype


def test_pullback_leaves_no_trace():
    """It works below no_grad and inference_mode, returns no graph, and leaves its arguments alone."""
    x = normal(2, 3).requires_grad_()
    square = lambda x: x**2
    wanted = 2 * x.detach() * normal(2, 3, seed=1)
    plain = normal(2, 3)
    pullback(square, normal(2, 3, seed=1), plain)
    assert not plain.requires_grad
    with torch.inference_mode():
        inner = normal(2, 3)
        torch.testing.assert_close(pullback(square, normal(2, 3, seed=1), inner), wanted)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            out = pullback(square, normal(2, 3, seed=1), x)
        assert not out.requires_grad and x.grad is None
        torch.testing.assert_close(out, wanted)
    with pytest.raises(ValueError, match="residual has shape"):
        pullback(square, torch.ones(2, 1), x)


def test_log_likelihood_gradient():
    """Of log N(y; A x, sigma_y^2), by autograd; sigma_y one for each sample; nothing where it is infinite."""
    x, operator = normal(B, N, D), Project(normal(2, D, seed=1))
    y = normal(B, N, 2, seed=2)
    sigma = torch.tensor([0.5, 2.0, math.inf], dtype=F64)
    leaf = x.clone().requires_grad_()
    (-((y - operator(leaf)) ** 2).sum((1, 2))[:2] / (2 * sigma[:2] ** 2)).sum().backward()
    got = log_likelihood_gradient(operator, y, sigma)(x)
    torch.testing.assert_close(got, leaf.grad, rtol=0, atol=1e-12)
    assert bool((got[2] == 0).all()) and got[1].abs().max() > 0.1
    by_number = log_likelihood_gradient(operator, y, 0.5)(x)
    torch.testing.assert_close(by_number[0], got[0])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Mask(torch.zeros(3, dtype=torch.bool)), "observes something"),
        (lambda: Mask(torch.ones(3)), "bool"),
        (lambda: Mask(torch.ones(4, dtype=torch.bool))(normal(2, 3)), "does not fit"),
        (lambda: Mask(torch.ones(3, 3, dtype=torch.bool))(normal(2, 3)), "does not fit"),
        (lambda: Downsample(0), "factor"),
        (lambda: Downsample(4)(normal(2, 6)), "does not divide"),
        (lambda: Downsample(2)(normal(6)), "axes"),
        (lambda: Project(normal(3)), "matrix"),
        (lambda: Project(normal(0, 3)), "matrix"),
        (lambda: Project(normal(2, 4))(normal(2, 5, 3)), "does not fit"),
        (lambda: Project(normal(4, 2, 3))(normal(3, 5, 3)), "does not fit"),
        (lambda: Linear(normal(2, 4))(normal(2, 5)), "does not fit"),
        (lambda: Fourier(torch.zeros(0)), "frequencies"),
        (lambda: Fourier(torch.tensor([math.nan])), "frequencies"),
        (lambda: Fourier(torch.zeros(2, 2, 2)), "frequencies"),
        (lambda: Fourier(torch.zeros(4, 2))(normal(3, 5)), "does not fit"),
        (lambda: Linear(normal(2, 3))({"x": normal(2, 3)}), "Field"),
        (lambda: Field("cell", Downsample(2))({"x": normal(2, 4)}), "no field 'cell'"),
        (lambda: Field("cell", Downsample(2))(normal(2, 4)), "no field 'cell'"),
        (lambda: log_likelihood_gradient(Downsample(2), torch.tensor([math.inf]), 1.0), "finite"),
        (lambda: log_likelihood_gradient(Downsample(2), torch.ones(1), 0.0), "sigma_y"),
        (lambda: log_likelihood_gradient(Downsample(2), torch.ones(2, 1), 1.0)(normal(2, 4)), "measures"),
    ],
)
def test_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
