"""The density followed along samples against exact densities, Gaussian and discrete (S22, checks 1 and 2)."""

import math

import pytest
import torch

from tests.oracles import EnumeratedOracle, GaussianOracle, MixtureOracle, normal, three_modes
from unisci.batch import Field
from unisci.processes.categorical import absorbing, mask_and_replace, uniform
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.divergence import exact, hutchinson
from unisci.solvers.grids import grid
from unisci.solvers.ito_density import ItoDensity, sample_with_density
from unisci.solvers.predictor_corrector import Langevin, PredictorCorrector
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Together, sample
from unisci.solvers.tokens import Ancestral, TauLeaping

F64 = torch.float64
ONE = torch.ones((), dtype=F64)
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]


def one_mode(process, mean, variance):
    one = torch.ones(1, dtype=F64)
    return MixtureOracle(process, torch.tensor([mean], dtype=F64), one * variance**0.5, one)


def slope(errors: dict[int, float]) -> float:
    first, last = min(errors), max(errors)
    return math.log(errors[first] / errors[last]) / math.log(last / first)


A = one_mode(VP(), (1.5, 0.0, 0.0), 0.3)
B = one_mode(VP(), (-1.5, 0.5, 0.0), 0.5)


def rms(name: str, kind: str, n: int, paths: int, **options) -> float:
    """The error of log q at the end, where log q of the start is exact."""
    x, times = normal(paths, 3), grid(VP(), n, kind, end=1e-2)
    solver = ItoDensity(compile_solver(VP(), times, name), start=A.logp(x, ONE), **options)
    end, log_density = sample_with_density(A, x, times, solver, Rng(0, torch.arange(paths)))
    return (log_density - A.logp(end, times[-1])).square().mean().sqrt().item()


def test_order_half_along_the_sde():
    """1.69, 1.13 and .75 nats in 100, 200 and 400 steps (S22, check 1)."""
    want = {100: 1.69, 200: 1.13, 400: 0.75}
    got = {n: rms("euler_maruyama", "time", n, 2000) for n in want}
    assert slope(got) == pytest.approx(0.5, abs=0.1)
    assert list(got.values()) == pytest.approx(list(want.values()), rel=0.12)


@pytest.mark.parametrize("name", ["ancestral", "sde-dpm++2m"])
def test_order_half_of_other_solvers(name):
    got = {n: rms(name, "lambda", n, 1000) for n in (100, 400)}
    assert slope(got) == pytest.approx(0.5, abs=0.1) and got[400] < 0.9


def test_order_one_without_noise():
    """.049 in 100 and .012 in 400 steps with the exact divergence (S22, check 2)."""
    want = {100: 0.049, 400: 0.012}
    got = {n: rms("ddim", "time", n, 200, vectors=exact) for n in want}
    assert slope(got) == pytest.approx(1, abs=0.1)
    assert list(got.values()) == pytest.approx(list(want.values()), rel=0.25)


@pytest.mark.parametrize("process", [SubVP(), VE(), Linear()], ids=lambda p: type(p).__name__)
def test_order_one_without_noise_on_a_mixture(process):
    denoise, errors = three_modes(process), {}
    for n in (50, 200):
        times = grid(process, n, end=2e-2)
        x = process.level(times[0])[1] * normal(100, 2)
        solver = ItoDensity(compile_solver(process, times, "dpm++2m"), None, exact, denoise.logp(x, times[0]))
        end, log_density = sample_with_density(denoise, x, times, solver)
        errors[n] = (log_density - denoise.logp(end, times[-1])).square().mean().sqrt().item()
    assert slope(errors) == pytest.approx(1, abs=0.3) and errors[200] < 0.1


def test_signs_do_for_the_divergence():
    """Where the Jacobian is a multiple of the identity any signs give its trace."""
    one = rms("ddim", "time", 50, 20, vectors=exact)
    assert rms("ddim", "time", 50, 20, vectors=hutchinson(Rng(3, torch.arange(20)))) == pytest.approx(one, rel=1e-6)


def test_any_drift():
    """The density of model B along the path that model A draws: only the diffusion must be the model's."""

    class Led:
        """A solver that asks A, whatever model it is given."""

        def __init__(self, program):
            self.program = program

        def step(self, denoise, x, t, s, memory, rng):
            return self.program.step(A, x, t, s, memory, rng)

    x, errors = normal(1000, 3), {}
    for n in (100, 400):
        times = grid(VP(), n, "time", end=1e-2)
        solver = ItoDensity(Led(compile_solver(VP(), times, "euler_maruyama")), start=B.logp(x, ONE))
        end, log_density = sample_with_density(B, x, times, solver, Rng(0, torch.arange(1000)))
        errors[n] = (log_density - B.logp(end, times[-1])).square().mean().sqrt().item()
    assert slope(errors) == pytest.approx(0.5, abs=0.15) and errors[400] < 1.1


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_every_process_on_a_mixture(process):
    """From the prior's own density; samples are those of the plain run."""
    denoise, n = three_modes(process), 500
    rng = Rng(0, torch.arange(n))
    errors = {}
    for steps in (50, 200):
        times = grid(process, steps, end=2e-2)
        x = process.level(times[0])[1] * normal(n, 2)
        program = compile_solver(process, times, "ancestral")
        end, log_density = sample_with_density(denoise, x, times, ItoDensity(program), rng)
        errors[steps] = (log_density - denoise.logp(end, times[-1])).square().mean().sqrt().item()
    assert errors[200] < 1.4 and slope(errors) == pytest.approx(0.5, abs=0.2)
    assert torch.equal(end, sample(denoise, x, times, program, rng))


KERNELS = [absorbing(3), uniform(3), mask_and_replace(3)]


def chain(process, solver, sites: int, steps: int, n: int = 500):
    """Errors of log p(x_0) and the end of n chains over a joint law of three classes."""
    table = torch.rand((3,) * sites, generator=torch.Generator().manual_seed(1), dtype=F64) ** 3
    oracle, rng = EnumeratedOracle(process, table), Rng(0, torch.arange(n))
    x = process.prior(torch.zeros(n, sites, dtype=torch.int64), rng.at(999))
    times = torch.linspace(1, 0, steps + 1, dtype=F64)
    end, log_density = sample_with_density(oracle, x, times, ItoDensity(solver), rng)
    assert torch.equal(end, sample(oracle, x, times, solver, rng))
    return log_density - oracle.table[tuple(end.T)].log()


@pytest.mark.parametrize("process", KERNELS)
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_one_site_is_exact(process, solver):
    """Whatever the number of steps, and down to t = 0."""
    for steps in (1, 2, 9):
        assert chain(process, solver, 1, steps).abs().max() < 1e-6


@pytest.mark.parametrize("process", KERNELS)
def test_sites_together_converge_at_order_one(process):
    errors = {n: chain(process, Ancestral(), 3, n).abs().mean().item() for n in (8, 64)}
    assert errors[8] > 0.1 and errors[64] < 0.08
    assert slope(errors) == pytest.approx(1, abs=0.35)


def test_fields_side_by_side():
    """A chain and a Gaussian field in one run: their sum, over the sites that exist."""
    schema = {"atom": Field("site", (), ("a", "b", "c")), "position": Field("site", (2,))}
    process = {"atom": absorbing(3), "position": VP()}
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=F64)

    class Both:
        def __init__(self):
            self.process, self.schema, self.calls = process, schema, 0

        def __call__(self, x, t):
            self.calls += 1
            position = GaussianOracle(process["position"], 0.0, 0.5)(x["position"], t["position"])
            return {"atom": probs.log().expand(*x["atom"].shape, 3), "position": position}

    n, times = 100, grid(VP(), 100, end=2e-2)
    rng, mask = Rng(0, torch.arange(n)), torch.tensor([True, True, False]).expand(n, 3)
    x = {
        "atom": process["atom"].prior(torch.zeros(n, 3, dtype=torch.int64), rng.at(999), "atom", 1),
        "position": process["position"].prior(torch.zeros(n, 3, 2, dtype=F64), rng.at(999), "position", 1),
    }
    steps = {"atom": times.clone(), "position": times}
    steps["atom"][-1] = 0  # a chain ends at 0, a position above
    pairs = [{k: v[i] for k, v in steps.items()} for i in range(len(times))]
    solver = Together(atom=Ancestral(), position=compile_solver(VP(), times, "ancestral"))
    denoise = Both()
    end, got = sample_with_density(denoise, x, pairs, ItoDensity(solver, mask), rng)
    assert denoise.calls == 100
    program = compile_solver(VP(), times, "ancestral")
    alone = GaussianOracle({"position": VP()}, 0.0, 0.5, {"position": schema["position"]})
    position, share = sample_with_density(alone, {"position": x["position"]}, times, ItoDensity(program, mask), rng)
    assert torch.equal(position["position"], end["position"]) and share.std() > 0.5
    torch.testing.assert_close(got - share, probs.log()[end["atom"]][:, :2].sum(1), rtol=0, atol=1e-5)
    sigma = VP().level(times[0])[1]
    start = torch.distributions.Normal(0.0, sigma).log_prob(x["position"][:, :2]).sum((1, 2))
    solver_alone = ItoDensity(program, mask, start=start)
    _, same = sample_with_density(alone, {"position": x["position"]}, times, solver_alone, rng)
    torch.testing.assert_close(same, share)
    _, every = sample_with_density(denoise, x, pairs, ItoDensity(solver), rng)
    assert (every - got).abs().min() > 1e-3


def test_clean_sites_gain_nothing():
    """Sites at time 0 throughout are neither moved nor counted."""
    process, x = uniform(3), torch.tensor([[0, 1, 2]])
    probs = torch.tensor([0.2, 0.3, 0.5], dtype=F64)

    class Flat:
        """Says the same at every site, clean or not."""

        schema = None

        def __init__(self):
            self.process = process

        def __call__(self, x, t):
            return probs.log().expand(*x.shape, 3)

    t, s = torch.tensor([[0.0, 0.6, 0.0]], dtype=F64), torch.tensor([[0.0, 0.2, 0.0]], dtype=F64)
    solver = ItoDensity(Ancestral(), start=torch.zeros(1))
    end, memory = solver.step(Flat(), x, t, s, None, Rng(0, torch.arange(1)))
    ratio = probs * process.likelihood(end, s)[0, 1] / process.likelihood(x, t)[0, 1]
    assert memory.log_density.item() == pytest.approx(ratio.sum().log().item(), abs=1e-6)
    gauss = GaussianOracle(VP(), 0.0, 0.5)
    y, still = normal(1, 3), torch.zeros(1, 3, dtype=F64)

    class Still:
        def step(self, denoise, x, t, s, memory, rng):
            return x, memory

    moving = torch.tensor([[0.0, 0.6, 0.0]], dtype=F64)
    _, memory = ItoDensity(Still(), start=torch.zeros(1)).step(gauss, y, moving, 0.5 * moving, None, None)
    assert memory.log_density.isfinite().all() and memory.log_density.item() != 0
    program = ItoDensity(Still(), start=torch.zeros(1))
    with pytest.raises(ValueError, match="no density at t = 0"):
        program.step(gauss, y, still, still, None, None)


def test_what_is_refused():
    x, rng = normal(4, 2), Rng(0, torch.arange(4))
    denoise, times = GaussianOracle(VP(), 0.0, 0.5), grid(VP(), 5, end=1e-2)
    ancestral, ddim = (compile_solver(VP(), times, name) for name in ("ancestral", "ddim"))
    follow = lambda solver, denoise=denoise, times=times: sample_with_density(denoise, x, times, solver, rng)
    with pytest.raises(ValueError, match=r"ddim draws no noise; pass vectors=exact"):
        follow(ItoDensity(ddim))
    with pytest.raises(ValueError, match="ancestral draws noise, with which no divergence"):
        follow(ItoDensity(ancestral, vectors=exact))
    with pytest.raises(ValueError, match="cannot follow a corrector"):
        follow(ItoDensity(PredictorCorrector(ancestral, Langevin())))
    to_zero = grid(VP(), 5)
    with pytest.raises(ValueError, match="no density at t = 0; end the grid above"):
        follow(ItoDensity(compile_solver(VP(), to_zero, "ancestral")), times=to_zero)
    from_one = torch.linspace(1, 0.1, 5, dtype=F64)
    with pytest.raises(ValueError, match="alpha of field 'x' is 0 at the first time"):
        follow(ItoDensity(compile_solver(Linear(), from_one, "ancestral")), GaussianOracle(Linear()), from_one)
    heavy = StudentT(EDM(), 64.0)
    with pytest.raises(ValueError, match="its process StudentT"):
        follow(ItoDensity(compile_solver(heavy, times, "ddim"), vectors=exact), GaussianOracle(heavy))
    with pytest.raises(ValueError, match="its process StudentT"):
        follow(ItoDensity(ancestral), GaussianOracle(heavy))
