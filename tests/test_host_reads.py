"""No loop waits for the device between its first step and its last, so that the host runs ahead of it.

What waits, on purpose, and stands outside the loops: `run` asks at the end whether the result is finite (check=False
leaves that out); `sample_particles` looks for the largest id before its loop, and for weights that are nan after it;
constructors check what they are given. Inside a loop only these: `Exact`, the sites of a discrete potential, counts
the sites that are noised; `RandomChoice`, a control, reads the time; the block loop asks which samples still grow.
Times may lie on the CPU, where reading them costs nothing.
"""

import copy
from itertools import pairwise

import pytest
import torch

from tests.laws import no_host_reads
from tests.oracles import GaussianOracle
from unisci.batch import Field
from unisci.guidance.black_scholes import Greedy, OptionBlend
from unisci.guidance.conditional import classifier_free, quantile
from unisci.guidance.mixture import Mixture
from unisci.guidance.observation import Isotropic, Observation, Reward, Unit
from unisci.guidance.potential import FirstOrder, Potential
from unisci.guidance.product import Product
from unisci.guidance.superdiff import And, Or, SuperDiff
from unisci.guidance.terms import Contrast, Pin, Start, guided
from unisci.guidance.twisted import Twisted, at_estimate
from unisci.inverse.langevin import langevin
from unisci.processes.categorical import absorbing, mask_and_replace, uniform
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.divergence import exact, hutchinson
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.grids import grid
from unisci.solvers.ito_density import ItoDensity, sample_with_density
from unisci.solvers.likelihood import log_likelihood
from unisci.solvers.predictor_corrector import Langevin, PredictorCorrector, by_norm
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Together, sample
from unisci.solvers.tokens import Ancestral, TauLeaping

PROCESS, B, D = VP(), 4, 3
MODEL, OTHER = GaussianOracle(PROCESS, 0.3, 0.5), GaussianOracle(PROCESS, -0.3, 0.8)
TIMES = grid(PROCESS, 3, start=0.99, end=1e-2)
PROGRAM = compile_solver(PROCESS, TIMES, "dpm++2m")
NOISY = compile_solver(PROCESS, TIMES, "ancestral")
LEAP = compile_solver(PROCESS, TIMES, "ddim")
MIXTURE = Mixture((MODEL, OTHER))
SCHEMA = {"atom": Field("site", (), ("a", "b", "c")), "x": Field("site", (2,))}

each_device = pytest.mark.parametrize(
    "device",
    [
        "meta",
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")],
        ),
    ],
)


def nearer(x):
    return -x.square().sum(1)


TERMS = {
    "contrast": lambda d: Contrast(weak=OTHER, scale=2.0),
    "interval": lambda d: Contrast(weak=OTHER, interval=(0.2, 0.8)),
    "a scale by time": lambda d: Contrast(strong=OTHER, scale=lambda t: 1 - t),
    "a scale by sample": lambda d: moved(Contrast(strong=OTHER, scale=torch.ones(B)), d),
    "potential": lambda d: Potential(log_h=lambda x, t: nearer(x)),
    "reward": lambda d: Reward(log_h=nearer),
    "isotropic reward": lambda d: Reward(log_h=nearer, covariance=Isotropic(0.5, through_model=False)),
    "observation": lambda d: moved(Observation(operator=lambda x: x[:, :2], y=torch.ones(B, 2), sigma_y=0.1), d),
    "unit observation": lambda d: moved(
        Observation(operator=lambda x: x, y=torch.ones(B, D), sigma_y=torch.ones(B, 1), covariance=Unit()), d
    ),
    "quantile": lambda d: Reward(log_h=quantile(torch.ones(B, D, device=d), 0.3)),
}


def moved(term, device):
    """The term with its tensors elsewhere, past its checks, which look at them before the loop."""
    out = copy.copy(term)
    for name, value in vars(term).items():
        object.__setattr__(out, name, value.to(device) if isinstance(value, torch.Tensor) else value)
    return out


class Mixed:
    """Classes and positions of sites, each predicted from both."""

    schema = SCHEMA

    def __init__(self, device):
        self.process = {"atom": mask_and_replace(3).to(device), "x": PROCESS}

    def __call__(self, x, t):
        codes = torch.cos(x["atom"].to(x["x"])[..., None] + torch.arange(3, device=x["x"].device))
        return {"atom": codes + x["x"].sum(-1, keepdim=True), "x": 0.5 * x["x"] + codes[..., :2]}


def both(x, t=None):
    """A log weight of positions and of classes, as indices or as vectors."""
    return -x["x"].square().sum((1, 2)) + x["atom"].flatten(1).sum(1)


def steps(solver, denoise, x, times, rng):
    """The loop of `sample_particles`, whose checks before and after it look at the device."""
    memory = None
    for k, (t, s) in enumerate(pairwise(times)):
        x, memory = solver.step(denoise, x, t, s, memory, rng.at(k))
    solver.weigh(denoise, x, memory)


def by_program(denoise, after=None, program=PROGRAM):
    return lambda x, rng: run(denoise, x, program, rng, after, check=False)


SCORERS = (lambda x: nearer(x).exp(), lambda x: x[:, 0].exp())
LOOPS = {
    "guided twice": by_program(guided(MODEL, Contrast(weak=OTHER), Potential(log_h=lambda x, t: nearer(x)))),
    "classifier-free": by_program(classifier_free(MODEL, OTHER, 2.0)),
    "mixture": by_program(MIXTURE),
    "greedy": by_program(Mixture((MODEL, OTHER), Greedy(PROCESS, SCORERS))),
    "option prices": by_program(Mixture((MODEL, OTHER), OptionBlend(PROCESS, SCORERS))),
    "pin": lambda x, rng: by_program(
        MODEL, Pin(torch.ones_like(x), torch.zeros_like(x, dtype=torch.bool), PROCESS, rng.at(9))
    )(x, rng),
    "start": lambda x, rng: Start(x, 0.5).state(MODEL, rng),
    "corrector": lambda x, rng: sample(MODEL, x, TIMES, PredictorCorrector(PROGRAM, Langevin()), rng),
    "corrector by norm": lambda x, rng: sample(
        MODEL, x, TIMES, PredictorCorrector(PROGRAM, Langevin(size=by_norm)), rng
    ),
    "density": lambda x, rng: sample_with_density(MODEL, x, TIMES, ItoDensity(NOISY), rng),
    "density without noise": lambda x, rng: sample_with_density(MODEL, x, TIMES, ItoDensity(LEAP, vectors=exact)),
    "likelihood": lambda x, rng: log_likelihood(MODEL, x, TIMES, hutchinson(rng)),
    "or": lambda x, rng: sample(MIXTURE, x, TIMES, SuperDiff(Or()), rng),
    "and": lambda x, rng: sample(MIXTURE, x, TIMES, SuperDiff(And(bias=(0.1, 0.2))), rng),
    "and without noise": lambda x, rng: sample(MIXTURE, x, TIMES, SuperDiff(And(), vectors=exact), rng),
    "twisted": lambda x, rng: steps(
        Twisted(log_h0=nearer, twist=at_estimate(nearer), particles=2, terms=(Reward(log_h=nearer),)),
        MODEL, x, TIMES, rng,
    ),
    "product": lambda x, rng: steps(Product(powers=(1.0, 1.0), particles=2), MIXTURE, x, TIMES, rng),
}  # fmt: skip


TOGETHER = Together(atom=Ancestral(), x=PROGRAM)
ATOMS = {
    "together": lambda m, x, rng: sample(m, x, TIMES, TOGETHER, rng),
    "leaping": lambda m, x, rng: sample(m, x, TIMES, Together(atom=TauLeaping(), x=PROGRAM), rng),
    "pin": lambda m, x, rng: sample(
        m, x, TIMES, TOGETHER, rng, Pin(x, {k: v == v for k, v in x.items()}, m.process, rng.at(9), SCHEMA)
    ),
    "first order": lambda m, x, rng: sample(
        guided(m, Potential(log_h=both, sites=FirstOrder(), interval=(0.1, 0.9))), x, TIMES, TOGETHER, rng
    ),
    "reward": lambda m, x, rng: sample(guided(m, Reward(log_h=both)), x, TIMES, TOGETHER, rng),
    "contrast": lambda m, x, rng: sample(guided(m, Contrast(weak=m)), x, TIMES, TOGETHER, rng),
    "or": lambda m, x, rng: sample(Mixture((m, m)), x, TIMES, SuperDiff(Or()), rng),
    "twisted": lambda m, x, rng: steps(
        Twisted(log_h0=both, twist=at_estimate(both), particles=2, terms=(Reward(log_h=both),)),
        m, x, TIMES, rng,
    ),
    "product": lambda m, x, rng: steps(
        Product(powers=(1.0, 0.5), particles=2), Mixture((m, m)), x, TIMES, rng
    ),
}  # fmt: skip


def state(device, *shape):
    return torch.zeros(B, *(shape or (D,)), device=device)


def rng_on(device):
    return Rng(0, torch.arange(B, device=device))


@each_device
@pytest.mark.parametrize("name", SCHEMES)
def test_programs(device, name):
    program, x, rng = compile_solver(PROCESS, TIMES, name), state(device), rng_on(device)
    with no_host_reads(device):
        run(MODEL, x, program, rng, check=False)
        sample(MODEL, x, program.times, program, rng)


@each_device
@pytest.mark.parametrize("name", TERMS)
def test_terms(device, name):
    term, x = TERMS[name](device), state(device)
    with no_host_reads(device):
        run(guided(MODEL, term), x, PROGRAM, check=False)


@each_device
@pytest.mark.parametrize("name", LOOPS)
def test_loops(device, name):
    x, rng = state(device), rng_on(device)
    with no_host_reads(device):
        LOOPS[name](x, rng)


@each_device
@pytest.mark.parametrize("name", ATOMS)
def test_atoms_and_positions(device, name):
    model, rng = Mixed(device), rng_on(device)
    x = {"atom": state(device, 2).long(), "x": state(device, 2, 2)}
    with no_host_reads(device):
        ATOMS[name](model, x, rng)


@each_device
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("make", [absorbing, uniform, mask_and_replace])
def test_tokens(device, solver, make):
    """At times on the CPU, and on the device."""
    process, x, rng = make(3).to(device), state(device).long(), rng_on(device)
    model = GaussianOracle(process)
    model._clean = lambda x, *rest: torch.zeros(*x.shape, 3, device=x.device)
    there = TIMES.to(device)
    with no_host_reads(device):
        for times in (TIMES, there):
            sample(model, x, times, solver, rng)


@each_device
def test_inverse_problems(device):
    x, rng, here = state(device), rng_on(device), torch.tensor(0.3, dtype=torch.float64)
    with no_host_reads(device):
        langevin(MODEL, lambda x: -x, x, here, rng, steps=2)


def test_what_is_refused():
    """The law itself: each way to wait is seen, and what does not wait is let pass."""
    x, mask, two = torch.zeros(3, device="meta"), torch.ones(3, dtype=torch.bool, device="meta"), torch.zeros(2)
    waits = {
        "reads": lambda: x.sum().item(),
        "reads a": lambda: bool(mask.any()),
        "nonzero.default reads": lambda: mask.nonzero(),
        "equal": lambda: torch.equal(x, x),
        "counts": lambda: x[mask],
        "masked_select": lambda: x.masked_select(mask),
        "copies": lambda: x.cpu(),
        "_to_copy": lambda: two.to("meta"),
        "index copies": lambda: x[torch.tensor([0, 1])],
        "where copies": lambda: torch.where(torch.tensor(True), x, 0.0),
        "maximum copies": lambda: torch.maximum(x, torch.zeros(1)),
    }
    for what, wait in waits.items():
        with pytest.raises(AssertionError, match=what), no_host_reads("meta"):
            wait()
    with no_host_reads("meta"):
        torch.where(mask, x, 0.0)[x.long()] * torch.tensor(2.0) + x.to(torch.float64).sum()
        assert bool(two.sum() == 0) and two[two == 0].shape == (2,)
