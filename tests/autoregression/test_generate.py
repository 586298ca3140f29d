from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.laws import assert_same_samples
from unisci.autoregression.generate import SMALLEST_GROUP, generate
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.networks.graph_transformer import GraphTransformer, GraphTransformerConfig
from unisci.order import Order
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.tokens import Ancestral, TauLeaping

SCHEMA = {"atom": Field("site"), "bond": Field("pair"), "degree": Field("site")}
GRID = torch.linspace(1, 0, 4)


class Recorder(nn.Module):
    """Keeps what the network is asked."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network, self.asked = network, []

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.asked.append((state, t, mask, order))
        return self.network(state, t, mask, given, order)


def denoiser(masked: bool = False) -> Denoiser:
    torch.manual_seed(0)
    config = GraphTransformerConfig(4 + masked, 3 + masked, 4, 3, width=24, pair_width=8, layers=2, heads=2, product=4)
    kernel = absorbing if masked else uniform
    product = Product({"atom": kernel(4), "bond": kernel(3)}, {k: SCHEMA[k] for k in ("atom", "bond")})
    return Denoiser(Recorder(GraphTransformer(config).eval()), product)


def empty(rank: Tensor, ids: Tensor | None = None) -> Batch:
    b, n = rank.shape
    zeros = torch.zeros(b, n, dtype=torch.long)
    state = {"atom": zeros, "bond": torch.zeros(b, n, n, dtype=torch.long)}
    return Batch(SCHEMA, state, rank >= 0, {"degree": zeros + 1}, ids)


def run(d: Denoiser, rank: Tensor, seed: int = 0, ids: Tensor | None = None, **options) -> Batch:
    batch = empty(rank, ids)
    solver = options.pop("solver", Ancestral())
    with torch.no_grad():
        return generate(d, batch, Order(rank), solver, lambda k: GRID, Rng(seed, batch.ids), **options)[0]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several threads share out a matrix product by its size, and so round it by its size."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


RANKS = torch.tensor([[0, 0, 1, 2, 2, 2], [0, 1, 1, 1, -1, -1], [0, 0, 0, 0, 0, -1]])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("solver", [Ancestral(), TauLeaping()])
def test_same_seed_and_id_give_the_same_bits_whatever_the_batch(masked, solver):
    d = denoiser(masked)

    def draw(seed: int, ids: Tensor) -> dict[str, Tensor]:
        return run(d, RANKS[ids % 3], seed, ids, solver=solver).state

    assert_same_samples(draw, batch_sizes=(1, 7, 64))


def test_earlier_blocks_wait_and_later_ones_are_out_of_sight():
    d = denoiser()
    out = run(d, RANKS)
    for state, t, mask, order in d.network.asked:
        now = int(order.rank.max())
        moving = order.rank == now
        assert bool(mask.all()), "padding was computed"
        assert bool((t["atom"][~moving] == 0).all())
        assert bool((t["atom"][moving] > 0).all())
        # Rows of the batch are found by their sites: no two samples here have as many up to the same block.
        waiting = (~moving)[:, :, None] & (~moving)[:, None]
        n = mask.shape[1]
        row = next(r for r in range(3) if int(((RANKS[r] <= now) & (RANKS[r] >= 0)).sum()) == n and now in RANKS[r])
        final = out.state["bond"][row, :n, :n].expand_as(state["bond"])
        assert torch.equal(state["bond"][waiting], final[waiting])
    assert all(torch.equal(v, v.transpose(1, 2)) for k, v in out.state.items() if k == "bond")
    assert int(out.state["bond"].diagonal(dim1=1, dim2=2).abs().max()) == 0


def test_each_block_takes_its_own_grid_and_finished_samples_leave():
    d, blocks, told = denoiser(), [], []
    grids = {0: torch.linspace(1, 0, 3), 1: torch.linspace(1, 0, 5), 2: torch.linspace(1, 0, 2)}
    batch = empty(RANKS)

    def times(k: int) -> Tensor:
        blocks.append(k)
        return grids[k]

    tell = lambda k, rows: told.append((k, rows.tolist()))
    with torch.no_grad():
        generate(d, batch, Order(RANKS), Ancestral(), times, Rng(0, batch.ids), on_block=tell)
    assert blocks == [0, 1, 2] and told == [(0, [0, 1, 2]), (1, [0, 1]), (2, [0])]
    # Block 0: groups of 1, 2 and 5 sites, two steps each; block 1: of 3 and 4 sites; block 2: one group, one step.
    assert len(d.network.asked) == 3 * 2 + 2 * 4 + 1


@pytest.mark.parametrize("n", [1, 2, 9, 20])
def test_small_groups_are_filled_up_to_where_rounding_no_longer_depends_on_their_size(n, one_thread):
    d = denoiser()
    run(d, RANKS)
    assert {len(mask) for _, _, mask, _ in d.network.asked} == {SMALLEST_GROUP}
    torch.manual_seed(0)
    net = GraphTransformer(GraphTransformerConfig(9, 4, 9, 4, layers=2)).eval()
    b = 64
    state = {"atom": torch.randint(9, (b, n)), "bond": torch.randint(4, (b, n, n))}
    t = {"atom": torch.rand(b, n), "bond": torch.rand(b, n, n)}
    mask, degree = torch.ones(b, n).bool(), torch.ones(b, n).long()
    with torch.no_grad():
        whole = net(state, t, mask, {"degree": degree})
        for m in (SMALLEST_GROUP, 21, 37):
            cut = lambda fields, m=m: {k: v[:m] for k, v in fields.items()}
            part = net(cut(state), cut(t), mask[:m], {"degree": degree[:m]})
            assert all(torch.equal(part[k], whole[k][:m]) for k in part)


def test_growth_chooses_blocks_until_it_gives_none():
    d = denoiser()
    told = []

    def growth(batch: Batch, order: Order, block: int, rng: Rng) -> tuple[Batch, Order]:
        site = torch.arange(batch.mask.shape[1])
        size = torch.where(batch.ids > block, 2, 0)
        new = (site >= batch.sites[:, None]) & (site < (batch.sites + size)[:, None])
        mask = batch.mask | new
        rank = torch.where(new, block, order.rank)
        return Batch(batch.schema, batch.state, mask, batch.given, batch.ids), Order(rank)

    start = torch.full((4, 6), -1)
    batch = empty(start)
    tell = lambda k, rows: told.append(rows.tolist())
    with torch.no_grad():
        out, order = generate(
            d, batch, Order(start), Ancestral(), lambda k: GRID, Rng(0, batch.ids), growth, on_block=tell
        )
    assert told == [[1, 2, 3], [2, 3], [3]] and out.sites.tolist() == [0, 2, 4, 6]
    assert order.rank.tolist() == [[-1] * 6, [0, 0, -1, -1, -1, -1], [0, 0, 1, 1, -1, -1], [0, 0, 1, 1, 2, 2]]
    assert not bool(out.state["atom"][0].any()), "a sample that never began was touched"


def test_the_block_and_the_seed_key_the_noise():
    d = denoiser()
    a, b = run(d, RANKS, 0), run(d, RANKS, 1)
    assert not torch.equal(a.state["bond"], b.state["bond"])
    many = run(d, torch.tensor([[0, 1]]).expand(64, -1)).state["atom"]
    assert not torch.equal(many[:, 0], many[:, 1])


@pytest.mark.parametrize("rank", [[[1, 0]], [[0, -1, 0]], [[-1, 0]]])
def test_unsorted_sites_are_refused(rank):
    with pytest.raises(ValueError, match=r"stored by rising rank.*sort each sample"):
        run(denoiser(), torch.tensor(rank))


@pytest.mark.parametrize("rank", [[[0, 2]], [[0, 2], [0, 1]], [[1, 1]]])
def test_an_order_with_a_gap_is_refused_even_beside_a_whole_one(rank):
    with pytest.raises(ValueError, match=r"no site of rank \d, but sites of higher rank"):
        run(denoiser(), torch.tensor(rank))


# ---- hooks: guide, select, first ---------------------------------------------------------------------


def identity(batch: Batch, order: Order, growing: Tensor, block: int, rng: Rng, memory: object) -> tuple[Tensor, None]:
    return torch.arange(len(batch)), None


def assert_same(a: Batch, b: Batch) -> None:
    assert torch.equal(a.mask, b.mask) and torch.equal(a.ids, b.ids)
    assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)


@pytest.mark.parametrize("options", [{"guide": lambda bound: bound}, {"select": identity}, {"first": 0}])
def test_hooks_that_do_nothing_leave_every_bit(options):
    d, ids = denoiser(), torch.tensor([8, 3, 5])
    plain = run(d, RANKS, 4, ids)
    calls = len(d.network.asked)
    assert_same(run(d, RANKS, 4, ids, **options), plain)
    assert len(d.network.asked) == 2 * calls
    assert_same(run(d, RANKS, 4, ids, guide=None, select=None), plain)


def test_a_guide_wraps_the_denoiser_of_every_block():
    class First:
        """Draws class 0 alone."""

        def __init__(self, bound):
            self.bound, self.process, self.schema = bound, bound.process, bound.schema

        def __call__(self, x, t):
            clean = self.bound(x, t)
            never = torch.tensor([0.0, *[-1e4] * (clean["atom"].shape[-1] - 1)])
            return clean | {"atom": clean["atom"] + never}

    d, sizes = denoiser(), []
    out = run(d, RANKS, guide=lambda bound: (sizes.append(bound.mask.shape[1]), First(bound))[1])
    assert sorted(sizes) == [1, 2, 3, 4, 5, 6]  # once for each group of each block
    assert not bool(out.state["atom"].any()) and bool(run(d, RANKS).state["atom"].any())
    assert bool(out.state["bond"].any()), "bonds were guided too"


def test_select_is_told_of_every_block_and_a_last_time_when_all_are_finished():
    told = []

    def select(batch, order, growing, block, rng, memory):
        told.append((block, growing.tolist(), memory, rng.key))
        assert len(batch) == len(order.rank) == 3 and torch.equal(rng.ids, batch.ids)
        return torch.arange(3), block

    run(denoiser(), RANKS, select=select)
    growing = [[True, True, True], [True, True, False], [True, False, False], [False] * 3]
    keys = [Rng(0, torch.arange(3)).at(k).key for k in range(4)]
    assert told == list(zip(range(4), growing, [None, 0, 1, 2], keys, strict=True))


def copy_at(block: int, rows: list[int]):
    """Lets rows go on from others before the block is drawn."""
    return lambda batch, order, growing, now, rng, memory: (
        torch.tensor(rows if now == block else range(len(rows))),
        None,
    )


def with_growth(batch: Batch, order: Order, block: int, rng: Rng) -> tuple[Batch, Order]:
    """Two sites a block, as often as the plan of RANKS[id] has blocks; "degree" tells the id that planned it."""
    site, blocks = torch.arange(batch.mask.shape[1]), RANKS.amax(1)[batch.ids % 3] + 1
    new = (site >= batch.sites[:, None]) & (site < (batch.sites + 2 * (blocks > block))[:, None])
    given = batch.given | {"degree": torch.where(new, batch.ids[:, None] + 1, batch.given["degree"])}
    out = Batch(batch.schema, batch.state, batch.mask | new, given, batch.ids)
    return out, Order(torch.where(new, block, order.rank))


def test_rows_that_go_on_from_others_take_all_that_these_are():
    d, start = denoiser(), torch.full((3, 6), -1)
    batch = empty(start)
    grow = lambda **options: generate(
        d, batch, Order(start), Ancestral(), lambda k: GRID, Rng(2, batch.ids), with_growth, **options
    )
    told = []
    with torch.no_grad():
        plain, plain_order = grow()
        out, order = grow(select=copy_at(1, [2, 1, 0]), on_block=lambda k, rows: told.append((k, rows.tolist())))
    # Row 2 is finished after block 0, row 0 goes on to block 2: after the exchange it is the other way round, but what
    # is grown from then on is planned and drawn by the row's own id.
    assert plain_order.rank.amax(1).tolist() == [2, 1, 0] and told == [(0, [0, 1, 2]), (1, [1, 2])]
    assert torch.equal(out.ids, batch.ids)
    assert order.rank.tolist() == [[0, 0] + [-1] * 4, [0, 0, 1, 1, -1, -1], [0, 0, 1, 1, -1, -1]]
    assert torch.equal(out.mask, order.rank >= 0)
    assert out.given["degree"].tolist() == [[3, 3, 0, 0, 0, 0][:2] + [1] * 4, [2] * 4 + [1] * 2, [1] * 6]
    for k, axes in (("atom", 1), ("bond", 2)):
        cut = (slice(None), *(slice(2),) * axes)
        assert torch.equal(out.state[k][cut], plain.state[k][cut][[2, 1, 0]])
        assert torch.equal(out.state[k][1], plain.state[k][1])
    assert not torch.equal(out.state["atom"][0, :2], plain.state["atom"][0, :2]), "equal by chance: proves nothing"


def test_copies_of_one_row_draw_on_by_their_own_ids():
    ids = torch.arange(32)
    rank = torch.tensor([[0, 0, 1, 1]]).expand(32, -1)
    out = run(denoiser(), rank, 0, ids, select=copy_at(1, [5] * 32)).state["atom"]
    plain = run(denoiser(), rank, 0, ids).state["atom"]
    assert torch.equal(out[:, :2], plain[5, :2].expand(32, -1)) and len(out[:, 2:].unique(dim=0)) > 4


def test_where_all_go_on_from_a_finished_row_nothing_more_is_drawn():
    d = denoiser()
    out = run(d, RANKS, select=copy_at(1, [2, 2, 2]))
    assert out.sites.tolist() == [5, 5, 5] and max(int(order.rank.max()) for *_, order in d.network.asked) == 0
    assert all(torch.equal(v, v[2:].expand_as(v)) for v in out.state.values())


def test_what_lies_before_the_first_block_is_kept():
    d, ids = denoiser(), torch.arange(3)
    rank = torch.tensor([[0, 0, 1, 1, 2, 2]]).expand(3, -1)
    plain = run(d, rank, 0, ids)
    begun = replace(empty(rank, ids), state={k: torch.zeros_like(v) for k, v in plain.state.items()})
    for k, axes in (("atom", 1), ("bond", 2)):
        cut = (slice(None), *(slice(4),) * axes)
        begun.state[k][cut] = plain.state[k][cut]
    blocks = []
    with torch.no_grad():
        out, _ = generate(
            d,
            begun,
            Order(rank),
            Ancestral(),
            lambda k: GRID,
            Rng(0, ids),
            first=2,
            on_block=lambda k, _: blocks.append(k),
        )
    assert blocks == [2]
    assert_same(out, plain)  # block 2 draws the same numbers, given the same blocks before it
