"""The divergence of a field F over the coordinates of a state: the sum of v . J v, J = dF / dx, over vectors v that are
the units (exact), or random signs with E[v v^T] = I (Hutchinson's estimate, as in FFJORD, arXiv 1810.01367).

A pair of sites is one coordinate, though its value stands in the state twice.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unisci.rng import Rng
from unisci.solvers.score import counted, exists, total
from unisci.state import State, fieldwise

# (x, site axes by field) -> vectors, each a state that broadcasts against x
Vectors = Callable[[State, Any], Iterator[State]]


def exact(x: State, axes: Any) -> Iterator[State]:
    """The unit vector of every coordinate: one backward pass for each."""
    if not isinstance(x, dict):
        yield from _units(x, axes)
        return
    for name, value in x.items():
        for unit in _units(value, axes[name]):
            yield {k: unit if k == name else torch.zeros_like(v[:1]) for k, v in x.items()}


def _units(x: Tensor, axes: int) -> Iterator[Tensor]:
    keys = _keys(x.shape[1:], axes, x.device)
    for k in _keys(x.shape[1:], axes, torch.device("cpu")).unique().tolist():  # no wait for the device
        if k >= 0:
            yield (keys == k)[None].to(x)


def _keys(shape: tuple[int, ...], axes: int, device: torch.device) -> Tensor:
    """The number of the coordinate that each entry of a sample belongs to; -1 for none."""
    key = torch.arange(math.prod(shape), device=device).reshape(shape)
    if axes == 2:
        key = torch.minimum(key, key.transpose(0, 1))
        key.diagonal(dim1=0, dim2=1).fill_(-1)  # no pair
    return key


def hutchinson(rng: Rng, probes: int = 1) -> Vectors:
    """`probes` vectors of random signs for each sample, one backward pass for each: an unbiased estimate.

    They depend on rng alone, not on where or when they are asked for. Raises ValueError where probes < 1.
    """
    if probes < 1:
        raise ValueError(f"hutchinson needs at least one probe, got {probes}")

    def signs(x: Tensor, name: str, axes: int, rng: Rng) -> Tensor:
        heads = rng.uniform(name, 0, tuple(x.shape), axes) < 0.5
        return torch.where(heads, 1.0, -1.0).to(x.dtype) / math.sqrt(probes)

    def draw(x: State, axes: Any) -> Iterator[State]:
        names = {k: k for k in x} if isinstance(x, dict) else "x"
        for p in range(probes):
            yield fieldwise(signs, x, names, axes, rng.at(p))

    return draw


class Probe(NamedTuple):
    """A vector on the entries that exist, and on those that count as a coordinate."""

    inward: State
    outward: State


def prepare(vectors: Vectors, x: State, axes: Any, mask: Tensor | None) -> list[Probe]:
    """The probes of a whole trajectory, for states shaped as x; mask (B, N): the sites that exist."""
    there, counts = fieldwise(lambda v, a: exists(v, a, mask), x, axes), counted(x, axes, mask)
    product = lambda a, b: fieldwise(torch.mul, a, b)
    return [Probe(product(v, there), product(v, counts)) for v in vectors(x, axes)]


def divergence(out: State, x: State, probes: list[Probe], create_graph: bool = False) -> Tensor:
    """The divergence (B,) of `out` as a function of x, which requires a gradient."""
    listed = lambda state: [state[k] for k in x] if isinstance(x, dict) else [state]
    terms = []
    for v in probes:
        grads = torch.autograd.grad(
            listed(out), listed(x), listed(v.outward), True, create_graph, allow_unused=True, materialize_grads=True
        )
        terms.append(sum(total(g * along) for g, along in zip(grads, listed(v.inward), strict=True)))
    return sum(terms)
