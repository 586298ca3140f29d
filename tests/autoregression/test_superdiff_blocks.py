"""SuperDiff on discrete steps: enumerated laws with exact denoisers, then the block loop (S22, section 2)."""

import math
from dataclasses import replace
from functools import cache

import pytest
import torch

from tests.autoregression.test_conditions import build, data, same
from tests.oracles import EnumeratedOracle, GaussianOracle
from unisci.autoregression.conditions import VALUES, told_only, told_values
from unisci.autoregression.superdiff_blocks import SuperDiffBlocks, another, beside
from unisci.guidance.mixture import Mixture
from unisci.guidance.superdiff import And, Or
from unisci.networks.graph_transformer import CONDITION
from unisci.processes.categorical import absorbing, marginal, uniform
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.sample import sample
from unisci.solvers.tokens import Ancestral, token_grid

NOISES = {"uniform": uniform(3), "marginal": marginal(torch.tensor([5.0, 3.0, 2.0])), "absorbing": absorbing(3)}


def law(seed: int, sites: int = 3, spread: float = 1.2) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn((3,) * sites, generator=g, dtype=torch.float64)
    return logits.flatten().softmax(0).reshape((3,) * sites)


def draw(process, laws, solver, n, steps=60, seed=0):
    """Ends (n, sites), and their exact log densities under each law."""
    oracles = tuple(EnumeratedOracle(process, table) for table in laws)
    rng = Rng(seed, torch.arange(n))
    x = process.prior(torch.zeros(n, laws[0].ndim, dtype=torch.long), rng.at(0))
    denoise = Mixture(oracles) if isinstance(solver, SuperDiffBlocks) else oracles[0]
    end = sample(denoise, x, token_grid(steps, 1.0), solver, rng.at(1))
    return end, torch.stack([table.log()[end.unbind(1)] for table in laws], 1)


def variation(end, table):
    """Total variation between a sample and a law."""
    flat = sum(end[:, k] * 3 ** (end.shape[1] - 1 - k) for k in range(end.shape[1]))
    return float((torch.bincount(flat, minlength=table.numel()) / len(end) - table.flatten()).abs().sum() / 2)


class Averaged:
    """The mean of two models' logits, each on its own measure."""

    schema = None

    def __init__(self, *models):
        self.process, self.models = models[0].process, models

    def __call__(self, x, t):
        return sum(m(x, t).log_softmax(-1) for m in self.models) / len(self.models)


# ---- exact on one site ---------------------------------------------------------------------------------


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("policy", [Or(), And()])
def test_of_a_single_site_the_densities_are_exact(noise, policy):
    """The kernels are then the true ones, and Bayes' rule has no error at any number of steps."""
    laws, solver = (law(0, 1), law(1, 1)), SuperDiffBlocks(policy)
    _, true = draw(NOISES[noise], laws, solver, 200, steps=7)
    found = solver.followed(torch.arange(200))
    torch.testing.assert_close(found[:, 0] - found[:, 1], true[:, 0] - true[:, 1], atol=2e-4, rtol=0)


def test_and_makes_the_expected_densities_equal():
    """E[log q_1 - log q_2] after the step is 0 wherever kappa lies within its bounds, by summing over all ends."""
    g = torch.Generator().manual_seed(3)
    p, q = (torch.randn(40, 2, 3, generator=g, dtype=torch.float64).softmax(-1) for _ in range(2))
    log_q = 0.3 * torch.randn(40, 2, generator=g, dtype=torch.float64)
    kappa = SuperDiffBlocks(And())._weights(log_q, [p, q], torch.ones(40, 2))
    mixed = kappa[:, 0, None, None] * p + kappa[:, 1, None, None] * q
    gap = log_q[:, 0] - log_q[:, 1]
    for a in range(3):
        for b in range(3):
            ratio = (p[:, 0, a] / q[:, 0, a]).log() + (p[:, 1, b] / q[:, 1, b]).log()
            gap = gap + mixed[:, 0, a] * mixed[:, 1, b] * ratio
    inside = (kappa > 0).all(1)
    assert 20 < int(inside.sum()) < 40 and gap[inside].abs().max() < 1e-9
    assert gap[~inside].abs().min() > 1e-3  # all weight on one model, and not enough
    torch.testing.assert_close(kappa.sum(1), torch.ones(40, dtype=torch.float64))


# ---- laws of three sites -------------------------------------------------------------------------------


@pytest.mark.parametrize("noise, seed", [("uniform", 0), pytest.param("absorbing", 1, marks=pytest.mark.slow)])
def test_or_draws_the_mixture(noise, seed):
    laws = law(2 * seed), law(2 * seed + 1)
    end, _ = draw(NOISES[noise], laws, SuperDiffBlocks(Or()), 12000, steps=40)
    assert variation(end, (laws[0] + laws[1]) / 2) < 0.03 < 0.2 < variation(end, laws[0])


def test_or_has_weights_and_a_temperature():
    laws = law(0), law(1)
    end, _ = draw(NOISES["uniform"], laws, SuperDiffBlocks(Or(bias=(math.log(3), 0.0))), 5000, steps=40)
    assert variation(end, 0.75 * laws[0] + 0.25 * laws[1]) < 0.04 < 0.08 < variation(end, (laws[0] + laws[1]) / 2)
    end, _ = draw(NOISES["uniform"], laws, SuperDiffBlocks(Or(temperature=0.0)), 3000, steps=20)
    assert variation(end, (laws[0] + laws[1]) / 2) > 0.05  # averaged predictions


@pytest.mark.parametrize("noise", ["uniform", "marginal"])
def test_and_draws_where_both_have_equal_density(noise):
    process = NOISES[noise]
    for seed in (0, 2):
        laws = law(seed), law(seed + 1)
        _, both = draw(process, laws, SuperDiffBlocks(And()), 2500, steps=20)
        oracles = [EnumeratedOracle(process, table) for table in laws]
        rng = Rng(0, torch.arange(2500))
        x = process.prior(torch.zeros(2500, 3, dtype=torch.long), rng.at(0))
        end = sample(Averaged(*oracles), x, token_grid(20, 1.0), Ancestral(), rng.at(1))
        average = torch.stack([table.log()[end.unbind(1)] for table in laws], 1)
        gap = lambda log_p: float((log_p[:, 0] - log_p[:, 1]).abs().mean())
        assert gap(both) < 0.95 * gap(average)
        assert both.amin(1).mean() > average.amin(1).mean() + 0.05


def test_the_densities_that_are_followed_are_nearly_the_true_ones():
    laws, solver = (law(0), law(1)), SuperDiffBlocks(Or())
    _, true = draw(NOISES["uniform"], laws, solver, 1500, steps=40)
    found = solver.followed(torch.arange(1500))
    error = (found[:, 0] - found[:, 1]) - (true[:, 0] - true[:, 1])
    assert error.abs().mean() < 0.3 and (true[:, 0] - true[:, 1]).abs().mean() > 1.2


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("policy", [Or(), And()])
def test_two_identical_models_are_the_one_bit_for_bit(noise, policy):
    """S22, check 5."""
    table = law(4)
    end, _ = draw(NOISES[noise], (table, table), SuperDiffBlocks(policy), 500, steps=12)
    assert torch.equal(end, draw(NOISES[noise], (table, table), Ancestral(), 500, steps=12)[0])


def test_a_sample_does_not_depend_on_its_batch_nor_on_what_the_solver_drew_before():
    laws, solver = (law(0), law(1)), SuperDiffBlocks(And())
    whole, _ = draw(NOISES["uniform"], laws, solver, 64, steps=12)
    assert torch.equal(draw(NOISES["uniform"], laws, solver, 64, steps=12)[0], whole)
    assert torch.equal(draw(NOISES["uniform"], laws, solver, 8, steps=12)[0], whole[:8])
    assert len(solver.ids) == 64 and not solver.followed(torch.tensor([70])).any()


# ---- in the block loop ---------------------------------------------------------------------------------

N, STEPS = 12, 3


@cache
def setting(causal=True):
    batch = data()
    model = build(batch, room=8, causal=causal).eval()
    return model, batch.given[VALUES][torch.arange(N) % len(batch)], Rng(0, torch.arange(N))


def generate(guide, solver=None, rows=slice(None), **options):
    model, values, rng = setting(**options)
    return model.generate(rng[torch.arange(N)[rows]], STEPS, values=values[rows], guide=guide, solver=solver)


@pytest.mark.parametrize("policy", [Or(), And()])
def test_one_model_twice_is_that_model(policy):
    plain = generate(lambda bound: bound)
    assert same(generate(beside(lambda bound: bound, lambda bound: bound), SuperDiffBlocks(policy)), plain)
    apart = generate(beside(told_only(0), told_only(1)), SuperDiffBlocks(policy))
    assert not same(apart, plain)
    bond = apart.state["bond"]
    assert torch.equal(bond, bond.transpose(1, 2)) and not bond.diagonal(dim1=1, dim2=2).any()


@pytest.mark.parametrize("policy, causal", [(Or(), True), (And(), False)])
def test_densities_go_on_from_block_to_block(monkeypatch, policy, causal):
    """What a block begins with is what the blocks before it ended with, sample by sample, and 0 in the first."""
    ends, begins = {}, []
    begun, step = SuperDiffBlocks._begun, SuperDiffBlocks.step

    def spy(self, t, ids, models):
        out = begun(self, t, ids, models)
        begins.append(len(ids))
        expected = torch.stack([ends.get(i, torch.zeros(2, dtype=torch.float64)) for i in ids.tolist()])
        assert torch.equal(out, expected)
        return out

    def watch(self, denoise, x, t, s, memory, rng):
        end, log_q = step(self, denoise, x, t, s, memory, rng)
        ends.update(zip(rng.ids.tolist(), log_q, strict=True))
        return end, log_q

    monkeypatch.setattr(SuperDiffBlocks, "_begun", spy)
    monkeypatch.setattr(SuperDiffBlocks, "step", watch)
    solver = SuperDiffBlocks(policy)
    guide = beside(told_only(0), told_only(1))
    whole = generate(guide, solver, causal=causal)
    assert len(begins) > 3 and len(ends) == N
    torch.testing.assert_close(solver.followed(torch.arange(N)), torch.stack([ends[i] for i in range(N)]))
    ends.clear()  # a second call begins anew with the same object
    assert same(generate(guide, solver, causal=causal), whole)


def test_a_sample_of_blocks_does_not_depend_on_its_batch():
    guide = beside(told_only(0), told_only(1))
    whole, some = generate(guide, SuperDiffBlocks(And())), generate(guide, SuperDiffBlocks(And()), [5, 2, 9])
    for k in whole.state:
        assert torch.equal(whole.state[k][[5, 2, 9]], some.state[k])


def bound():
    model, values, _ = setting()
    batch = model.conditions.told(data()[slice(0, 3)], values[:3])
    return model, model.denoiser.on(batch), values[:3]


def test_what_each_model_is_told():
    model, one, values = bound()
    full = one.given[CONDITION]
    only = told_only(1)(one).given[CONDITION]
    assert only[:, 0].isnan().all() and torch.equal(only[:, 1], full[:, 1]) and not full.isnan().any()
    row = told_values(model.conditions, torch.tensor([4.0, 2.0]))(one).given[CONDITION]
    torch.testing.assert_close(row * model.conditions.std + model.conditions.mean, torch.tensor([[4.0, 2.0]] * 3))
    other = build(data(), room=8, causal=True).eval()
    other.conditions.mean, other.conditions.std = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 0.5])
    second = another(other, model.conditions)(replace(one, cache="of the first"))
    assert second.denoiser is other.denoiser and second.cache is None
    torch.testing.assert_close(second.given[CONDITION], (values - other.conditions.mean) / other.conditions.std)


def test_a_second_model_draws_beside_the_first():
    model, _, _ = setting()
    again = lambda: generate(beside(lambda b: b, another(model, model.conditions)), SuperDiffBlocks(And()))
    plain = generate(lambda b: b)
    agree = (again().state["bond"] == plain.state["bond"]).all(2).all(1)
    assert agree.double().mean() > 0.9  # up to rounding of what is remembered


# ---- refusals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "models, policy, rng, message",
    [
        (2, And(bias=(0.0, 1.0)), True, "without a bias"),
        (3, And(), True, "And superposes two models in blocks, without a bias; got 3"),
        (2, Or(bias=(0.0,)), True, "is not one number for each of 2 models"),
        (2, Or(), False, "see `beside`; got .* and rng = None"),
        (0, Or(), True, "draws from a Mixture, see `beside`; got .*EnumeratedOracle"),
    ],
)
def test_what_cannot_be_superposed_is_refused(models, policy, rng, message):
    one = EnumeratedOracle(uniform(3), law(0))
    denoise = Mixture((one,) * models) if models else one
    keys = Rng(0, torch.arange(4)) if rng else None
    t = torch.tensor([1.0, 0.5])
    with pytest.raises(ValueError, match=message):
        SuperDiffBlocks(policy).step(denoise, torch.zeros(4, 3, dtype=torch.long), *t, None, keys)


def test_continuous_fields_are_refused():
    one = GaussianOracle(VP(), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match=r"draws discrete fields; take SuperDiff"):
        SuperDiffBlocks(Or()).step(
            Mixture((one, one)), torch.zeros(4, 2), *torch.tensor([1.0, 0.5]), None, Rng(0, torch.arange(4))
        )
