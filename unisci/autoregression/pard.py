"""Pard: permutation-invariant autoregressive diffusion of graphs (Zhao et al., arXiv 2402.03687).

    p(G) = prod_i p(|B_i|, deg_i | G_<i) p(B_i | |B_i|, deg_i, G_<i)

The blocks B_i are those of the graph's own structural order. One denoiser, shared by all blocks, draws the atoms of a
block, the bonds within it and the bonds to earlier blocks by discrete diffusion; a small head chooses the size of the
next block and the degree its sites have inside the graph so far, size 0 being the end. The first block is drawn from
the table of first blocks of the data. hops = 0 makes the graph one block: plain diffusion.

Training takes one random block of each graph, with sight of everything before it; `Pard.parallel_loss` takes all
blocks of a graph at once, n clean sites beside n noised copies, for networks with causal sight.

A model with `Conditions` draws p(G | c), c numbers about the finished graph, each of which may be left open.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.autoregression.conditions import Conditions, classifier_free_blocks
from unisci.autoregression.generate import Guide, Select, generate
from unisci.autoregression.growth import BlockGrowth, split_logits
from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Denoiser
from unisci.networks.graph_transformer import CONDITION, GraphHead
from unisci.order import Order, structural_order
from unisci.processes.product import Product, site_times
from unisci.rng import Rng
from unisci.solvers.sample import Solver
from unisci.solvers.tokens import Ancestral, token_grid

BLOCK_FIELDS: Schema = {
    "rank": Field("site"),
    "degree": Field("site"),
    "block": Field("whole"),
    "next_size": Field("whole"),
    "next_degree": Field("whole"),
}


def ordered(batch: Batch, hops: int) -> Batch:
    """The batch with each graph's sites sorted by its structural order, "rank" and "degree" given.

    A site's edges are the pairs of field "bond" that are not class 0.
    """
    order, degree = structural_order(batch.state["bond"] > 0, batch.mask, hops)
    key = torch.where(batch.mask, order.rank, torch.iinfo(torch.long).max)
    index = key.argsort(dim=1, stable=True)
    pairs = index[:, :, None].expand(-1, -1, index.shape[1])
    bond = batch.state["bond"].gather(1, pairs).gather(2, pairs.transpose(1, 2))
    given = {"rank": order.rank.gather(1, index), "degree": degree.gather(1, index)}
    state = {"atom": batch.state["atom"].gather(1, index), "bond": bond}
    return Batch(batch.schema | BLOCK_FIELDS, state, batch.mask.gather(1, index), batch.given | given, batch.ids)


def examples(batch: Batch, rng: Rng) -> Batch:
    """One random block of each ordered graph: the sites up to it, its number, and the size and degree of the next."""
    rank, degree = batch.given["rank"], batch.given["degree"]
    blocks = rank.amax(1) + 1
    u = rng.uniform("block", 0, (len(batch),), 0)
    block = torch.minimum((u * blocks).long(), blocks - 1)
    following = rank == (block + 1)[:, None]
    given = batch.given | {
        "block": block,
        "next_size": following.sum(1),
        "next_degree": torch.where(following, degree, 0).amax(1),
    }
    return Batch(batch.schema, batch.state, batch.mask & (rank <= block[:, None]), given, batch.ids)


def first_blocks(batch: Batch) -> Tensor:
    """Counts of the first block's (size, degree) over ordered graphs: (largest block + 1, largest degree + 1)."""
    rank, degree = batch.given["rank"], batch.given["degree"]
    first = (rank == 0) & batch.mask
    sizes = torch.stack([((rank == k) & batch.mask).sum(1) for k in range(int(rank.max()) + 1)])
    table = torch.zeros(int(sizes.max()) + 1, int(degree.max()) + 1)
    where = (first.sum(1), torch.where(first, degree, 0).amax(1))
    return table.index_put_(where, torch.ones(len(batch)), accumulate=True)


class Pard(nn.Module):
    """denoiser: of fields "atom" and "bond"; head: outputs S (1 + D) for tables (S, D) of block sizes and degrees;
    first: the counts of first blocks (S, D); hops: of the structural order; room: the most sites of a graph;
    conditions: what it is told, where it is told something."""

    def __init__(
        self,
        denoiser: Denoiser,
        head: GraphHead,
        first: Tensor,
        hops: int,
        room: int,
        parallel: bool = False,
        conditions: Conditions | None = None,
    ):
        super().__init__()
        self.denoiser, self.head, self.hops, self.room, self.parallel = denoiser, head, hops, room, parallel
        self.conditions = conditions
        self.register_buffer("first", first.float())

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """Scalar training loss of graphs, ordered graphs or `examples`: denoising plus next block, mean over graphs.

        A model with conditions needs their values, given["properties"] (B, C).
        """
        if "rank" not in batch.given:
            batch = ordered(batch, self.hops)
        if self.conditions is not None:
            batch = self.conditions.taught(batch, rng)
        if self.parallel:
            denoising = self.parallel_loss(batch, rng)
        if "block" not in batch.given:
            batch = examples(batch, rng)
        if not self.parallel:
            fields = {k: batch.schema[k] for k in batch.state}
            moving = (batch.given["rank"] == batch.given["block"][:, None]) & batch.mask
            t = self.denoiser.product.times(rng)["atom"]
            order = Order(torch.where(batch.mask, batch.given["rank"], -1))
            denoising = self.denoiser.loss(batch, rng.at(0), site_times(fields, moving, t), order)
        # The head is far easier to learn than the denoiser: a quarter of the graphs teaches it enough.
        loss = denoising + self.head_loss(batch[slice(None, None, 4)])
        return loss if self.conditions is None else loss + self.conditions.first_loss(self.first, batch)

    def head_loss(self, batch: Batch) -> Tensor:
        """Cross entropy of the next block's size and, where there is one, of its degree; mean over graphs."""
        order = Order(torch.where(batch.mask, batch.given["rank"], -1))
        size, degree = split_logits(self.head(batch.state, batch.mask, batch.given, order), self.first.shape)
        true_size, true_degree = batch.given["next_size"], batch.given["next_degree"]
        chosen = degree[torch.arange(len(batch), device=degree.device), true_size]
        per_graph = F.cross_entropy(chosen, true_degree, reduction="none") * (true_size > 0)
        return F.cross_entropy(size, true_size) + per_graph.mean()

    def parallel_loss(self, batch: Batch, rng: Rng) -> Tensor:
        """All blocks of each ordered graph at once, summed over blocks; a graph's blocks share one time."""
        t = self.denoiser.product.times(rng)["atom"]
        return doubled_loss(self.denoiser, batch, rng.at(0), t)

    @torch.no_grad()
    def generate(
        self,
        rng: Rng,
        steps: int = 12,
        power: float = 3.5,
        solver: Solver | None = None,
        cache: bool = True,
        on_block: Callable[[int, Tensor], None] | None = None,
        guide: Guide | None = None,
        select: Select | None = None,
        begin: Batch | None = None,
        values: Tensor | None = None,
        weight: float = 1.0,
    ) -> Batch:
        """One graph for each of rng.ids, `steps` network calls a block, by ancestral steps where no solver is named,
        on the times of token_grid(steps, power).

        cache: remember finished blocks, where the network's sight is causal; the same up to rounding, with less
        arithmetic. guide, select: see `unisci.autoregression.generate`. begin: one graph that every sample keeps as
        its first sites, whose blocks are its own structural order's. values: what the graphs shall measure, (B, C) in
        the order and units of `conditions`, nan or left out where open; weight: of classifier-free guidance towards
        them, of the blocks' sizes and, where no guide is named, of what is in them; twice the calls unless 0 or 1.
        Raises ValueError where `begin` has no room to grow, and for values that this model is not told.
        """
        b, n, device = len(rng.ids), self.room, self.first.device
        zeros = torch.zeros(b, n, dtype=torch.long, device=device)
        state = {"atom": zeros, "bond": torch.zeros(b, n, n, dtype=torch.long, device=device)}
        schema = self.denoiser.product.schema
        empty = Batch(schema, state, zeros.bool(), {"rank": zeros - 1, "degree": zeros}, rng.ids)
        first = 0
        if begin is not None:
            empty, first = _begun(empty, begin, self.hops)
        if self.conditions is not None:
            open_ = torch.full((b, len(self.conditions.names)), float("nan"), device=device)
            empty = self.conditions.told(empty, open_ if values is None else values)
            guide = guide or (None if weight == 1 else classifier_free_blocks(weight))
        elif values is not None or weight != 1:
            raise ValueError("this model was trained without conditions: it takes neither values nor a weight")
        grid = token_grid(steps, power, device)
        growth = BlockGrowth(self.head, self.first, self.conditions, weight)
        order = Order(empty.given["rank"])
        network = self.denoiser.network
        remember = network.remember if network.trunk.config.causal and cache else None
        times = lambda block: grid
        solver = solver or Ancestral()
        return generate(
            self.denoiser, empty, order, solver, times, rng, growth, remember, on_block, guide, select, first
        )[0]


def _begun(empty: Batch, begin: Batch, hops: int) -> tuple[Batch, int]:
    """Every sample of a batch of room with one graph as its first sites, and the number of the block to draw next."""
    if len(begin) != 1 or hops == 0:
        raise ValueError(f"one graph can be kept, by a model of blocks (hops >= 1); got {len(begin)}, hops = {hops}")
    kept, room = ordered(begin[slice(0, 1)].to(empty.mask.device), hops), empty.mask.shape[1]
    n = int(kept.sites[0])
    if n > room:
        raise ValueError(f"the graph to keep has {n} sites, the model's largest has {room}")
    kept, fields = kept.trim(n), {}
    for k, value in (empty.state | empty.given).items():
        cut = (slice(None), *(slice(n),) * empty.schema[k].axes)
        value = value.clone()
        value[cut] = (kept.state | kept.given)[k].to(value)
        fields[k] = value
    mask = empty.mask | (torch.arange(room, device=empty.mask.device) < n)
    state, given = ({k: fields[k] for k in part} for part in (empty.state, empty.given))
    return Batch(empty.schema, state, mask, given, empty.ids), int(kept.given["rank"].max()) + 1


def doubled_loss(denoiser: Denoiser, batch: Batch, rng: Rng, t: Tensor) -> Tensor:
    """The block-parallel loss over 2n sites: clean ones first, then a noised copy of each; see Order.noisy.

    batch: ordered graphs; t (B,). A copy's bonds to its own block are noised among copies, those to earlier blocks
    between the copy and the clean originals.
    """
    n, rank = batch.mask.shape[1], batch.given["rank"]
    fields = {k: batch.schema[k] for k in batch.state}
    product: Product = denoiser.product.to(batch.mask.device)
    noisy = product.perturb(batch.state, site_times(fields, batch.mask, t), rng)
    copy = (torch.arange(2 * n, device=rank.device) >= n).expand(len(batch), -1)
    order = Order(rank.repeat(1, 2), copy)
    atom, bond = batch.state["atom"], batch.state["bond"]
    state = {
        "atom": torch.cat([atom, noisy["atom"]], 1),
        "bond": torch.cat([torch.cat([bond, noisy["bond"]], 2), torch.cat([noisy["bond"], noisy["bond"]], 2)], 1),
    }
    mask = batch.mask.repeat(1, 2)
    given = {k: v for k, v in batch.given.items() if k == CONDITION} | {"degree": batch.given["degree"].repeat(1, 2)}
    logits = denoiser(state, site_times(fields, copy & mask, t), mask, given, order)
    i, j = rank[:, :, None], rank[:, None, :]
    within, to_earlier = logits["bond"][:, n:, n:], logits["bond"][:, n:, :n]
    bond_logits = torch.where((i == j)[..., None], within, to_earlier)
    total = torch.zeros((), device=rank.device)
    for k, predicted in (("atom", logits["atom"][:, n:]), ("bond", bond_logits)):
        process = product.processes[k]
        counts = batch.exists(k) & process.learnable(noisy[k], t)
        counts = counts.tril(-1) if k == "bond" else counts
        total = total + F.cross_entropy(predicted[counts], batch.state[k][counts], reduction="sum")
    return total / len(batch)
