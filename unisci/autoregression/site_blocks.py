"""Blocks of sites in any order: all at once, atom by atom, or as a crystal's symmetry or a molecule's graph has it.

    p(object) = p(whole, x_1) prod_k p(x_k | x_<k, whole)            x_k: the sites of rank k, and their pairs with x_<k

Each factor is drawn by diffusion with a time for each site: sites of earlier blocks are known, at time 0, those of the
block at t, later ones still noise, at time 1, so that all sites are in sight. A pair is as late as the later of its
sites; fields of the whole, such as a cell, come with the first block. One network serves every order, where it was
trained on random parts of random orders (any-order autoregressive diffusion, arXiv 2110.02037; times for each site as
in diffusion forcing, 2407.01392).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from unisci.batch import Schema, pair_mask
from unisci.denoiser import Bound
from unisci.order import Order
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.sample import Solver, sample
from unisci.state import State, Time, pad, pick

ONE = 0.5  # of the parts in training draw one site next, the others any number of those that are left


def at_once(mask: Tensor) -> Order:
    """One block of the sites (B, N) that exist."""
    return Order(torch.where(mask, 0, -1))


def one_by_one(mask: Tensor, rng: Rng) -> Order:
    """The sites (B, N) that exist, one a block, in a random order of each sample's own."""
    keys = rng.uniform("order", 0, tuple(mask.shape), 1).masked_fill(~mask, torch.inf)
    return Order(torch.where(mask, keys.argsort(dim=1, stable=True).argsort(1), -1))


def check_order(order: Order, mask: Tensor) -> None:
    """Raise ValueError unless each site (B, N) that exists has a rank, no other has, and no rank below one is left
    out."""
    rank = order.rank
    if rank.shape != mask.shape or bool(((rank >= 0) != mask).any()):
        raise ValueError(
            f"the order's rank {tuple(rank.shape)} must be 0 or more at each of the sites {tuple(mask.shape)} that "
            "exist, and -1 elsewhere"
        )
    there = (rank[:, :, None] == torch.arange(rank.shape[1], device=rank.device)).any(1).sum(1)
    if bool((there != order.blocks).any()):
        raise ValueError("the ranks of each sample must be 0, 1, 2, ... without a gap")


def parts(mask: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
    """Of each sample a random part of a random order: known and moving sites (B, N) bool, at least one moving."""
    rank, n = one_by_one(mask, rng).rank, mask.sum(1)
    known, more, one = (rng.uniform(f"part {k}", 0, (len(mask),), 0) for k in "abc")
    first = (known * n).long()
    size = 1 + torch.where(one < ONE, 0.0, more * (n - first)).long()
    return mask & (rank < first[:, None]), mask & (rank >= first[:, None]) & (rank < (first + size)[:, None])


def part_times(
    schema: Schema, known: Tensor, moving: Tensor, t: dict[str, Tensor], first: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Times by field: of the sites moving (B, N) the field's t, of known ones 0, of the others the field's `first`, the
    time that drawing begins at; of a field of the whole t where no site is known, else 0. t, first: () or (B,)."""
    out = {}
    for k, field in schema.items():
        if field.kind == "whole":
            out[k] = torch.where(known.any(1) | ~moving.any(1), 0.0, t[k])
            continue
        moves, settled = moving, known
        if field.kind == "pair":
            moves, settled = _pairs(known, moving)
        own = pad(t[k].expand(len(moves)), moves).expand_as(moves)
        later = pad(first[k].expand(len(moves)), moves).expand_as(moves)
        out[k] = torch.where(moves, own, torch.where(settled, 0.0, later))
    return out


def _pairs(known: Tensor, moving: Tensor) -> tuple[Tensor, Tensor]:
    """Pairs (B, N, N) that move: of a moving site with one that moves or is known; and settled ones, of known sites.
    Of a site with itself there is nothing to draw."""
    there = pair_mask(known | moving)
    both = known[:, :, None] & known[:, None]
    itself = torch.eye(known.shape[1], dtype=torch.bool, device=known.device)
    return there & ~both, both | itself


@dataclass(frozen=True, eq=False)
class BlockDenoise:
    """The denoiser of the sites of rank `block`: all others are as in `held`. first: times by field that drawing begins
    at, those of later sites."""

    bound: Bound
    held: dict[str, Tensor]
    order: Order
    block: int
    first: dict[str, Tensor]

    @property
    def process(self) -> dict[str, Process]:
        return self.bound.process

    @property
    def schema(self) -> Schema:
        return {k: self.bound.schema[k] for k in self.held}

    @cached_property
    def known(self) -> Tensor:
        """(B, N) bool."""
        return (self.order.rank >= 0) & (self.order.rank < self.block)

    @cached_property
    def moving(self) -> Tensor:
        """(B, N) bool."""
        return self.order.rank == self.block

    @cached_property
    def whole(self) -> bool:
        """Whether the block is all there is, so that a time for each site says no more than one for all."""
        return bool((self.moving == self.bound.mask).all())

    def merged(self, x: State) -> dict[str, Tensor]:
        """x where the block's sites are, and the cell in the first block; what is held elsewhere."""
        if self.whole:
            return x
        starts = (self.moving.any(1) & ~self.known.any(1), self.moving, _pairs(self.known, self.moving)[0])
        where = {k: starts[f.axes] for k, f in self.schema.items()}
        return {k: torch.where(pad(where[k], v), v, self.held[k]) for k, v in x.items()}

    def __call__(self, x: State, t: Time) -> State:
        if self.whole:
            return self.bound(x, t)
        x = self.merged(x)
        t = {k: pick(t, k).to(self.moving.device).expand(len(self.moving)) for k in x}
        clean = self.bound(x, part_times(self.schema, self.known, self.moving, t, self.first))
        shift = clean["position"] - x["position"]
        mean = (shift * self.moving[..., None]).sum(1, keepdim=True) / self.moving.sum(1).clamp(min=1)[:, None, None]
        free = ~self.known.any(1)[:, None, None]  # where nothing is known nothing says where the block lies
        return clean | {"position": clean["position"] - torch.where(free, mean, 0.0)}


@dataclass(frozen=True)
class Still:
    """The solver of a field that is given: nothing moves."""

    def step(self, denoise, x: State, t: Time, s: Time, memory: None, rng: Rng | None) -> tuple[State, None]:
        return x, None


def solve(
    bound: Bound,
    x: dict[str, Tensor],
    grid: Sequence[Time],
    solver: Solver,
    rng: Rng,
    order: Order | None,
    first: int = 0,
    settle: Callable[[dict[str, Tensor], Tensor], dict[str, Tensor]] = lambda x, known: x,
) -> dict[str, Tensor]:
    """Block after block from x, each over the whole grid; None: all at once. Block k draws from rng.at(1 + k).

    first: the block to begin with; those before it are in x. settle(x, known): what is done to the state before each
    block, the sites known (B, N) being those of earlier ones. Raises ValueError for an order of other sites."""
    if order is None:
        return sample(bound, x, grid, solver, rng.at(1))
    check_order(order, bound.mask)
    start = {k: pick(grid[0], k).to(bound.mask.device) for k in x}
    for block in range(first, int(order.blocks.max())):
        x = settle(x, (order.rank >= 0) & (order.rank < block))
        denoise = BlockDenoise(bound, x, order, block, start)
        x = denoise.merged(sample(denoise, x, grid, solver, rng.at(1 + block)))
    return x
