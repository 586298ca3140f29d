"""RED-Diff on an AR(1) series with exact eps: its gradient, its fixed points, what descending times do (S32)."""

import math

import pytest
import torch

from tests.laws import assert_same_samples
from tests.oracles import AROracle, GaussianOracle, normal, three_modes
from unisci.batch import Field as Layout
from unisci.inverse import red_diff as weights
from unisci.inverse.distances import PairDistance
from unisci.inverse.operators import Field, Linear, Mask
from unisci.inverse.red_diff import prior_pull, red_diff, snr
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VP, Gaussian, to_noise
from unisci.rng import Rng
from unisci.solvers.grids import grid

F64 = torch.float64
OBSERVED = torch.arange(6) < 3
Y = torch.tensor([1.0, 0.5, -1.0, 0.0, 0.0, 0.0], dtype=F64)
FIXED = torch.tensor([0.834, 0.417, -0.816, -0.015, -0.005, -0.002], dtype=F64)


class DDPM(Gaussian):
    """The linear schedule of T = 1000 steps, at t = 1/T, ..., 1."""

    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=F64), 0)

    def level(self, t):
        kept = self.kept[(t * 1000).round().long() - 1]
        return kept.sqrt(), (1 - kept).sqrt()


class Batchwise(AROracle):
    """The exact denoiser of an AR(1) series for one time, or one for each sample, of DDPM: gains from a table."""

    def __init__(self, rho=0.9, length=6):
        super().__init__(DDPM(), rho, length)
        s, kept = self.covariance, DDPM.kept[:, None, None]
        self.gains = kept.sqrt() * s @ torch.linalg.inv(kept * s + (1 - kept) * torch.eye(length, dtype=F64))

    def __call__(self, x, t):
        gain = self.gains[(t * 1000).round().long() - 1]
        return (gain @ x[..., None])[..., 0]


def descending(n=1000):
    return torch.arange(n, 0, -1, dtype=F64) * (1000 // n) / 1000


def rng(n):
    return Rng(0, torch.arange(n))


def rows(n):
    return Y.expand(n, -1)


@pytest.mark.parametrize("strength", [0.25, 1.7])
def test_gradient_identity(strength):
    """lambda (sigma / alpha)(eps_hat - eps) = lambda (mu - D) to 1e-10, at every level (S32, check 1)."""
    denoise, mu, eps = Batchwise(), normal(1000, 6), normal(1000, 6, seed=1)
    t = descending()
    alpha, sigma = (v[:, None] for v in denoise.process.level(t))
    x = alpha * mu + sigma * eps
    clean = denoise(x, t)
    spelled = strength * sigma / alpha * (to_noise(clean, x, alpha, sigma) - eps)
    assert (spelled - strength * (mu - clean)).abs().max() < 1e-10
    pull = strength * prior_pull(mu, clean, denoise.process, t, weights.inverse_snr)
    assert (pull - spelled).abs().max() < 1e-10


@pytest.mark.parametrize(
    "weight, spelled",
    [
        (weights.inverse_snr, lambda r: r),
        (weights.sqrt_inverse_snr, lambda r: r**0.5),
        (weights.two_thirds_inverse_snr, lambda r: r ** (2 / 3)),
        (weights.square_inverse_snr, lambda r: r * r),
        (weights.log_inverse_snr, lambda r: math.log(1 + r)),
        (weights.truncated_inverse_snr, lambda r: min(r, 1)),
        (weights.const, lambda r: 1.0),
        (weights.snr, lambda r: 1 / r),
    ],
)
@pytest.mark.parametrize("t", [0.05, 0.9])
def test_weights(weight, spelled, t):
    """Each weight times (eps_hat - eps), below and above r = 1."""
    denoise, mu, eps, t = GaussianOracle(VP(), 0.3, 0.5), normal(4, 3), normal(4, 3, seed=1), torch.tensor(t, dtype=F64)
    alpha, sigma = VP().level(t)
    x = alpha * mu + sigma * eps
    clean = denoise(x, t)
    wanted = spelled((sigma / alpha).item()) * (to_noise(clean, x, alpha, sigma) - eps)
    torch.testing.assert_close(prior_pull(mu, clean, VP(), t, weight), wanted, rtol=1e-10, atol=1e-12)


class Watched(torch.nn.Module):
    """A denoiser with a parameter, which notes the grad mode it is run under."""

    process, schema = VP(), None

    def __init__(self):
        super().__init__()
        self.gain, self.modes = torch.nn.Parameter(torch.tensor(0.5, dtype=F64)), []

    def forward(self, x, t):
        self.modes.append(torch.is_grad_enabled())
        return self.gain * x


def test_no_gradient_reaches_the_network():
    """One evaluation a step, each under no_grad, and no parameter's grad is touched (S32, check 1)."""
    net = Watched()
    mu = red_diff(net, Mask(OBSERVED), rows(2), rows(2), grid(VP(), 12, "time")[:-1], rng(2))
    assert net.modes == [False] * 12 and net.gain.grad is None and not mu.requires_grad


def test_fixed_point_of_uniform_times():
    """Times drawn uniformly: (v H^T H + lambda R) mu = v H^T y, R = mean_t sigma^2 (alpha^2 S + sigma^2 I)^-1 (S32,
    check 2)."""
    denoise, n, steps = Batchwise(), 512, 400
    kept = DDPM.kept[:, None, None]
    precision = torch.linalg.inv(kept * denoise.covariance + (1 - kept) * torch.eye(6, dtype=F64))
    seen = torch.diag(OBSERVED.double())
    exact = torch.linalg.solve(seen + 0.25 * ((1 - kept) * precision).mean(0), Y)
    torch.testing.assert_close(exact, FIXED, rtol=0, atol=6e-4)
    times = rng(n).uniform("t", 0, (n, steps), 0).double().mul(1000).ceil().div(1000).T
    mu = red_diff(denoise, Mask(OBSERVED), rows(n), rows(n), times, rng(n).at(1), lr=0.02, average=0.6)
    torch.testing.assert_close(mu.mean(0), exact, rtol=0, atol=0.01)


@pytest.mark.parametrize("lr, unobserved", [(0.1, (-0.69, -0.51, -0.39)), (0.02, (-0.44, -0.25, -0.18))])
def test_descending_times(lr, unobserved):
    """The paper's run, whose means over 3 measured and 6 unknown numbers are strength = lambda 3 / 6 (S32, check 3).

    What it leaves unobserved lies between 0, the fill of a random t, and the posterior mean of sigma_y = .1.
    """
    mu = red_diff(Batchwise(), Mask(OBSERVED), rows(256), rows(256), descending(), rng(256), strength=0.125, lr=lr)
    torch.testing.assert_close(mu[:, :3], rows(256)[:, :3], rtol=0, atol=0.1)
    torch.testing.assert_close(mu[:, :3].mean(0), Y[:3], rtol=0, atol=0.02)
    torch.testing.assert_close(mu[:, 3:].mean(0), torch.tensor(unobserved, dtype=F64), rtol=0, atol=0.07)
    s = Batchwise().covariance
    exact = s[3:, :3] @ torch.linalg.solve(s[:3, :3] + 0.01 * torch.eye(3, dtype=F64), Y[:3])
    torch.testing.assert_close(exact, torch.tensor([-0.836, -0.753, -0.678], dtype=F64), rtol=0, atol=1e-3)
    error = lambda v: (v - exact).square().mean()
    assert error(mu[:, 3:].mean(0)) < min(error(torch.zeros(3, dtype=F64)), error(FIXED[3:]))


def test_posterior_variant():
    """weight=snr, strength=1 at one low level, averaged: the most probable x under the prior N(0, S + r^2 I), which no
    other weight finds (S32, section 2)."""
    denoise, n, sigma_y = Batchwise(), 256, 0.5
    times = torch.full((500,), 0.06, dtype=F64)
    alpha, sigma = denoise.process.level(times[0])
    smooth = denoise.covariance + (sigma / alpha) ** 2 * torch.eye(6, dtype=F64)
    exact = torch.linalg.solve(torch.linalg.inv(smooth) + torch.diag(OBSERVED / sigma_y**2), Y / sigma_y**2)
    solve = lambda **settings: red_diff(
        denoise, Mask(OBSERVED), rows(n), rows(n), times, rng(n), sigma_y=sigma_y, strength=1.0, lr=0.1, **settings
    )
    error = lambda mu: (mu.mean(0) - exact).abs().max()
    assert error(solve(weight=snr, average=0.2)) < 0.02
    assert error(solve(average=0.2)) > 0.2
    spread = lambda mu: mu.std(0).max()
    assert spread(solve(weight=snr, average=0.2)) < 0.8 * spread(solve(weight=snr))


def test_without_prior_and_without_data():
    """lambda = 0 and A of full rank give the x of y; sigma_y = inf a point that D leaves alone (S32, check 4)."""
    matrix = torch.eye(6, dtype=F64) + 0.1 * normal(6, 6)
    x, start = normal(5, 6, seed=2), normal(5, 6, seed=3)
    times = grid(VP(), 500, "time")[:-1]
    operator = Linear(matrix)
    mu = red_diff(GaussianOracle(VP()), operator, operator(x), start, times, rng(5), strength=0.0)
    torch.testing.assert_close(mu, x, rtol=0, atol=0.02)
    denoise, start = three_modes(VP()), 2 * normal(64, 2)
    operator = Mask(torch.ones(2, dtype=torch.bool))
    mu = red_diff(denoise, operator, start, start, times, rng(64), sigma_y=math.inf, strength=1.0)
    moved = lambda x: (denoise(x, torch.tensor(0.03, dtype=F64)) - x).norm(dim=1)
    assert moved(mu).mean() < 0.2 * moved(start).mean()


class Pulled:
    """E[x_0 | x_t] of atoms in a well about their centre: equivariant to rotations and to the order of the atoms."""

    process, schema = VP(), None

    def __call__(self, x, t):
        return GaussianOracle(VP(), 0.0, 1.3)(x, t)


class Turned:
    """An Rng whose draws (B, N, 3) are those of another, rotated and reordered."""

    def __init__(self, base, rotation, order):
        self.base, self.rotation, self.order = base, rotation, order

    def at(self, k):
        return Turned(self.base.at(k), self.rotation, self.order)

    def normal(self, name, step, shape, axes):
        return (self.base.normal(name, step, shape, axes).double() @ self.rotation.T)[:, self.order]


def test_equivariance():
    """Distances measured: the result turns with the start and the noise, as do reordered atoms. Adam has no frame of
    its own only for rotations that map axes to axes (S32, check 5)."""
    rotation = torch.tensor([[0.0, -1.0, 0.0], [0.0, 0.0, 1.0], [-1.0, 0.0, 0.0]], dtype=F64)
    order = torch.tensor([2, 0, 3, 1, 4])
    place = order.argsort()
    pairs = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 4]])
    start, times = normal(3, 5, 3), grid(VP(), 40, "time")[:-1]
    y = torch.full((3, 4), 1.5, dtype=F64)
    settings = {"times": times, "sigma_y": 0.1, "sigma_x0": 0.1}
    mu = red_diff(Pulled(), PairDistance(pairs), y, start, rng=rng(3), **settings)
    turned = Turned(rng(3), rotation, order)
    there = red_diff(Pulled(), PairDistance(place[pairs]), y, (start @ rotation.T)[:, order], rng=turned, **settings)
    torch.testing.assert_close(there, (mu @ rotation.T)[:, order], rtol=0, atol=1e-9)
    assert (PairDistance(pairs)(mu) - y).abs().max() < 0.3 < (PairDistance(pairs)(start) - y).abs().max()


def test_a_sample_does_not_depend_on_its_batch():
    denoise = GaussianOracle(VP(), 0.2, 0.7)

    def generate(seed, ids):
        init = torch.zeros(len(ids), 7)
        y = torch.ones(7).expand(len(ids), -1)
        operator = Mask(torch.arange(7) < 3)
        draws = Rng(seed, ids)
        return {"x": red_diff(denoise, operator, y, init, grid(VP(), 10, "time")[:-1], draws, sigma_x0=0.1)}

    assert_same_samples(generate)


def test_fields():
    """Named fields, of which one is measured, each with a step of its own; the other finds its prior's mean."""
    schema = {"position": Layout("site", (3,)), "cell": Layout("whole", (2,))}
    process = {"position": VP(), "cell": VP(0.1, 10.0)}
    denoise = GaussianOracle(process, {"position": 0.0, "cell": 4.0}, {"position": 1.0, "cell": 0.01}, schema)
    init = {"position": normal(3, 4, 3), "cell": 3.5 + torch.zeros(3, 2, dtype=F64)}
    y = 1 + normal(3, 4, 3, seed=5)
    operator = Field("position", Mask(torch.ones(4, 3, dtype=torch.bool)))
    times = grid(VP(), 300, "time")[:-1]
    lr = {"position": 0.05, "cell": 0.01}
    mu = red_diff(denoise, operator, y, init, times, rng(3), sigma_y=0.1, lr=lr)
    torch.testing.assert_close(mu["position"], y, rtol=0, atol=0.05)
    torch.testing.assert_close(mu["cell"], torch.full((3, 2), 4.0, dtype=F64), rtol=0, atol=0.02)
    one = red_diff(denoise, operator, y, init, times[:1], rng(3), lr=lr)
    assert (one["position"] - init["position"]).abs().max() == pytest.approx(0.05, rel=1e-6)
    assert (one["cell"] - init["cell"]).abs().max() == pytest.approx(0.01, rel=1e-6)


def test_sigma_x0():
    """Both terms are taken at mu + sigma_x0 xi: with as many draws as samples, the fits spread by the share that a
    step of Adam passes on, and without it not at all."""
    y, times = torch.zeros(64, 6, dtype=F64), descending(100)
    operator = Mask(torch.ones(6, dtype=torch.bool))
    fit = lambda s: red_diff(Batchwise(), operator, y, y, times, rng(64), strength=0.0, sigma_x0=s)
    assert fit(0.0).abs().max() == 0
    assert 0.05 < fit(0.5).std() < 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"times": torch.tensor([0.5, 0.0])}, "sigma = 0"),
        ({"times": torch.zeros(0)}, "times must be"),
        ({"times": torch.tensor(0.5)}, "times must be"),
        ({"strength": -1.0}, "strength"),
        ({"sigma_x0": -1.0}, "sigma_x0"),
        ({"average": 1.5}, "average"),
        ({"lr": -0.1}, "lr"),
        ({"sigma_y": 0.0}, "sigma_y"),
        ({"sigma_y": torch.tensor([1.0, -1.0])}, "sigma_y"),
        ({"y": torch.zeros(2, 5, dtype=F64)}, "the operator measures"),
        ({"y": torch.full((2, 6), math.nan, dtype=F64)}, "finite"),
    ],
)
def test_refused(changes, message):
    settings = {"y": rows(2), "times": torch.tensor([0.5, 0.2], dtype=F64)} | changes
    with pytest.raises(ValueError, match=message):
        red_diff(GaussianOracle(VP()), Mask(OBSERVED), init=rows(2), rng=rng(2), **settings)


def test_refuses_discrete_noise():
    denoise = GaussianOracle(absorbing(3))
    with pytest.raises(ValueError, match="Gaussian"):
        red_diff(denoise, Mask(OBSERVED), rows(2), rows(2), torch.tensor([0.5]), rng(2))
