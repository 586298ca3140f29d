"""A process for each field of a state: the product of their kernels, with one time for all fields or one for each."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.state import Time, pick


@dataclass(frozen=True)
class Product:
    """processes: one for each field to generate; schema: their layout; separate: draw a time for each field on its
    own.
    """

    processes: dict[str, Process]
    schema: Schema
    separate: bool = False

    def times(self, rng: Rng, smallest: float = 1e-3) -> dict[str, Tensor]:
        """Training times (B,) for each field, uniform in (smallest, 1)."""
        draw = {k: rng.uniform(f"time {k}" if self.separate else "time", 0, (len(rng.ids),), 0) for k in self.processes}
        return {k: smallest + (1 - smallest) * u for k, u in draw.items()}

    def perturb(self, clean: dict[str, Tensor], t: Time, rng: Rng) -> dict[str, Tensor]:
        """x_t given the clean fields."""
        return {k: p.perturb(clean[k], pick(t, k), rng, k, self.schema[k].axes) for k, p in self.processes.items()}

    def prior(self, like: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        """x_1, shaped as the fields of `like`."""
        return {k: p.prior(like[k], rng, k, self.schema[k].axes) for k, p in self.processes.items()}

    def to(self, device: torch.device | str) -> "Product":
        """The same processes with their tensors on another device."""
        return replace(self, processes={k: p.to(device) for k, p in self.processes.items()})


def site_times(schema: Schema, moving: Tensor, t: Tensor) -> dict[str, Tensor]:
    """Times by field when only the sites `moving` (B, N) are at time t (B,) or (), all else being clean, at 0.

    A pair of two different sites moves with either of them; a field of the whole moves where any site does.
    """
    t = t.expand(len(moving)) if t.ndim == 0 else t
    off_diagonal = ~torch.eye(moving.shape[1], dtype=torch.bool, device=moving.device)
    where = {
        "whole": moving.any(1),
        "site": moving,
        "pair": (moving[:, :, None] | moving[:, None, :]) & off_diagonal,
    }
    return {k: torch.where(where[f.kind], t.reshape(-1, *(1,) * f.axes), 0.0) for k, f in schema.items()}
