"""Order: the one autoregressive idea. Sites of equal rank form a block; site i sees site j iff rank[j] <= rank[i].

`structural_order` is the order that a graph defines by itself (Pard, Zhao et al., arXiv 2402.03687): peel the sites
of lowest degree again and again, then read the peeling backwards, so that the core comes first.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Order:
    """rank (B, N) int64, -1 = padding. `noisy` (B, N) bool, where given, marks the noised copies of sites that stand
    beside their clean originals when all blocks are trained at once; a noisy copy is seen by its own block alone."""

    rank: Tensor
    noisy: Tensor | None = None

    @property
    def blocks(self) -> Tensor:
        """Number of blocks of each sample (B,)."""
        return self.rank.amax(1) + 1

    def visible(self) -> Tensor:
        """(B, N, N) bool: i sees j. Padding sees nothing and is seen by nothing."""
        i, j = self.rank[:, :, None], self.rank[:, None, :]
        there = (i >= 0) & (j >= 0)
        if self.noisy is None:
            return (j <= i) & there
        a, b = self.noisy[:, :, None], self.noisy[:, None, :]
        return (((i == j) & (a == b)) | ((i > j) & ~b)) & there


def structural_order(adjacency: Tensor, mask: Tensor, hops: int = 1) -> tuple[Order, Tensor]:
    """The partial order of a batch of graphs, and each site's degree within its own and all earlier blocks.

    adjacency (B, N, N) bool, symmetric, no self-loops; mask (B, N) bool. The weight of a site in the graph that remains
    is (d_1, ..., d_hops) with d_k = A d_{k-1}, d_0 = 1, compared lexicographically in exact integers. hops = 0: one
    block. Returns Order and degree (B, N) int64. Raises ValueError where hops is negative.
    """
    if hops < 0:
        raise ValueError(f"hops must be 0 (one block) or more, got {hops}")
    a = (adjacency & mask[:, :, None] & mask[:, None, :]).long()
    if hops == 0:
        return Order(torch.where(mask, 0, -1)), torch.zeros_like(mask, dtype=torch.long)
    alive = mask.clone()
    peeled_at = torch.zeros_like(mask, dtype=torch.long)
    degree = torch.zeros_like(peeled_at)
    rounds = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    far = torch.iinfo(torch.long).max
    while bool(alive.any()):
        lowest, d = alive, torch.ones_like(peeled_at)
        for _ in range(hops):
            # Matrix products of integers run as sums on every device; floats would blur ties.
            d = (a * d[:, None, :]).sum(-1)
            lowest = lowest & (d == torch.where(lowest, d, far).amin(1, keepdim=True))
        peeled_at = torch.where(lowest, rounds[:, None], peeled_at)
        degree = torch.where(lowest, a.sum(-1), degree)
        rounds = rounds + alive.any(1)
        alive = alive & ~lowest
        keep = (~lowest).long()
        a = a * keep[:, :, None] * keep[:, None, :]
    return Order(torch.where(mask, rounds[:, None] - 1 - peeled_at, -1)), degree
