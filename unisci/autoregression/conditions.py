"""Conditions of block-autoregressive graphs: numbers about the finished graph, told to every block that is drawn.

    p(G | c) = p(|B_1|, deg_1 | c) prod_i p(|B_i|, deg_i | G_<i, c) p(B_i | |B_i|, deg_i, G_<i, c)

Each number may be missing. In training they are left out now and then, so that one network is the conditional and the
unconditional model of classifier-free guidance (Ho & Salimans, arXiv 2207.12598): of w, every factor's logits are
l_0 + w (l_c - l_0).
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Batch, Field
from unisci.denoiser import Bound
from unisci.guidance.conditional import classifier_free
from unisci.networks.embedding import NumberEmbedding
from unisci.networks.graph_transformer import CONDITION
from unisci.rng import Rng
from unisci.solvers.sample import Denoise

VALUES = "properties"  # the field of a batch that holds the values (B, P) of finished graphs, in their units
DROPPED = 0.1  # share of graphs that are told nothing in training; and of each number that is left out on its own


def with_values(batch: Batch, values: Tensor) -> Batch:
    """The batch with its samples' property values (B, P) as a condition."""
    schema = batch.schema | {VALUES: Field("whole", tuple(values.shape[1:]))}
    return Batch(schema, batch.state, batch.mask, batch.given | {VALUES: values.float()}, batch.ids)


def untold(bound: Bound) -> Bound:
    """The same model of the same samples, told no number."""
    return replace(bound, given={k: v for k, v in bound.given.items() if k != CONDITION})


def told_only(*columns: int) -> Callable[[Bound], Bound]:
    """The `guide` of `generate` for the model told these of the numbers, the others left open."""

    def guide(bound: Bound) -> Bound:
        condition = bound.given[CONDITION]
        kept = [k in columns for k in range(condition.shape[1])]
        only = torch.where(torch.tensor(kept, device=condition.device), condition, float("nan"))
        return replace(bound, given=bound.given | {CONDITION: only})

    return guide


def told_values(conditions: "Conditions", values: Tensor) -> Callable[[Bound], Bound]:
    """The `guide` of `generate` for the model of these conditions told `values` (C,) in place of each sample's own."""
    row = (values.to(conditions.mean) - conditions.mean) / conditions.std
    return lambda bound: replace(bound, given=bound.given | {CONDITION: row.expand(len(bound.mask), -1)})


def classifier_free_blocks(weight: float) -> Callable[[Bound], Denoise]:
    """The `guide` of `generate` for classifier-free guidance of weight w; two calls a step unless w is 0 or 1."""
    return lambda bound: classifier_free(bound, untold(bound), weight)


class Conditions(nn.Module):
    """What a `Pard` is told: `names`, the mean and std (C,) of their values in the data, and the law of the first
    block's (size, degree) given them, relative to the table of all data, for tables of the shape `table`."""

    def __init__(self, names: tuple[str, ...], table: torch.Size):
        super().__init__()
        self.names = names
        self.register_buffer("mean", torch.zeros(len(names)))
        self.register_buffer("std", torch.ones(len(names)))
        self.first = NumberEmbedding(len(names), table.numel())

    def measure(self, values: Tensor) -> None:
        """Take mean and std from the values (n, C) of the data. Raises ValueError where they are of other properties
        in number."""
        self.mean, self.std = self._checked(values).mean(0), values.std(0).clamp(min=1e-6)

    def told(self, batch: Batch, values: Tensor) -> Batch:
        """The batch told these values (B, C), in their units, nan where a number is left open. Raises ValueError for
        another shape."""
        if len(values) != len(batch):
            raise ValueError(f"{len(values)} rows of conditions for {len(batch)} samples")
        condition = (self._checked(values).to(self.mean) - self.mean) / self.std
        schema = batch.schema | {CONDITION: Field("whole", (len(self.names),))}
        return Batch(schema, batch.state, batch.mask, batch.given | {CONDITION: condition}, batch.ids)

    def taught(self, batch: Batch, rng: Rng) -> Batch:
        """The batch told its own values, some of them left out. Raises ValueError where it has none."""
        if VALUES not in batch.given:
            raise ValueError(f"this model learns from graphs with their {', '.join(self.names)}: see `with_values`")
        batch = self.told(batch, batch.given[VALUES])
        u = rng.uniform("left out", 0, (len(batch), 1 + len(self.names)), 0)
        out = (u[:, :1] < DROPPED) | (u[:, 1:] < DROPPED)
        condition = torch.where(out, float("nan"), batch.given[CONDITION])
        return replace(batch, given=batch.given | {CONDITION: condition})

    def first_logits(self, table: Tensor, condition: Tensor, weight: float = 1.0) -> Tensor:
        """Log probabilities, not normalised, of the first block's flat (size, degree): (B, S D)."""
        tilt = self.first(condition)
        if weight != 1:
            free = self.first(torch.full_like(condition, float("nan")))
            tilt = free + weight * (tilt - free)
        return table.flatten().log() + tilt

    def first_loss(self, table: Tensor, batch: Batch) -> Tensor:
        """Cross entropy of the first block's size and degree, mean over ordered graphs."""
        first = (batch.given["rank"] == 0) & batch.mask
        degree = torch.where(first, batch.given["degree"], 0).amax(1)
        logits = self.first_logits(table, batch.given[CONDITION])
        return F.cross_entropy(logits, first.sum(1) * table.shape[1] + degree)

    def _checked(self, values: Tensor) -> Tensor:
        if values.ndim != 2 or values.shape[1] != len(self.names):
            raise ValueError(
                f"this model is told {', '.join(self.names)}: values of shape (samples, {len(self.names)}), got "
                f"{tuple(values.shape)}"
            )
        return values
