"""Operators: what is measured of a clean state, y = A(x) + noise, as RED-Diff (Mardani et al., arXiv 2305.04391) and
forward models (Tewari et al., arXiv 2306.11719) use them.

    <A x, r> = <x, A^T r>                   the law of an adjoint, where A is linear
    A^T r = (dA / dx)^T r at x              what stands for it where A is not: `pullback`, by torch

The linear operators are here, those of structures in `unisci.inverse.diffraction`. A setting has one value for all
samples, or a leading axis B and a value for each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from unisci.state import State, fieldwise


class Operator(Protocol):
    """A measurement of a clean state."""

    def __call__(self, clean: State) -> Tensor:
        """A(x), (B, ...), differentiable by torch."""

    def adjoint(self, residual: Tensor, at: State) -> State:
        """The transpose of the Jacobian of A at `at`, applied to `residual`, which is shaped as A(x)."""


@torch.inference_mode(False)
def pullback(function: Callable[[State], Tensor], residual: Tensor, at: State) -> State:
    """(d function / dx)^T residual at `at`, a state as `at`, 0 for fields of integers; no graph is kept. The adjoint
    of every operator that is not linear. Raises ValueError where residual is not shaped as function(at)."""
    with torch.enable_grad():
        at = fieldwise(lambda v: v.detach().clone().requires_grad_(v.is_floating_point()), at)
        out = function(at)
    if residual.shape != out.shape:
        raise ValueError(f"the residual has shape {tuple(residual.shape)}, the measurement {tuple(out.shape)}")
    fields = list(at.values()) if isinstance(at, dict) else [at]
    moving = [v for v in fields if v.requires_grad]
    grads = iter(torch.autograd.grad(out, moving, residual, allow_unused=True, materialize_grads=True))
    return fieldwise(lambda v: next(grads) if v.requires_grad else torch.zeros_like(v), at)


@dataclass(frozen=True, eq=False)
class Mask:
    """The entries observed; A(x) (B, ...) is x with 0 at the others, whatever stood there, so that it also clears the
    gaps of a y. where: bool, shaped as one sample or as the state. Raises ValueError where nothing is observed."""

    where: Tensor

    def __post_init__(self) -> None:
        if self.where.dtype != torch.bool or not bool(self.where.any()):
            raise ValueError(f"a mask is bool and observes something, got {self.where.dtype} {self.where.tolist()}")

    def __call__(self, clean: Tensor) -> Tensor:
        _check_bare(clean, self, 1)
        if self.where.shape not in (clean.shape, clean.shape[1:]):
            raise ValueError(f"a mask of shape {tuple(self.where.shape)} does not fit a state {tuple(clean.shape)}")
        return torch.where(self.where, clean, 0.0)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return self(residual)


@dataclass(frozen=True, eq=False)
class Downsample:
    """Means over windows of `factor` sites or times: (B, N, ...) -> (B, N / factor, ...). Raises ValueError for a
    factor below 1 or one that does not divide N."""

    factor: int

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ValueError(f"the factor must be 1 or more, got {self.factor}")

    def __call__(self, clean: Tensor) -> Tensor:
        _check_bare(clean, self, 2)
        if clean.shape[1] % self.factor:
            raise ValueError(f"factor {self.factor} does not divide the {clean.shape[1]} sites; cut or pad the state")
        return clean.unflatten(1, (-1, self.factor)).mean(2)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return (residual / self.factor).repeat_interleave(self.factor, 1)


@dataclass(frozen=True, eq=False)
class Project:
    """A linear map of the last axis, (B, ..., D) -> (B, ..., M). matrix (M, D) or (B, M, D): Project(rotation[:, :2])
    sees each sample from its own side. Raises ValueError where shapes disagree."""

    matrix: Tensor

    def __post_init__(self) -> None:
        _check_matrix(self.matrix)

    def __call__(self, clean: Tensor) -> Tensor:
        _check_bare(clean, self, 2)
        return _apply(self.matrix, clean)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return _apply(self.matrix.mT, residual)


@dataclass(frozen=True, eq=False)
class Linear:
    """A matrix (M, D) or (B, M, D) on the flattened sample, (B, ...) -> (B, M). Raises ValueError where shapes
    disagree."""

    matrix: Tensor

    def __post_init__(self) -> None:
        _check_matrix(self.matrix)

    def __call__(self, clean: Tensor) -> Tensor:
        _check_bare(clean, self, 2)
        return _apply(self.matrix, clean.flatten(1))

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return _apply(self.matrix.mT, residual).reshape(at.shape)


@dataclass(frozen=True, eq=False)
class Fourier:
    """N^(-1/2) sum_n x_n e^(-2 pi i f n) along the sites or times, (B, N, ...) -> (B, 2 K, ...): the real parts of the
    K frequencies, then the imaginary ones. frequencies (K,) or (B, K), in cycles a step. Raises ValueError for
    frequencies of another shape, or not finite."""

    frequencies: Tensor

    def __post_init__(self) -> None:
        f = self.frequencies
        if f.ndim not in (1, 2) or f.numel() == 0 or not bool(f.isfinite().all()):
            raise ValueError(f"frequencies must be finite, (K,) or (B, K) with K > 0, got {f.tolist()}")

    def _waves(self, n: int) -> Tensor:
        """(2 K, N) or (B, 2 K, N), float64."""
        steps = torch.arange(n, dtype=torch.float64, device=self.frequencies.device)
        phase = 2 * math.pi * self.frequencies.double()[..., None] * steps
        return torch.cat([phase.cos(), -phase.sin()], -2) / math.sqrt(n)

    def __call__(self, clean: Tensor) -> Tensor:
        _check_bare(clean, self, 2)
        return _apply(self._waves(clean.shape[1]), clean.movedim(1, -1)).movedim(-1, 1)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return _apply(self._waves(at.shape[1]).mT, residual.movedim(1, -1)).movedim(-1, 1)


@dataclass(frozen=True, eq=False)
class Field:
    """An operator on one field of a state with names. Raises ValueError where the state has no such field."""

    name: str
    operator: Operator

    def _pick(self, state: State) -> Tensor:
        if not isinstance(state, dict) or self.name not in state:
            there = sorted(state) if isinstance(state, dict) else "no names: use the operator itself"
            raise ValueError(f"the state has no field {self.name!r}; it has {there}")
        return state[self.name]

    def __call__(self, clean: State) -> Tensor:
        return self.operator(self._pick(clean))

    def adjoint(self, residual: Tensor, at: State) -> State:
        own = self.operator.adjoint(residual, self._pick(at))
        return {k: own if k == self.name else torch.zeros_like(v) for k, v in at.items()}


def _check_bare(clean: State, who: Operator, axes: int) -> None:
    name = type(who).__name__
    if isinstance(clean, dict):
        raise ValueError(f"{name} measures a tensor, not the fields {sorted(clean)}; wrap it: Field(name, {name})")
    if clean.ndim < axes:
        raise ValueError(f"{name} needs a state of {axes} axes or more, got shape {tuple(clean.shape)}")


def _check_matrix(matrix: Tensor) -> None:
    if matrix.ndim not in (2, 3) or matrix.numel() == 0:
        raise ValueError(f"the matrix must be (M, D) or (B, M, D), got {tuple(matrix.shape)}")


def _apply(matrix: Tensor, x: Tensor) -> Tensor:
    """matrix (M, D) or (B, M, D) along the last axis of x (B, ..., D)."""
    if matrix.shape[-1] != x.shape[-1] or (matrix.ndim == 3 and len(matrix) != len(x)):
        raise ValueError(f"a matrix of shape {tuple(matrix.shape)} does not fit {tuple(x.shape)} along its last axis")
    rows = "md" if matrix.ndim == 2 else "bmd"
    return torch.einsum(f"b...d,{rows}->b...m", x, matrix.to(x))
