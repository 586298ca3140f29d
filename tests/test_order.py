import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisci.order import Order, structural_order

TOLUENE = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (0, 6)]


def graph(n: int, edges: list[tuple[int, int]]) -> Tensor:
    a = torch.zeros(n, n, dtype=torch.bool)
    for i, j in edges:
        a[i, j] = a[j, i] = True
    return a


def ranks(adjacency: Tensor, hops: int) -> list[int]:
    order, _ = structural_order(adjacency[None], torch.ones(1, len(adjacency)).bool(), hops)
    return order.rank[0].tolist()


@pytest.mark.parametrize(
    ("n", "edges", "hops", "expected"),
    [
        (5, [(k, k + 1) for k in range(4)], 1, [2, 1, 0, 1, 2]),
        (5, [(k, k + 1) for k in range(4)], 3, [2, 1, 0, 1, 2]),
        (6, [(k, (k + 1) % 6) for k in range(6)], 3, [0] * 6),
        (5, [(0, k) for k in range(1, 5)], 1, [0, 1, 1, 1, 1]),
        (7, TOLUENE, 1, [0] * 6 + [1]),
        (7, TOLUENE, 0, [0] * 7),
        (1, [], 2, [0]),
        (1, [], 0, [0]),
        # Disconnected: the isolated site is peeled first, then the ends of the path, its middle, and last the triangle.
        (7, [(0, 1), (1, 2), (3, 4), (4, 5), (5, 3)], 1, [2, 1, 2, 0, 0, 0, 3]),
        (2, [], 1, [0, 0]),
    ],
)
def test_known_orders(n, edges, hops, expected):
    assert ranks(graph(n, edges), hops) == expected


def slow_ranks(adjacency: Tensor, hops: int) -> tuple[list[int], list[int]]:
    """The definition with Python integers: ranks, and the degree inside the graph of blocks up to one's own."""
    n = len(adjacency)
    alive, peeled, count = set(range(n)), {}, 0
    near = [[j for j in range(n) if adjacency[i, j]] for i in range(n)]
    while alive:
        weight, d = {i: () for i in alive}, {i: 1 for i in alive}
        for _ in range(hops):
            d = {i: sum(d[j] for j in near[i] if j in alive) for i in alive}
            weight = {i: (*weight[i], d[i]) for i in alive}
        low = min(weight.values())
        lowest = {i for i in alive if weight[i] == low}
        peeled |= {i: count for i in lowest}
        alive, count = alive - lowest, count + 1
    rank = [count - 1 - peeled[i] for i in range(n)]
    return rank, [sum(rank[j] <= rank[i] for j in near[i]) for i in range(n)]


@st.composite
def graphs(draw, largest: int = 9) -> Tensor:
    n = draw(st.integers(1, largest))
    pairs = [(i, j) for i in range(n) for j in range(i)]
    chosen = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=2 * n)) if pairs else []
    return graph(n, chosen)


@given(adjacency=graphs(), hops=st.integers(0, 4), data=st.data())
@settings(max_examples=60, deadline=None)
def test_order_permutes_with_the_graph_and_ignores_padding(adjacency, hops, data):
    n = len(adjacency)
    perm = torch.tensor(data.draw(st.permutations(range(n))))
    room = n + data.draw(st.integers(0, 2))
    a, mask = torch.ones(2, room, room).bool(), torch.arange(room).expand(2, -1) < n  # padding is full of edges
    a[0, :n, :n], a[1, :n, :n] = adjacency, adjacency[perm][:, perm]
    order, degree = structural_order(a, mask, hops)
    assert torch.equal(order.rank[1, :n], order.rank[0, :n][perm])
    assert torch.equal(degree[1, :n], degree[0, :n][perm])
    assert bool((order.rank[:, n:] == -1).all())
    assert order.blocks.tolist() == [int(order.rank[0].max()) + 1] * 2
    assert sorted(set(order.rank[0, :n].tolist())) == list(range(int(order.blocks[0])))


@given(adjacency=graphs(), hops=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_rank_and_degree_are_those_of_the_definition(adjacency, hops):
    order, degree = structural_order(adjacency[None], torch.ones(1, len(adjacency)).bool(), hops)
    rank, expected = slow_ranks(adjacency, hops)
    assert order.rank[0].tolist() == rank
    assert degree[0].tolist() == expected
    for block in range(max(rank) + 1):
        assert len({d for d, r in zip(expected, rank, strict=True) if r == block}) == 1


def test_weights_beyond_the_digits_of_a_float_still_tie():
    """Two copies of a dense graph, one relabelled: d_9 is near 2^36, whose float sums would depend on the order."""
    n, generator = 20, torch.Generator().manual_seed(0)
    one = torch.triu(torch.rand(n, n, generator=generator) < 0.8, 1)
    one = one | one.T
    perm = torch.randperm(n, generator=generator)
    both = torch.block_diag(one.long(), one[perm][:, perm].long()).bool()
    rank = torch.tensor(ranks(both, 9))
    assert torch.equal(rank[n:], rank[:n][perm])
    assert rank.tolist() == slow_ranks(both, 9)[0]


def test_hops_below_0_are_refused():
    with pytest.raises(ValueError, match=r"hops must be 0 .* got -1"):
        structural_order(torch.zeros(1, 2, 2).bool(), torch.ones(1, 2).bool(), -1)


def test_visible_is_one_way_between_blocks_and_mutual_within():
    sees = Order(torch.tensor([[0, 1, 1, -1]])).visible()[0]
    assert sees.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_noisy_copies_see_earlier_originals_and_their_own_block_and_are_seen_by_it_alone():
    rank = torch.tensor([[0, 1, 1, -1]])
    noisy = torch.arange(8)[None] >= 4
    sees = Order(rank.repeat(1, 2), noisy).visible()[0]
    assert torch.equal(sees[:4, :4], Order(rank).visible()[0])
    assert not bool(sees[:4, 4:].any())
    assert sees[4:, :4].int().tolist() == [[0, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]]
    assert sees[4:, 4:].int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
