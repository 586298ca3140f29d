"""Classes as noised points: the posterior of an entry alone is exact, and what the network adds is learnt."""

import pytest
import torch
from torch import nn

from tests.processes.test_graph_sdes import ATOMS, BONDS, ONE_HOT, REAL, graphs
from unisci.batch import pair_mask
from unisci.discrete.cdcd import Cdcd
from unisci.processes.gaussian import VE, VP, Cosine
from unisci.processes.graph_sdes import Alphabets, decode, encode, graph_sdes
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver
from unisci.solvers.s4 import S4
from unisci.solvers.sample import sample
from unisci.training.fit import FitConfig, fit

PI = {"atom": torch.tensor([0.6, 0.3, 0.1]), "bond": torch.tensor([0.5, 0.3, 0.15, 0.05])}
both = pytest.mark.parametrize("alphabets", [ONE_HOT, REAL], ids=["one-hot", "real"])


class Silent(nn.Module):
    """Adds nothing; keeps what it was given."""

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.seen = state
        return {k: torch.zeros_like(v) for k, v in state.items()}


def silent(alphabets: Alphabets, process=None) -> Cdcd:
    process = process or VP()
    return Cdcd(Silent(), graph_sdes({"atom": process, "bond": process}, alphabets), alphabets, PI)


@both
@pytest.mark.parametrize("process", [VP(), VE(0.1, 2.0), Cosine()], ids=lambda p: type(p).__name__)
def test_an_entry_alone_has_its_bayes_posterior(alphabets, process):
    model, batch = silent(alphabets, process), graphs([4, 3])
    t = torch.tensor([0.3, 0.6])
    x = model.product.perturb(encode(batch, alphabets).state, t, Rng(0, batch.ids))
    clean, alpha, sigma = model(x, t, batch.mask, {}), *process.level(t)
    for k, v in x.items():
        points, there = alphabets[k].points(v), batch.exists(k)
        for i in range(len(v)):
            law = torch.distributions.Normal(alpha[i] * points, sigma[i])
            fit = law.log_prob(v[i].unsqueeze(-1 - points[0].ndim))
            p = (PI[k].log() + (fit.sum(-1) if points.ndim == 2 else fit)).softmax(-1)
            torch.testing.assert_close(clean[k][i][there[i]], (p @ points)[there[i]], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(model.network.seen[k][i][there[i]], p[there[i]], rtol=1e-4, atol=1e-5)
        assert (clean[k][~there] == 0).all() and (model.network.seen[k][~there] == 0).all()


@both
def test_a_clean_state_is_known(alphabets):
    batch, model = graphs([4, 3]), silent(alphabets)
    points = encode(batch, alphabets)
    clean = model(points.state, torch.zeros(()), batch.mask, {})
    for k in clean:
        torch.testing.assert_close(clean[k], points.state[k])


def test_the_loss_counts_what_exists_and_a_pair_once():
    """At t = 1 nothing is known: the mean over noise is the sum of -log pi, for VP up to alpha(1)^2 = 4e-5."""
    batch, model = graphs([4, 2]), silent(ONE_HOT)
    found = model.loss(batch, Rng(0, batch.ids), {k: torch.ones(2) for k in ("atom", "bond")})
    pairs = pair_mask(batch.mask).tril(-1)
    expected = -PI["atom"].log()[batch.state["atom"][batch.mask]].sum()
    expected = expected - PI["bond"].log()[batch.state["bond"][pairs]].sum()
    assert found == pytest.approx(float(expected) / 2, rel=0.01)
    assert model.loss(batch, Rng(0, batch.ids), {k: torch.full((2,), 1e-3) for k in ("atom", "bond")}) < 1e-3


@both
@pytest.mark.parametrize("solver", ["euler_maruyama", "S4"])
def test_samples_of_the_exact_denoiser_have_the_frequencies(alphabets, solver):
    """Without correlations the silent network is exact, and samples follow pi, in the shape of any graph."""
    n, model = 2000, silent(alphabets)
    like = graphs([3] * n)
    times = torch.cat([grid(VP(), 50, "time", 1.0, 0.01), torch.zeros(1, dtype=torch.float64)])
    scheme = S4() if solver == "S4" else compile_solver(VP(), times, solver)
    points, rng = encode(like, alphabets), Rng(0, torch.arange(n))
    x = sample(model.on(points), model.product.prior(points.state, rng), times, scheme, rng)
    drawn = decode(points.replace(**x), alphabets)
    assert torch.equal(drawn.state["bond"], drawn.state["bond"].transpose(1, 2))
    entries = {"atom": drawn.state["atom"].flatten(), "bond": drawn.state["bond"][:, *torch.tril_indices(3, 3, -1)]}
    for k, v in entries.items():
        share = torch.bincount(v.flatten(), minlength=len(PI[k])) / v.numel()
        assert (share - PI[k]).abs().max() < 0.03


def test_the_network_learns_what_entries_say_of_each_other():
    """Two atoms, always of one class: a map of the other's weights lowers the loss."""

    class Other(nn.Module):
        def __init__(self):
            super().__init__()
            self.map = nn.Linear(3, 3)
            self.size = nn.Parameter(torch.zeros(()))

        def forward(self, state, t, mask, given, order=None, cache=None):
            atom = (state["atom"].flip(1) + 1e-6).log() * self.size + self.map(state["atom"].flip(1))
            return {"atom": atom, "bond": torch.zeros_like(state["bond"])}

    torch.manual_seed(0)
    batch = graphs([2] * 256)
    batch = batch.replace(atom=batch.state["atom"][:, :1].expand(-1, 2).contiguous(), bond=0 * batch.state["bond"])
    frequencies = {"atom": torch.ones(3), "bond": torch.ones(4)}
    system = graph_sdes({"atom": VP(), "bond": VP()}, ONE_HOT)
    model = Cdcd(Other(), system, ONE_HOT, frequencies)
    t = {k: torch.full((256,), 0.3) for k in ("atom", "bond")}
    before = float(model.loss(batch, Rng(9, batch.ids), t).detach())
    trained = fit(model, batch, FitConfig(150, 64, lr=0.03, warmup=10, ema=0.9), progress=False)
    assert float(trained.loss(batch, Rng(9, batch.ids), t)) < before - 0.3
    assert trained.network.size > 0.3


def test_frequencies_must_be_positive_and_one_for_each_class():
    system = graph_sdes({"atom": VP(), "bond": VP()}, ONE_HOT)
    for wrong in (torch.tensor([1.0, 0.0, 1.0]), torch.ones(4)):
        with pytest.raises(ValueError, match="'atom' needs a positive frequency"):
            Cdcd(Silent(), system, ONE_HOT, PI | {"atom": wrong})
    assert len(ATOMS) == 3 and len(BONDS) == 4
