"""Pard told numbers: what it is told, what it makes of nothing, and classifier-free guidance of every factor."""

from collections import Counter
from dataclasses import replace
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from tests.autoregression.test_pard import build as build_plain
from tests.autoregression.test_pard import molecules, three_site_graphs
from unisci.autoregression.conditions import (
    VALUES,
    Conditions,
    classifier_free_blocks,
    untold,
    with_values,
)
from unisci.autoregression.growth import BlockGrowth
from unisci.autoregression.pard import Pard, examples, first_blocks, ordered
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.domains.molecule import schema
from unisci.networks.graph_transformer import CONDITION, GraphHead, GraphTransformer
from unisci.order import Order
from unisci.processes.categorical import absorbing
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

NAN, NAMES = float("nan"), ("sites", "carbons")


def data(hops: int = 2) -> Batch:
    """Ordered molecules and how many atoms and carbons they have."""
    batch = ordered(molecules(), hops)
    carbons = ((batch.state["atom"] == batch.schema["atom"].classes.index("C")) & batch.mask).sum(1)
    return with_values(batch, torch.stack([batch.sites, carbons], 1))


def build(batch: Batch, bent: bool = True, **named) -> Pard:
    """An untrained Pard that is told two numbers; bent: they matter already."""
    plain = build_plain(batch, **named)
    net = replace(plain.denoiser.network.trunk.config, conditions=2)
    head = replace(plain.head.trunk.config, conditions=2)
    told = Conditions(NAMES, plain.first.shape)
    told.measure(batch.given[VALUES])
    shape = plain.first.shape
    denoiser = Denoiser(GraphTransformer(net), plain.denoiser.product)
    rest = (plain.first, plain.hops, plain.room, plain.parallel)
    model = Pard(denoiser, GraphHead(head, shape[0] * (1 + shape[1])), *rest, told)
    if bent:
        for last in (denoiser.network.trunk.condition, model.head.trunk.condition, told.first):
            nn.init.normal_(last.map[-1].weight)
    return model


def same(a: Batch, b: Batch) -> bool:
    return all(torch.equal(a.state[k], b.state[k]) for k in a.state) and torch.equal(a.mask, b.mask)


def test_with_values():
    batch = ordered(molecules(), 1)[slice(0, 2)]
    out = with_values(batch, torch.tensor([[1, 2], [3, 4]]))
    assert out.given[VALUES].dtype == torch.float32 and out.given[VALUES].tolist() == [[1, 2], [3, 4]]
    assert VALUES not in batch.given and out[torch.tensor([1])].given[VALUES].tolist() == [[3, 4]]


def test_values_are_told_in_units_of_their_spread():
    batch = data()
    told, values = build(batch).conditions, batch.given[VALUES]
    out = told.told(batch, values).given[CONDITION]
    torch.testing.assert_close(out.mean(0), torch.zeros(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(out.std(0), torch.ones(2))
    open_ = told.told(batch, torch.where(torch.tensor([True, False]), values, NAN)).given[CONDITION]
    assert torch.equal(open_[:, 0], out[:, 0]) and bool(open_[:, 1].isnan().all())
    told.measure(torch.ones(5, 2))  # all the same: not divided by 0
    assert bool(told.told(batch, values).given[CONDITION].isfinite().all())
    for wrong in (values[:, :1], values[:3], values[:, 0]):
        with pytest.raises(ValueError, match=r"sites, carbons|rows of conditions"):
            told.told(batch, wrong)


def test_numbers_are_left_out_together_and_apart():
    """Nothing told: .1 + .9 .1^2; one number alone left out: .9 .9 .1. A draw belongs to its sample and step."""
    n = 20000
    batch = with_values(Batch({}, {}, torch.ones(n, 1, dtype=torch.bool)), torch.ones(n, 2))
    told, rng = Conditions(NAMES, torch.Size([2, 2])), Rng(0, torch.arange(n))
    out = told.taught(batch, rng).given[CONDITION]
    first, second = out.isnan().T
    assert (first & second).double().mean().item() == pytest.approx(0.109, abs=0.007)
    assert (first & ~second).double().mean().item() == pytest.approx(0.081, abs=0.006)
    assert (second & ~first).double().mean().item() == pytest.approx(0.081, abs=0.006)
    assert torch.equal(out[~first][:, 0], torch.ones(int((~first).sum())))
    rows = torch.tensor([7, 3, 30])
    torch.testing.assert_close(told.taught(batch[rows], rng[rows]).given[CONDITION], out[rows], equal_nan=True)
    assert not torch.equal(told.taught(batch, rng.at(1)).given[CONDITION].isnan(), out.isnan())
    with pytest.raises(ValueError, match="sites, carbons"):
        told.taught(replace(batch, given={}), rng)


@pytest.mark.parametrize("causal", [False, True])
def test_nothing_told_is_no_condition(causal):
    """Values left out, all nan, and weight 0 with any values draw the same graphs, bit for bit."""
    batch = data()
    model, rng = build(batch, room=10, causal=causal).eval(), Rng(0, torch.arange(40))
    values = batch.given[VALUES][torch.arange(40) % len(batch)]
    none = model.generate(rng, 2)
    assert same(none, model.generate(rng, 2, values=torch.full((40, 2), NAN)))
    assert same(none, model.generate(rng, 2, values=values, weight=0.0))
    some = model.generate(rng, 2, values=values)
    assert not same(none, some)
    assert same(some, model.generate(rng, 2, values=values, weight=1.0))
    # Each sample has its own condition, whatever its batch.
    rows = torch.tensor([5, 31, 8])
    part = model.generate(rng[rows], 2, values=values[rows])
    assert same(part, some[rows])
    mixed = torch.where(torch.arange(40)[:, None] % 2 == 0, values, NAN)
    both = model.generate(rng, 2, values=mixed)
    assert same(both[slice(0, None, 2)], some[slice(0, None, 2)]) and same(
        both[slice(1, None, 2)], none[slice(1, None, 2)]
    )


def test_before_training_it_is_the_model_without_conditions():
    batch = data()
    plain, model = build_plain(batch, room=10), build(batch, bent=False, room=10)
    model.load_state_dict(plain.state_dict(), strict=False)
    rng = Rng(0, torch.arange(30))
    values = batch.given[VALUES][torch.arange(30) % len(batch)]
    assert same(plain.generate(rng, 2), model.generate(rng, 2, values=values))


class Counted(nn.Module):
    """A network that counts its calls with and without a condition."""

    def __init__(self, inner: nn.Module):
        super().__init__()
        self.inner, self.trunk, self.calls = inner, inner.trunk, Counter()

    def forward(self, *inputs):
        given = next(i for i in inputs if isinstance(i, dict) and "degree" in i)
        self.calls["told" if CONDITION in given else "free"] += 1
        return self.inner(*inputs)


@pytest.mark.parametrize("weight, told, free", [(0.0, 0, 1), (1.0, 1, 0), (2.5, 1, 1)])
def test_calls(weight, told, free):
    """Guidance of weight 0 or 1 costs one call, any other two, of the denoiser and of the head."""
    batch = data()
    model = build(batch, room=8)
    model.denoiser.network, model.head = Counted(model.denoiser.network), Counted(model.head)
    values = batch.given[VALUES][torch.zeros(9, dtype=torch.long)]
    model.generate(Rng(0, torch.arange(9)), 3, values=values, weight=weight)
    for network in (model.denoiser.network, model.head):
        total = max(network.calls.values())
        assert total and network.calls == Counter({"told": told * total, "free": free * total})


def test_a_guide_of_ones_own_leaves_the_weight_to_the_head():
    batch = data()
    model = build(batch, room=8)
    values, rng = batch.given[VALUES][torch.zeros(9, dtype=torch.long)], Rng(0, torch.arange(9))
    draw = lambda **named: model.generate(rng, 3, values=values, **named)
    assert same(draw(weight=2.0), draw(weight=2.0, guide=classifier_free_blocks(2.0)))
    assert not same(draw(weight=2.0), draw(weight=2.0, guide=untold))


def test_a_model_without_conditions_takes_no_values():
    model = build_plain(data(), room=8)
    for wrong in ({"values": torch.zeros(3, 2)}, {"weight": 2.0}):
        with pytest.raises(ValueError, match="without conditions"):
            model.generate(Rng(0, torch.arange(3)), 2, **wrong)


@pytest.mark.parametrize("parallel", [False, True])
def test_the_loss_teaches_every_parameter(parallel):
    batch = data()
    model = build(batch, parallel=parallel, causal=parallel)
    model.loss(batch, Rng(0, batch.ids)).backward()
    told = {k: v for k, v in model.named_parameters() if "condition" in k}
    assert len(told) == 12 and all(v.grad is not None and float(v.grad.abs().max()) > 0 for v in told.values())


def test_the_first_blocks_loss():
    batch = data()
    model = build(batch)
    told = model.conditions.told(batch, batch.given[VALUES])
    p = model.conditions.first_logits(model.first, told.given[CONDITION]).softmax(-1).reshape(-1, *model.first.shape)
    total = 0.0
    for row in range(len(batch)):
        first = (batch.given["rank"][row] == 0) & batch.mask[row]
        total -= p[row, int(first.sum()), int(batch.given["degree"][row][first][0])].log()
    torch.testing.assert_close(model.conditions.first_loss(model.first, told), total / len(batch))
    assert bool((p[:, model.first == 0] == 0).all())


# ---- laws known by enumeration -------------------------------------------------------------------------

TABLE = torch.tensor(
    [[0.0, 0.0], [1.2, -0.4], [0.0, 0.0], [-0.5, 0.9]]
)  # logits of two classes at nan, and at c = 1, 2


class Told(nn.Module):
    """Logits that depend on the condition alone: atoms and bonds of a row of TABLE."""

    def __init__(self):
        super().__init__()
        self.trunk = nn.Module()
        self.trunk.config = replace(build_plain(data()).denoiser.network.trunk.config, causal=False)

    @staticmethod
    def row(given: dict[str, Tensor], b: int) -> Tensor:
        c = given.get(CONDITION, torch.full((b, 1), NAN))[:, 0]
        return torch.where(c.isnan(), 0, 1 + 2 * (c > 0).long())

    def forward(self, state, t, mask, given, order=None, cache=None):
        b, n = mask.shape
        logits = TABLE[self.row(given, b)]
        atom = torch.tensor([0.3, 0.0]) + logits
        bond = torch.tensor([0.0, 0.2]) + 0.5 * logits
        return {"atom": atom[:, None].expand(b, n, 2), "bond": bond[:, None, None].expand(b, n, n, 2)}


class Ends(nn.Module):
    """A head over sizes 0, 1: its logits of another block depend on the condition and on what is there."""

    def forward(self, state, mask, given, order, t=None):
        b = len(mask)
        more = torch.where(mask.sum(1) == 1, TABLE[Told.row(given, b)][:, 0] - 0.2, -1e4)
        size = torch.stack([torch.zeros(b), more], 1)
        return torch.cat([size, torch.zeros(b, 4)], 1)


def tilted(told: Tensor, free: Tensor, w: float) -> Tensor:
    """p_c^w p_0^(1 - w), normalised."""
    p = told.softmax(-1) ** w * free.softmax(-1) ** (1 - w)
    return p / p.sum(-1, keepdim=True)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_guided_graphs_follow_the_tilt_of_every_factor(w):
    """One or two sites, each a block, in one step from the mask: sizes, atoms and bonds by p_c^w p_0^(1 - w)."""
    fields = schema(("A", "B"))
    fields["bond"] = fields["bond"]._replace(classes=("none", "single"))
    model_product = Product({"atom": absorbing(2), "bond": absorbing(2)}, fields)
    first = torch.tensor([[0.0, 0.0], [3.0, 1.0]])
    told = Conditions(("c",), first.shape)
    with torch.no_grad():
        told.first.map[-1].weight.normal_(generator=torch.Generator().manual_seed(1))
    model = Pard(Denoiser(Told(), model_product), Ends(), first, 1, 2, conditions=told)
    n = 6000
    for c in (-1.0, 1.0):
        out = model.generate(Rng(0, torch.arange(n)), 1, values=torch.full((n, 1), c), weight=w)
        logits, free = TABLE[1 if c < 0 else 3], TABLE[0]
        atom = tilted(torch.tensor([0.3, 0.0]) + logits, torch.tensor([0.3, 0.0]) + free, w)
        bond = tilted(torch.tensor([0.0, 0.2]) + 0.5 * logits, torch.tensor([0.0, 0.2]), w)
        size = tilted(torch.stack([torch.zeros(()), logits[0] - 0.2]), torch.tensor([0.0, -0.2]), w)
        at = told.first(torch.tensor([[c], [NAN]])).detach()[:, 2:] + first[1].log()
        begin = tilted(at[0], at[1], w)
        law = {}
        for degree, a in product(range(2), repeat=2):
            law[degree, a] = float(begin[degree] * atom[a] * size[0])
            for b, e, next_degree in product(range(2), repeat=3):
                law[degree, a, b, e, next_degree] = float(begin[degree] * atom[a] * size[1] * atom[b] * bond[e] / 2)
        found = Counter()
        for row in range(n):
            a, d, k = out.state["atom"][row].tolist(), out.given["degree"][row].tolist(), int(out.sites[row])
            one = (d[0], a[0])
            found[one if k == 1 else (*one, a[1], int(out.state["bond"][row, 0, 1]), d[1])] += 1
        assert sum(law.values()) == pytest.approx(1, abs=1e-4)
        assert sum(abs(found[k] / n - law.get(k, 0)) for k in {*law, *found}) / 2 < 0.03


def test_growth_is_guided_in_logits():
    """The law of the next (size, degree) is the tilt of the head's own laws, of size and of degree given size."""
    batch = data()
    model = build(batch)
    rank = torch.where(batch.given["rank"] == 0, 0, -1)
    start = model.conditions.told(batch, batch.given[VALUES])
    start = replace(start, mask=rank >= 0)
    probs = lambda w: BlockGrowth(model.head, model.first, model.conditions, w)._probs(start, Order(rank), 99)
    shaped = lambda p: p.reshape(len(batch), *model.first.shape)
    told, free, out = (shaped(probs(w)).double() for w in (1.0, 0.0, 2.5))
    assert (told - free).abs().max() > 0.01
    sizes = lambda p: p.sum(-1)
    want = sizes(told) ** 2.5 * sizes(free) ** -1.5
    torch.testing.assert_close(sizes(out), want / want.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)
    degrees = lambda p: p / p.sum(-1, keepdim=True)
    want = degrees(told) ** 2.5 * degrees(free) ** -1.5
    torch.testing.assert_close(degrees(out), want / want.sum(-1, keepdim=True), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_conditional_law_is_learned():
    """Graphs of three coloured sites, told their number of edges: total variation to the law given it, and of none
    given it to the whole law."""
    graphs, _ = three_site_graphs(12000)
    edges = (graphs.state["bond"].sum((1, 2)) // 2).float()
    batch = with_values(ordered(graphs, 1), edges[:, None])
    base = build_plain(batch, hops=1, kernel=absorbing, width=32, pair_width=16, heads=4, product=8)
    net, head = (replace(m.trunk.config, conditions=1) for m in (base.denoiser.network, base.head))
    told = Conditions(("edges",), base.first.shape)
    told.measure(batch.given[VALUES])
    outputs = base.first.shape[0] * (1 + base.first.shape[1])
    denoiser = Denoiser(GraphTransformer(net), base.denoiser.product)
    model = Pard(denoiser, GraphHead(head, outputs), first_blocks(batch), 1, 3, False, told)
    config = FitConfig(steps=900, batch_size=128, lr=4e-3, warmup=50, ema=0.995, log_every=500)
    model = fit(model, batch, config, prepare=examples, progress=False)
    n, laws = 1500, Counter()
    for c in range(4):
        out = model.generate(Rng(c, torch.arange(n)), 32, values=torch.full((n, 1), float(c)))
        right = (out.state["bond"].sum((1, 2)) // 2 == c) & (out.sites == 3)
        laws[c] = float(right.double().mean())
    assert min(laws.values()) > 0.9
    out = model.generate(Rng(9, torch.arange(n)), 32)
    found = torch.bincount(out.state["bond"].sum((1, 2)) // 2, minlength=4) / n
    assert (found - torch.bincount(edges.long(), minlength=4) / len(edges)).abs().sum() / 2 < 0.06
