"""Likelihoods and codes by the probability-flow ODE against exact densities (S44, checks 3 and 6)."""

import math

import pytest
import torch

from tests.oracles import GaussianOracle, MixtureOracle, normal, three_modes
from unisci.batch import Field, pair_mask
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP, time
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.divergence import exact, hutchinson
from unisci.solvers.grids import grid
from unisci.solvers.likelihood import adaptive, bits_per_dim, decode, encode, log_likelihood
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
ZERO = torch.zeros((), dtype=F64)
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


@each_process
def test_mixture(process):
    """Three modes in the plane, 70 steps: each sample within .02 nats of its density, the mean within .001."""
    denoise = three_modes(process)
    x = denoise.sample(64, torch.Generator().manual_seed(0))
    got = log_likelihood(denoise, x, grid(process, 70, end=1e-3))
    error = got - denoise.logp(x, ZERO)
    assert got.shape == (64,) and error.abs().max() < 0.02 and error.mean().abs() < 1e-3


@each_process
def test_what_is_measured(process):
    """The law of x_0 + nu xi, nu = sigma / alpha at the end of the grid, where nu is half as wide as the data."""
    clean = three_modes(process)
    end = time(process, torch.tensor(-math.log(0.15), dtype=F64)).item()
    noised = MixtureOracle(process, clean.means, (clean.stds**2 + 0.15**2).sqrt(), clean.weights)
    x = noised.sample(64, torch.Generator().manual_seed(0))
    error = log_likelihood(clean, x, grid(process, 70, end=end)) - noised.logp(x, ZERO)
    assert error.abs().max() < 0.01 and error.abs().median() < 3e-3


def gaussian_logp(x, var):
    return -0.5 * (x.shape[1] * math.log(2 * math.pi * var) + x.square().sum(1) / var)


def entries(process, x, mean, std, times):
    """The log density of each entry of x ~ N(mean, std^2), at times[-1] and with the prior N(0, sigma^2)."""
    normal, oracle = torch.distributions.Normal, GaussianOracle(process, mean, std)
    (a, b), (e, d) = process.level(times[0]), process.level(times[-1])
    end = oracle.flow(e * x, times[-1], times[0])
    prior = normal(0.0, b).log_prob(end) - normal(a * mean, (a**2 * std**2 + b**2).sqrt()).log_prob(end)
    return normal(mean, (std**2 + (d / e) ** 2).sqrt()).log_prob(x) + prior


@pytest.mark.parametrize("process, bound", [(VP(), 2.3e-4), (SubVP(), 8.1e-4)])
def test_gaussian(process, bound):
    """N(0, .25 I) in 4 dimensions within the errors of the paper's prior N(0, I) (S44, check 3); here the prior is
    N(0, sigma^2), and its error is smaller, and all that there is."""
    x, denoise, times = 0.5 * normal(2000, 4), GaussianOracle(process, 0.0, 0.5), grid(process, 150, end=1e-5)
    got = log_likelihood(denoise, x, times)
    assert (got - gaussian_logp(x, 0.25)).abs().max() < bound / 3
    assert (got - entries(process, x, 0.0, 0.5, times).sum(1)).abs().max() < 1e-6


def test_the_error_is_of_fourth_order():
    """On a Gaussian far from unit width, against a fine grid."""
    x, denoise = 0.1 * normal(20, 3), GaussianOracle(VP(), 0.3, 0.1)
    fine, *coarse = (log_likelihood(denoise, x, grid(VP(), n, end=1e-3)) for n in (160, 20, 40))
    errors = [(c - fine).abs().max().item() for c in coarse]
    assert 3.5 < math.log2(errors[0] / errors[1]) < 5


def test_adaptive_agrees():
    denoise = three_modes(VP())
    x, times = denoise.sample(16, torch.Generator().manual_seed(0)), grid(VP(), 100, end=1e-3)
    fixed = log_likelihood(denoise, x, times)
    free = log_likelihood(denoise, x, times[[0, -1]], integrate=adaptive(1e-7, 1e-7))
    assert (fixed - free).abs().max() < 1e-3
    loose = log_likelihood(denoise, x, times[[0, -1]], integrate=adaptive(1e-2, 1e-2))
    assert (loose - free).abs().max() > 1e-3
    single = log_likelihood(denoise, x.float(), times[[0, -1]], integrate=adaptive())
    assert single.dtype == torch.float32 and (single - free).abs().max() < 5e-3


def test_hutchinson_is_unbiased():
    """Over 500 probes of the same points, within 3 standard errors of the exact divergence (S44, check 3)."""
    denoise, times = three_modes(VP()), grid(VP(), 40, end=1e-3)
    x = denoise.sample(3, torch.Generator().manual_seed(1))
    want = log_likelihood(denoise, x, times)
    rng = Rng(0, torch.arange(1500))
    drawn = log_likelihood(denoise, x.repeat_interleave(500, 0), times, hutchinson(rng)).reshape(3, 500)
    error = drawn.std(1) / 500**0.5
    assert (error > 1e-3).all() and ((drawn.mean(1) - want).abs() < 3 * error).all()


SCHEMA = {"position": Field("site", (2,)), "bond": Field("pair", ()), "cell": Field("whole", ())}
PROCESS = {"position": VP(), "bond": EDM(), "cell": SubVP()}
STD = {"position": 0.5, "bond": 2.0, "cell": 0.3}
ORACLE = GaussianOracle(PROCESS, {"position": 0.2, "bond": -0.3, "cell": 0.0}, STD, SCHEMA)


def test_fields_of_their_own_processes():
    """Masked sums over what exists, pairs once, each field by its own process at a common time."""
    mask = torch.tensor([[1, 1, 1], [1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    x = {"position": 0.5 * normal(3, 3, 2), "bond": 2 * normal(3, 3, 3, seed=1), "cell": 0.3 * normal(3, seed=2)}
    x["bond"] = (x["bond"] + x["bond"].transpose(1, 2)) / math.sqrt(2)
    times = grid(VP(), 40, end=1e-3)
    got = log_likelihood(ORACLE, x, times, exact, mask)
    log = lambda k: entries(PROCESS[k], x[k], ORACLE.mean[k], STD[k], times)
    pairs = (log("bond") * pair_mask(mask).tril()).sum((1, 2))
    want = (log("position") * mask[..., None]).sum((1, 2)) + pairs + log("cell")
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)
    times = grid(VP(), 10, end=1e-3)
    got = log_likelihood(ORACLE, x, times, exact, mask)
    padded = {**x, "position": torch.where(mask[..., None], x["position"], 7.0)}
    torch.testing.assert_close(log_likelihood(ORACLE, padded, times, exact, mask), got, rtol=0, atol=1e-12)
    unmasked = log_likelihood(ORACLE, x, times)
    assert (unmasked - got)[0].abs() < 1e-9 and (unmasked - got)[1:].abs().min() > 0.1
    rng = Rng(0, torch.arange(3))  # the Jacobian is diagonal, so that any signs give its trace
    torch.testing.assert_close(log_likelihood(ORACLE, x, times, hutchinson(rng), mask), got, rtol=0, atol=1e-9)
    times = grid(VP(), 50, end=1e-3)
    back = decode(ORACLE, encode(ORACLE, x, times), times)
    for k in x:
        torch.testing.assert_close(back[k], x[k], rtol=0, atol=1e-4)


@pytest.mark.parametrize("process", [VP(), EDM(), Linear()], ids=lambda p: type(p).__name__)
def test_encode_and_decode(process):
    """There and back to 1e-4 (S44, check 6); the latent is the exact flow's; a solver decodes it as well."""
    denoise, times = three_modes(process), grid(process, 200, end=1e-3)
    x = denoise.sample(32, torch.Generator().manual_seed(0))
    latent = encode(denoise, x, times)
    assert (decode(denoise, latent, times) - x).abs().max() < 1e-4
    program = compile_solver(process, times, "dpm2")
    assert (run(denoise, latent, program) / process.level(times[-1])[0] - x).abs().median() < 5e-3
    gauss, start = GaussianOracle(process, 0.3, 0.5), process.level(times[-1])[0] * x
    want = gauss.flow(start, times[-1], times[0])
    assert ((encode(gauss, x, times) - want) / want.std()).abs().max() < 1e-5


def test_one_model_one_code():
    """VP and EDM between equal lam: the same code up to the scale (S44, check 6)."""
    codes = []
    for process in (VP(), EDM()):
        ends = time(process, torch.tensor([-4.0, 5.0], dtype=F64))
        times = grid(process, 100, start=ends[0].item(), end=ends[1].item())
        x = three_modes(process).sample(16, torch.Generator().manual_seed(0))
        codes.append(encode(three_modes(process), x, times) / process.level(times[0])[0])
    torch.testing.assert_close(*codes, rtol=1e-9, atol=1e-9)


def test_bits_per_dim():
    """The uniform density on [-1, 1] codes 255 grey levels in log2(255) bits; and a change of scale by hand."""
    assert bits_per_dim(torch.tensor(-12 * math.log(2.0)), 12, 127.5).item() == pytest.approx(math.log2(255))
    x, shift, scale = normal(5, 3), 2.0, 4.0
    data = shift + scale * x
    of_data = torch.distributions.Normal(shift, scale, validate_args=False).log_prob(data).sum(1)
    want = -of_data / (3 * math.log(2))
    torch.testing.assert_close(bits_per_dim(gaussian_logp(x, 1.0), 3, scale), want)
    torch.testing.assert_close(bits_per_dim(gaussian_logp(x, 1.0), torch.full((5,), 3), scale), want)


def test_no_graph_and_inference_mode():
    weight = torch.ones((), dtype=F64, requires_grad=True)

    class Weighted(GaussianOracle):
        def __call__(self, x, t):
            return weight * super().__call__(x, t)

    denoise, x, times = Weighted(VP(), 0.0, 0.5), normal(3, 2), grid(VP(), 10, end=1e-3)
    plain = log_likelihood(denoise, x, times)
    assert not log_likelihood(denoise, x.clone().requires_grad_(), times).requires_grad
    assert not plain.requires_grad and not encode(denoise, x, times).requires_grad
    with torch.inference_mode():
        assert torch.equal(log_likelihood(GaussianOracle(VP(), 0.0, 0.5), x.clone(), times), plain)


def test_what_is_refused():
    x, times = normal(2, 2), grid(VP(), 5, end=1e-3)
    with pytest.raises(ValueError, match="field 'x' does not have: its process StudentT"):
        log_likelihood(GaussianOracle(StudentT(EDM(), 64.0)), x, times)
    with pytest.raises(ValueError, match="'atom' does not have"):
        encode(GaussianOracle({"x": VP(), "atom": absorbing(3)}), {"x": x, "atom": x.long()}, times)
    for bad in (grid(VP(), 5), times.flip(0), times[:1]):
        with pytest.raises(ValueError, match="decrease to a last time above 0"):
            log_likelihood(GaussianOracle(VP()), x, bad)
    with pytest.raises(ValueError, match=r"alpha of field 'x' is 0 at the first time 1\.0"):
        encode(GaussianOracle(Linear()), x, torch.linspace(1, 0.1, 5, dtype=F64))
