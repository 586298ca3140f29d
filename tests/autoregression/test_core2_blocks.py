"""CoRe^2 under the block loop, on an untrained conditional model (S39, checks 1 to 3, 5 and 6)."""

from functools import cache

import pytest
import torch
from torch import nn

from tests.autoregression.test_conditions import Counted, build, data, same
from unisci.autoregression.conditions import VALUES, classifier_free_blocks, untold
from unisci.autoregression.core2_blocks import (
    WeakGraph,
    collect_blocks,
    fast,
    fast_blocks,
    of_size,
    refined_blocks,
)
from unisci.guidance.conditional import classifier_free
from unisci.guidance.core2 import reflect
from unisci.networks.graph_transformer import CONDITION
from unisci.order import Order
from unisci.processes.product import site_times
from unisci.rng import Rng

W, N, STEPS, ROOM = 2.5, 24, 3, 8


@cache
def setting():
    """A model whose conditions matter, values for N samples, and their randomness."""
    batch = data()
    model = build(batch, room=ROOM, causal=True).eval()
    return model, batch.given[VALUES][torch.arange(N) % len(batch)], Rng(0, torch.arange(N))


def weak_of(model, bent: bool = False) -> WeakGraph:
    torch.manual_seed(3)
    weak = WeakGraph(of_size(model, width=8, pair_width=4, layers=1, heads=2, product=2))
    if bent:
        for last in (weak.residual.to_site[-1], weak.residual.to_pair[-1], weak.residual.trunk.condition.map[-1]):
            nn.init.normal_(last.weight)
    return weak.eval()


def draw(guide, weight=1.0, steps=STEPS):
    model, values, rng = setting()
    return model.generate(rng, steps, values=values, guide=guide, weight=weight)


def test_before_training_fast_is_the_conditional_model():
    """S39, check 3, bit for bit."""
    model, _, _ = setting()
    assert same(draw(fast_blocks(weak_of(model))), draw(lambda bound: bound))
    assert not same(draw(fast_blocks(weak_of(model, bent=True))), draw(lambda bound: bound))


def test_omega_one_is_guidance_and_omega_zero_is_fast():
    """For any weak network (S39, check 1): omega 1 is guidance up to rounding, which a draw may show at a tie."""
    model, _, _ = setting()
    weak = weak_of(model, bent=True)
    free = classifier_free_blocks(W)
    assert same(draw(refined_blocks(weak, W, 0.0)), draw(fast_blocks(weak)))
    assert same(draw(refined_blocks(weak, W, 1.5, until=1.0), steps=1), draw(refined_blocks(weak, W, 1.5), steps=1))
    one, want = draw(refined_blocks(weak, W, 1.0)), draw(free)
    agree = (one.mask == want.mask).all(1) & (one.state["bond"] == want.state["bond"]).all(2).all(1)
    assert agree.double().mean() > 0.9
    assert not same(want, draw(fast_blocks(weak))) and not same(draw(refined_blocks(weak, W, 3.0)), want)


@pytest.mark.parametrize("until, told, free", [(1.1, 3, 0), (0.5, 3, 1), (0.0, 3, 3)])
def test_calls_of_the_big_network(until, told, free):
    """Three steps a block cost three calls fast, six refined or guided, and as many more as steps are refined (S39,
    check 2). The token grid's times are 1, .24 and .02."""
    model, values, rng = setting()
    network, groups = model.denoiser.network, []
    weak = weak_of(model)
    guide = fast_blocks(weak) if until > 1 else refined_blocks(weak, W, 1.5, until)
    model.denoiser.network = counted = Counted(network)
    counted.remember = network.remember
    try:
        model.generate(rng, 3, values=values, guide=lambda bound: groups.append(1) or guide(bound))
    finally:
        model.denoiser.network = network
    assert counted.calls["told"] == told * len(groups) and counted.calls["free"] == free * len(groups)


def bound_at(t: float = 0.4):
    """The model bound to three ordered graphs cut to six sites, the last block at time t, and where it is."""
    model, batch = setting()[0], data()
    batch = model.conditions.told(batch, batch.given[VALUES])[torch.tensor([2, 4, 8])].trim(6)
    rank = torch.where(batch.mask, batch.given["rank"], -1)
    moving = (rank == rank.amax(1, keepdim=True)) & batch.mask
    times = site_times({k: batch.schema[k] for k in batch.state}, moving, torch.tensor(t))
    return model.denoiser.on(batch, Order(rank)), batch.state, times, moving


@torch.no_grad()
def test_only_what_is_drawn_is_lifted():
    """Sites of the last block and their bonds; padding and finished blocks stay as the conditional model has them."""
    bound, x, t, moving = bound_at()
    weak = weak_of(setting()[0], bent=True)
    out, clean = fast(bound, weak)(x, t), bound(x, t)
    assert bool((bound.mask & ~moving).any()) and not bool(bound.mask.all())
    changed = {k: (out[k] - clean[k]).abs().amax(-1) > 1e-6 for k in out}
    pairs = (moving[:, :, None] | moving[:, None]) & ~torch.eye(6, dtype=torch.bool)
    assert torch.equal(changed["atom"], moving) and torch.equal(changed["bond"], pairs)
    assert torch.equal(out["bond"], out["bond"].transpose(1, 2))


@torch.no_grad()
@pytest.mark.parametrize("change", ["clean", "x", "t", CONDITION, "degree", "rank"])
def test_the_weak_network_sees(change):
    bound, x, t, moving = bound_at()
    weak, clean = weak_of(setting()[0], bent=True), bound(x, t)
    told = dict(fast(bound, weak).condition)
    residual = lambda clean, x, t, told: (weak(clean, x, t, told)["atom"] - clean["atom"])[moving]
    before = residual(clean, x, t, told)
    if change == "clean":
        clean = clean | {"atom": clean["atom"] * 1.5}
    elif change == "x":
        x = x | {"atom": torch.where(moving, 1 - x["atom"].clamp(max=1), x["atom"])}
    elif change == "t":
        t = {k: v * 0.5 for k, v in t.items()}
    else:
        told[change] = torch.where(told[change] < 0, told[change], told[change] + 1)
    assert (residual(clean, x, t, told) - before).abs().max() > 1e-5


@torch.no_grad()
def test_the_weak_network_permutes_and_ignores_padding():
    """S39, check 5."""
    bound, x, t, _ = bound_at()
    weak = weak_of(setting()[0], bent=True)
    clean, told = bound(x, t), fast(bound, weak).condition
    out = weak(clean, x, t, told)
    index = torch.tensor([3, 0, 5, 1, 4, 2])
    site = lambda v: v[:, index]
    pair = lambda v: v[:, index][:, :, index]
    each = lambda fields: {"atom": site(fields["atom"]), "bond": pair(fields["bond"])}
    moved = {"rank": site(told["rank"]), "degree": site(told["degree"]), CONDITION: told[CONDITION]}
    again = weak(each(clean), each(x), each(t), moved)
    torch.testing.assert_close(again["atom"], site(out["atom"]))
    torch.testing.assert_close(again["bond"], pair(out["bond"]))
    # Of finished sites and of padding the big network says nothing where it remembers: it is not asked.
    loud = {k: torch.where((t[k] > 0)[..., None], v, torch.arange(v.shape[-1]) * 3.0) for k, v in clean.items()}
    torch.testing.assert_close(weak(loud, x, t, told)["atom"][t["atom"] > 0], out["atom"][t["atom"] > 0])


@cache
def collected():
    model, values, rng = setting()
    return collect_blocks(model, weak_of(model), values, W, rng, STEPS)


@torch.no_grad()
def test_collect_keeps_what_guidance_said():
    """Every state of every block, with room for all sites; guided logits where something is drawn."""
    model, values, rng = setting()
    states, visited, groups = collected(), [], []

    def spy(bound):
        inner = classifier_free(bound, untold(bound), W)
        groups.append(len(bound.mask))

        class Spy:
            process, schema = bound.process, bound.schema

            def __call__(self, x, t):
                visited.append((x, t, bound, inner(x, t)))
                return visited[-1][3]

        return Spy()

    model.generate(rng.at(0), STEPS, values=values, guide=spy, weight=W)
    assert len(states) == STEPS * sum(groups) and states.x["bond"].shape[1:] == (ROOM, ROOM)
    row = 0
    for x, t, bound, strong in visited:
        b, n = x["atom"].shape
        part = states[torch.arange(row, row + b)]
        row += b
        assert torch.equal(part.x["atom"][:, :n], x["atom"]) and torch.equal(part.t["bond"][:, :n, :n], t["bond"])
        torch.testing.assert_close(part.strong["atom"][:, :n], strong["atom"])
        torch.testing.assert_close(part.strong["bond"][:, :n, :n], strong["bond"])
        torch.testing.assert_close(part.clean["atom"][:, :n], bound(x, t)["atom"])
        assert torch.equal(part.where["atom"][:, :n], t["atom"] > 0) and not bool(part.where["atom"][:, n:].any())
        assert torch.equal(part.where["bond"][:, :n, :n], t["bond"] > 0)
        assert bool((part.condition["rank"][:, n:] == -1).all()) and bool((part.condition["rank"][:, :n] >= 0).all())
        torch.testing.assert_close(part.condition[CONDITION], bound.given[CONDITION])
    assert row == len(states)
    assert len(states.key.unique()) > 0.99 * len(states)


def test_a_choice_is_kept():
    model, values, rng = setting()
    few = collect_blocks(model, weak_of(model), values, W, rng, STEPS, keep=40)
    whole = collected()
    assert len(few) == 40 and torch.equal(few.key.sort().values, whole.key.sort().values[:40])
    again = collect_blocks(model, weak_of(model), values, W, rng.at(1), STEPS, keep=40)
    assert not torch.equal(few.key, again.key)


def test_a_second_round_walks_the_fast_path():
    model, values, rng = setting()
    weak = weak_of(model, bent=True)
    follow = collect_blocks(model, weak, values, W, rng, STEPS, follow=True)
    visited, bounds = [], []

    def spy(bound):
        inner = fast(bound, weak)
        bounds.append(bound)

        class Spy:
            process, schema = bound.process, bound.schema

            def __call__(self, x, t):
                visited.append((x["atom"], classifier_free(bound, untold(bound), W)(x, t)["atom"]))
                return inner(x, t)

        return Spy()

    model.generate(rng.at(0), STEPS, values=values, guide=spy, weight=W)
    row = 0
    for atom, strong in visited:
        b, n = atom.shape
        assert torch.equal(follow.x["atom"][row : row + b, :n], atom)
        torch.testing.assert_close(follow.strong["atom"][row : row + b, :n], strong)
        row += b
    assert row == len(follow) and len(collected().joined(follow, 99)) == 99


def test_reflection_learns_guidance():
    """The divergence from guided logits falls to a fifth and less of that of conditional ones (S39, check 6)."""
    model, _, _ = setting()
    torch.manual_seed(0)
    weak = WeakGraph(of_size(model, width=16, pair_width=8, layers=1, heads=2, product=4))
    losses = reflect(weak, collected(), 250, Rng(9, torch.arange(64)), lr=5e-3)
    assert losses[-20:].mean() < losses[0] / 5
