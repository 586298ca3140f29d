"""The one block loop: blocks of sites are generated one after another, each by diffusion given the blocks before it."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unisci.batch import Batch
from unisci.denoiser import Bound, Denoiser
from unisci.order import Order
from unisci.processes.product import site_times
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, Solver, sample
from unisci.state import pad

# Matrix products of fewer rows run in other kernels, whose rounding differs: a group of samples is filled up to this
# many, so that a sample's value on a CPU is the same to the last bit in a batch of 1, 7 or 64.
SMALLEST_GROUP = 16


class Growth(Protocol):
    """Chooses the next block: a batch whose earlier blocks are done, to the batch and order that hold its sites too.

    A sample that gets no site of rank `block` is finished.
    """

    def __call__(self, batch: Batch, order: Order, block: int, rng: Rng) -> tuple[Batch, Order]: ...


class Remember(Protocol):
    """Makes a network's cache of finished sites: state, mask, given, order -> cache, for networks of causal sight."""

    def __call__(self, state: dict[str, Tensor], mask: Tensor, given: dict[str, Tensor], order: Order) -> object: ...


Guide = Callable[[Bound], Denoise]  # what a block's denoiser, bound to its samples, is guided by


class Select(Protocol):
    """Says, once a block is planned and before it is drawn, from which row each row goes on: (B,) int64, and memory.

    batch, order: all rows with what is finished and what is planned; growing (B,): which rows have a site of rank
    `block`, the others being finished. Called a last time when all are, unless its own last choice left none growing.
    memory: what it returned before, None at first.
    """

    def __call__(
        self, batch: Batch, order: Order, growing: Tensor, block: int, rng: Rng, memory: Any
    ) -> tuple[Tensor, Any]: ...


def generate(
    denoiser: Denoiser,
    batch: Batch,
    order: Order,
    solver: Solver,
    times: Callable[[int], Tensor],
    rng: Rng,
    growth: Growth | None = None,
    remember: Remember | None = None,
    on_block: Callable[[int, Tensor], None] | None = None,
    guide: Guide | None = None,
    select: Select | None = None,
    first: int = 0,
) -> tuple[Batch, Order]:
    """Generate block after block; samples that are finished leave the batch.

    batch: N sites of room, what is generated already in its state; order: the rank of each site, -1 where none is
    planned, rising along the sites; times(k): the decreasing time grid of block k; growth: chooses each block as it
    comes, None where `order` holds all of them; remember: caches the finished sites of a block's samples, so that its
    steps compute the new sites alone; on_block(k, rows) is told which samples take part; guide: wraps the denoiser of
    each block, see `unisci.guidance.terms.guided`; select: lets rows go on from others, as particles do; first: the
    number of the first block to draw, sites of lower rank being finished. Samples of the same number of sites are
    solved together without padding, so the work of a call is that of the sites present. Block k draws from rng.at(k).
    """
    state, mask, given, rank = dict(batch.state), batch.mask.clone(), dict(batch.given), order.rank.clone()
    check_sorted(order)
    live = torch.arange(len(batch), device=mask.device)
    block, memory = first, None
    while len(live):
        now = Batch(batch.schema, state, mask, given, batch.ids)[live]
        planned = Order(rank[live])
        if growth is not None:
            now, planned = growth(now, planned, block, rng[live].at(block))
            given = {k: v.index_copy(0, live, now.given[k]) for k, v in given.items()}
            mask, rank = mask.index_copy(0, live, now.mask), rank.index_copy(0, live, planned.rank)
        keep = (planned.rank == block).any(1)
        if bool(((planned.rank > block).any(1) & ~keep).any()):
            raise ValueError(f"a sample's order has no site of rank {block}, but sites of higher rank")
        growing = torch.zeros_like(mask[:, 0]).index_fill_(0, live[keep], True)
        whole = Batch(batch.schema, state, mask, given, batch.ids)
        if select is not None:
            rows, memory = select(whole, Order(rank), growing, block, rng.at(block), memory)
            whole = replace(whole[rows], ids=batch.ids)
            rank, growing = rank[rows], growing[rows]
            state, mask, given = whole.state, whole.mask, whole.given
        live = growing.nonzero()[:, 0]
        if not len(live):
            break
        if on_block is not None:
            on_block(block, live)
        plan = Order(rank[live])
        now = _solve(denoiser, whole[live], plan, block, solver, times(block), rng[live].at(block), remember, guide)
        state = {k: v.index_copy(0, live, now.state[k]) for k, v in state.items()}
        block += 1
    return Batch(batch.schema, state, mask, given, batch.ids), Order(rank)


def _solve(
    denoiser: Denoiser,
    batch: Batch,
    order: Order,
    block: int,
    solver: Solver,
    times: Tensor,
    rng: Rng,
    remember: Remember | None,
    guide: Guide | None,
) -> Batch:
    """Draw the sites of rank `block`, one group of samples for each number of finished sites and of new ones.

    Without a cache only their sum counts.
    """
    state = {k: v.clone() for k, v in batch.state.items()}
    finished = ((order.rank >= 0) & (order.rank < block)).sum(1)
    sites = finished + (order.rank == block).sum(1)
    groups = torch.stack([sites, finished * (remember is not None)], 1)
    for n, p in groups.unique(dim=0).tolist():
        rows = (groups == groups.new_tensor([n, p])).all(1).nonzero()[:, 0]
        filled = fill_group(rows)
        part, part_order = batch[filled].trim(n), Order(order.rank[filled, :n])
        moving = part_order.rank == block
        noise, fields = rng[filled], {k: part.schema[k] for k in state}
        grid = [site_times(fields, moving, t) for t in times]
        prior = denoiser.product.to(part.mask.device).prior(part.state, noise.at(0))
        x = {k: torch.where(pad(grid[0][k] > 0, v), v, part.state[k]) for k, v in prior.items()}
        cache = None
        if p:
            past = part.trim(p)
            cache = remember(past.state, past.mask, past.given, Order(part_order.rank[:, :p]))
        bound = denoiser.on(part, part_order, cache)
        x = sample(bound if guide is None else guide(bound), x, grid, solver, noise.at(1))
        for k, v in x.items():
            cut = (rows, *(slice(n),) * fields[k].axes)
            state[k][cut] = v[: len(rows)]
    return batch.replace(**state)


def fill_group(rows: Tensor) -> Tensor:
    """The rows, repeated until they are SMALLEST_GROUP or more."""
    return rows.repeat(-(-SMALLEST_GROUP // len(rows))) if len(rows) < SMALLEST_GROUP else rows


def check_sorted(order: Order) -> None:
    """Raise ValueError unless each sample's sites are stored by rising rank, those without a rank last."""
    rank = torch.where(order.rank < 0, torch.iinfo(order.rank.dtype).max, order.rank)
    if bool((rank.diff(dim=1) < 0).any()):
        raise ValueError(
            "sites must be stored by rising rank, unplanned ones last: sort each sample's sites by its order"
        )
