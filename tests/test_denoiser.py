import pytest
import torch
from torch import Tensor, nn

from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.order import Order
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear
from unisci.processes.product import Product
from unisci.rng import Rng

SCHEMA = {
    "position": Field("site", (3,)),
    "atom": Field("site", classes=("C", "N", "O")),
    "bond": Field("pair", classes=("none", "single")),
    "degree": Field("site"),
}
GAUSSIANS = [VP(), VE(), EDM(), Cosine(), Linear()]


class Constant(nn.Module):
    """The same output everywhere; keeps what it was asked."""

    def __init__(self, **values: Tensor):
        super().__init__()
        self.values, self.asked = values, None

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.asked = (state, t, mask, given, order, cache)
        return {k: self.values.get(k, torch.zeros(())).expand(*v.shape, *self._classes(k)) for k, v in state.items()}

    def _classes(self, name: str) -> tuple[int, ...]:
        return () if name == "position" else (len(SCHEMA[name].classes),)


def positions(b: int, n: int, scale: float) -> Batch:
    x = scale * torch.randn(b, n, 3, generator=torch.Generator().manual_seed(0))
    return Batch(SCHEMA, {"position": x}, torch.ones(b, n).bool())


def gaussian(process, scale: float = 1.0) -> Denoiser:
    return Denoiser(Constant(), Product({"position": process}, SCHEMA), {"position": scale})


@pytest.mark.parametrize("process", GAUSSIANS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("t", [0.02, 0.3, 0.9])
def test_a_silent_network_is_the_best_linear_denoiser_and_costs_1_an_entry(process, scale, t):
    """For normal data c_skip x is the mean of the posterior, whose variance over c_out^2 is 1 at every noise level;
    what the network sees has variance 1."""
    b, n = 4000, 3
    batch, d = positions(b, n, scale), gaussian(process, scale)
    times = {"position": torch.full((b,), t)}
    loss = d.loss(batch, Rng(0, batch.ids), times)
    assert float(loss) / (3 * n) == pytest.approx(1, abs=0.04)
    assert float(d.network.asked[0]["position"].var()) == pytest.approx(1, abs=0.04)
    assert d.network.asked[1] == times


@pytest.mark.parametrize("process", GAUSSIANS, ids=lambda p: type(p).__name__)
def test_without_noise_the_clean_value_is_x(process):
    batch, d = positions(4, 3, 1.0), gaussian(process)
    d.network.values = {"position": torch.tensor(7.0)}
    clean = d.on(batch)(batch.state, torch.zeros(4))
    assert torch.equal(clean["position"], batch.state["position"])


def test_the_network_is_scaled_by_c_out():
    process, t = VP(), torch.full((4,), 0.5)
    batch, d = positions(4, 3, 1.0), gaussian(process, 2.0)
    silent = d.on(batch)(batch.state, t)["position"]
    d.network.values = {"position": torch.tensor(1.0)}
    alpha, sigma = process.level(t[:1])
    c_out = 2 * sigma / (4 * alpha**2 + sigma**2).sqrt()
    torch.testing.assert_close(d.on(batch)(batch.state, t)["position"] - silent, c_out.expand(4, 3, 3))


def test_padding_and_sites_at_time_0_cost_nothing():
    batch, d = positions(6, 4, 1.0), gaussian(VP())
    d.network.values = {"position": torch.tensor(0.4)}
    rng, t = Rng(0, batch.ids), torch.full((6, 4), 0.5)
    mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4, 4])[:, None]
    whole = d.loss(batch, rng, {"position": t})
    moving = d.loss(batch, rng, {"position": torch.where(mask, t, 0)})
    masked = d.loss(Batch(SCHEMA, batch.state, mask), rng, {"position": t})
    torch.testing.assert_close(moving, masked)
    assert float(moving) < float(whole)
    assert float(d.loss(batch, rng, {"position": 0 * t})) == 0


def tokens(kernel) -> tuple[Denoiser, Batch]:
    logits = {"atom": torch.tensor([0.5, -1.0, 2.0]), "bond": torch.tensor([1.0, 0.0])}
    product = Product({"atom": kernel(3), "bond": kernel(2)}, SCHEMA)
    generator = torch.Generator().manual_seed(0)
    bond = torch.randint(2, (5, 4, 4), generator=generator).tril(-1)
    state = {"atom": torch.randint(3, (5, 4), generator=generator), "bond": bond + bond.transpose(1, 2)}
    mask = torch.arange(4) < torch.tensor([1, 2, 3, 4, 4])[:, None]
    return Denoiser(Constant(**logits), product), Batch(SCHEMA, state, mask, {"degree": torch.zeros(5, 4).long()})


@pytest.mark.parametrize("kernel", [absorbing, uniform])
def test_discrete_loss_is_the_cross_entropy_of_noised_entries_a_pair_once(kernel):
    d, batch = tokens(kernel)
    rng, t = Rng(0, batch.ids), {"atom": torch.full((5,), 0.6), "bond": torch.full((5,), 0.6)}
    got = float(d.loss(batch, rng, t))
    noisy, expected = d.product.perturb(batch.state, t, rng), 0.0
    for b in range(5):
        for i in range(int(batch.sites[b])):
            for name, entries in (("atom", [(b, i)]), ("bond", [(b, i, j) for j in range(i)])):
                for e in entries:
                    if kernel is uniform or int(noisy[name][e]) == d.product.processes[name].classes:
                        expected -= float(d.network.values[name].log_softmax(0)[batch.state[name][e]])
    assert expected > 0 and got == pytest.approx(expected / 5, rel=1e-5)


def test_loss_draws_its_times_and_noise_from_the_rng():
    d, batch = tokens(absorbing)
    a, b, c = (float(d.loss(batch, rng)) for rng in (Rng(0, batch.ids), Rng(0, batch.ids), Rng(1, batch.ids)))
    assert a == b != c
    each = [float(d.loss(batch[[k]], Rng(0, batch.ids[[k]]))) for k in range(5)]
    assert sum(each) / 5 == pytest.approx(a, rel=1e-5)  # no sample changes another's loss


def test_noise_does_not_reach_padding_or_the_diagonal():
    d, batch = tokens(absorbing)
    d.loss(batch, Rng(0, batch.ids), {"atom": torch.ones(5), "bond": torch.ones(5)})
    state = d.network.asked[0]
    assert bool((state["atom"][batch.mask] == 3).all())
    assert torch.equal(state["atom"][~batch.mask], batch.state["atom"][~batch.mask])
    there = batch.exists("bond")
    assert bool((state["bond"][there] == 2).all()) and torch.equal(state["bond"][~there], batch.state["bond"][~there])


def test_bound_carries_the_process_the_schema_and_all_conditions():
    d, batch = tokens(absorbing)
    order, cache = Order(torch.where(batch.mask, 0, -1)), object()
    bound = d.on(batch, order, cache)
    assert bound.process == d.product.processes and bound.schema is batch.schema
    out = bound(batch.state, torch.tensor(0.5))
    state, t, mask, given, *rest = d.network.asked
    assert rest == [order, cache] and mask is batch.mask and given is batch.given
    assert t == {"atom": torch.tensor(0.5), "bond": torch.tensor(0.5)} and state == batch.state
    assert out["atom"].shape == (5, 4, 3) and out["bond"].shape == (5, 4, 4, 2)
