from collections import Counter
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from tests.laws import assert_same_samples, take
from unisci.autoregression.generate import check_sorted
from unisci.autoregression.growth import BlockGrowth, split_logits
from unisci.autoregression.pard import Pard, doubled_loss, examples, first_blocks, ordered
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.domains.molecule import Molecule, schema
from unisci.networks.graph_transformer import GraphHead, GraphTransformer, GraphTransformerConfig
from unisci.order import Order, structural_order
from unisci.processes.categorical import Categorical, absorbing, uniform
from unisci.processes.product import Product, site_times
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

SMILES = [
    "C", "CC", "Cc1ccccc1", "CC(=O)Oc1ccccc1C(=O)O", "C1CC1", "O=C=O", "C#N", "CN1C=NC2=C1C(=O)N(C)C(=O)N2C",
    "CC(C)(C)C", "c1ccc2ccccc2c1", "FC(F)(F)C(F)(F)F", "OCC1OC(O)C(O)C(O)C1O",
]  # fmt: skip


def molecules() -> Batch:
    return Molecule.batch([Molecule.from_smiles(s) for s in SMILES])


def build(
    batch: Batch, hops: int = 2, room: int | None = None, parallel=False, kernel=uniform, causal=False, **sizes: int
) -> Pard:
    """An untrained Pard that fits the ordered batch."""
    torch.manual_seed(0)
    first = first_blocks(batch)
    atoms, bonds = len(batch.schema["atom"].classes), len(batch.schema["bond"].classes)
    processes = {"atom": kernel(atoms), "bond": kernel(bonds)}
    sizes = {"width": 16, "pair_width": 8, "layers": 2, "heads": 2, "product": 4} | sizes
    states = (processes["atom"].states, processes["bond"].states)
    net = GraphTransformer(GraphTransformerConfig(*states, atoms, bonds, causal=causal, **sizes))
    head = GraphHead(GraphTransformerConfig(atoms, bonds, 1, 1, **sizes), first.shape[0] * (1 + first.shape[1]))
    denoiser = Denoiser(net, Product(processes, batch.schema))
    return Pard(denoiser, head, first, hops, room or batch.mask.shape[1], parallel)


def all_at_once(classes: int) -> Categorical:
    """Everything is masked at any time above 0: noise that is the same however sites are numbered."""
    after = lambda t: (t > 0).to(t.dtype)
    return Categorical(lambda t: 1 - after(t), after, torch.full((classes,), 1 / classes))


@pytest.mark.parametrize("hops", [0, 1, 3])
def test_ordered_sorts_the_same_graphs_by_their_order(hops):
    batch = molecules()
    out = ordered(batch, hops)
    rank, degree = out.given["rank"], out.given["degree"]
    check_sorted(Order(rank))
    assert torch.equal(out.sites, batch.sites) and torch.equal(rank >= 0, out.mask) and torch.equal(out.ids, batch.ids)
    assert [m.smiles for m in Molecule.unbatch(out)] == [m.smiles for m in Molecule.unbatch(batch)]
    order, again = structural_order(out.state["bond"] > 0, out.mask, hops)
    assert torch.equal(order.rank, rank) and torch.equal(again[out.mask], degree[out.mask])
    if hops:
        bonded = (out.state["bond"] > 0) & (rank[:, None, :] <= rank[:, :, None]) & out.mask[:, None, :]
        assert torch.equal(degree[out.mask], bonded.sum(2)[out.mask])
        ring = out.given["rank"][2]  # toluene: the ring is the core, methyl comes last
        assert ring[:7].tolist() == ([0] * 6 + [1] if hops == 1 else sorted(ring[:7].tolist()))
    else:
        assert int(rank.max()) == 0 and int(degree.max()) == 0


def test_examples_are_uniform_blocks_with_all_before_them_and_the_next_to_choose():
    batch = ordered(molecules(), 2)
    rank, blocks = batch.given["rank"], batch.given["rank"].amax(1) + 1
    seen = [set() for _ in SMILES]
    for step in range(200):
        out = examples(batch, Rng(0, batch.ids).at(step))
        block = out.given["block"]
        assert torch.equal(out.mask, (rank >= 0) & (rank <= block[:, None]))
        following = (rank == (block + 1)[:, None]) & batch.mask
        assert torch.equal(out.given["next_size"], following.sum(1))
        assert torch.equal(out.given["next_size"] == 0, block == blocks - 1)
        for row in range(len(batch)):
            seen[row].add(int(block[row]))
            degrees = set(batch.given["degree"][row][following[row]].tolist())
            assert degrees == ({int(out.given["next_degree"][row])} if degrees else set())
    assert seen == [set(range(int(b))) for b in blocks]


def test_first_blocks_counts_sizes_and_degrees():
    batch = ordered(molecules(), 1)
    table = first_blocks(batch)
    expected = Counter()
    largest = 0
    for row in range(len(batch)):
        rank = batch.given["rank"][row]
        largest = max(largest, max(Counter(rank[rank >= 0].tolist()).values()))
        expected[int((rank == 0).sum()), int(batch.given["degree"][row][rank == 0][0])] += 1
    assert {tuple(k): int(table[tuple(k)]) for k in table.nonzero().tolist()} == dict(expected)
    assert table.shape == (largest + 1, int(batch.given["degree"].max()) + 1)


def test_split_logits_reads_sizes_first_then_degrees_by_size():
    size, degree = split_logits(torch.arange(8.0)[None], torch.Size([2, 3]))
    assert size.tolist() == [[0, 1]] and degree.tolist() == [[[2, 3, 4], [5, 6, 7]]]


def test_head_loss_is_the_negative_log_probability_of_the_choice():
    batch = examples(ordered(molecules(), 2), Rng(0, torch.arange(len(SMILES))))
    model = build(ordered(molecules(), 2))
    order = Order(torch.where(batch.mask, batch.given["rank"], -1))
    logits = model.head(batch.state, batch.mask, batch.given, order)
    s, d = model.first.shape
    total = 0.0
    for row in range(len(batch)):
        size, degree = int(batch.given["next_size"][row]), int(batch.given["next_degree"][row])
        total -= logits[row, :s].log_softmax(0)[size]
        if size:
            total -= logits[row, s + size * d : s + (size + 1) * d].log_softmax(0)[degree]
    torch.testing.assert_close(model.head_loss(batch), total / len(batch))


def shuffled(batch: Batch, seed: int) -> Batch:
    index = torch.rand(batch.mask.shape, generator=torch.Generator().manual_seed(seed)).argsort(1)
    state = {k: take(v, batch.schema[k].axes, index) for k, v in batch.state.items()}
    return Batch(batch.schema, state, take(batch.mask, 1, index), {}, batch.ids)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("hops", [0, 2])
def test_loss_is_invariant_under_relabelling_for_given_noise(hops, parallel):
    batch = molecules()
    model = build(ordered(batch, hops), hops, parallel=parallel, kernel=all_at_once).double()
    losses = [float(model.loss(b, Rng(3, batch.ids))) for b in (batch, shuffled(batch, 0), shuffled(batch, 1))]
    assert losses[0] > 1 and losses == pytest.approx([losses[0]] * 3, rel=1e-9)


def test_parallel_loss_is_the_sum_of_each_blocks_loss():
    batch = ordered(molecules(), 2)
    model = build(batch, kernel=all_at_once, causal=True).double()
    t = torch.full((len(batch),), 0.4)
    together = doubled_loss(model.denoiser, batch, Rng(0, batch.ids), t)
    rank, one_by_one = batch.given["rank"], 0.0
    for block in range(int(rank.max()) + 1):
        mask = batch.mask & (rank <= block)
        part = Batch(batch.schema, batch.state, mask, batch.given, batch.ids)
        times = site_times({k: batch.schema[k] for k in batch.state}, (rank == block) & mask, t)
        order = Order(torch.where(mask, rank, -1))
        one_by_one += model.denoiser.loss(part, Rng(0, batch.ids), times, order)
    torch.testing.assert_close(together, one_by_one, rtol=1e-9, atol=0)


@pytest.mark.parametrize("parallel", [False, True])
def test_training_lowers_the_loss(parallel):
    """Twenty steps on one batch; every parameter takes part."""
    batch = ordered(molecules(), 2)
    model = build(batch, parallel=parallel)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = model.loss(batch, Rng(0, batch.ids))
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.parametrize("hops", [0, 2])
@pytest.mark.parametrize("kernel", [uniform, absorbing])
def test_same_seed_and_id_give_the_same_graph_whatever_the_batch(hops, kernel):
    model = build(ordered(molecules(), hops), hops, room=9, kernel=kernel)

    def draw(seed: int, ids: Tensor) -> dict[str, Tensor]:
        out = model.generate(Rng(seed, ids), steps=2)
        return out.state | {"mask": out.mask} | out.given

    assert_same_samples(draw, seeds=(0,))


def test_generated_graphs_fit_the_room_and_finished_ones_leave_the_batch():
    model, ids = build(ordered(molecules(), 2), 2, room=10), torch.arange(64)
    told: dict[int, list[int]] = {}
    out = model.generate(Rng(0, ids), steps=2, on_block=lambda k, rows: told.update({k: rows.tolist()}))
    rank, sites = out.given["rank"], out.sites
    assert torch.equal(rank >= 0, out.mask) and int(sites.max()) <= 10 and int(sites.min()) >= 1
    check_sorted(Order(rank))
    blocks = rank.amax(1) + 1
    assert told == {k: ids[blocks > k].tolist() for k in range(int(blocks.max()))}
    assert len(set(blocks.tolist())) > 2, "all samples have equally many blocks: this proves nothing"
    bond = out.state["bond"]
    assert torch.equal(bond, bond.transpose(1, 2)) and int(bond.diagonal(dim1=1, dim2=2).max()) == 0
    assert not bool(bond[~(out.mask[:, :, None] & out.mask[:, None])].any())
    assert len(Molecule.unbatch(out)) == 64


def test_the_first_block_is_drawn_from_the_table():
    model, n = build(ordered(molecules(), 2), 2, room=30), 400
    out = model.generate(Rng(0, torch.arange(n)), steps=1)
    first = out.given["rank"] == 0
    degree = torch.where(first, out.given["degree"], 0).amax(1)
    counts = torch.zeros_like(model.first)
    counts.index_put_((first.sum(1), degree), torch.ones(n), accumulate=True)
    assert bool((counts[model.first == 0] == 0).all())
    expected = n * model.first / model.first.sum()
    assert bool(((counts - expected).abs() <= 4.5 * expected.sqrt() + 1).all())


class Asked:
    """Stands in for Rng: keeps the probabilities and draws the first class."""

    def categorical(self, field: str, step: int, probs: Tensor, axes: int = 1) -> Tensor:
        self.probs = probs
        return torch.zeros(len(probs), dtype=torch.long)


def test_only_sizes_that_still_have_room_are_chosen():
    batch = ordered(molecules(), 2)
    model, asked = build(batch), Asked()
    rank = torch.where(batch.given["rank"] == 0, 0, -1)[:, :9]
    start = batch.trim(9)
    start = Batch(start.schema, start.state, rank >= 0, start.given, start.ids)
    BlockGrowth(model.head, model.first)(start, Order(rank), 1, asked)
    sizes, degrees = model.first.shape
    probs = asked.probs.reshape(-1, sizes, degrees).sum(-1)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(batch)))
    fits = torch.arange(sizes) <= 9 - start.sites[:, None]
    assert bool((probs[~fits] == 0).all()) and bool((probs[fits] > 0).all()) and not bool(fits.all())


COLOURS, EDGES = 2, ("none", "single")
TRIPLE = list(product(range(COLOURS), repeat=3))


def isomorphism_class(atom: tuple[int, ...], bond: Tensor) -> tuple:
    """The smallest of a graph's encodings over all numberings of its three sites."""
    code = lambda p: (*(atom[i] for i in p), *(int(bond[p[i], p[j]]) for i, j in ((0, 1), (0, 2), (1, 2))))
    return min(code(p) for p in permutations(range(3)))


def three_site_graphs(n: int) -> tuple[Batch, dict[tuple, float]]:
    """n graphs on three coloured sites, numbered at random, by a law over all isomorphism classes."""
    graphs = []
    for atom in TRIPLE:
        for e01, e02, e12 in product(range(2), repeat=3):
            graphs.append((atom, torch.tensor([[0, e01, e02], [e01, 0, e12], [e02, e12, 0]])))
    names = [isomorphism_class(*g) for g in graphs]
    generator = torch.Generator().manual_seed(0)
    classes = sorted(set(names))
    weight = dict(zip(classes, torch.rand(len(classes), generator=generator).pow(3).add(0.02).tolist(), strict=True))
    p = torch.tensor([weight[c] / names.count(c) for c in names])
    chosen = torch.multinomial(p, n, replacement=True, generator=generator)
    atom = torch.stack([torch.tensor(g[0]) for g in graphs])[chosen]
    bond = torch.stack([g[1] for g in graphs])[chosen]
    fields = schema(("A", "B"))
    fields["bond"] = fields["bond"]._replace(classes=EDGES)
    total = sum(weight.values())
    law = {c: w / total for c, w in weight.items()}
    return Batch(fields, {"atom": atom, "bond": bond}, torch.ones(n, 3).bool()), law


@pytest.mark.slow
def test_a_known_law_over_small_graphs_is_learned():
    """Total variation over the 20 isomorphism classes below 0.05, of which sampling noise is near 0.02."""
    data, law = three_site_graphs(20000)
    assert len(law) == 20
    data = ordered(data, 1)
    model = build(data, hops=1, kernel=absorbing, width=32, pair_width=16, heads=4, product=8)
    config = FitConfig(steps=1500, batch_size=128, lr=4e-3, warmup=50, ema=0.995, log_every=500)
    model = fit(model, data, config, prepare=examples, progress=False)
    n = 6000
    out = model.generate(Rng(1, torch.arange(n)), steps=32)
    assert bool((out.sites == 3).float().mean() > 0.99)
    atom = out.state["atom"].tolist()
    whole = zip(atom, out.state["bond"], out.sites, strict=True)
    counts = Counter(isomorphism_class(tuple(a), b) for a, b, k in whole if k == 3)
    distance = 0.5 * (sum(abs(counts[c] / n - p) for c, p in law.items()) + 1 - counts.total() / n)
    assert distance < 0.05
