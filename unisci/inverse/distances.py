"""Distances within a molecule, as operators of an inverse problem (RED-Diff, arXiv 2305.04391).

    d_p = |x_i - x_j|,   p = (i, j)                     single distances
    g(r) = sum_{i < j} N(r; |x_i - x_j|, width^2)       the pair distribution, which total scattering measures

Neither changes with rotation, reflection or translation.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from unisci.inverse.operators import pullback
from unisci.state import State


@dataclass(frozen=True, eq=False)
class PairDistance:
    """Distances between chosen atoms, (B, N, 3) -> (B, P), as nuclear Overhauser effects give them. pairs (P, 2) or
    (B, P, 2), int64. Raises ValueError for pairs of another shape, of an atom with itself or not there."""

    pairs: Tensor
    last: int = field(init=False)

    def __post_init__(self) -> None:
        shape, dtype = self.pairs.shape, self.pairs.dtype
        if self.pairs.ndim not in (2, 3) or shape[-1] != 2 or dtype != torch.int64 or not self.pairs.numel():
            raise ValueError(f"pairs must be (P, 2) or (B, P, 2) int64, got {tuple(shape)} {dtype}")
        if bool((self.pairs[..., 0] == self.pairs[..., 1]).any()) or bool((self.pairs < 0).any()):
            raise ValueError(f"a pair is of two different atoms 0, 1, ..., got {self.pairs.tolist()}")
        object.__setattr__(self, "last", int(self.pairs.max()))  # once here, as it would make each call wait

    def __call__(self, clean: Tensor) -> Tensor:
        _check_positions(clean)
        if self.last >= clean.shape[1] or (self.pairs.ndim == 3 and len(self.pairs) != len(clean)):
            raise ValueError(f"pairs {tuple(self.pairs.shape)} up to atom {self.last} do not fit {tuple(clean.shape)}")
        rows = torch.arange(len(clean), device=clean.device)[:, None]
        i, j = self.pairs.expand(len(clean), -1, -1).unbind(-1)
        return _length(clean[rows, i] - clean[rows, j])

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return pullback(self, residual, at)


@dataclass(frozen=True, eq=False)
class PairDistribution:
    """How many pairs of atoms lie how far apart, (B, N, 3) -> (B, R): sum_{i < j} N(r; |x_i - x_j|, width^2) at
    radii (R,), pairs per unit of length. width: in the units of the positions. mask (B, N) bool: which atoms exist.
    Raises ValueError for a width <= 0, radii below 0 and wrong shapes."""

    radii: Tensor
    width: float
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.width <= 0:
            raise ValueError(f"the width must be positive, got {self.width}")
        if self.radii.ndim != 1 or len(self.radii) == 0 or not bool((self.radii >= 0).all()):
            raise ValueError(f"radii must be (R,), none negative, got {self.radii.tolist()}")

    def __call__(self, clean: Tensor) -> Tensor:
        _check_positions(clean)
        n = clean.shape[1]
        i, j = torch.triu_indices(n, n, 1, device=clean.device)
        away = (self.radii.to(clean) - _length(clean[:, i] - clean[:, j])[..., None]) / self.width
        near = torch.exp(-(away**2) / 2) / (self.width * math.sqrt(2 * math.pi))
        if self.mask is not None:
            if self.mask.shape != clean.shape[:2]:
                raise ValueError(f"the mask must be (B, N) = {tuple(clean.shape[:2])}, got {tuple(self.mask.shape)}")
            near = near * (self.mask[:, i] & self.mask[:, j])[..., None]
        return near.sum(1)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return pullback(self, residual, at)


def _check_positions(clean: State) -> None:
    if isinstance(clean, dict) or clean.ndim != 3 or clean.shape[-1] != 3:
        got = sorted(clean) if isinstance(clean, dict) else tuple(clean.shape)
        raise ValueError(f"positions must be a tensor (B, N, 3), got {got}; of a field, Field(name, operator)")


def _length(v: Tensor) -> Tensor:
    """|v| along the last axis, with derivative 0 at 0."""
    square = v.square().sum(-1)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
