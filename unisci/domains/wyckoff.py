"""A crystal as orbits of equivalent sites: its space group, a Wyckoff position and a few free numbers for each orbit.

    x = A u + b,   sites of the orbit:  R_k x + t_k,   k = 1, ..., m      (International Tables for Crystallography, A)

A, b belong to the Wyckoff position, (R_k, t_k) to the space group; of u in [0, 1)^3 only the coordinates that A reads
are free. Rock salt is "225: Na a, Cl b" and one length. Cells are conventional, see `unisci.domains.space_groups`.
"""

import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.space_groups import centrings, operations, primitive, symmetric
from unisci.domains.symmetry import dataset

if TYPE_CHECKING:
    from moyopy import MoyoDataset

SYMPREC = (0.1, 0.01, 0.001)  # angstrom, within which sites count as equivalent: the first that merges none of them
EXACT = 1e-4  # angstrom, of a cell that is standardized already
ON_FORM = 1e-3  # of a fractional coordinate, between a standardized site and the form of its position
TERM = re.compile(r"(^|[+-])(?:(\d+)/([1-9]\d*)|(\d*)([xyz])|(\d+))")


@dataclass(frozen=True)
class Wyckoff:
    """A Wyckoff position: space group 1 to 230, letter, form of its first site such as "x,2x,1/4"."""

    group: int
    letter: str
    form: str

    @cached_property
    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """A (3, 3) and b (3,). Raises ValueError where the form is none."""
        a, b = np.zeros((3, 3)), np.zeros(3)
        parts = self.form.replace(" ", "").split(",")
        if len(parts) != 3 or any(TERM.sub("", p) or not p for p in parts):
            raise ValueError(f"{self.form!r} is no form of a site: expected such as 'x,2x,1/4'")
        for axis, part in enumerate(parts):
            for sign, over, under, times, letter, whole in TERM.findall(part):
                s = -1 if sign == "-" else 1
                if letter:
                    a[axis, "xyz".index(letter)] += s * int(times or 1)
                else:
                    b[axis] += s * (int(over) / int(under) if over else int(whole))
        return a, b

    @cached_property
    def free(self) -> np.ndarray:
        """(3,) bool: which of u the position reads."""
        return self.affine[0].any(0)

    @cached_property
    def maps(self) -> tuple[np.ndarray, np.ndarray]:
        """R (m, 3, 3) and t (m, 3): one operation for each site of the primitive cell, the first the identity."""
        a, b = self.affine
        generic = a @ np.array([0.1234567, 0.3141592, 0.7182818]) + b
        rotations, translations = operations(self.group)
        images = (rotations @ generic + translations) @ np.linalg.inv(primitive(self.group))
        new: list[int] = []
        for k, x in enumerate(images):
            d = images[new] - x
            if not len(new) or np.abs(d - d.round()).max(1).min() > 1e-5:
                new.append(k)
        return rotations[new], translations[new]

    @property
    def multiplicity(self) -> int:
        """Sites in the primitive cell."""
        return len(self.maps[0])


@dataclass(frozen=True)
class Orbits:
    """group: 1 to 230; numbers (M,): atomic number of each orbit; positions: its Wyckoff position; free (M, 3): u in
    [0, 1), 0 where not free; lattice (3, 3): rows a, b, c of the conventional cell, lower triangular, angstrom."""

    group: int
    numbers: np.ndarray
    positions: tuple[Wyckoff, ...]
    free: np.ndarray
    lattice: np.ndarray

    @classmethod
    def of(cls, crystal: Crystal, symprec: tuple[float, ...] = SYMPREC) -> "Orbits":
        """The orbits of a primitive crystal, sorted by atomic number, letter and u, by the first tolerance (angstrom)
        that keeps all its sites; they are moved to their symmetric places. Raises CrystalError where there is none."""
        for tolerance in symprec:
            with suppress(ValueError):  # of moyopy too, where the tolerance is too large or too small
                return cls._of(crystal, dataset(crystal, tolerance))
        raise CrystalError(f"{crystal!r} has no symmetry within {symprec} angstrom: is it a primitive cell?")

    @classmethod
    def _of(cls, crystal: Crystal, found: "MoyoDataset") -> "Orbits":
        standard, prim = found.std_cell, found.prim_std_cell
        if len(prim.numbers) != len(crystal):
            raise CrystalError(f"{crystal!r} is not primitive: {len(prim.numbers)} sites are")
        sites = np.array(prim.positions) @ np.array(prim.basis) @ np.linalg.inv(standard.basis)
        where, forms = np.array(found.mapping_std_prim), _forms(found)
        rows = []
        for orbit in sorted(set(found.orbits)):
            members = [i for i, o in enumerate(found.orbits) if o == orbit]
            position = Wyckoff(found.number, found.wyckoffs[orbit], forms[found.wyckoffs[orbit]])
            if len(members) != position.multiplicity:
                raise CrystalError(f"an orbit of {len(members)} sites at {position.group}{position.letter}")
            u = _coordinates(position, sites[where[members]])
            rows.append((int(crystal.numbers[orbit]), position.letter, tuple(u), position))
        rows.sort(key=lambda r: r[:3])
        numbers, _, free, positions = zip(*rows, strict=True)
        lattice = symmetric(np.array(standard.basis), found.number)
        return cls(found.number, np.array(numbers), positions, np.array(free), lattice)

    @property
    def crystal(self) -> Crystal:
        """Its primitive cell, not yet reduced."""
        basis = primitive(self.group)
        numbers, fractional = [], []
        for z, position, u in zip(self.numbers, self.positions, self.free, strict=True):
            a, b = position.affine
            rotations, translations = position.maps
            fractional.append((rotations @ (a @ u + b) + translations) @ np.linalg.inv(basis))
            numbers += [int(z)] * position.multiplicity
        fractional = np.concatenate(fractional)
        return Crystal(np.array(numbers), fractional - np.floor(fractional), basis @ self.lattice)


_FORMS: dict[tuple[int, str], str] = {}


def _forms(found: "MoyoDataset") -> dict[str, str]:
    """Letter -> form of the positions that a dataset names; moyopy takes its time to tell, so they are kept."""
    from moyopy import MoyoDataset

    letters = set(found.wyckoffs)
    if any((found.number, letter) not in _FORMS for letter in letters):
        exact = MoyoDataset(found.prim_std_cell, symprec=EXACT)  # a rough cell's tolerance may be refused
        for _, sites in exact.normalizer_wyckoff_positions().coset_representatives:  # exact may swap a and b
            _FORMS.update({(exact.number, w.letter): w.coordinates for w in sites})
    return {letter: _FORMS.get((found.number, letter), "") for letter in letters}


def _coordinates(position: Wyckoff, sites: np.ndarray) -> np.ndarray:
    """u (3,) in [0, 1) of the first in order of the orbit's sites (m, 3) that has the position's form."""
    a, b = position.affine
    inverse = np.linalg.pinv(a)
    shifts = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T
    x = (sites[:, None, None] + centrings(position.group)[:, None] + shifts).reshape(-1, 3)
    u = (x - b) @ inverse.T
    on = np.abs(u @ a.T + b - x).max(1) < ON_FORM
    if not on.any():
        raise CrystalError(f"no site of the orbit has the form {position.form} of {position.group}{position.letter}")
    u = u[on] - np.floor(u[on] + 1e-6)
    u = np.where(position.free, u.clip(0), 0)
    return u[np.lexsort(u.round(4).T[::-1])[0]]
