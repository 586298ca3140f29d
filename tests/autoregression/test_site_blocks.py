"""Blocks of sites with pairs: one block is everything at once; what is drawn stays; times and pairs by hand."""

from dataclasses import dataclass, field

import pytest
import torch

from unisci.autoregression.site_blocks import (
    ONE,
    BlockDenoise,
    Still,
    at_once,
    check_order,
    one_by_one,
    part_times,
    parts,
    solve,
)
from unisci.batch import Field
from unisci.order import Order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import Together
from unisci.solvers.tokens import Ancestral

MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 0, 0]]).bool()
ranks = torch.tensor([[1, 0, 2, 1, 2], [1, 0, -1, -1, -1], [0, 0, 1, -1, -1]])
SCHEMA = {
    "atom": Field("site", classes=("A", "B", "C")),
    "bond": Field("pair", classes=("no", "yes")),
    "position": Field("site", (3,)),
    "cell": Field("whole", (2,)),
}
PRODUCT = Product({"atom": absorbing(3), "bond": absorbing(2), "position": Cosine(), "cell": Cosine()}, SCHEMA)
TIMES = torch.linspace(1, 0, 4, dtype=torch.float64)


@dataclass
class Answers:
    """A denoiser of a formula that reads everything, and keeps what it is asked."""

    mask: torch.Tensor
    schema: dict = field(default_factory=lambda: SCHEMA)
    process: dict = field(default_factory=lambda: PRODUCT.processes)
    asked: list = field(default_factory=list)

    def __call__(self, x, t):
        self.asked.append(({k: v.clone() for k, v in x.items()}, t))
        r, there = x["position"], self.mask[..., None]
        late = t["position"] if isinstance(t, dict) else t
        mean = (r * there).sum(1, keepdim=True) / there.sum(1, keepdim=True) + x["cell"].sum(1)[:, None, None]
        near = (r[:, :, None] - r[:, None]).abs().sum(-1)
        known = (x["bond"] * there * there.transpose(1, 2)).sum((1, 2))[:, None, None]
        move = 0.3 * (mean + known) * (1 + late[..., None] if late.ndim else 1 + late)
        bond = torch.stack([near - mean[..., :1], mean[..., :1] - x["bond"]], -1)
        return {"atom": r + mean, "bond": bond, "position": 0.5 * r + move.float(), "cell": 0.4 * x["cell"]}


def start(mask=MASK, ids=None):
    """x_1, and the numbers that blocks draw by."""
    rng, (b, n) = Rng(0, torch.arange(len(mask)) if ids is None else ids), mask.shape
    like = {"atom": torch.zeros(b, n).long(), "bond": torch.zeros(b, n, n).long()}
    x = PRODUCT.prior(like | {"position": torch.zeros(b, n, 3), "cell": torch.zeros(b, 2)}, rng.at(0))
    return x, rng


def drawn(order, mask=MASK, ids=None, solver="dpm++2m", **options):
    x, rng = start(mask, ids)
    flows = {k: compile_solver(Cosine(), TIMES, solver) for k in ("position", "cell")}
    answers = Answers(mask)
    together = Together(atom=Ancestral(), bond=Ancestral(), **flows)
    return solve(answers, options.pop("x", x), list(TIMES), together, rng, order, **options), answers.asked


def test_orders():
    assert at_once(MASK).rank.tolist() == [[0] * 5, [0, 0, -1, -1, -1], [0, 0, 0, -1, -1]]
    order = one_by_one(MASK, Rng(0, torch.arange(3))).rank
    assert [sorted(row[m].tolist()) for row, m in zip(order, MASK, strict=True)] == [[0, 1, 2, 3, 4], [0, 1], [0, 1, 2]]
    assert bool((order[~MASK] == -1).all())
    many = one_by_one(torch.ones(600, 3).bool(), Rng(0, torch.arange(600))).rank
    codes = torch.bincount(many @ torch.tensor([9, 3, 1]))
    assert codes[codes > 0].tolist() == pytest.approx([100] * 6, abs=35)


def test_parts_of_training():
    mask = (torch.arange(4) < 3).expand(4000, 4)
    known, moving = parts(mask, Rng(0, torch.arange(4000)))
    assert not bool((known & moving).any()) and not bool(((known | moving) & ~mask).any())
    assert bool(moving.any(1).all())
    first, size = known.sum(1), moving.sum(1)
    assert [float((first == k).float().mean()) for k in range(3)] == pytest.approx([1 / 3] * 3, abs=0.03)
    share = [float((size[first == 0] == k).float().mean()) for k in (1, 2, 3)]
    rest = (1 - ONE) / 3
    assert share == pytest.approx([ONE + rest, rest, rest], abs=0.05)
    assert known.float().mean(0)[:3].tolist() == pytest.approx([1 / 3] * 3, abs=0.03)


def test_times_of_sites_and_of_the_whole_by_hand():
    known, moving = torch.zeros(2, 3).bool(), torch.zeros(2, 3).bool()
    known[1, 0] = moving[0, 1] = moving[1, 2] = True
    t = {"atom": torch.tensor([0.0, 0.3]), "position": torch.tensor([0.5, 0.3]), "cell": torch.tensor([0.5, 0.3])}
    first = {"atom": torch.tensor([0.0, 1.0]), "position": torch.ones(2), "cell": torch.ones(2)}
    found = part_times({k: SCHEMA[k] for k in t}, known, moving, t, first)
    expected = {"atom": [[0, 0, 0], [0, 1, 0.3]], "position": [[1, 0.5, 1], [0, 1, 0.3]], "cell": [0.5, 0]}
    assert all(torch.allclose(found[k], torch.tensor(v, dtype=torch.float)) for k, v in expected.items())


@pytest.mark.parametrize("one_for_all", [True, False])
def test_times_of_pairs_by_hand(one_for_all):
    """Sites: known, moving, later and padding; then two known and two moving; then none known."""
    known = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0]]).bool()
    moving = torch.tensor([[0, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0]]).bool()
    t, first = torch.tensor([0.3, 0.3, 0.3]), torch.tensor([0.9, 0.9, 0.9])
    if one_for_all:
        t, first = t[0], first[0]
    fields = {k: SCHEMA[k] for k in ("bond", "position")}
    found = part_times(fields, known, moving, dict.fromkeys(fields, t), dict.fromkeys(fields, first))
    s, u = 0.3, 0.9
    bond = [
        [[0, s, u, u], [s, 0, u, u], [u, u, 0, u], [u, u, u, 0]],
        [[0, 0, s, s], [0, 0, s, s], [s, s, 0, s], [s, s, s, 0]],
        [[0, s, u, u], [s, 0, u, u], [u, u, 0, u], [u, u, u, 0]],
    ]
    torch.testing.assert_close(found["bond"], torch.tensor(bond))
    torch.testing.assert_close(found["position"], torch.tensor([[0, s, u, u], [0, 0, s, s], [s, s, u, u]]))


def test_a_field_that_is_given_has_no_time_anywhere():
    """As atoms and bonds have in a conformer's part: its `first` is 0 as its t is."""
    known, moving = torch.tensor([[1, 0, 0]]).bool(), torch.tensor([[0, 1, 0]]).bool()
    zero = dict.fromkeys(("atom", "bond"), torch.zeros(1))
    found = part_times({k: SCHEMA[k] for k in zero}, known, moving, zero, zero)
    assert not any(bool(v.any()) for v in found.values())


@pytest.mark.parametrize("solver", ["dpm++2m", "ddim", "sde-dpm++2m"])
def test_one_block_is_one_shot_bit_for_bit(solver):
    one, none = (drawn(order, solver=solver)[0] for order in (at_once(MASK), None))
    assert all(torch.equal(one[k], none[k]) for k in SCHEMA)
    assert not torch.equal(one["position"], drawn(Order(ranks), solver=solver)[0]["position"])


def test_what_is_drawn_stays_and_what_comes_later_is_noise():
    out, asked = drawn(Order(ranks))
    noise = start()[0]
    sites, pairs = MASK, (MASK[:, :, None] & MASK[:, None]) & ~torch.eye(5).bool()
    late = torch.maximum(ranks[:, :, None], ranks[:, None])  # a pair is as late as the later of its sites
    assert len(asked) == 9
    for k, (state, t) in enumerate(asked):
        block, now = k // 3, float(TIMES[k % 3])
        for name, rank, there in (("atom", ranks, sites), ("bond", late, pairs), ("position", ranks, sites)):
            before, later = there & (rank < block), there & (rank > block)
            assert torch.equal(state[name][before], out[name][before]), (k, name)
            assert torch.equal(state[name][later], noise[name][later]), (k, name)
            assert not bool(t[name][before].any()) and bool((t[name][later] == 1).all())
            moving = there & (rank == block)
            assert t[name][moving].tolist() == pytest.approx([now] * int(moving.sum()))
        starts = [now if block == 0 else 0.0] * 3
        assert t["cell"].tolist() == pytest.approx(starts)
    cells = [state["cell"] for state, _ in asked]
    assert torch.equal(cells[3], cells[8]) and not torch.equal(cells[0], cells[3])
    assert int(out["atom"][MASK].max()) < 3 and int(out["bond"][pairs].max()) < 2  # no mask state is left
    assert torch.equal(out["bond"], out["bond"].transpose(1, 2)) and 0 < int(out["bond"][pairs].sum()) < int(
        pairs.sum()
    )


def test_samples_that_have_fewer_blocks_wait():
    """The second sample has two blocks, the first three: what it is stays to the last bit."""
    out, asked = drawn(Order(ranks))
    for state, _ in asked[6:]:
        there = MASK[1]
        assert torch.equal(state["position"][1][there], out["position"][1][there])
        assert torch.equal(state["bond"][1][:2, :2], out["bond"][1][:2, :2])


def test_a_sample_does_not_depend_on_its_batch():
    whole, _ = drawn(Order(ranks))
    for row, n in ((1, 2), (2, 3), (0, 5)):
        mask, order = MASK[row : row + 1, :n], Order(ranks[row : row + 1, :n])
        alone, _ = drawn(order, mask, torch.tensor([row]))
        torch.testing.assert_close(alone["position"][0], whole["position"][row, :n], atol=1e-5, rtol=0)
        off = ~torch.eye(n).bool()
        assert torch.equal(alone["bond"][0][off], whole["bond"][row, :n, :n][off])
        assert torch.equal(alone["atom"][0], whole["atom"][row, :n])


def test_the_state_is_settled_before_each_block_by_what_is_known():
    seen = []

    def settle(x, known):
        seen.append((x, known))
        return x | {"position": x["position"] + 100 * len(seen) * known[..., None]}

    out, asked = drawn(Order(ranks), settle=settle)
    assert [known.tolist() for _, known in seen] == [((ranks >= 0) & (ranks < k)).tolist() for k in range(3)]
    assert torch.equal(seen[0][0]["position"], start()[0]["position"])
    for block, known in ((1, ranks == 0), (2, (ranks == 0) | (ranks == 1))):
        before, after = seen[block][0]["position"], asked[3 * block][0]["position"]
        torch.testing.assert_close(after[known], before[known] + 100 * (block + 1))
        assert torch.equal(after[ranks > block], before[ranks > block])
    assert float(out["position"][0, 1, 0]) > 400 and float(out["position"][1, 1, 0]) > 400  # of rank 0, moved twice


def test_a_later_block_may_be_the_first_to_draw():
    """From the state that the blocks before it left the same is drawn, bit for bit, and nothing of theirs moves."""
    states = []
    out, _ = drawn(Order(ranks), settle=lambda x, known: states.append(x) or x)
    for first in (1, 2):
        again, asked = drawn(Order(ranks), x=states[first], first=first)
        assert len(asked) == 3 * (3 - first)
        assert all(torch.equal(again[k], out[k]) for k in SCHEMA)
    assert torch.equal(drawn(Order(ranks), x=out, first=3)[0]["position"], out["position"])


@dataclass
class Listens:
    """A solver that moves nothing and keeps what it could draw."""

    heard: list = field(default_factory=list)

    def step(self, denoise, x, t, s, memory, rng):
        self.heard.append(rng.uniform("u", 0, (3,), 0))
        return x, None


def test_each_block_has_random_numbers_of_its_own():
    x, rng = start()
    solver = Listens()
    solve(Answers(MASK), x, list(TIMES), solver, rng, Order(ranks))
    expected = [rng.at(1 + block).at(step).uniform("u", 0, (3,), 0) for block in range(3) for step in range(3)]
    assert all(torch.equal(a, b) for a, b in zip(solver.heard, expected, strict=True))


@dataclass
class Says:
    """A denoiser that moves each site by its number."""

    mask: torch.Tensor
    schema: dict
    process: dict

    def __call__(self, x, t):
        return x | {"position": x["position"] + torch.arange(5.0)[:, None]}


def test_a_first_block_has_no_place_of_its_own():
    fields = {"position": SCHEMA["position"]}
    x, t = {"position": start()[0]["position"][:1]}, {"position": torch.ones(())}
    says, order = Says(MASK[:1], fields, {}), Order(torch.tensor([[1, 0, 0, 1, 1]]))
    shift = torch.stack([BlockDenoise(says, x, order, k, t)(x, t)["position"][0, :, 0] for k in (0, 1)])
    shift = shift - x["position"][0, :, 0]
    torch.testing.assert_close(shift[0, [1, 2]], torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(shift[1, [0, 3, 4]], torch.tensor([0.0, 3.0, 4.0]))


def test_a_block_is_a_denoiser_of_the_fields_that_are_held():
    x, _ = start()
    held = {k: x[k] for k in ("position", "bond")}
    block = BlockDenoise(Answers(MASK), held, Order(ranks), 1, dict.fromkeys(held, torch.ones(())))
    assert block.schema == {k: SCHEMA[k] for k in held} and block.process is PRODUCT.processes
    assert torch.equal(block.known, ranks == 0) and torch.equal(block.moving, ranks == 1) and not block.whole
    assert BlockDenoise(Answers(MASK), held, at_once(MASK), 0, {}).whole


def test_a_field_that_is_given_stands_still():
    x = start()[0]
    assert Still().step(None, x, TIMES[0], TIMES[1], None, None) == (x, None)


@pytest.mark.parametrize(
    "rank, words",
    [
        ([[0, 0, 0, 0, -1]], "must be 0 or more at each"),
        ([[0, 0, 0, 0]], "must be 0 or more at each"),
        ([[0, 0, 2, 2, 2]], "without a gap"),
        ([[1, 1, 2, 2, 2]], "without a gap"),
    ],
)
def test_orders_that_make_no_sense_are_refused(rank, words):
    with pytest.raises(ValueError, match=words):
        drawn(Order(torch.tensor(rank)), MASK[:1])
    with pytest.raises(ValueError, match="must be 0 or more at each"):
        check_order(Order(torch.zeros(1, 2).long()), MASK[1:2, :3])
    check_order(Order(ranks), MASK)
