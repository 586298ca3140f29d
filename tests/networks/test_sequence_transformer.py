"""The causal transformer: what a position sees, to the last bit, and that its cache changes nothing."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import normal
from unisci.networks.sequence_transformer import SequenceTransformer, SequenceTransformerConfig, rotated


def transformer(dtype=torch.float64, **sizes) -> SequenceTransformer:
    torch.manual_seed(0)
    return SequenceTransformer(SequenceTransformerConfig(**{"width": 16, "layers": 2, "heads": 2} | sizes)).to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_position_sees_itself_and_those_before_it_alone(dtype):
    """To the last bit, with two layers (S04, check 2)."""
    net, x = transformer(dtype), normal(3, 9, 16).to(dtype)
    out = net(x)
    for j in range(9):
        changed = x.clone()
        changed[:, j] += 1
        change = (net(changed) - out).abs().amax((0, 2))
        assert float(change[:j].max() if j else 0) == 0
        assert bool((change[j:] > 1e-6).all())


@given(st.integers(0, 1000), st.lists(st.integers(1, 7), min_size=1, max_size=4), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_a_cache_changes_nothing(seed, prefixes, more):
    """Rows of unlike lengths: their padded beginnings at once, then position after position."""
    net, b, longest = transformer(), len(prefixes), max(prefixes)
    x = normal(b, longest + more, 16, seed=seed)
    whole, first = net(x), torch.tensor(prefixes)
    cache = net.empty(b, longest + more)
    padded = x[:, :longest].clone()
    padded[torch.arange(longest) >= first[:, None]] = 1e3
    start = net(padded, cache=cache)
    for i, n in enumerate(prefixes):
        torch.testing.assert_close(start[i, :n], whole[i, :n], rtol=0, atol=1e-12)
    rows = torch.arange(b)
    for j in range(more):
        at = first + j
        out = net(x[rows, at][:, None], at[:, None], cache)
        torch.testing.assert_close(out[:, 0], whole[rows, at], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_first_rows_of_a_cache_go_on_alone():
    net, x = transformer(), normal(3, 6, 16)
    cache, whole = net.empty(3, 6), net(x)
    net(x[:, :4], cache=cache)
    at = torch.full((2, 1), 4)
    torch.testing.assert_close(net(x[:2, 4:5], at, cache.first(2))[:, 0], whole[:2, 4], rtol=0, atol=1e-12)
    assert float(cache.keys[:, :2, :, 4].abs().min()) > 0 and float(cache.keys[:, 2, :, 4].abs().max()) == 0


def test_scores_depend_on_the_difference_of_positions_alone():
    """Rotary positions: q turned by i times k turned by j is the same at i + 5, j + 5, and q and k keep their norms."""
    net, q, k = transformer(), normal(1, 2, 1, 8), normal(1, 2, 1, 8, seed=1)
    turn = lambda x, i: rotated(x, *net._turn(torch.tensor([[i]])))
    score = lambda i, j: (turn(q, i) * turn(k, j)).sum(-1)
    torch.testing.assert_close(score(7, 3), score(12, 8))
    assert float((score(7, 3) - score(7, 4)).abs().min()) > 1e-3
    torch.testing.assert_close(turn(q, 9).norm(dim=-1), q.norm(dim=-1))
    assert torch.equal(turn(q, 0), q)


@torch.no_grad()
def test_order_matters_and_position_zero_reads_itself():
    """In one layer, where without turns the last position would see a set."""
    net, x = transformer(layers=1), normal(1, 5, 16)
    swapped = x[:, [1, 0, 2, 3, 4]]
    assert float((net(swapped)[:, 4] - net(x)[:, 4]).abs().max()) > 1e-6
    torch.testing.assert_close(net(x[:, :1])[:, 0], net(x)[:, 0])


def test_the_output_has_unit_scale_whatever_the_input_has():
    net, x = transformer(layers=6), normal(2, 9, 16)
    for scale in (1e-2, 1.0, 1e3):
        assert float(net(scale * x).square().mean(-1).sqrt().sub(1).abs().max()) < 1e-2


def test_every_weight_learns():
    net = transformer()
    net(normal(2, 5, 16)).square().mul(normal(2, 5, 16, seed=1)).sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_sizes_and_positions_are_checked():
    with pytest.raises(ValueError, match="width 16 is not an even multiple of heads 3"):
        SequenceTransformerConfig(width=16, heads=3)
    with pytest.raises(ValueError, match="even multiple"):
        SequenceTransformerConfig(width=12, heads=4)
    with pytest.raises(ValueError, match="pass cache="):
        transformer()(normal(1, 1, 16), torch.tensor([[3]]))
