"""PFGM++ against its paper's construction, closed forms and the exact posterior mean of point charges (S43)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.oracles import MixtureOracle
from tests.test_rng import kolmogorov
from unisci.processes.gaussian import EDM, VP, Cosine, Gaussian, lam, level_for
from unisci.processes.poisson_flow import WIDEST, StudentT, kernel_score
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
CHARGES = torch.tensor([[-1.0, 0.0], [1.0, 0.5], [0.0, -1.0]], dtype=F64)
WEIGHTS = torch.tensor([0.5, 0.3, 0.2], dtype=F64)


class Charges:
    """x_0 is one of the points (K, N) with `weights` (K,): E[x_0 | x_t] in Student-t noise. State (B, N)."""

    schema = None

    def __init__(self, process: StudentT, points: Tensor = CHARGES, weights: Tensor = WEIGHTS):
        self.process, self.points, self.weights = process, points, weights

    def joint(self, x: Tensor, t: Tensor) -> Tensor:
        """log weight + log p(x_t | x_0 = point) but for a constant of N and D, (B, K)."""
        alpha, sigma = (v.reshape(-1, 1) for v in level_for(self.process, t, x))
        n, d = x.shape[1], self.process.degrees
        u2 = (x[:, None] - alpha[..., None] * self.points.to(x)).square().sum(-1) / (d * sigma**2)
        return self.weights.to(x).log() - (n + d) / 2 * torch.log1p(u2) - n * sigma.log()

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.joint(x, t).softmax(1) @ self.points.to(x)


def noise(degrees: float, n: int, width: int, seed: int = 0) -> Tensor:
    """n draws of unit noise (n, width), float64."""
    process, one = StudentT(Cosine(), degrees), torch.ones((), dtype=F64)
    return process.perturb(torch.zeros(n, width, dtype=F64), one, Rng(seed, torch.arange(n)))


@pytest.mark.parametrize("degrees", [1.5, 16.0, 2048.0])
def test_the_kernel_is_that_of_the_beta_construction(degrees):
    """|x - y| against the Beta law by its distribution function, R^2 / (R^2 + r^2) ~ Beta(N/2, D/2), to below .01 at
    1e5 draws; and against draws of the paper's construction itself (S43, check 1)."""
    n, width = 100_000, 12
    x = noise(degrees, n, width)
    radius = x.norm(dim=1)
    beta = torch.distributions.Beta(torch.tensor(width / 2, dtype=F64), torch.tensor(degrees / 2, dtype=F64))
    torch.manual_seed(0)
    b = beta.sample((n,))
    paper = (math.sqrt(degrees) * (b / (1 - b)).sqrt()).sort().values
    share = torch.searchsorted(paper, radius.sort().values).to(F64) / n
    assert kolmogorov(radius, share) / math.sqrt(n) < 0.01
    f = radius.square() / width  # the ratio of two chi-squares: F(N, D)
    assert kolmogorov(f.sort().values, f_cdf(f.sort().values, width, degrees)) < 1.95  # .1 % level
    direction = x / radius[:, None]
    assert direction.mean(0).abs().max() < 4.5 / math.sqrt(width * n)
    assert abs(torch.corrcoef(torch.stack([direction[:, 0], radius.log()]))[0, 1]) < 4.5 / math.sqrt(n)


def f_cdf(x: Tensor, a: float, b: float) -> Tensor:
    """The distribution function of F(a, b), by the trapezoid rule in y = log(a x / b) on 20001 points."""
    y = torch.linspace(-80, 80, 20001, dtype=F64)
    density = torch.exp(
        a / 2 * y - (a + b) / 2 * torch.nn.functional.softplus(y)
        + math.lgamma((a + b) / 2) - math.lgamma(a / 2) - math.lgamma(b / 2)
    )  # fmt: skip
    total = torch.cumulative_trapezoid(density, y)
    at = ((a * x / b).log() + 80) / (y[1] - y[0]) - 1
    low = at.floor().long().clamp(0, len(total) - 2)
    return torch.lerp(total[low], total[low + 1], at - low)


def test_one_degree_of_freedom_is_cauchy():
    """N = 1, D = 1 (S43, check 2)."""
    x = noise(1.0, 100_000, 1).flatten().sort().values
    assert kolmogorov(x, 0.5 + x.atan() / math.pi) < 1.95
    assert x.abs().max() > 1e4, "the tail is there"


@pytest.mark.parametrize("end", [0.5, 0.3])
def test_many_degrees_of_freedom_are_the_base(end):
    """D = 1e6: Heun from the same start passes where EDM's does, at sigma = 2.5 and .3, to 1e-4, and D = 100 does not.
    The noise is EDM's but for the chi2, whose root has a standard deviation of 7.1e-4 (S43, check 2)."""
    edm, n = EDM(), 256
    times, like, rng = grid(edm, 40, "karras", end=end), torch.zeros(n, 2, dtype=F64), Rng(3, torch.arange(n))
    x = edm.prior(like, rng)
    gaussian = MixtureOracle(edm, CHARGES, torch.zeros(3, dtype=F64), WEIGHTS)
    exact = run(gaussian, x, compile_solver(edm, times, "heun"))
    for degrees, low, high in ((1e6, 0, 1e-4), (100.0, 1e-2, 1)):
        student = StudentT(edm, degrees)
        ours = run(Charges(student), x, compile_solver(student, times, "heun"))
        assert low <= (ours - exact).abs().max() < high
    ratio = StudentT(edm, 1e6).prior(like, rng) / x
    assert torch.allclose(ratio[:, :1], ratio, rtol=1e-6) and (ratio - 1).abs().max() < 5 * 7.1e-4
    assert (ratio - 1).std().item() == pytest.approx(7.07e-4, rel=0.2)


@pytest.mark.parametrize("degrees", [1.0, 8.0, 128.0, 1e6])
def test_three_charges_get_their_shares(degrees):
    """From the prior by Heun on the exact denoiser to each charge, as often as its weight (S43, check 3)."""
    process, n = StudentT(EDM(), degrees), 4000
    x = process.prior(torch.zeros(n, 2, dtype=F64), Rng(1, torch.arange(n)))
    times = grid(process, 100, "karras", end=0.002)
    out = run(Charges(process), x, compile_solver(process, times, "heun"))
    distance, nearest = torch.cdist(out, CHARGES).min(1)
    share = torch.bincount(nearest, minlength=3) / n
    assert (share - WEIGHTS).abs().max() < 3 * 0.5 / math.sqrt(n)
    assert distance.median() < 0.004


def mse(clean: Tensor, x: Tensor, t: Tensor, degrees: float) -> Tensor:
    return (Charges(StudentT(EDM(), degrees))(x, t) - clean).square().sum(1)


@pytest.mark.parametrize(("truth", "wrong"), [(4.0, 1e6), (1e6, 4.0)])
def test_the_posterior_mean_of_the_right_noise_is_best(truth, wrong):
    """In the noise of D = 4 the posterior mean of D = 4 beats that of D = 1e6, and the reverse, by 4 standard errors of
    the paired difference (S43, check 4)."""
    n, process = 20_000, StudentT(EDM(), truth)
    rng = Rng(2, torch.arange(n))
    clean = CHARGES[rng.categorical("k", 0, WEIGHTS.expand(n, -1), 0)]
    t = EDM().time(torch.full((n,), -math.log(0.7), dtype=F64))  # sigma = .7
    x = process.perturb(clean, t, rng)
    worse = mse(clean, x, t, wrong) - mse(clean, x, t, truth)
    assert worse.mean() > 4 * worse.std() / math.sqrt(n)


class Erring:
    """A denoiser with an error of a sigma on every element, new at every call."""

    def __init__(self, exact: Charges, a: float, rng: Rng):
        self.exact, self.process, self.schema, self.a, self.rng, self.calls = exact, exact.process, None, a, rng, 0

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        _, sigma = level_for(self.process, t, x)
        return self.exact(x, t) + self.a * sigma * self.rng.at(self.calls).normal("e", 0, tuple(x.shape), 0)


def displacement(degrees: float, a: float, n: int = 1000) -> float:
    """How far the error moves the endpoint of the same start, on average."""
    process, rng = StudentT(EDM(), degrees), Rng(4, torch.arange(n))
    x = process.prior(torch.zeros(n, 2, dtype=F64), rng)
    exact, program = Charges(process), compile_solver(process, grid(process, 18, "karras"), "heun")
    return (run(Erring(exact, a, rng), x, program) - run(exact, x, program)).norm(dim=1).mean().item()


def test_errors_of_the_denoiser_hurt_heavy_tails_less():
    """Error .2 sigma moves endpoints by .098, .147, .151, .158 at D = 2, 16, 128, 1e6, each to .013 (S43, check 5)."""
    assert displacement(16.0, 0.0) == 0
    wide, middle, gaussian = (displacement(d, 0.2) for d in (2.0, 16.0, 1e6))
    assert wide < 0.8 * gaussian and middle < 1.2 * gaussian


def test_one_chi2_for_each_sample():
    """Noise stays isotropic and exchangeable over sites, E[x x^T] = D / (D - 2) I, but not independent: the squares of
    two sites are correlated by their shared chi2 (S43, check 6)."""
    n, degrees = 100_000, 12.0
    process, one = StudentT(Cosine(), degrees), torch.ones((), dtype=F64)
    x = process.perturb(torch.zeros(n, 2, 2, dtype=F64), one, Rng(6, torch.arange(n)), "position", 1).flatten(1)
    second = x.T @ x / n
    kurtosis = 3 * (degrees - 2) / (degrees - 4)
    bound = 4.5 * degrees / (degrees - 2) * math.sqrt(kurtosis / n)
    assert (second - degrees / (degrees - 2) * torch.eye(4, dtype=F64)).abs().max() < bound
    squares = torch.corrcoef(x.square().T)
    expected = 1 / (degrees - 1)  # of the squares of two elements of a t law
    assert (squares[~torch.eye(4, dtype=torch.bool)] - expected).abs().max() < 0.03
    prior = process.prior(x.reshape(n, 2, 2), Rng(6, torch.arange(n)), "position", 1).flatten(1)
    assert abs(torch.corrcoef(torch.stack([prior[:, 0], x[:, 0]]).square())[0, 1]) < 0.02, (
        "a chi2 shared with the prior"
    )


def test_score_is_the_posterior_mean_of_the_kernel_score():
    """grad log sum_k w_k p(x_t | y_k) by automatic differentiation; no function of the denoiser at finite D."""
    oracle = Charges(process := StudentT(VP(), 5.0))
    x = torch.linspace(-2, 2, 12, dtype=F64).reshape(6, 2).requires_grad_()
    t = torch.tensor([0.2, 0.3, 0.4, 0.5, 0.6, 0.7], dtype=F64)
    (score,) = torch.autograd.grad(oracle.joint(x, t).logsumexp(1).sum(), x)
    weights = oracle.joint(x, t).softmax(1).detach()
    ours = sum(weights[:, k, None] * kernel_score(process, x.detach(), CHARGES[k], t) for k in range(3))
    torch.testing.assert_close(ours, score, rtol=1e-10, atol=1e-12)
    three = kernel_score(process, torch.ones(2, 3, 4, dtype=F64), torch.zeros(2, 3, 4, dtype=F64), t[0])
    sigma = process.level(t[0])[1]
    torch.testing.assert_close(three, torch.full_like(three, -(12 + 5) / (12 + 5 * sigma**2)))


def test_the_clean_value_enters_by_alpha():
    process, rng, t = StudentT(VP(), 3.0), Rng(0, torch.arange(4)), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=F64)
    clean = torch.linspace(-3, 3, 8, dtype=F64).reshape(4, 2)
    moved = process.perturb(clean, t, rng) - process.perturb(0 * clean, t, rng)
    torch.testing.assert_close(moved, VP().level(t)[0][:, None] * clean)


def test_levels_and_times_are_those_of_the_base():
    t = torch.linspace(0.01, 0.99, 9, dtype=F64)
    for base in (EDM(), VP(), Cosine()):
        process = StudentT(base, 3.0)
        assert all(map(torch.equal, process.level(t), base.level(t)))
        assert torch.equal(process.time(lam(base, t)), base.time(lam(base, t)))
        assert process.to("cpu") is process and process == StudentT(base, 3.0) != StudentT(base, 4.0)
    assert Gaussian.is_gaussian and EDM().is_gaussian and not process.is_gaussian


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**40), keep=st.lists(st.integers(0, 31), min_size=1, max_size=5, unique=True))
@pytest.mark.parametrize("degrees", [0.5, 3.0])
def test_draws_belong_to_the_sample_and_time_zero_is_clean(degrees, seed, keep):
    process, ids = StudentT(EDM(), degrees), torch.arange(32) + 7
    clean = 1e3 * torch.randn(32, 5, 3, generator=torch.Generator().manual_seed(seed))
    t = torch.full((32, 5), 0.7)
    t[:, 1:3] = 0
    full = process.perturb(clean, t, Rng(seed, ids), "position", 1)
    assert torch.equal(full[:, 1:3], clean[:, 1:3]) and (full[:, 3:] != clean[:, 3:]).all()
    assert torch.equal(full[keep], process.perturb(clean[keep], t[keep], Rng(seed, ids[keep]), "position", 1))
    cut = process.perturb(clean[:, :3], t[:, :3], Rng(seed, ids), "position", 1)
    assert torch.equal(full[:, :3], cut), "padding changed a draw"
    prior = process.prior(clean, Rng(seed, ids), "position", 1)
    assert torch.equal(prior[keep], process.prior(clean[keep], Rng(seed, ids[keep]), "position", 1))
    assert prior.dtype == full.dtype == torch.float32


@pytest.mark.parametrize("degrees", [1e-3, 0.1, 1.0])
def test_the_heaviest_tails_stay_finite_in_float32(degrees):
    """Even the squares that a norm would sum."""
    process, n = StudentT(EDM(), degrees), 20_000
    x = process.prior(torch.zeros(n, 4), Rng(0, torch.arange(n)))
    assert x.dtype == torch.float32 and x.square().sum().isfinite()
    assert x.abs().max() < 80 * WIDEST * 7


@pytest.mark.parametrize("degrees", [0.0, -1.0, math.inf, math.nan])
def test_bad_degrees_are_refused(degrees):
    with pytest.raises(ValueError, match="degrees must be positive and finite"):
        StudentT(EDM(), degrees)


def test_a_base_that_is_not_gaussian_is_refused():
    with pytest.raises(ValueError, match="the base must be a Gaussian process"):
        StudentT(StudentT(EDM(), 3.0), 3.0)


@pytest.mark.parametrize("name", ["ancestral", "euler_maruyama", "sde-dpm++2m"])
def test_stochastic_schemes_are_refused(name):
    """S43, trap: a reverse SDE needs Gaussian noise."""
    process = StudentT(EDM(), 8.0)
    with pytest.raises(ValueError, match="Gaussian"):
        compile_solver(process, grid(process, 10, "karras"), name)


def test_no_draw_waits_for_the_device():
    """Tensors without values pass: no draw reads one."""
    process, rng = StudentT(EDM(), 0.5), Rng(0, torch.arange(4, device="meta"))
    x = process.prior(torch.zeros(4, 2, device="meta"), rng)
    assert process.perturb(x, torch.rand(4, device="meta"), rng).device.type == "meta"
