"""The system of SDEs of a graph, and classes as points (S34)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from benchmarks.gdss_oracle import C, JointGaussian
from unisci.batch import Batch, Field, pair_mask
from unisci.denoiser import Denoiser
from unisci.processes.gaussian import VE, VP, Cosine, lam, time
from unisci.processes.graph_sdes import (
    QM9,
    ZINC250K,
    Alphabet,
    Focus,
    decode,
    encode,
    graph_sdes,
    with_virtual,
    without_virtual,
)
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.score import score_of

ATOMS, BONDS = ("C", "N", "O"), ("none", "single", "double", "triple")
ONE_HOT = {"atom": Alphabet(ATOMS), "bond": Alphabet(BONDS)}
REAL = {"atom": Alphabet(ATOMS), "bond": Alphabet(BONDS, ordinal=True)}
both = pytest.mark.parametrize("alphabets", [ONE_HOT, REAL], ids=["one-hot", "real"])


def graphs(sizes: list[int], seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes)
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    bond = torch.randint(4, (b, n, n), generator=generator).tril(-1)
    bond = (bond + bond.transpose(1, 2)) * pair_mask(mask)
    atom = torch.randint(3, (b, n), generator=generator) * mask
    schema = {"atom": Field("site", (), ATOMS), "bond": Field("pair", (), BONDS)}
    return Batch(schema, {"atom": atom, "bond": bond}, mask)


def assert_same(a: Batch, b: Batch) -> None:
    assert a.schema == b.schema and torch.equal(a.mask, b.mask)
    for k in a.state:
        assert torch.equal(a.state[k], b.state[k]), k


@both
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_classes_come_back(alphabets, sizes, seed):
    batch = graphs(sizes, seed)
    points = encode(batch, alphabets)
    assert points.schema["bond"] == Field("pair", alphabets["bond"].shape)
    for k, v in points.state.items():
        assert v.dtype == torch.float32 and (v[~batch.exists(k)] == 0).all()
    wobbly = {k: v + 0.4 * (2 * torch.rand_like(v) - 1) for k, v in points.state.items()}
    assert_same(decode(points.replace(**wobbly), alphabets), batch)


def test_bond_orders_are_cut_at_the_halves():
    values = torch.tensor([-3.0, 0.49, 0.51, 1.49, 1.51, 2.49, 2.51, 9.0])
    assert REAL["bond"].decode(values).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert REAL["bond"].encode(torch.tensor([0, 3])).tolist() == [0.0, 3.0]
    assert ONE_HOT["bond"].encode(torch.tensor(2)).tolist() == [0.0, 0.0, 1.0, 0.0]


def test_another_alphabet_is_refused():
    with pytest.raises(ValueError, match="'atom' has classes"):
        encode(graphs([3]), ONE_HOT | {"atom": Alphabet(("C", "N", "F"))})


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), seed=st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_virtual_sites_are_a_class(sizes, seed):
    batch = graphs(sizes, seed)
    virtual = with_virtual(batch)
    assert virtual.mask.all() and virtual.schema["atom"].classes == (*ATOMS, "virtual")
    assert (virtual.state["atom"][~batch.mask] == 3).all()
    assert_same(without_virtual(virtual), batch)


def test_virtual_sites_may_stand_anywhere_and_lose_their_bonds():
    atom = torch.tensor([[3, 1, 3, 2]])
    bond = torch.tensor([[[0, 1, 0, 2], [1, 0, 3, 1], [0, 3, 0, 2], [2, 1, 2, 0]]])
    schema = {"atom": Field("site", (), (*ATOMS, "virtual")), "bond": Field("pair", (), BONDS)}
    batch = without_virtual(Batch(schema, {"atom": atom, "bond": bond}, torch.ones(1, 4, dtype=torch.bool)))
    assert batch.mask.tolist() == [[True, True, False, False]] and batch.state["atom"].tolist() == [[1, 2, 0, 0]]
    assert batch.state["bond"].nonzero().tolist() == [[0, 0, 1], [0, 1, 0]] and batch.state["bond"].max() == 1
    with pytest.raises(ValueError, match="'virtual'"):
        without_virtual(graphs([2]))


@both
@pytest.mark.parametrize("processes", [QM9, ZINC250K], ids=["QM9", "ZINC250k"])
def test_noise_is_symmetric_hollow_and_of_unit_variance_on_every_edge(alphabets, processes):
    """(S34, check 4), and each field has the level of its own process."""
    system, n = graph_sdes(processes, alphabets), 20000
    clean = {"atom": torch.ones(n, 3, 3), "bond": torch.ones(n, 3, 3, *alphabets["bond"].shape)}
    t, rng = torch.tensor(0.6), Rng(0, torch.arange(n))
    for noisy, at, mean in (
        (system.perturb(clean, t, rng), t, 1.0),
        (system.prior(clean, rng), torch.tensor(1.0), 0.0),
    ):
        bond = noisy["bond"]
        assert torch.equal(bond, bond.transpose(1, 2)) and (bond.diagonal(dim1=1, dim2=2) == 0).all()
        for k, x in (
            ("atom", noisy["atom"]),
            ("bond", bond[:, 0, 1]),
            ("bond", bond[:, 1, 2]),
            ("bond", bond[:, 0, 2]),
        ):
            alpha, sigma = processes[k].level(at)
            assert (x.mean(0) - mean * alpha).abs().max() < 5 * sigma / n**0.5
            assert (x.std(0) / sigma - 1).abs().max() < 0.025


def test_the_partial_scores_are_blocks_of_the_joint_one():
    """Denoising score matching of each field converges to its rows of -Sigma_t^-1 (S34, check 1)."""

    class Linear(nn.Module):
        """Each field as a linear map of what it sees."""

        def __init__(self, sees: torch.Tensor):
            super().__init__()
            self.weight, self.sees = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64)), sees

        def forward(self, state, t, mask, given, order=None, cache=None):
            out = torch.cat([state["X"], state["A"]], 1) @ (self.weight * self.sees).T
            return {"X": out[:, :1], "A": out[:, 1:]}

    oracle = JointGaussian({"X": VP(0.1, 1.0), "A": VE(0.2, 1.0)})
    product, t, n = Product(oracle.process, JointGaussian.schema), torch.tensor(0.5, dtype=torch.float64), 60_000
    exact = -torch.linalg.inv(oracle.marginal(t))
    rng = Rng(0, torch.arange(n))
    clean = rng.normal("clean", 0, (n, 2)).double() @ torch.linalg.cholesky(C).T
    batch = Batch(JointGaussian.schema, {"X": clean[:, :1], "A": clean[:, 1:]}, torch.ones(n, 1, dtype=torch.bool))

    def learnt(sees: torch.Tensor) -> torch.Tensor:
        denoiser = Denoiser(Linear(sees), product)
        optimiser = torch.optim.LBFGS(denoiser.parameters(), max_iter=30, line_search_fn="strong_wolfe")

        def loss() -> torch.Tensor:
            optimiser.zero_grad()
            value = denoiser.loss(batch, rng, {k: t.expand(n) for k in "XA"})
            value.backward()
            return value

        optimiser.step(loss)
        x = {"X": torch.tensor([[1.0], [0.0]]).double(), "A": torch.tensor([[0.0], [1.0]]).double()}
        clean = denoiser(x, t, batch.mask[:2], {})
        return torch.cat([score_of(clean[k], x[k], oracle.process[k], t) for k in "XA"], 1).detach().T

    everything, alone = torch.ones(2, 2), torch.eye(2)
    error = lambda score: float((score - exact).abs().max() / exact.abs().max())
    assert error(learnt(everything)) < 0.02
    assert error(learnt(alone)) > 0.1


def test_training_times_lie_where_they_are_focused():
    """log(alpha / sigma) is normal of the stated mean and deviation, and uniform in t where it is not."""
    n = 20_000
    rng, processes = Rng(0, torch.arange(n)), {"atom": Cosine(), "bond": VP()}
    t = graph_sdes(processes, ONE_HOT, Focus(1.0, 0.5, 0.0)).times(rng)
    for k, process in processes.items():
        at = lam(process, t[k].double())
        assert at.mean() == pytest.approx(1.0, abs=0.02) and at.std() == pytest.approx(0.5, abs=0.02)
    torch.testing.assert_close(lam(Cosine(), t["atom"]), lam(VP(), t["bond"]), rtol=1e-3, atol=1e-3)  # one noise level
    t = graph_sdes(processes, ONE_HOT, Focus(1.0, 0.5, 0.4)).times(rng)["atom"]
    late = lam(Cosine(), t.double()) < -1  # four deviations away
    assert late.double().mean() == pytest.approx(0.4 * (1 - float(time(Cosine(), torch.tensor(-1.0)))), abs=0.01)
    for plain in (graph_sdes(processes, ONE_HOT), graph_sdes(processes, ONE_HOT, Focus(1.0, 0.5, 1.0))):
        t = plain.times(rng)["atom"]
        assert t.mean() == pytest.approx(0.5, abs=0.01) and t.std() == pytest.approx(12**-0.5, abs=0.01)
