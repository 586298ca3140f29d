"""Batch: the one batch type. A domain differs from another only in its schema."""

from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor


class Field(NamedTuple):
    """Layout of one field: per sample ("whole"), per site, or per undirected pair of sites, then `shape`.

    `classes` names the categories of a discrete field (its tensor holds indices, int64); None means continuous.
    """

    kind: Literal["whole", "site", "pair"]
    shape: tuple[int, ...] = ()
    classes: tuple[str, ...] | None = None

    @property
    def axes(self) -> int:
        """Number of site axes: 0, 1 or 2."""
        return ("whole", "site", "pair").index(self.kind)


Schema = dict[str, Field]


def pair_mask(mask: Tensor) -> Tensor:
    """(B, N) -> (B, N, N): pairs of two different sites that both exist."""
    off_diagonal = ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask[:, :, None] & mask[:, None, :] & off_diagonal


@dataclass(frozen=True)
class Batch:
    """B samples of at most N sites.

    schema: the layout of every field; state: the fields to generate; given: the fields that are conditions, never
    noised; mask (B, N) bool: which sites exist; ids (B,) int64: which samples these are, the key of their randomness.
    Raises ValueError where a field is not in the schema or its shape contradicts the mask.
    """

    schema: Schema
    state: dict[str, Tensor]
    mask: Tensor
    given: dict[str, Tensor] = field(default_factory=dict)
    ids: Tensor | None = None

    def __post_init__(self) -> None:
        if self.ids is None:
            object.__setattr__(self, "ids", torch.arange(len(self.mask), device=self.mask.device))
        b, n = self.mask.shape
        for name, value in (self.state | self.given).items():
            if name not in self.schema:
                raise ValueError(f"field {name!r} is not in the schema, which has {sorted(self.schema)}")
            f = self.schema[name]
            expected = (b, *(n,) * f.axes, *f.shape)
            if tuple(value.shape) != expected:
                raise ValueError(f"field {name!r} has shape {tuple(value.shape)}, expected {expected}")

    def __len__(self) -> int:
        return len(self.mask)

    @property
    def sites(self) -> Tensor:
        """Number of sites of each sample (B,)."""
        return self.mask.sum(1)

    def exists(self, name: str) -> Tensor:
        """(B, ...) bool over the field's leading axes: where its entries exist."""
        kind = self.schema[name].kind
        if kind == "whole":
            return torch.ones(len(self), dtype=torch.bool, device=self.mask.device)
        return self.mask if kind == "site" else pair_mask(self.mask)

    def replace(self, **state: Tensor) -> "Batch":
        """The same batch with the named fields replaced."""
        return replace(self, state={**self.state, **state})

    def __getitem__(self, rows: Tensor | slice) -> "Batch":
        """The samples `rows` (an index tensor, a bool tensor or a slice)."""
        take = {k: v[rows] for k, v in self.state.items()}
        given = {k: v[rows] for k, v in self.given.items()}
        return Batch(self.schema, take, self.mask[rows], given, self.ids[rows])

    def trim(self, sites: int) -> "Batch":
        """The same batch cut to its first `sites` sites."""

        def cut(fields: dict[str, Tensor]) -> dict[str, Tensor]:
            return {k: v[(slice(None), *(slice(sites),) * self.schema[k].axes)] for k, v in fields.items()}

        return Batch(self.schema, cut(self.state), self.mask[:, :sites], cut(self.given), self.ids)

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        move = lambda d: {k: v.to(device, non_blocking=True) for k, v in d.items()}
        return Batch(self.schema, move(self.state), self.mask.to(device), move(self.given), self.ids.to(device))
