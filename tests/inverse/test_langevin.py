"""Langevin refinement against the Gaussian posterior, whose mean and variance the chain has in closed form."""

import math

import pytest
import torch

from tests.laws import assert_same_samples
from tests.oracles import AROracle, GaussianOracle, normal, three_modes
from unisci.batch import Field as Layout
from unisci.inverse.langevin import langevin
from unisci.inverse.likelihood import log_likelihood_gradient
from unisci.inverse.operators import Field, Mask
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VP, lam, time
from unisci.rng import Rng

F64 = torch.float64
T = time(VP(), torch.tensor(1.0, dtype=F64))  # r = e^-1
OBSERVED = torch.arange(6) < 3
Y = torch.tensor([1.0, 0.5, -1.0, 0.0, 0.0, 0.0], dtype=F64)


class Basis:
    """An Rng each of whose draws, told apart by stream and step, is a unit vector: a linear chain's variance is then a
    sum of squares."""

    def __init__(self, drawn=None, k=None):
        self.drawn, self.k = {} if drawn is None else drawn, k

    def at(self, k):
        return Basis(self.drawn, k)

    def normal(self, name, step, shape, axes):
        unit = torch.zeros(shape, dtype=F64)
        unit[self.drawn.setdefault((self.k, step), len(self.drawn))] = 1
        return unit


def target():
    """Mean and covariance under the prior N(0, S + r^2 I), and the denoiser."""
    denoise = AROracle(VP(), 0.9, 6)
    r2 = math.exp(-2 * lam(VP(), T).item())
    prior = torch.linalg.inv(denoise.covariance + r2 * torch.eye(6, dtype=F64))
    covariance = torch.linalg.inv(prior + torch.diag(OBSERVED / 0.3**2))
    return denoise, covariance @ (OBSERVED * Y / 0.3**2), covariance


def test_samples_the_posterior():
    """400 chains of 400 steps at gamma = 1: mean and variance of the posterior."""
    denoise, mean, covariance = target()
    n = 400
    gradient = log_likelihood_gradient(Mask(OBSERVED), Y.expand(n, -1), 0.3)
    init = torch.zeros(n, 6, dtype=F64)
    x = langevin(denoise, gradient, init, T, Rng(0, torch.arange(n)), steps=400, eta=0.01, gamma=1.0)
    assert ((x.mean(0) - mean).abs() < 4 * (covariance.diag() / n).sqrt() + 0.01).all()
    torch.testing.assert_close(x.T.cov().diag(), covariance.diag(), rtol=0.3, atol=0)
    assert (x.T.cov() - covariance).abs().max() < 0.12


def test_stationary_variance_in_one_dimension():
    """Exactly: x <- (1 - eta P) x + eta c eps + sqrt(2 eta gamma) xi, without sampling error."""
    steps, eta, gamma, std = 300, 0.05, 0.6, 0.7
    alpha, sigma = (v.item() for v in VP().level(T))
    rest = alpha**2 / (alpha**2 * std**2 + sigma**2)
    kept = 1 - eta * (rest + 1 / 0.5**2)
    noise = (eta * rest * sigma / alpha) ** 2 + 2 * eta * gamma
    draws = 2 * steps
    y, init = torch.zeros(draws, 1, dtype=F64), torch.zeros(draws, 1, dtype=F64)
    gradient = log_likelihood_gradient(Mask(torch.tensor([True])), y, 0.5)
    rng = Basis()
    x = langevin(GaussianOracle(VP(), 0.0, std), gradient, init, T, rng, steps=steps, eta=eta, gamma=gamma)
    assert len(rng.drawn) == draws
    assert x.square().sum().item() == pytest.approx(noise / (1 - kept**2), rel=1e-9)
    assert noise / (1 - kept**2) == pytest.approx(gamma / (rest + 4), rel=0.2)


def test_climbs_without_noise():
    """gamma = 0: the mode of the posterior, but for the noise of eps, from both sides."""
    denoise, mean, _ = target()
    n = 64
    gradient = log_likelihood_gradient(Mask(OBSERVED), Y.expand(n, -1), 0.3)
    x = langevin(denoise, gradient, 3 * normal(n, 6), T, Rng(0, torch.arange(n)), steps=300, eta=0.03, gamma=0.0)
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)
    assert x.std(0).max() < 0.2


def test_refines_a_forecast():
    """From the truth and one standard deviation more: five steps of the paper's eta bring it nearer, and
    more leave it there."""
    denoise, n = AROracle(VP(), 0.9, 24), 200
    truth = normal(n, 24) @ torch.linalg.cholesky(denoise.covariance).T
    seen = torch.arange(24) < 12
    gradient = log_likelihood_gradient(Mask(seen), torch.where(seen, truth, 0.0), 1.0)
    x, errors = truth + torch.where(seen, 0.0, normal(n, 24, seed=1)), []
    for k in range(4):
        errors.append((x - truth).square().mean().item())
        x = langevin(denoise, gradient, x, T, Rng(k, torch.arange(n)), steps=5, gamma=0.0)
    assert max(errors[1:]) < 0.5 * errors[0]


def test_a_sample_does_not_depend_on_its_batch():
    def generate(seed, ids):
        y = torch.ones(len(ids), 7)
        gradient = log_likelihood_gradient(Mask(torch.arange(7) < 3), y, 0.5)
        return {"x": langevin(GaussianOracle(VP(), 0.2, 0.7), gradient, 0 * y, T.float(), Rng(seed, ids), steps=5)}

    assert_same_samples(generate)


def test_fields_and_no_gradient():
    modes = []

    class Noting(GaussianOracle):
        def __call__(self, x, t):
            modes.append(torch.is_grad_enabled())
            return super().__call__(x, t)

    schema = {"a": Layout("site", (3,)), "b": Layout("whole", (2,))}
    denoise = Noting({"a": VP(), "b": VP(0.1, 5.0)}, {"a": 0.0, "b": 5.0}, {"a": 1.0, "b": 0.5}, schema)
    init = {"a": normal(4, 5, 3), "b": normal(4, 2)}
    y = torch.full((4, 5, 3), 2.0, dtype=F64)
    gradient = log_likelihood_gradient(Field("a", Mask(torch.ones(5, 3, dtype=torch.bool))), y, 0.2)
    x = langevin(denoise, gradient, init, T, Rng(0, torch.arange(4)), steps=200, eta=0.02, gamma=0.0)
    assert modes == [False] * 200
    assert (x["a"] - 1.9).abs().mean() < 0.1 and (x["b"] - 5).abs().mean() < 0.2


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"t": torch.tensor(0.0)}, "the level t"),
        ({"steps": 0}, "steps"),
        ({"eta": 0.0}, "eta"),
        ({"gamma": -1.0}, "gamma"),
        ({"denoise": GaussianOracle(absorbing(3))}, "Gaussian"),
    ],
)
def test_refused(changes, message):
    settings = {"denoise": three_modes(VP()), "t": T} | changes
    with pytest.raises(ValueError, match=message):
        langevin(likelihood_gradient=torch.zeros_like, init=normal(2, 2), rng=Rng(0, torch.arange(2)), **settings)
