"""How Pard (arXiv 2402.03687) chooses the next block: p(|B_i|, deg_i | G_<i, c), size 0 being the end of the graph."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.autoregression.conditions import Conditions
from unisci.autoregression.generate import fill_group
from unisci.batch import Batch
from unisci.networks.graph_transformer import CONDITION, GraphHead
from unisci.order import Order
from unisci.rng import Rng


@dataclass(frozen=True)
class BlockGrowth:
    """Chooses the next block's size and degree for `generate`, by the head, or by the table for the first block; with
    conditions by classifier-free guidance of this weight, two calls of the head unless it is 0 or 1."""

    head: GraphHead
    first: Tensor
    conditions: Conditions | None = None
    weight: float = 1.0

    def __call__(self, batch: Batch, order: Order, block: int, rng: Rng) -> tuple[Batch, Order]:
        room = batch.mask.shape[1]
        done = batch.sites
        if block == 0:
            choice = rng.categorical("next block", 0, self._first_probs(batch), 0)
        else:
            choice = rng.categorical("next block", 0, self._probs(batch, order, room), 0)
        size, degree = choice // self.first.shape[1], choice % self.first.shape[1]
        site = torch.arange(room, device=done.device)
        new = (site >= done[:, None]) & (site < (done + size)[:, None])
        given = batch.given | {
            "degree": torch.where(new, degree[:, None], batch.given["degree"]),
            "rank": torch.where(new, block, order.rank),
        }
        return Batch(batch.schema, batch.state, batch.mask | new, given, batch.ids), Order(given["rank"])

    def _first_probs(self, batch: Batch) -> Tensor:
        """(B, sizes * degrees), not normalised."""
        if self.conditions is None:
            return self.first.flatten().expand(len(batch), -1)
        return self.conditions.first_logits(self.first, batch.given[CONDITION], self.weight).softmax(-1)

    def _logits(self, batch: Batch, order: Order) -> Tensor:
        """The head's, guided."""
        ask = lambda given: self.head(batch.state, batch.mask, given, order)
        if self.conditions is None or self.weight == 1:
            return ask(batch.given)
        free = ask({k: v for k, v in batch.given.items() if k != CONDITION})
        return free + self.weight * (ask(batch.given) - free) if self.weight else free

    def _probs(self, batch: Batch, order: Order, room: int) -> Tensor:
        """(B, sizes * degrees): of every (size, degree) that still has room."""
        done = batch.sites
        out = torch.zeros(len(batch), self.first.numel(), device=done.device)
        for n in done.unique().tolist():
            rows = (done == n).nonzero()[:, 0]
            filled = fill_group(rows)
            part = batch[filled].trim(n)
            logits = self._logits(part, Order(order.rank[filled, :n]))[: len(rows)]
            size, degree = split_logits(logits, self.first.shape)
            too_large = torch.arange(self.first.shape[0], device=done.device) > room - n
            size = size.masked_fill(too_large, float("-inf")).softmax(-1)
            out[rows] = (size[..., None] * degree.softmax(-1)).flatten(1)
        return out


def split_logits(logits: Tensor, shape: torch.Size) -> tuple[Tensor, Tensor]:
    """Of the head's output: logits of the size (B, S), and of the degree given each size (B, S, D)."""
    sizes, degrees = shape
    return logits[:, :sizes], logits[:, sizes:].reshape(-1, sizes, degrees)
