"""What a model of molecules in space learns at: times of the graph and of the positions, of random parts of the sites.

(0, s) to fold a graph, (s, 0) to assign atoms and bonds to positions, (s, s) to make all, or a part, at once.
"""

import torch
from torch import Tensor

from unisci.autoregression.site_blocks import part_times, parts
from unisci.batch import Batch
from unisci.order import structural_order
from unisci.rng import Rng

FOLD, ASSIGN = 0.75, 0.04  # of the training draws; the others make all at once, a share of them in parts
NEAR = 1.6  # power of the training times of positions, 1 = even ones: bond lengths settle at the end


def training_times(batch: Batch, rng: Rng, share: float) -> tuple[dict[str, Tensor], Tensor]:
    """Times by field, one for each site or pair, and the ranks (B, N) that are told, -1 where none is. share: what part
    of the draws that make all at once learns a part of the sites."""
    b, mask = len(batch), batch.mask
    task, part = (rng.uniform(name, 0, (b,), 0) for name in ("task", "parts"))
    u = 1e-3 + (1 - 1e-3) * rng.uniform("time", 0, (b,), 0)
    fold, assign = task < FOLD, (task >= FOLD) & (task < FOLD + ASSIGN)
    graph, position = torch.where(fold, 0.0, u), torch.where(assign, 0.0, torch.where(fold, u**NEAR, u))
    t = {"atom": graph, "bond": graph, "position": position}
    partly, structural = ~fold & ~assign & (part < share), part < share / 2
    known, moving = parts(mask, rng)
    rank = structural_order(batch.state["bond"] > 0, mask)[0].rank if share else torch.where(mask, 0, -1)
    block = (rng.uniform("block", 0, (b,), 0) * (rank.amax(1) + 1)).long()[:, None]
    known = torch.where(structural[:, None], (rank >= 0) & (rank < block), known) & partly[:, None]
    moving = torch.where(structural[:, None], rank == block, moving)
    moving = torch.where(partly[:, None], moving, mask)
    first = {k: torch.where(v > 0, 1.0, 0.0) for k, v in t.items()}
    fields = {k: batch.schema[k] for k in t}
    told = (partly & structural)[:, None]
    return part_times(fields, known, moving, t, first), torch.where(told, rank, -1)
