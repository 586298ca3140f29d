"""A crystal as three arrays, which is what the crystal metrics send to their worker processes; and sets of them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import gcd
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from pymatgen.core import Structure

MIN_VOLUME = 0.1  # cubic angstrom


class Cell(NamedTuple):
    """A crystal as plain arrays: lattice (3, 3) rows in angstrom, numbers (n,) atomic, fractional (n, 3)."""

    lattice: np.ndarray
    numbers: np.ndarray
    fractional: np.ndarray

    @property
    def counts(self) -> tuple[tuple[int, int], ...]:
        """(atomic number, sites) of each element, by atomic number."""
        return tuple(sorted(Counter(self.numbers.tolist()).items()))

    @property
    def formula(self) -> tuple[tuple[int, int], ...]:
        """The same in lowest terms."""
        unit = gcd(*(c for _, c in self.counts))
        return tuple((z, c // unit) for z, c in self.counts)

    @property
    def structure(self) -> Structure:
        from pymatgen.core import Structure

        return Structure(self.lattice, self.numbers, self.fractional)


def cell(crystal: Any) -> Cell | str:
    """Plain arrays of a Crystal, a Cell or an ordered pymatgen Structure; or why it is no crystal (None is none)."""
    if crystal is None:
        return "no structure"
    if hasattr(crystal, "fractional"):
        lattice, numbers, fractional = crystal.lattice, crystal.numbers, crystal.fractional
    elif not crystal.is_ordered:
        return "partly occupied sites"
    else:
        lattice, numbers, fractional = crystal.lattice.matrix, crystal.atomic_numbers, crystal.frac_coords
    result = Cell(np.array(lattice, float), np.array(numbers, int), np.array(fractional, float))
    if not len(result.numbers):
        return "no atoms"
    if result.numbers.min() < 1 or result.numbers.max() > 118:
        return "no such element"
    if not (np.isfinite(result.lattice).all() and np.isfinite(result.fractional).all()):
        return "not finite"
    if abs(np.linalg.det(result.lattice)) <= MIN_VOLUME:
        return "volume"
    return result


def cells(crystals: Iterable[Any], what: str) -> list[Cell]:
    """Plain arrays of crystals that must all be sound. Raises ValueError naming the first that is not."""
    result = [cell(c) for c in crystals]
    for i, c in enumerate(result):
        if isinstance(c, str):
            raise ValueError(f"{what}[{i}] is no crystal: {c}")
    return result


@dataclass(frozen=True, eq=False)
class Reference:
    """Crystals to compare with: the truth of a prediction, or a training set.

    Distributions and coverage use at most `limit` of them, drawn evenly with a fixed seed; all else uses all.
    """

    name: str
    cells: tuple[Cell, ...]
    limit: int = 10_000

    @classmethod
    def from_crystals(cls, name: str, crystals: Iterable[Any], limit: int = 10_000) -> Reference:
        """From Crystals or pymatgen Structures. Raises ValueError where there is none, or one is no crystal."""
        found = tuple(cells(crystals, name))
        if not found:
            raise ValueError(f"reference {name!r} has no crystal")
        return cls(name, found, limit)

    @cached_property
    def sha256(self) -> str:
        """Of all numbers, coordinates and cells, in their order."""
        result = hashlib.sha256()
        for c in self.cells:
            for part in (c.numbers.astype("<i8"), c.fractional.astype("<f8"), c.lattice.astype("<f8")):
                result.update(part.tobytes())
        return result.hexdigest()

    @cached_property
    def drawn(self) -> tuple[Cell, ...]:
        keep = np.random.default_rng(0).permutation(len(self.cells))[: self.limit]
        return tuple(self.cells[i] for i in keep)
