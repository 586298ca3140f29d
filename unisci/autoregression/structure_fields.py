"""The fields of molecules in space: their processes, their origin, their blocks, and the positions alone.

Atoms and bonds are drawn by absorbing diffusion, positions in angstrom by a Gaussian one about their mean.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.batch import Batch, Field, Schema
from unisci.denoiser import Bound
from unisci.order import Order, structural_order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import Cosine
from unisci.processes.process import Process
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.state import State, Time, pick

PROFILES = 2048  # of the block sizes of training graphs, the most frequent ones, that are kept
RANK: Schema = {"rank": Field("site")}


def structure_product(schema: Schema) -> Product:
    """The processes of "atom", "bond" and "position"."""
    fields = {k: schema[k] for k in ("atom", "bond", "position")}
    atom, bond = (absorbing(len(fields[k].classes)) for k in ("atom", "bond"))
    return Product({"atom": atom, "bond": bond, "position": Cosine()}, fields)


def centred(position: Tensor, mask: Tensor, known: Tensor | None = None) -> Tensor:
    """Positions (B, N, 3) less their mean over the known sites (B, N), over all where none is; 0 at padding."""
    about = mask if known is None else torch.where(known.any(1, keepdim=True), known, mask)
    mean = (position * about[..., None]).sum(1, keepdim=True) / about.sum(1).clamp(min=1)[:, None, None]
    return torch.where(mask[..., None], position - mean, 0.0)


class Profiles(NamedTuple):
    """sizes (P, R): sites of each rank of structural orders; counts (P,): of the training graphs that have them."""

    sizes: Tensor
    counts: Tensor

    @classmethod
    def of(cls, batch: Batch) -> "Profiles":
        """Those of a batch of graphs."""
        rank = structural_order(batch.state["bond"] > 0, batch.mask)[0].rank
        sizes = torch.stack([(rank == k).sum(1) for k in range(int(rank.max()) + 1)], 1)
        sizes, counts = sizes.unique(dim=0, return_counts=True)
        most = counts.argsort(descending=True, stable=True)[:PROFILES]
        return cls(sizes[most], counts[most].float())

    def order(self, rng: Rng) -> Order:
        """One for each of rng.ids: sites by rank."""
        drawn = rng.categorical("profile", 0, self.counts.expand(len(rng.ids), -1), 0)
        ends = self.sizes[drawn].cumsum(1)
        site = torch.arange(int(ends.max()), device=ends.device)
        rank = (site >= ends[:, :, None]).sum(1)
        return Order(torch.where(site < ends[:, -1:], rank, -1))


@dataclass(frozen=True, eq=False)
class Placing:
    """The denoiser of the positions alone, as a state {"position": (B, N, 3)}: the graph, its "atom" and "bond", is
    given. So any solver of one field can take it."""

    bound: Bound
    graph: dict[str, Tensor]

    @property
    def process(self) -> dict[str, Process]:
        return {"position": self.bound.process["position"]}

    @property
    def schema(self) -> Schema:
        return {"position": self.bound.schema["position"]}

    def __call__(self, x: State, t: Time) -> State:
        now = pick(t, "position")
        clean = self.bound(self.graph | x, dict.fromkeys(self.graph, 0 * now) | {"position": now})
        return {"position": clean["position"]}
