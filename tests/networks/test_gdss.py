"""The networks of GDSS permute with the nodes, see both fields, and never the padding (S34, check 4)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws import Inputs, assert_padding_free, assert_permutes
from unisci.batch import pair_mask
from unisci.networks.gdss import Attention, Convolution, Gdss, normalised
from unisci.networks.graph_transformer import GraphTransformerConfig
from unisci.networks.joint_transformer import Hints, JointTransformer, reach

AXES = {"atom": 1, "bond": 2}
KINDS = ["real", "channels", "timed", "transformer", "drafts"]
each = pytest.mark.parametrize("kind", KINDS)


def network(kind: str) -> torch.nn.Module:
    torch.manual_seed(0)
    if kind in ("transformer", "drafts"):
        sizes = {"width": 12, "pair_width": 6, "layers": 3, "heads": 3, "product": 4}
        net = JointTransformer(GraphTransformerConfig(5, 4, 5, 4, **sizes), (1, 2) if kind == "drafts" else ()).double()
        for p in net.parameters():  # what begins at 0 would show nothing
            torch.nn.init.normal_(p, std=0.1) if not p.any() else None
        return net
    return Gdss(5, None if kind == "real" else 4, width=8, time=6 if kind == "timed" else 0).double()


def inputs(kind: str, sizes: list[int], seed: int = 0) -> Inputs:
    generator = torch.Generator().manual_seed(seed)
    b, n = len(sizes), max(sizes)
    mask = torch.arange(n) < torch.tensor(sizes)[:, None]
    shape = (b, n, n) if kind == "real" else (b, n, n, 4)
    bond = torch.randn(shape, generator=generator, dtype=torch.float64)
    atom = torch.randn(b, n, 5, generator=generator, dtype=torch.float64)
    t = torch.rand(b, generator=generator, dtype=torch.float64)
    bond = bond + bond.transpose(1, 2)
    if kind == "drafts":
        atom, bond = atom.softmax(-1) * mask[..., None], bond.softmax(-1) * pair_mask(mask)[..., None]
    return Inputs({"atom": atom, "bond": bond}, {"atom": t, "bond": t}, mask, {})


@each
@given(sizes=st.lists(st.integers(1, 7), min_size=1, max_size=3), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_permuting_nodes_permutes_both_outputs(kind, sizes, seed):
    assert_permutes(network(kind), inputs(kind, sizes, seed), AXES, times=2)


@each
@given(sizes=st.lists(st.integers(1, 7), min_size=2, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=8, deadline=None)
def test_padding_changes_nothing(kind, sizes, seed):
    assert_padding_free(network(kind), inputs(kind, sizes, seed), AXES)


@each
def test_outputs_are_shaped_as_inputs_and_edges_symmetric(kind):
    given = inputs(kind, [5, 3])
    out = network(kind)(*given)
    assert {k: v.shape for k, v in out.items()} == {k: v.shape for k, v in given.state.items()}
    torch.testing.assert_close(out["bond"], out["bond"].transpose(1, 2))
    if kind not in ("transformer", "drafts"):
        assert (out["bond"].diagonal(dim1=1, dim2=2) == 0).all()


@each
@pytest.mark.parametrize("k", ["atom", "bond"])
def test_both_fields_reach_both_outputs(kind, k):
    net, given = network(kind), inputs(kind, [5])
    changed = given._replace(state=given.state | {k: given.state[k] * 1.5})
    for f, v in net(*changed).items():
        assert (v - net(*given)[f]).abs().max() > 1e-4, f


@each
def test_time_is_an_input_only_where_asked_for(kind):
    net, given = network(kind), inputs(kind, [5, 4])
    later = given._replace(t={k: (v + 0.3) % 1 for k, v in given.t.items()})
    scalar = given._replace(t={k: v.new_tensor(0.4) for k, v in given.t.items()})
    each = given._replace(t={k: torch.full_like(v, 0.4) for k, v in given.t.items()})
    for f, v in net(*given).items():
        assert bool((net(*later)[f] != v).any()) == (kind in ("timed", "transformer", "drafts"))
        torch.testing.assert_close(net(*scalar)[f], net(*each)[f])


def test_normalisation_and_convolution_by_hand():
    a = torch.tensor([[0.0, 2.0, 0.0], [2.0, 0.0, -3.0], [0.0, -3.0, 0.0]])
    d = torch.tensor([3.0, 1.0, 1.0]) ** -0.5  # row sums 3, 0, -2 with the loops; those below 1 count as 1
    expected = d[:, None] * torch.tensor([[1.0, 2.0, 0.0], [2.0, 1.0, -3.0], [0.0, -3.0, 1.0]]) * d
    torch.testing.assert_close(normalised(a), expected)
    layer, x = Convolution(2, 4, 5), torch.randn(1, 3, 4)
    stack = torch.stack([expected, torch.eye(3)])[None]
    out = layer(x, stack)
    assert out.shape == (1, 2, 3, 5)
    torch.testing.assert_close(out[0, 0], expected @ x[0] @ layer.weight[0] + layer.bias[0])
    torch.testing.assert_close(out[0, 1], x[0] @ layer.weight[1] + layer.bias[1])


def test_second_powers_see_paths_of_two():
    """A is 0 between nodes 0 and 2, and their output still tells whether they have a neighbour in common: in one layer
    of attention without features nothing else could."""
    net = network("real")
    given = inputs("real", [4])
    path = torch.zeros(1, 4, 4, dtype=torch.float64)
    path[0, 0, 1] = path[0, 1, 0] = path[0, 1, 2] = path[0, 2, 1] = 1
    seen = []
    hook = net.edges.layers[0].register_forward_hook(lambda m, args, out: seen.append(args[1]))
    net(given.state | {"bond": path}, *given[1:])
    hook.remove()
    assert seen[0].shape == (1, 2, 4, 4) and seen[0][0, 0, 0, 2] == 0 and seen[0][0, 1, 0, 2] == 1
    assert (seen[0].diagonal(dim1=2, dim2=3) == 0).all()


def test_sizes():
    """Of the order of the paper's model of QM9, a checkpoint of 181 KB."""
    assert 20_000 < sum(p.numel() for p in Gdss(4).parameters()) < 60_000
    with pytest.raises(ValueError, match="multiple of heads"):
        Attention(2, 4, 5, 10, 4)


def test_attention_by_hand():
    """Maps of each head and channel, their mean over heads made symmetric before it is mixed with the channels."""
    torch.manual_seed(0)
    layer = Attention(2, 3, 4, 8, 2).double()
    a = torch.randn(1, 2, 5, 5, dtype=torch.float64)
    x, a, mask = torch.randn(1, 5, 4, dtype=torch.float64), a + a.transpose(2, 3), torch.ones(1, 5, dtype=torch.bool)
    maps = torch.zeros(2, 5, 5, dtype=torch.float64)
    for c in range(2):
        q, k, _ = (normalised(a[0, c]) @ x[0] @ layer.qkv.weight[c] + layer.qkv.bias[c]).split(8, -1)
        for h in (slice(0, 4), slice(4, 8)):
            one = torch.tanh(q[:, h] @ k[:, h].T / 2) / 2
            maps[c] += (one + one.T) / 2
    mixed = layer.pairs(torch.cat([maps, a[0]]).permute(1, 2, 0)).permute(2, 0, 1)
    expected = (mixed + mixed.transpose(1, 2)) * (1 - torch.eye(5))
    torch.testing.assert_close(layer(x, a, mask)[1][0], expected)


def test_reach_is_the_weakest_pair_of_the_strongest_path():
    """(0-1-2-3 is a path, 0-3 a weak shortcut, 4 stands alone.)"""
    p = torch.zeros(1, 5, 5)
    for i, j, v in ((0, 1, 0.9), (1, 2, 0.5), (2, 3, 0.8), (0, 3, 0.2)):
        p[0, i, j] = p[0, j, i] = v
    expected = [
        [1, 0.9, 0.5, 0.5, 0],
        [0.9, 1, 0.5, 0.5, 0],
        [0.5, 0.5, 1, 0.8, 0],
        [0.5, 0.5, 0.8, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    torch.testing.assert_close(reach(p)[0], torch.tensor(expected))
    line = torch.diag(torch.ones(16), 1)[None]  # a path of 17 nodes
    assert (reach(line + line.transpose(1, 2)) == 1).all()


def test_hints_tell_valences_walks_and_whether_a_graph_hangs_together():
    """Read where they enter the maps: a chain 0-1-2 by a single and a double bond, and a node apart."""
    hints = Hints(2, 3, 4, 4)
    bond = torch.zeros(1, 4, 4, dtype=torch.long)
    bond[0, 0, 1] = bond[0, 1, 0] = 1
    bond[0, 1, 2] = bond[0, 2, 1] = 2
    mask, seen = torch.ones(1, 4, dtype=torch.bool), []
    for part in (hints.site, hints.pair):
        part.register_forward_hook(lambda m, args, out: seen.append(args[0][0]))
    one_hot = torch.nn.functional.one_hot
    state = {"atom": one_hot(torch.zeros(1, 4, dtype=torch.long), 2).float(), "bond": one_hot(bond, 3).float()}
    assert not any(v.any() for v in hints(state, mask))
    site, pair = seen
    torch.testing.assert_close(site[:3, 4:6] * 2, torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]))
    torch.testing.assert_close(site[:, 6] * 8, torch.tensor([2.0, 1.0, 2.0, 3.0]))
    assert (site[:, 7] == 0).all()  # node 3 cannot be reached
    walks = pair[..., 6:]
    assert walks[0, 1, 0] == 1 and walks[0, 2, 0] == 0
    torch.testing.assert_close(walks[0, 2, 1:4].expm1(), torch.tensor([1.0, 0.0, 2.0]))  # 0-1-2; 0-1-0-1-2, 0-1-2-1-2
    assert walks[0, 2, 4] == 1 and walks[0, 3, 4] == 0


def test_drafts_begin_as_nothing():
    """So a trained network without drafts goes on being what it is when it gets them, and theirs are the only new
    weights."""
    config = GraphTransformerConfig(5, 4, 5, 4, width=12, pair_width=6, layers=3, heads=3, product=4)
    plain, drafts = (JointTransformer(config, d).double() for d in ((), (1, 2)))
    missing, unknown = drafts.load_state_dict(plain.state_dict(), strict=False)
    assert not unknown and all(k.split(".")[0] in ("hints", "to_site", "to_pair") for k in missing)
    given = inputs("drafts", [5, 3])
    for k, v in drafts(*given).items():
        torch.testing.assert_close(v, plain(*given)[k])
    with pytest.raises(ValueError, match="1 to 2"):
        JointTransformer(config, (3,))


def test_a_draft_changes_what_later_layers_see():
    """The logits of a draft reach the output beyond their own sum."""
    net, given = network("drafts"), inputs("drafts", [5])
    before = net(*given)
    with torch.no_grad():
        net.to_site["1"][-1].bias += torch.tensor([3.0, 0, 0, 0, 0])
    after = net(*given)
    assert (after["bond"] - before["bond"]).abs().max() > 1e-4
    assert (after["atom"] - before["atom"])[..., 0].min() > 1  # and is in the sum
