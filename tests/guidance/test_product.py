"""Products of models are reached by particles; sums of scores are not (comparisons on closed forms and enumeration)."""

import math

import pytest
import torch

from tests.guidance.test_twisted import TABLE, Tabled
from tests.oracles import GaussianOracle, MixtureOracle
from unisci.batch import Field
from unisci.guidance.mixture import Mixture
from unisci.guidance.particles import prior, sample_particles
from unisci.guidance.product import Product
from unisci.guidance.twisted import Twisted
from unisci.processes.categorical import absorbing, marginal, mask_and_replace
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, level_for
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
MEANS, VARIANCES = (1.0, -1.0), (1.0, 0.25)


def pair(process=VP()):  # noqa: B008
    return Mixture(tuple(GaussianOracle(process, m, c**0.5) for m, c in zip(MEANS, VARIANCES, strict=True)))


def truth(powers):
    """Mean, standard deviation, and log of the integral of N(1, 1)^b_1 N(-1, 1/4)^b_2."""
    terms = list(zip(powers, MEANS, VARIANCES, strict=True))
    precision = sum(b / c for b, _, c in terms)
    mean = sum(b * m / c for b, m, c in terms) / precision
    log_z = sum(-b / 2 * (math.log(2 * math.pi * c) + m**2 / c) for b, m, c in terms)
    return mean, precision**-0.5, log_z + (mean**2 * precision + math.log(2 * math.pi / precision)) / 2


def solve(mixture, product, steps, n=1, seed=0, rows=None):
    rng = Rng(seed, torch.arange(n) if rows is None else torch.tensor(rows))
    x = prior(mixture, torch.zeros(len(rng.ids), 1, dtype=F64), rng.at(99), product.particles)
    return sample_particles(mixture, x, grid(mixture.process, steps), product, rng)


def moments(report):
    w, x = report.log_weights.softmax(1).flatten() / len(report.log_weights), report.particles[:, 0]
    mean = (w * x).sum()
    return mean.item(), (w * (x - mean) ** 2).sum().sqrt().item()


def reaches(got, powers=(1.0, 1.0)):
    mean, std, _ = truth(powers)
    return abs(got[0] / mean - 1) < 0.03 and abs(got[1] / std - 1) < 0.03


class Summed:
    """The denoiser of the sum of the scores: sum_i D_i + (1 - B) x / alpha."""

    def __init__(self, mixture):
        self.mixture, self.process, self.schema = mixture, mixture.process, None

    def __call__(self, x, t):
        alpha, _ = level_for(self.process, t, x)
        return sum(self.mixture.evaluate(x, t)) - (len(self.mixture.models) - 1) * x / alpha


def test_two_gaussians():
    """-.6 and .447: reached by particles with exact kernels in 8 steps and, to first order, with variances not known
    in 200; the sum of scores ends at -.44 and .38."""
    assert truth((1.0, 1.0)) == pytest.approx((-0.6, 0.2**0.5, -2.6305), abs=1e-4)
    for steps, variances in ((8, VARIANCES), (200, None)):
        _, report = solve(pair(), Product(powers=(1.0, 1.0), particles=10000, variances=variances), steps)
        assert reaches(moments(report))
        assert report.log_z.item() == pytest.approx(-2.6305, abs=0.02)
    summed = Summed(pair())
    rng, times = Rng(0, torch.arange(10000)), grid(VP(), 400)
    x = prior(summed, torch.zeros(10000, 1, dtype=F64), rng.at(99), 1) / 2**0.5
    x = run(summed, x, compile_solver(VP(), times, "ancestral"), rng)
    assert not reaches((x.mean().item(), x.std().item()))
    assert (x.mean().item(), x.std().item()) == (pytest.approx(-0.44, abs=0.02), pytest.approx(0.381, abs=0.02))


def test_any_reference_leads_to_the_product():
    """Its variance is its own: the kernels stay exact in 8 steps."""
    products = [Product(powers=(1.0, 1.0), particles=10000, variances=VARIANCES, broad=b) for b in (None, 1.5, 4.0)]
    assert products[0].broad == 2.0
    for product in products[1:]:
        _, report = solve(pair(), product, 8)
        assert reaches(moments(report))
        assert report.log_z.item() == pytest.approx(-2.6305, abs=0.02)


def test_one_draw_of_each_group():
    x, report = solve(pair(), Product(powers=(1.0, 1.0), particles=64, variances=VARIANCES), 8, n=4000)
    assert reaches((x.mean().item(), x.std().item()))
    assert report.log_z.exp().mean().log().item() == pytest.approx(-2.6305, abs=0.005)
    free = Product(powers=(1.0, 1.0), particles=64, variances=VARIANCES, threshold=0)
    _, report = solve(pair(), free, 8, n=200)
    assert not reaches((report.particles.mean().item(), report.particles.std().item()))


@pytest.mark.parametrize(
    "powers", [(0.5, 0.5), (0.3, 0.7), (2.0, -0.2), (1.0, 0.0), (0.4, 0.2), (3.0, 2.0), (-0.2, 0.5)]
)
def test_powers(powers):
    """Of sum 1, above and below, negative ones, and those that leave a model out."""
    _, report = solve(pair(), Product(powers=powers, particles=20000, variances=VARIANCES), 8)
    assert reaches(moments(report), powers)
    assert report.log_z.item() == pytest.approx(truth(powers)[2], abs=0.03)


@pytest.mark.parametrize("process", [VE(), EDM(), Cosine(), Linear()], ids=lambda p: type(p).__name__)
def test_every_process(process):
    """VE and EDM start at far more noise: their first steps only."""
    _, report = solve(pair(process), Product(powers=(1.0, 1.0), particles=20000, variances=VARIANCES), 10)
    assert reaches(moments(report))
    assert report.log_z.item() == pytest.approx(-2.6305, abs=0.05)


def test_tempering_a_mixture():
    """q^2 of two modes of weights .3 and .7: closed form up to their overlap, which is nothing."""
    means, stds = torch.tensor([[-2.0], [2.0]], dtype=F64), torch.tensor([0.4, 0.6], dtype=F64)
    weights = torch.tensor([0.3, 0.7], dtype=F64)
    law = MixtureOracle(VP(), means, stds, weights)
    product = Product(powers=(2.0,), particles=10000, variances=(4.0,))
    _, report = solve(Mixture((law,)), product, 200)
    mass = weights**2 / (2 * math.pi**0.5 * stds)
    w, x = report.log_weights.softmax(1)[0], report.particles[:, 0]
    assert w[x > 0].sum().item() == pytest.approx((mass[1] / mass.sum()).item(), abs=0.03)
    right = w[x > 0] / w[x > 0].sum()
    mean = (right * x[x > 0]).sum()
    assert mean.item() == pytest.approx(2, rel=0.03)
    assert (right * (x[x > 0] - mean) ** 2).sum().sqrt().item() == pytest.approx(0.6 / 2**0.5, rel=0.05)
    assert report.log_z.item() == pytest.approx(mass.sum().log().item(), abs=0.1)


OTHER = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(5), dtype=F64) ** 2
MARGINAL = marginal(torch.tensor([0.5, 0.2, 0.3]))


BOTH = mask_and_replace(3, 0.3)
AND, RATIO = (1.0, 1.0), (1.2, -0.5)


@pytest.mark.parametrize(
    ("process", "powers"), [(absorbing(3), AND), (MARGINAL, AND), (BOTH, RATIO)], ids=["absorb", "marginal", "both"]
)
def test_enumerated_sequences(process, powers):
    """27 sequences: TV below .02 and log Z; without weights far from it."""
    laws = Tabled(process, TABLE + 0.05), Tabled(process, OTHER + 0.05)
    target = laws[0].table ** powers[0] * laws[1].table ** powers[1]
    rng, mixture, times = Rng(0, torch.arange(1)), Mixture(laws), torch.linspace(1, 0, 41, dtype=F64)

    def away(n, threshold, weigh):
        x = prior(mixture, torch.zeros(1, 3, dtype=torch.long), rng.at(99), n)
        product = Product(powers=powers, particles=n, threshold=threshold)
        _, report = sample_particles(mixture, x, times, product, rng)
        index = (report.particles * torch.tensor([9, 3, 1])).sum(1)
        law = torch.zeros(27, dtype=F64).index_add(0, index, (weigh * report.log_weights).softmax(1)[0])
        return (law - (target / target.sum()).flatten()).abs().sum().item() / 2, report.log_z.item()

    far, log_z = away(20000, 0.5, 1)
    assert far < 0.02 and log_z == pytest.approx(target.sum().log().item(), abs=0.02)
    assert away(4000, 0, 0)[0] > 0.04


def test_one_site_is_exact_in_any_steps():
    """The kernels of a single token are exact: log Z has no bias in 2 steps, whatever the powers."""
    for process in (absorbing(3), MARGINAL, mask_and_replace(3, 0.3)):
        for powers in ((1.0, 1.0), (0.5, 0.5), (0.8, -0.4)):
            p, q = torch.tensor([0.6, 0.3, 0.1], dtype=F64), torch.tensor([0.2, 0.2, 0.6], dtype=F64)
            mixture, rng, n = Mixture((Tabled(process, p), Tabled(process, q))), Rng(0, torch.arange(1)), 20000
            x = prior(mixture, torch.zeros(1, 1, dtype=torch.long), rng.at(99), n)
            times = torch.tensor([1.0, 0.4, 0.0], dtype=F64)
            _, report = sample_particles(mixture, x, times, Product(powers=powers, particles=n), rng)
            target = p ** powers[0] * q ** powers[1]
            w = report.log_weights.softmax(1)[0]
            law = torch.zeros(3, dtype=F64).index_add(0, report.particles[:, 0], w)
            torch.testing.assert_close(law, target / target.sum(), atol=0.012, rtol=0)
            assert report.log_z.item() == pytest.approx(target.sum().log().item(), abs=0.02)


def test_models_that_agree_on_nothing():
    """No weight, no error; and what one model alone forbids is never drawn."""
    p, q = torch.tensor([1.0, 0.0, 0.0], dtype=F64), torch.tensor([0.0, 0.5, 0.5], dtype=F64)
    times, rng = torch.linspace(1, 0, 6, dtype=F64), Rng(0, torch.arange(3))
    for first, dead in ((p, True), (torch.tensor([0.5, 0.5, 0.0], dtype=F64), False)):
        mixture = Mixture((Tabled(absorbing(3), first), Tabled(absorbing(3), q)))
        x = prior(mixture, torch.zeros(3, 1, dtype=torch.long), rng.at(99), 8)
        x, report = sample_particles(mixture, x, times, Product(powers=(1.0, 1.0), particles=8), rng)
        assert bool((report.log_z < -500).all()) == dead
        assert dead or bool((x == 1).all())


SCHEMA = {"k": Field("site", (), ("a", "b", "c")), "x": Field("site", (2,))}


class Mixed:
    schema = SCHEMA

    def __init__(self, shift):
        self.process, self.shift = PROCESSES, shift

    def __call__(self, x, t):
        code = torch.cos(x["k"].double()[..., None] + torch.arange(3) + self.shift)
        return {"k": 3 * code + x["x"].sum(-1, keepdim=True), "x": 0.5 * x["x"] + 6 * code[..., :2]}


PROCESSES = {"k": absorbing(3), "x": VP()}


def mixed(rows, fill=0.0):
    """Two sites, and a third one of padding whose values are `fill`."""
    mixture, rng = Mixture((Mixed(0.0), Mixed(1.0))), Rng(0, torch.tensor(rows))
    like = {"k": torch.zeros(len(rows), 3, dtype=torch.long), "x": torch.zeros(len(rows), 3, 2, dtype=F64)}
    x = prior(mixture, like, rng.at(99), 6)
    x["x"][:, 2] += fill
    mask = torch.tensor([True, True, False]).expand(6 * len(rows), 3)
    times = torch.tensor([1.0, 0.8, 0.5, 0.2, 0.0], dtype=F64)
    return sample_particles(mixture, x, times, Product(powers=(1.0, 1.0), particles=6, mask=mask), rng)


def test_groups_do_not_depend_on_the_batch():
    whole, report = mixed([0, 1, 2, 3, 4])
    assert bool((report.ess[1:] < 3).any())
    for rows in ([3], [4, 1]):
        part, own = mixed(rows)
        assert all(torch.equal(part[k], whole[k][rows]) for k in whole)
        assert torch.equal(own.log_z, report.log_z[rows])
    padded, own = mixed([3], fill=5.0)
    assert torch.equal(own.log_z, report.log_z[[3]]) and torch.equal(padded["x"][:, :2], whole["x"][[3], :2])


def test_one_model_of_power_one_is_the_plain_chain():
    """Weights that stay 1, and the same points, with particles or one."""
    model, rng = GaussianOracle(VP(), 0.5, 0.8), Rng(0, torch.arange(20))
    times = grid(VP(), 10)
    x = prior(model, torch.zeros(20, 1, dtype=F64), rng.at(99), 1)
    product = Product(powers=(1.0,), particles=1, variances=(0.64,))
    got, report = sample_particles(Mixture((model,)), x, times, product, rng)
    torch.testing.assert_close(report.log_z, torch.zeros(20, dtype=F64), atol=1e-9, rtol=0)
    plain = Twisted(log_h0=lambda x: 0 * x[:, 0], twist=lambda at: None, particles=1, variance=0.64)
    torch.testing.assert_close(got, sample_particles(model, x, times, plain, rng)[0])


def test_what_is_refused():
    make = lambda powers=(1.0, 1.0), **named: Product(powers=powers, particles=2, **named)
    with pytest.raises(ValueError, match="threshold is a share"):
        make(threshold=2)
    for variances in ((1.0,), (1.0, 0.0), (1.0, math.inf)):
        with pytest.raises(ValueError, match="variances must be positive, one for each of 2 powers"):
            make(variances=variances)
    for broad in (0.0, math.inf):
        with pytest.raises(ValueError, match="broad, the variance of the reference, must be positive"):
            make(broad=broad)
    with pytest.raises(ValueError, match=r"with a reference of 0\.1, give no law"):
        make(broad=0.1)
    for powers in ((1.0, -1.0), (0.0, 0.0), (-1.0, 0.5), (math.nan, 1.0), (math.inf, 1.0)):
        with pytest.raises(ValueError, match="give no law"):
            make(powers)
    with pytest.raises(ValueError, match="give no law"):
        make((1.0, -0.5), variances=(1.0, 0.25))
    with pytest.raises(ValueError, match="of 2 powers steps a Mixture of as many models, got <"):
        solve(GaussianOracle(VP()), make(), 3)
    with pytest.raises(ValueError, match="steps a Mixture of as many"):
        solve(pair(), make((1.0, 1.0, 1.0)), 3)
    heavy = Mixture((GaussianOracle(StudentT(VE(), 64.0)),))
    with pytest.raises(ValueError, match="its process StudentT"):
        solve(heavy, make((1.0,)), 3)
