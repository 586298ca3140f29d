"""Potentials of discrete fields, against enumeration."""

import itertools
from typing import ClassVar

import pytest
import torch

from tests.oracles import EnumeratedOracle
from unisci.batch import Field
from unisci.guidance.potential import Exact, FirstOrder, Potential
from unisci.guidance.terms import Evaluation, guided
from unisci.processes.categorical import absorbing, marginal, mask_and_replace, uniform
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.sample import sample
from unisci.solvers.tokens import Ancestral, token_grid

KERNELS = {
    "absorbing": absorbing(3),
    "uniform": uniform(3),
    "marginal": marginal(torch.tensor([0.6, 0.3, 0.1])),
    "mask and replace": mask_and_replace(3, 0.3),
}
TABLE = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(0)) ** 2
H = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(1)) ** 2 + 0.02


def drawn(denoise, process, n, steps):
    rng = Rng(0, torch.arange(n))
    prior = process.prior(torch.zeros(n, 3, dtype=torch.long), rng)
    x = sample(denoise, prior, list(token_grid(steps, 1.5)), Ancestral(), rng.at(1))
    return torch.bincount(x @ torch.tensor([9, 3, 1]), minlength=27).reshape(3, 3, 3) / n


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("uniform", "mask and replace")]


@pytest.mark.parametrize("name", ["absorbing", "marginal", *SLOW])
def test_samples_of_an_enumerated_toy_follow_p_times_h(name):
    process = KERNELS[name]
    oracle = EnumeratedOracle(process, TABLE)
    log_h = lambda x, t: (oracle.posterior(x, t) * H).flatten(1).sum(1).log()
    target, plain = TABLE * H / (TABLE * H).sum(), TABLE / TABLE.sum()
    distance = lambda a, b: 0.5 * float((a - b).abs().sum())
    found = drawn(guided(oracle, Potential(log_h=log_h)), process, 20_000, 50)
    assert distance(found, target) < 0.02 < distance(plain, target)


@pytest.mark.parametrize("rows", [1, 5, 4096])
def test_every_single_site_change_is_weighed_in_chunks_of_any_size(rows):
    """A pair field and a site field with random noise times, against one call for each change."""
    schema = {"atom": Field("site", classes=tuple("abc")), "bond": Field("pair", classes=tuple("no"))}
    atom = torch.tensor([[0, 1, 2], [2, 2, 0]])
    bond = torch.tensor([[[0, 1, 0], [1, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]])
    x, weights = {"atom": atom, "bond": bond}, torch.arange(9.0).reshape(3, 3)
    t = {"atom": torch.tensor([[0.0, 0.4, 0.4], [0.0, 0.3, 0.3]])}
    t["bond"] = torch.maximum(t["atom"][:, :, None], t["atom"][:, None, :]) * (1 - torch.eye(3))
    seen = []

    def log_h(x, t):
        seen.append(len(x["atom"]))
        per = torch.tensor([1.0, 2.0]).repeat(len(x["atom"]) // 2)  # what belongs to the samples is repeated
        clock = t["atom"].sum(1) + t["bond"].sum((1, 2))
        return per * (x["atom"].float() @ torch.tensor([1.0, 3.0, 5.0]) + (x["bond"] * weights).sum((1, 2))) - clock

    processes = {"atom": uniform(3), "bond": uniform(2)}
    out = Exact(rows)(log_h, x, t, processes)
    assert max(seen) <= max(rows, 2)
    for i, k in itertools.product((1, 2), range(3)):
        value, times = atom.clone(), t["atom"].clone()
        value[:, i], times[:, i] = k, 0.0
        expected = log_h(x | {"atom": value}, t | {"atom": times})
        torch.testing.assert_close(out["atom"][:, i, k], expected)
    for (i, j), k in itertools.product(((1, 0), (2, 0), (2, 1)), range(2)):
        value, times = bond.clone(), t["bond"].clone()
        value[:, i, j] = value[:, j, i] = k
        times[:, i, j] = times[:, j, i] = 0.0
        expected = log_h(x | {"bond": value}, t | {"bond": times})
        torch.testing.assert_close(out["bond"][:, i, j, k], expected)
        torch.testing.assert_close(out["bond"][:, j, i, k], expected)
    assert (out["atom"][:, 0] == 0).all() and schema


def test_the_first_order_is_exact_for_linear_potentials():
    weights = torch.tensor([[0.0, 1.0, -1.0], [2.0, 0.0, 0.5]])

    def log_h(x, t):
        soft = x["x"] if x["x"].is_floating_point() else torch.nn.functional.one_hot(x["x"], 3).float()
        return (soft * weights).sum((1, 2))

    x, t, process = {"x": torch.tensor([[0, 2], [1, 1]])}, {"x": torch.full((2, 2), 0.5)}, {"x": uniform(3)}
    exact, first = Exact()(log_h, x, t, process)["x"], FirstOrder()(log_h, x, t, process)["x"]
    relative = lambda v: v - v[..., :1]
    torch.testing.assert_close(relative(exact), relative(first))


def test_the_first_order_counts_both_halves_of_a_pair():
    log_h = lambda x, t: (x["b"][..., 1] * torch.tensor([[0.0, 1.0], [2.0, 0.0]])).sum((1, 2))
    x, t = {"b": torch.zeros(1, 2, 2, dtype=torch.long)}, {"b": torch.full((1, 2, 2), 0.5)}
    out = FirstOrder()(log_h, x, t, {"b": uniform(2)})["b"]
    assert out[0, 0, 1].tolist() == out[0, 1, 0].tolist() == [0.0, 3.0]


def test_continuous_and_discrete_fields_are_tilted_together():
    class Model:
        process: ClassVar = {"x": VP(), "k": uniform(2)}
        schema: ClassVar = {"x": Field("whole", (1,)), "k": Field("site", classes=("a", "b"))}

        def __call__(self, x, t):
            return {"x": 0 * x["x"], "k": torch.zeros(*x["k"].shape, 2)}

    state = {"x": torch.zeros(3, 1), "k": torch.zeros(3, 2, dtype=torch.long)}
    log_h = lambda x, t: x["x"][:, 0] * 2 + (x["k"] == 1).sum(1)
    out = guided(Model(), Potential(log_h=log_h))(state, torch.tensor(0.5))
    alpha, sigma = VP().level(torch.tensor(0.5))
    torch.testing.assert_close(out["x"], torch.full((3, 1), 2.0) * sigma**2 / alpha)
    torch.testing.assert_close(out["k"][..., 1] - out["k"][..., 0], torch.ones(3, 2))
    only = Potential(log_h=log_h, fields=("k",)).push(Evaluation(Model(), state, torch.tensor(0.5), None))
    assert set(only) == {"k"}


def test_exact_refuses_no_rows():
    with pytest.raises(ValueError, match="rows"):
        Exact(0)
