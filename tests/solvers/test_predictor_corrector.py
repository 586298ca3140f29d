"""Correctors: exact variances of linear chains, invariance, batch independence and what is refused (S44)."""

import math

import pytest
import torch

from tests.laws import assert_same_samples
from tests.oracles import GaussianOracle, Given, Literal, normal, three_modes
from unisci.batch import Field
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP, level_for, time
from unisci.rng import Rng
from unisci.solvers.formulas import reverse_diffusion
from unisci.solvers.grids import grid
from unisci.solvers.level import levels
from unisci.solvers.predictor_corrector import Langevin, PredictorCorrector, by_norm, by_schedule
from unisci.solvers.program import compile_solver, run, trace
from unisci.solvers.sample import sample

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


class Basis:
    """An Rng whose draw number k is the unit vector k + 1: a linear sampler's variance is then a sum of squares."""

    def __init__(self, draws: int):
        self.unit, self.drawn = torch.eye(draws + 1, dtype=F64)[1:, :, None], 0

    def at(self, k):
        return self

    def normal(self, name, step, shape, axes):
        self.drawn += 1
        return self.unit[self.drawn - 1]


def variance(process, solver, times, draws: int, std: float = 0.5) -> tuple[float, float]:
    """The variance at the end and the exact one, for Gaussian data of mean 0, without sampling error."""
    alpha, sigma = process.level(times)
    exact = alpha**2 * std**2 + sigma**2
    x = torch.zeros(draws + 1, 1, dtype=F64)
    x[0] = exact[0].sqrt()
    rng = Basis(draws)
    end = sample(GaussianOracle(process, 0.0, std), x, times, solver, rng)
    assert rng.drawn == draws
    return end.square().sum().item(), exact[-1].item()


def test_corrector_mends_euler():
    """The paper's grid of 50, 100, 200 steps on data of variance .25 (S44, check 4)."""
    got = {}
    for n in (50, 100, 200):
        times = torch.linspace(1, 1e-3, n + 1, dtype=F64)
        program = compile_solver(VP(), times, "euler_maruyama")
        alone, exact = variance(VP(), program, times, n)
        both, _ = variance(VP(), PredictorCorrector(program, Langevin(0.16)), times, 2 * n)
        got[n] = alone, both
        assert abs(both - exact) < 0.65 * abs(alone - exact)
    assert exact == pytest.approx(0.2501, abs=1e-4)
    for n, wanted in {50: (0.2611, 0.2539), 100: (0.2531, 0.2522), 200: (0.2508, 0.2506)}.items():
        assert got[n] == pytest.approx(wanted, abs=0.003)  # the table is of 80000 draws: .00125 each


@each_process
@pytest.mark.parametrize("size", [by_schedule, by_norm])
def test_langevin_alone(process, size):
    """From three times the variance to V / (1 - e / 2V), within 2 % of V (S44, check 5); by norm, to a share 4 / n
    more in n = 64 entries."""
    t = time(process, torch.tensor(0.0, dtype=F64))
    denoise = GaussianOracle(process, 0.0, 1.0)
    alpha, sigma = process.level(t)
    v = (alpha**2 + sigma**2).item()
    if size is by_norm:
        n, corrector = 200, Langevin(0.16, 200, by_norm)
        start = math.sqrt(3 * v) * normal(n, 64)
        out = corrector.correct(denoise, start, t, Rng(0, torch.arange(n)))
        assert out.var().item() == pytest.approx(v * (1 + 0.16**2 + 4 / 64), rel=0.015)
        return
    e, n = 2 * (0.16 * sigma.item()) ** 2, 500
    x = torch.zeros(n + 1, 1, dtype=F64)
    x[0] = math.sqrt(3 * v)
    out = Langevin(0.16, n).correct(denoise, x, t, Basis(n))
    assert out.square().sum().item() == pytest.approx(v / (1 - e / (2 * v)), rel=1e-9)
    assert out.square().sum().item() == pytest.approx(v, rel=0.02)


def predictor(process, name, times):
    if name == "reverse_diffusion":
        return trace(name, reverse_diffusion, 1, process, times)
    return compile_solver(process, times, name)


@each_process
@pytest.mark.parametrize("name", ["euler_maruyama", "ancestral", "reverse_diffusion"])
def test_predictor_corrector_keeps_the_variance(process, name):
    """Within 3 % in 300 steps for every process, sub-VP among them."""
    times = grid(process, 300, "time" if name == "euler_maruyama" else "lambda", end=1e-3)
    solver = PredictorCorrector(predictor(process, name, times), Langevin(0.16))
    got, exact = variance(process, solver, times, 600)
    assert got == pytest.approx(exact, rel=0.03)


@each_process
def test_reverse_diffusion_is_first_order(process):
    """The variance of a linear chain, in 100 to 400 steps."""
    errors = []
    for n in (100, 200, 400):
        times = grid(process, n, end=1e-3)
        got, exact = variance(process, predictor(process, "reverse_diffusion", times), times, n)
        errors.append(abs(got / exact - 1))
    assert errors[2] < 0.04
    assert math.log2(errors[0] / errors[1]) > 0.8 and math.log2(errors[1] / errors[2]) > 0.8


@pytest.mark.parametrize("process", [VP(), VE()])
def test_reverse_diffusion_of_the_paper(process):
    """x + (x - sqrt(1 - b) x) + b score + sqrt(b) xi for VP, x + (difference of variances) score for VE; and no other
    scheme gives this."""
    times = torch.tensor([0.8, 0.7], dtype=F64)
    denoise, x, xi = GaussianOracle(process, 0.3, 0.5), normal(5, 2), normal(5, 2, seed=1)
    t, s = levels(process, times)
    literal, _ = reverse_diffusion(Literal(denoise, [xi]), x, t, s, None)
    score = (t.alpha * denoise(x, times[0]) - x) / t.sigma**2
    if isinstance(process, VP):
        b = 1 - math.exp(-(0.1 * 0.1 + 19.9 / 2 * (0.8**2 - 0.7**2)))
        want = x + (1 - math.sqrt(1 - b)) * x + b * score + math.sqrt(b) * xi
    else:
        low, high = (0.01 * 5000**u for u in (0.7, 0.8))
        want = x + (high**2 - low**2) * score + math.sqrt(high**2 - low**2) * xi
    torch.testing.assert_close(literal, want)
    table = run(denoise, x, trace("reverse", reverse_diffusion, 1, process, times), Given(xi[None]))
    torch.testing.assert_close(table, want)
    for name in ("euler_maruyama", "ancestral"):
        other = run(denoise, x, compile_solver(process, times, name), Given(xi[None]))
        assert (other - want).abs().max() > 1e-3


def test_corrector_improves_a_mixture():
    """Euler in 20 steps on three modes: the mean negative log density of its samples comes nearer to the entropy."""
    process, n = VP(), 4000
    denoise, rng = three_modes(process, torch.float32), Rng(0, torch.arange(n))
    x = process.prior(torch.zeros(n, 2), rng.at(99))
    times = grid(process, 20, "time", end=0.1)
    euler = compile_solver(process, times, "euler_maruyama")
    end = times[-1].float()
    exact = process.perturb(denoise.sample(n, torch.Generator().manual_seed(0)), end, rng)
    entropy = -denoise.logp(exact, end).mean().item()
    gaps = [
        abs(-denoise.logp(sample(denoise, x, times, solver, rng), end).mean().item() - entropy)
        for solver in (euler, PredictorCorrector(euler, Langevin(0.3, 4)))
    ]
    assert gaps[1] < 0.5 * gaps[0] and gaps[0] > 0.1


SCHEMA = {"position": Field("site", (3,)), "bond": Field("pair", (2,))}
PROCESS = {"position": VP(), "bond": SubVP()}


@pytest.mark.parametrize("size", [by_schedule, by_norm])
def test_a_sample_does_not_depend_on_its_batch(size):
    """Bit for bit, alone or among 64, a dict of fields with padded sites or a bare tensor (S44, check 7)."""
    process = VP()
    program = compile_solver(process, grid(process, 6, end=1e-2), "ancestral")

    def bare(seed, ids):
        rng = Rng(seed, ids)
        solver = PredictorCorrector(program, Langevin(0.16, 2, size))
        x = process.prior(torch.zeros(len(ids), 7, 3), rng.at(9))
        return {"x": sample(GaussianOracle(process, 0.3, 0.5), x, program.times, solver, rng)}

    def fields(seed, ids):
        rng = Rng(seed, ids)
        mask = torch.arange(5) < 2 + ids[:, None] % 4
        x = {"position": torch.zeros(len(ids), 5, 3), "bond": torch.zeros(len(ids), 5, 5, 2)}
        x = {k: PROCESS[k].prior(v, rng.at(9), k, SCHEMA[k].axes) for k, v in x.items()}
        corrector = Langevin(0.16, 2, size, mask)
        return corrector.correct(GaussianOracle(PROCESS, 0.3, 0.5, SCHEMA), x, torch.tensor(0.4), rng)

    assert_same_samples(bare)
    assert_same_samples(fields)
    bond = fields(0, torch.arange(4))["bond"]
    assert torch.equal(bond, bond.transpose(1, 2))


def test_norms_are_of_what_exists():
    """By hand on a padded sample: the padding changes nothing, and each sample and field has a step of its own."""
    denoise, t = GaussianOracle(PROCESS, 0.3, 0.5, SCHEMA), torch.tensor(0.4)
    rng = Rng(0, torch.arange(2))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    x = {"position": normal(2, 3, 3).float(), "bond": normal(2, 3, 3, 2).float()}
    x["bond"] = x["bond"] + x["bond"].transpose(1, 2)
    out = Langevin(0.2, 1, by_norm, mask).correct(denoise, x, t, rng)
    steps = []
    for k, sites in (("position", [[0, 1], [0, 1, 2]]), ("bond", [[(0, 1), (1, 0)], None])):
        alpha, sigma = level_for(PROCESS[k], t, x[k])
        score = (alpha * denoise(x, t)[k] - x[k]) / sigma**2
        xi = rng.at(0).normal(k, 0, tuple(x[k].shape), SCHEMA[k].axes)
        for b in (0, 1):
            chosen = sites[b] or [(i, j) for i in range(3) for j in range(3) if i != j]
            norm = lambda v, b=b, chosen=chosen: math.sqrt(sum(v[b][i].square().sum().item() for i in chosen))
            e = 2 * (0.2 * norm(xi) / norm(score)) ** 2
            want = x[k][b] + e * score[b] + math.sqrt(2 * e) * xi[b]
            torch.testing.assert_close(out[k][b], want, rtol=1e-5, atol=1e-5)
            steps.append(e)
    assert len({round(e, 6) for e in steps}) == 4


def test_no_step_without_noise():
    """At t = 0 the state stays as it is and the denoiser is not asked; a site at t = 0 stays among moving ones."""
    calls = []

    class Watched(GaussianOracle):
        def __call__(self, x, t):
            calls.append(t)
            return super().__call__(x, t)

    denoise, rng, x = Watched(VP(), 0.3, 0.5), Rng(0, torch.arange(4)), normal(4, 3)
    for size in (by_schedule, by_norm):
        corrector = Langevin(0.16, 2, size)
        assert torch.equal(corrector.correct(denoise, x, torch.zeros(()), rng), x) and not calls
        t = torch.tensor([[0.0, 0.4, 0.7]], dtype=F64).expand(4, 3)
        out = corrector.correct(denoise, x, t, rng)
        assert torch.equal(out[:, 0], x[:, 0]) and (out[:, 1:] != x[:, 1:]).all() and out.isfinite().all()
        calls.clear()
    out = Langevin(0.16, 1, by_norm).correct(denoise, x, t, rng)
    sigma, xi = VP().level(t)[1], rng.at(0).normal("x", 0, (4, 3), 0).double()
    scaled = (denoise(x, t) * VP().level(t)[0] - x)[:, 1:] / sigma[:, 1:]  # norms of what is noised
    e = 2 * (0.16 * sigma[:, 1:] * xi[:, 1:].norm(dim=1, keepdim=True) / scaled.norm(dim=1, keepdim=True)) ** 2
    torch.testing.assert_close(out[:, 1:], x[:, 1:] + e * scaled / sigma[:, 1:] + (2 * e).sqrt() * xi[:, 1:])
    calls.clear()
    times = grid(VP(), 4)
    program = compile_solver(VP(), times, "ancestral")
    out = sample(denoise, x, times, PredictorCorrector(program, Langevin()), rng)
    assert len(calls) == 4 + 3 and out.isfinite().all()


def test_a_score_of_zero_does_not_move_by_norm():
    x = torch.zeros(2, 3)
    out = Langevin(0.16, 1, by_norm).correct(GaussianOracle(VP()), x, torch.tensor(0.5), Rng(0, torch.arange(2)))
    assert torch.equal(out, x)


def test_the_predictor_draws_as_it_does_alone():
    """The order is predictor, corrector at the new time, and their noises are streams apart."""
    process, seen = VP(), []

    class Predictor:
        def step(self, denoise, x, t, s, memory, rng):
            seen.append(("step", float(t), float(s), rng.normal("x", 0, (2, 1), 0)))
            return x, (memory or 0) + 1

    class Watched(GaussianOracle):
        def __call__(self, x, t):
            seen.append(("correct", float(t)))
            return super().__call__(x, t)

    rng, times = Rng(0, torch.arange(2)), torch.tensor([1.0, 0.6, 0.2], dtype=F64)
    solver = PredictorCorrector(Predictor(), Langevin())
    x = torch.zeros(2, 1)
    out, memory = solver.step(Watched(process, 0.0, 0.5), x, times[0], times[1], None, rng.at(0))
    assert [v[0] for v in seen] == ["step", "correct"] and seen[1][1] == pytest.approx(0.6) and memory == 1
    assert torch.equal(seen[0][3], rng.at(0).normal("x", 0, (2, 1), 0))
    sigma = process.level(times[1])[1].item()
    xi = out / (math.sqrt(2 * 2) * 0.16 * sigma)  # the score of x = 0 is 0
    assert (xi - seen[0][3]).abs().min() > 1e-3
    again, _ = solver.step(Watched(process, 0.0, 0.5), x, times[1], times[2], memory, rng.at(1))
    assert (again / process.level(times[2])[1] - out / sigma).abs().min() > 1e-3
    two = Langevin(0.16, 2).correct(Watched(process, 0.0, 1e6), x, times[1], rng)  # hardly any score: a sum of draws
    drawn = sum(rng.at(m).normal("x", 0, (2, 1), 0) for m in (0, 1))
    torch.testing.assert_close(two, (2 * 0.16 * sigma * drawn), rtol=1e-3, atol=1e-4)


def test_what_is_refused():
    x, t, rng = torch.zeros(2, 3), torch.tensor(0.5), Rng(0, torch.arange(2))
    heavy = VP()
    object.__setattr__(heavy, "is_gaussian", False)
    with pytest.raises(ValueError, match="field 'x' does not have: its process VP"):
        Langevin().correct(GaussianOracle(heavy), x, t, rng)
    both = GaussianOracle({"x": VP(), "atom": absorbing(3)})
    with pytest.raises(ValueError, match="'atom' does not have"):
        Langevin().correct(both, {"x": x, "atom": x.long()}, t, rng)
    with pytest.raises(ValueError, match="pass rng"):
        Langevin().correct(GaussianOracle(VP()), x, t, None)
    with pytest.raises(ValueError, match=r"schema must give it"):
        Langevin().correct(GaussianOracle({"x": VP()}), {"x": x}, t, rng)
    for bad in ({"snr": 0.0}, {"steps": 0}):
        with pytest.raises(ValueError, match="snr > 0 and steps >= 1"):
            Langevin(**bad)
