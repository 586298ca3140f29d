"""Ridge rewards: the closed form, the left-out error against refitting, leverage and what it warns of."""

import pytest
import torch

from tests.oracles import normal
from unisci.guidance.ridge import Ridge, extrapolation, fit_reward, pseudo_label
from unisci.rng import Rng

K = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


def same(x):
    return x


def data(n, noise=0.3, seed=0):
    x = normal(n, 3, seed=seed)
    return x, x @ K + 5.0 + noise * normal(n, seed=seed + 100)


def test_the_closed_form():
    """A tiny penalty gives least squares; a unit of x, a shift of x and of y change nothing but theta's own units."""
    x, y = data(50)
    rows = torch.cat([torch.ones(50, 1, dtype=torch.float64), x], 1)
    fit = fit_reward(same, x, y, 1e-12)
    torch.testing.assert_close(fit.theta, torch.linalg.lstsq(rows, y[:, None]).solution[:, 0], rtol=1e-8, atol=1e-8)
    fit, scale = fit_reward(same, x, y, 0.3), torch.tensor([1.0, 10.0, 0.01])
    moved = fit_reward(same, x * scale + 7, y + 3, 0.3)
    torch.testing.assert_close(moved(x * scale + 7), fit(x) + 3, rtol=1e-7, atol=1e-7)
    assert fit.theta[1:].norm() < 0.9 * K.norm()  # it shrinks
    centred = x - x.mean(0)
    slope = torch.linalg.solve(
        centred.T @ centred + 50 * 0.3 * torch.diag(centred.square().mean(0)), centred.T @ (y - y.mean())
    )
    torch.testing.assert_close(fit.theta[1:], slope)
    torch.testing.assert_close(fit(x).mean(), y.mean())


def test_features_of_any_unit_and_origin():
    """A constant feature changes nothing, whatever its value; an origin of 1e6 costs few digits."""
    x, y = data(50)
    plain, far = fit_reward(same, x, y), fit_reward(same, 1e6 + x, y)
    for constant in (0.0, 0.1, 1.0, 1e3):
        more = fit_reward(lambda x, c=constant: torch.cat([x, torch.full_like(x[:, :1], c)], 1), x, y)
        torch.testing.assert_close(more(x), plain(x), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(more.leverage(x), plain.leverages, rtol=1e-6, atol=1e-6)
        assert more.theta[-1].abs() < 1e-6 and more.inverse[-1, -1] > 10  # its first change would be news
    torch.testing.assert_close(far(1e6 + x), plain(x), rtol=1e-6, atol=1e-6)
    assert far.error == pytest.approx(plain.error, rel=1e-6)


def test_the_left_out_error_is_that_of_refits():
    x, y = data(20)
    keep = lambda i: torch.arange(20) != i
    fit = fit_reward(same, x, y, 1e-12)
    errors = [fit_reward(same, x[keep(i)], y[keep(i)], 1e-12)(x[i : i + 1]) - y[i] for i in range(20)]
    assert fit.error == pytest.approx(torch.cat(errors).square().mean().sqrt().item(), rel=1e-6)
    new = data(4000, seed=7)
    assert fit_reward(same, *data(400)).error == pytest.approx((fit(new[0]) - new[1]).std().item(), rel=0.15)


def test_a_fit_is_differentiable_and_keeps_the_precision_of_states():
    x, y = data(30)
    fit = fit_reward(lambda x: torch.cat([x, x**2], 1), x, y)
    at = x[:2].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(fit(at).sum(), at)
    torch.testing.assert_close(gradient, fit.theta[1:4] + 2 * fit.theta[4:] * x[:2])
    assert fit(x.float()).dtype == torch.float32 and isinstance(fit, Ridge) and not fit.theta.requires_grad
    fields = fit_reward(lambda state: state["x"], {"x": x}, y)
    assert fields({"x": x}).shape == (30,)


def test_leverage_is_the_variance_of_the_fit():
    """Over 400 sets of labels at the same states, in units of the labels' noise; its mean there is (1 + F) / n."""
    x, far = data(40)[0], torch.tensor([[0.1, 0.0, 0.0], [4.0, -4.0, 2.0]], dtype=torch.float64)
    fits = [fit_reward(same, x, x @ K + 0.3 * normal(40, seed=s), 1e-9) for s in range(400)]
    variance = torch.stack([fit(far) for fit in fits]).var(0) / 0.09
    torch.testing.assert_close(fits[0].leverage(far), variance, rtol=0.25, atol=0)
    assert fits[0].leverages.mean().item() == pytest.approx(4 / 40, rel=1e-5)
    torch.testing.assert_close(fits[0].leverage(x), fits[0].leverages)


def test_how_far_samples_lie_from_the_labels():
    """Samples like the labelled states look so; far ones do not, nor a target above all labels."""
    x, y = data(200)
    fit = fit_reward(same, x, y)
    near, far = extrapolation(fit, y, y.median().item(), normal(500, 3, seed=3)), extrapolation(fit, y, 30.0, 8 + x)
    assert near.target < 0 and 0.8 < near.leverage < 1.2 and near.outside < 0.05
    assert far.target == pytest.approx(((30 - y.max()) / y.std()).item()) and far.target > 3
    assert far.leverage > 20 and far.outside == 1


def test_pseudo_labels():
    x, y = data(20000)
    fit, rng = fit_reward(same, x, y), Rng(0, torch.arange(20000))
    labels = pseudo_label(fit, x, 0.5, rng)
    away = labels - fit(x)
    assert away.mean().abs() < 0.02 and away.std().item() == pytest.approx(0.5, rel=0.02)
    assert torch.corrcoef(torch.stack([away, y]))[0, 1].abs() < 0.03
    rows = torch.tensor([5, 2])
    torch.testing.assert_close(pseudo_label(fit, x[rows], 0.5, rng[rows]), labels[rows])
    torch.testing.assert_close(pseudo_label(fit, x, 0.0, rng), fit(x))
    with pytest.raises(ValueError, match="noise"):
        pseudo_label(fit, x, -0.1, rng)


@pytest.mark.parametrize(
    ("n", "labels", "regularisation", "message"),
    [(9, 8, 0.1, "expected"), (2, 2, 0.1, "n >= 3"), (9, 9, 0.0, "positive")],
)
def test_bad_data_are_refused(n, labels, regularisation, message):
    with pytest.raises(ValueError, match=message):
        fit_reward(same, normal(n, 3), normal(labels), regularisation)
    with pytest.raises(ValueError, match="finite"):
        fit_reward(same, normal(9, 3), normal(9) / 0)
