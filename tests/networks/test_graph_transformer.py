from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.laws import Inputs, assert_causal, assert_padding_free, assert_permutes, leaks, take_all
from unisci.networks import graph_transformer
from unisci.networks.graph_transformer import (
    CONDITION,
    GraphHead,
    GraphTransformer,
    GraphTransformerConfig,
    edge_product,
)
from unisci.order import Order, structural_order

AXES = {"atom": 1, "bond": 2, "degree": 1}
CLASSES = {"atom": 5, "bond": 4, "degree": 6}


def config(causal: bool = False, layers: int = 3) -> GraphTransformerConfig:
    return GraphTransformerConfig(5, 4, 4, 3, width=12, pair_width=6, layers=layers, heads=3, product=4, causal=causal)


def network(causal: bool = False, layers: int = 3) -> GraphTransformer:
    torch.manual_seed(0)
    return GraphTransformer(config(causal, layers)).double().eval()


def graphs(sizes: list[int], seed: int = 0, room: int | None = None) -> Inputs:
    """Random graphs, sorted by their order; the last block of each is at time 0.6, with the pairs that touch it."""
    generator = torch.Generator().manual_seed(seed)
    b, n = len(sizes), room or max(sizes)
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    bond = torch.randint(4, (b, n, n), generator=generator) * (torch.rand(b, n, n, generator=generator) < 0.4)
    bond = bond.tril(-1) + bond.tril(-1).transpose(1, 2)
    order, degree = structural_order(bond > 0, mask, 2)
    key = torch.where(mask, order.rank, 99).argsort(dim=1, stable=True)
    bond = bond.gather(1, key[:, :, None].expand(-1, -1, n)).gather(2, key[:, None].expand(-1, n, -1))
    order, degree = Order(order.rank.gather(1, key)), degree.gather(1, key)
    atom = torch.randint(5, (b, n), generator=generator)
    moving = (order.rank == order.rank.amax(1, keepdim=True)) & mask
    t_atom = 0.6 * moving.double()
    off = ~torch.eye(n).bool()
    t_bond = 0.6 * ((moving[:, :, None] | moving[:, None]) & off).double()
    return Inputs({"atom": atom, "bond": bond}, {"atom": t_atom, "bond": t_bond}, mask, {"degree": degree}, order)


def doubled(inputs: Inputs, noised: dict[str, Tensor], t: float = 0.6) -> Inputs:
    """2n sites: the clean ones, then a noised copy of each; its pairs with its block and earlier ones are noised."""
    rank, n = inputs.order.rank, inputs.mask.shape[1]
    copy = (torch.arange(2 * n) >= n).expand(len(rank), -1)
    bond, noisy = inputs.state["bond"], noised["bond"]
    state = {
        "atom": torch.cat([inputs.state["atom"], noised["atom"]], 1),
        "bond": torch.cat([torch.cat([bond, noisy], 2), torch.cat([noisy, noisy], 2)], 1),
    }
    mask = inputs.mask.repeat(1, 2)
    moving = copy & mask
    t_bond = t * ((moving[:, :, None] | moving[:, None]) & ~torch.eye(2 * n).bool()).double()
    times = {"atom": t * moving.double(), "bond": t_bond}
    return Inputs(state, times, mask, {"degree": inputs.given["degree"].repeat(1, 2)}, Order(rank.repeat(1, 2), copy))


def noise(inputs: Inputs, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    bond = torch.randint(4, inputs.state["bond"].shape, generator=generator).tril(-1)
    return {
        "atom": torch.randint(5, inputs.state["atom"].shape, generator=generator),
        "bond": bond + bond.transpose(1, 2),
    }


@pytest.mark.parametrize("kind", ["plain", "causal", "doubled"])
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_permuting_sites_permutes_the_logits(kind, sizes, seed):
    inputs = graphs(sizes, seed)
    if kind == "doubled":
        inputs = doubled(inputs, noise(inputs, seed))
    assert_permutes(network(kind == "causal"), inputs, AXES, times=2)


@pytest.mark.parametrize("kind", ["plain", "causal", "doubled"])
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_padding_and_batch_mates_change_nothing(kind, sizes, seed):
    """Small graphs too: in one of n sites that all see each other nothing is unseen, in a padded one something is."""
    inputs = graphs(sizes, seed)
    if kind == "doubled":
        inputs = doubled(inputs, noise(inputs, seed))
    assert_padding_free(network(kind == "causal"), inputs, AXES)


@pytest.mark.parametrize("kind", ["causal", "doubled"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nothing_leaks_from_later_blocks(kind, seed):
    inputs = graphs([7, 5, 6], seed)
    if kind == "doubled":
        inputs = doubled(inputs, noise(inputs, seed))
    assert int(inputs.order.blocks.max()) > 2
    assert_causal(network(kind == "causal"), inputs, AXES, CLASSES)


@pytest.mark.parametrize("kind", ["causal", "doubled"])
def test_the_plain_product_would_leak_from_the_second_layer_on(kind, monkeypatch):
    """One layer hides the fault; with two, a later block reaches an earlier one through a pair that holds both."""
    inputs = graphs([7, 5, 6])
    if kind == "doubled":
        inputs = doubled(inputs, noise(inputs, 0))
    plain = lambda y1, y2, sees, causal: torch.einsum("bikp,bkjp->bijp", y1, y2)
    monkeypatch.setattr(graph_transformer, "edge_product", plain)
    assert leaks(network(kind == "causal", layers=2), inputs, AXES, CLASSES)[0] > 1e-6


def test_edge_product_is_the_sum_over_what_either_site_sees():
    generator = torch.Generator().manual_seed(0)
    y1, y2 = torch.randn(2, 3, 5, 5, 2, generator=generator, dtype=torch.float64)
    rank = torch.tensor([[0, 0, 1, 2, -1], [0, 1, 1, 1, 2], [0, 0, 0, 0, 0]])
    sees = Order(rank).visible()
    either = sees[:, :, None, :] | sees[:, None, :, :]  # (B, i, j, k): i sees k or j sees k
    expected = torch.einsum("bijk,bikp,bkjp->bijp", either.double(), y1, y2)
    there = (rank >= 0)[:, :, None] & (rank >= 0)[:, None]
    got = edge_product(y1, y2, sees, True)
    torch.testing.assert_close(got[there], expected[there], rtol=0, atol=1e-12)
    mutual = (rank[:, :, None] >= 0) & (rank[:, None] >= 0)
    a, b = (edge_product(y1, y2, mutual, causal) for causal in (False, True))
    torch.testing.assert_close(a[there], b[there], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", ["plain", "causal", "doubled"])
def test_bond_logits_are_symmetric_to_the_last_bit(kind):
    inputs = graphs([6, 4])
    if kind == "doubled":
        inputs = doubled(inputs, noise(inputs, 0))
    bond = network(kind == "causal")(*inputs)["bond"]
    assert torch.equal(bond, bond.transpose(1, 2)) and bond.shape[-1] == 3


@pytest.mark.parametrize("seed", range(4))
def test_all_blocks_at_once_give_the_logits_of_each_prefix_graph(seed):
    inputs = graphs([7, 6, 7], seed)
    net, noised, n = network(causal=True), noise(inputs, seed), 7
    both = net(*doubled(inputs, noised))
    rank = inputs.order.rank
    for block in range(int(rank.max()) + 1):
        moving = (rank == block) & inputs.mask
        mask = inputs.mask & (rank <= block)
        touch = moving[:, :, None] | moving[:, None]
        state = {
            "atom": torch.where(moving, noised["atom"], inputs.state["atom"]),
            "bond": torch.where(touch, noised["bond"], inputs.state["bond"]),
        }
        off = ~torch.eye(n).bool()
        t = {"atom": 0.6 * moving.double(), "bond": 0.6 * (touch & off).double()}
        prefix = net(state, t, mask, inputs.given, Order(torch.where(mask, rank, -1)))
        torch.testing.assert_close(both["atom"][:, n:][moving], prefix["atom"][moving], rtol=0, atol=1e-10)
        within = moving[:, :, None] & moving[:, None]
        torch.testing.assert_close(both["bond"][:, n:, n:][within], prefix["bond"][within], rtol=0, atol=1e-10)
        earlier = moving[:, :, None] & (mask & ~moving)[:, None]
        torch.testing.assert_close(both["bond"][:, n:, :n][earlier], prefix["bond"][earlier], rtol=0, atol=1e-10)


@pytest.mark.parametrize("field", ["atom", "bond", "degree", "time", "rank"])
def test_every_input_matters(field):
    inputs = graphs([6])
    net = network()
    state, given, t, rank = dict(inputs.state), dict(inputs.given), dict(inputs.t), inputs.order.rank
    if field == "time":
        t = {k: v * 0.5 for k, v in t.items()}
    elif field == "rank":
        rank = torch.where(rank == 0, 1, rank)
    elif field == "degree":
        given["degree"] = given["degree"] + 1
    else:
        state[field] = (state[field] + 1) % 4
    out, changed = net(*inputs), net(state, t, inputs.mask, given, Order(rank))
    for k in out:
        assert float((out[k] - changed[k]).detach().abs().max()) > 1e-6


def test_long_orders_and_high_degrees_stay_inside_the_tables():
    n = 40
    inputs = graphs([n])
    order = Order(torch.arange(n)[None])
    given = {"degree": torch.full((1, n), 50)}
    for causal in (False, True):
        out = network(causal, layers=1)(inputs.state, inputs.t, inputs.mask, given, order)
        assert all(bool(v.isfinite().all()) for v in out.values())


def test_head_is_invariant_and_free_of_padding():
    torch.manual_seed(0)
    head = GraphHead(config(), 7).double().eval()
    inputs = graphs([6, 4])
    net = lambda state, t, mask, given, order: {"choice": head(state, mask, given, order)}
    axes = AXES | {"choice": 0}
    assert_permutes(net, inputs, axes)
    assert_padding_free(net, inputs, axes)
    assert net(*inputs)["choice"].shape == (2, 7)


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        GraphTransformerConfig(4, 4, 4, 4, width=10, heads=4)


@pytest.mark.parametrize("seed", range(4))
def test_cached_steps_give_the_logits_of_the_last_block(seed):
    """With the finished sites remembered, the new sites alone are computed, and come out the same."""
    net, n = network(causal=True), 7
    inputs = graphs([n], seed)
    noised, rank = noise(inputs, seed), inputs.order.rank[0]
    for block in range(1, int(rank.max()) + 1):
        m, p = int((rank <= block).sum()), int((rank < block).sum())
        cut = take_all(inputs, AXES, torch.arange(m)[None])
        moving = torch.arange(m)[None] >= p
        touch = moving[:, :, None] | moving[:, None]
        state = {
            "atom": torch.where(moving, noised["atom"][:, :m], cut.state["atom"]),
            "bond": torch.where(touch, noised["bond"][:, :m, :m], cut.state["bond"]),
        }
        t = {"atom": 0.6 * moving.double(), "bond": 0.6 * (touch & ~torch.eye(m).bool()).double()}
        past = take_all(inputs, AXES, torch.arange(p)[None])
        cache = net.remember(past.state, past.mask, past.given, past.order)
        whole = net(state, t, cut.mask, cut.given, cut.order)
        new = net(state, t, cut.mask, cut.given, cut.order, cache)
        torch.testing.assert_close(new["atom"][moving], whole["atom"][moving], rtol=0, atol=1e-10)
        torch.testing.assert_close(new["bond"][touch], whole["bond"][touch], rtol=0, atol=1e-10)
        assert torch.equal(new["bond"], new["bond"].transpose(1, 2))


def test_a_network_of_mutual_sight_cannot_be_cached():
    inputs = graphs([4])
    with pytest.raises(ValueError, match="only a network of causal sight"):
        network().remember(inputs.state, inputs.mask, inputs.given, inputs.order)


# ---- conditions ----------------------------------------------------------------------------------------


def told(net, generator: int = 0):
    """The network with an embedding of conditions that is not 0 any more."""
    torch.manual_seed(generator)
    torch.nn.init.normal_(net.trunk.condition.map[-1].weight)
    torch.nn.init.normal_(net.trunk.condition.map[-1].bias)
    return net


def conditional(causal: bool = False) -> GraphTransformer:
    torch.manual_seed(0)
    return told(GraphTransformer(replace(config(causal), conditions=2)).double().eval())


def with_condition(inputs: Inputs, values: Tensor) -> Inputs:
    return inputs._replace(given=inputs.given | {CONDITION: values})


NAN = float("nan")


@pytest.mark.parametrize("causal", [False, True])
def test_no_condition_is_one_of_which_nothing_is_told(causal):
    """To the last bit; and each number that is told changes what noised sites say."""
    inputs, net = graphs([6, 4]), conditional(causal)
    none = net(*inputs)
    null = net(*with_condition(inputs, torch.full((2, 2), NAN)))
    assert all(torch.equal(none[k], null[k]) for k in none)
    seen = [none["atom"]]
    for values in ([0.0, NAN], [NAN, 0.0], [0.0, 0.0], [1.0, 0.0], [0.0, 1.0]):
        seen.append(net(*with_condition(inputs, torch.tensor([values, values])))["atom"])
        assert all((seen[-1] - other).abs().max() > 1e-6 for other in seen[:-1])
    mixed = net(*with_condition(inputs, torch.tensor([[1.0, 0.0], [NAN, NAN]])))["atom"]
    torch.testing.assert_close(mixed, torch.stack([seen[4][0], none["atom"][1]]))


def test_before_training_conditions_change_nothing():
    torch.manual_seed(0)
    net, inputs = GraphTransformer(replace(config(), conditions=2)).double(), graphs([5])
    plain, out = network(), net(*with_condition(inputs, torch.tensor([[1.0, -2.0]])))
    assert net.load_state_dict(plain.state_dict(), strict=False).unexpected_keys == []
    out, want = net(*with_condition(inputs, torch.tensor([[1.0, -2.0]]))), plain(*inputs)
    assert all(torch.equal(out[k], want[k]) for k in want)
    assert not [k for k in plain.state_dict() if "condition" in k]


def test_what_is_remembered_does_not_depend_on_the_condition():
    """So that one cache serves the conditional and the unconditional model; and the cache changes nothing."""
    inputs, net = graphs([7, 7], seed=2), conditional(causal=True)
    p = 4
    rank = (torch.arange(7) >= p).long().expand(2, 7)
    moving = rank == 1
    t = {"atom": 0.5 * moving.double(), "bond": 0.5 * ((moving[:, :, None] | moving[:, None]) & ~torch.eye(7).bool())}
    given = inputs.given | {CONDITION: torch.tensor([[0.3, NAN], [-1.0, 2.0]], dtype=torch.float64)}
    past = {"atom": inputs.state["atom"][:, :p], "bond": inputs.state["bond"][:, :p, :p]}
    degree, mask = {"degree": given["degree"][:, :p]}, torch.ones(2, p, dtype=torch.bool)
    cache = net.remember(past, mask, degree, Order(rank[:, :p]))
    told = net.remember(past, mask, degree | {CONDITION: given[CONDITION]}, Order(rank[:, :p]))
    assert all(torch.equal(a, b) for one, two in zip(cache, told, strict=True) for a, b in zip(one, two, strict=True))
    for now in (given, inputs.given):
        whole = net(inputs.state, t, torch.ones(2, 7, dtype=torch.bool), now, Order(rank))
        part = net(inputs.state, t, torch.ones(2, 7, dtype=torch.bool), now, Order(rank), cache)
        torch.testing.assert_close(part["atom"][:, p:], whole["atom"][:, p:], rtol=0, atol=1e-10)
        torch.testing.assert_close(part["bond"][:, p:], whole["bond"][:, p:], rtol=0, atol=1e-10)


@pytest.mark.parametrize("kind", ["plain", "causal", "doubled"])
def test_conditional_networks_keep_the_laws(kind):
    inputs = graphs([6, 4, 5])
    inputs = doubled(inputs, noise(inputs, 0)) if kind == "doubled" else inputs
    inputs = with_condition(inputs, torch.tensor([[0.5, 1.0], [NAN, 0.0], [-1.0, NAN]], dtype=torch.float64))
    net, axes = conditional(kind == "causal"), AXES | {CONDITION: 0}
    assert_permutes(net, inputs, axes)
    assert_padding_free(net, inputs, axes)
    if kind != "plain":
        assert_causal(net, inputs, axes, CLASSES)


def test_a_head_tells_all_sites():
    torch.manual_seed(0)
    head, inputs = told(GraphHead(replace(config(), conditions=2), 7).double()), graphs([6, 4])
    ask = lambda given: head(inputs.state, inputs.mask, given, inputs.order)
    values = torch.tensor([[0.5, NAN], [NAN, NAN]], dtype=torch.float64)
    out, none = ask(inputs.given | {CONDITION: values}), ask(inputs.given)
    assert (out[0] - none[0]).abs().max() > 1e-3 and torch.equal(out[1], none[1])


def test_conditions_of_another_size_are_refused():
    inputs = graphs([6, 4])
    for values in (torch.zeros(2, 1), torch.zeros(1, 2), torch.zeros(2)):
        with pytest.raises(ValueError, match=r"takes conditions \(2, 2\)"):
            conditional()(*with_condition(inputs, values))


def test_what_is_put_before_a_layer_is_what_it_is_given():
    """Nothing put there changes no bit; a change before layer k is that of its input, and layers before it do not
    see it."""
    net, x, seen = network(), graphs([5, 3]), []
    call = lambda before: net.trunk(x.state, x.t, x.mask, x.given, x.order, before)
    plain = call(None)
    same = call(lambda k, x, e: seen.append(k) or (x, e))
    assert seen == [0, 1, 2] and all(torch.equal(a, b) for a, b in zip(plain[:2], same[:2], strict=True))
    moved = call(lambda k, x, e: (x + 1.0, e) if k == 1 else (x, e))
    assert torch.equal(moved[2][0].k, plain[2][0].k) and not torch.equal(moved[2][1].u, plain[2][1].u)
    assert (moved[0] - plain[0]).abs().max() > 1e-3
