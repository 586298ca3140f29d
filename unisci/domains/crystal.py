"""Crystals: pymatgen, ASE and CIF in, a Batch, and back.

A Crystal is a cell and its sites, no more: labels, charges, magnetic moments and disorder are not kept. Networks see
the Niggli-reduced primitive cell, turned so that its lattice is lower triangular: a = (ax, 0, 0), b = (bx, by, 0),
c = (cx, cy, cz), with ax, by, cz > 0. That fixes the frame, so a generated crystal has no orientation to learn.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from unisci.batch import Batch, Field, Schema
from unisci.lattice import cell_matrix, cell_numbers

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.core import Structure

# fmt: off
ELEMENTS = (
    "H", "He", "Li", "Be", "B", "C", "N", "O", "F", "Ne", "Na", "Mg", "Al", "Si", "P", "S", "Cl", "Ar", "K", "Ca",
    "Sc", "Ti", "V", "Cr", "Mn", "Fe", "Co", "Ni", "Cu", "Zn", "Ga", "Ge", "As", "Se", "Br", "Kr", "Rb", "Sr", "Y",
    "Zr", "Nb", "Mo", "Tc", "Ru", "Rh", "Pd", "Ag", "Cd", "In", "Sn", "Sb", "Te", "I", "Xe", "Cs", "Ba", "La", "Ce",
    "Pr", "Nd", "Pm", "Sm", "Eu", "Gd", "Tb", "Dy", "Ho", "Er", "Tm", "Yb", "Lu", "Hf", "Ta", "W", "Re", "Os", "Ir",
    "Pt", "Au", "Hg", "Tl", "Pb", "Bi", "Po", "At", "Rn", "Fr", "Ra", "Ac", "Th", "Pa", "U", "Np", "Pu", "Am", "Cm",
    "Bk", "Cf", "Es", "Fm",
)
# fmt: on
MAX_SITES = 64
SMALLEST_VOLUME = 0.1  # cubic angstrom a site; the densest solids have about 5
CRYSTAL_FIELDS: Schema = {
    "atom": Field("site", (), ELEMENTS),
    "position": Field("site", (3,)),
    "cell": Field("whole", (6,)),
}


class CrystalError(ValueError):
    """A structure that cannot be held as a Crystal; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Crystal:
    """numbers (n,): atomic numbers; fractional (n, 3) in [0, 1); lattice (3, 3): rows a, b, c in angstrom.

    Raises CrystalError where the shapes differ, a number is no element of ELEMENTS, a value is not finite, or the cell
    has no volume.
    """

    numbers: np.ndarray
    fractional: np.ndarray
    lattice: np.ndarray

    def __post_init__(self) -> None:
        numbers = np.asarray(self.numbers, np.int64)
        fractional, lattice = (np.asarray(v, np.float64) for v in (self.fractional, self.lattice))
        n = len(numbers)
        if n == 0 or numbers.shape != (n,) or fractional.shape != (n, 3) or lattice.shape != (3, 3):
            raise CrystalError(
                f"shapes {numbers.shape}, {fractional.shape}, {lattice.shape} are not (n,), (n, 3), (3, 3)"
            )
        if not (np.isfinite(fractional).all() and np.isfinite(lattice).all()):
            raise CrystalError("a coordinate or the cell is not finite")
        if numbers.min() < 1 or numbers.max() > len(ELEMENTS):
            raise CrystalError(
                f"atomic numbers from {numbers.min()} to {numbers.max()}, known are 1 to {len(ELEMENTS)}"
            )
        volume = abs(float(np.linalg.det(lattice)))
        if volume < SMALLEST_VOLUME * n:
            raise CrystalError(f"the cell has a volume of {volume:.3g} cubic angstrom for {n} sites")
        wrapped = fractional - np.floor(fractional)
        for name, value in (("numbers", numbers), ("fractional", wrapped % 1.0), ("lattice", lattice)):
            object.__setattr__(self, name, value)

    @classmethod
    def from_structure(cls, structure: Structure) -> Crystal:
        """From a pymatgen Structure, whose cell and origin are kept. Raises CrystalError with the reason."""
        if not structure.is_ordered:
            site = next(s for s in structure if not s.is_ordered)
            raise CrystalError(
                f"the site {site.species_string} is partly or jointly occupied: give an ordered structure"
            )
        numbers = [getattr(site.specie, "Z", 0) for site in structure]
        return cls(np.array(numbers), structure.frac_coords, structure.lattice.matrix)

    @classmethod
    def from_cif(cls, source: str | Path) -> Crystal:
        """From a CIF, its text or its path; the first structure in it. Raises CrystalError with the reason."""
        from pymatgen.io.cif import CifParser

        text = Path(source).read_text() if isinstance(source, Path) or "\n" not in source else source
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of rounded coordinates; what cannot be read raises
            try:
                structures = CifParser.from_str(text).parse_structures(primitive=False)
            except Exception as error:
                raise CrystalError(f"not a CIF that pymatgen can read: {error}") from error
        return cls.from_structure(structures[0])

    @classmethod
    def from_ase(cls, atoms: Atoms) -> Crystal:
        """From ASE Atoms. Raises CrystalError with the reason."""
        if not all(atoms.pbc):
            raise CrystalError(f"periodic along {list(atoms.pbc)}: a crystal is periodic along all three axes")
        cell = np.array(atoms.cell)
        if abs(np.linalg.det(cell)) < 1e-9:
            raise CrystalError("the cell has no volume")
        return cls(atoms.numbers, atoms.get_scaled_positions(wrap=False), cell)

    @cached_property
    def structure(self) -> Structure:
        """As a pymatgen Structure."""
        from pymatgen.core import Structure

        return Structure(self.lattice, self.numbers, self.fractional)

    @property
    def atoms(self) -> Atoms:
        """As ASE Atoms."""
        from ase import Atoms

        return Atoms(self.numbers, scaled_positions=self.fractional, cell=self.lattice, pbc=True)

    @property
    def cif(self) -> str:
        """As the text of a CIF in P1, ten digits."""
        from pymatgen.io.cif import CifWriter

        return str(CifWriter(self.structure, significant_figures=10))

    @property
    def formula(self) -> str:
        """Reduced formula, such as SrTiO3."""
        return self.structure.composition.reduced_formula

    @property
    def volume(self) -> float:
        """Cubic angstrom."""
        return abs(float(np.linalg.det(self.lattice)))

    @property
    def density(self) -> float:
        """Grams a cubic centimetre."""
        return float(self.structure.density)

    def __len__(self) -> int:
        return len(self.numbers)

    def __repr__(self) -> str:
        return f"Crystal({self.formula}, {len(self)} sites, {self.volume:.1f} A^3)"

    def reduced(self, tolerance: float = 0.01) -> Crystal:
        """The Niggli-reduced primitive cell, its lattice lower triangular with a positive diagonal.

        tolerance: how far, in angstrom, sites may be from being translations of each other (spglib's symprec).
        """
        import spglib

        found = spglib.find_primitive((self.lattice, self.fractional, self.numbers), symprec=tolerance)
        lattice, fractional, numbers = found if found is not None else (self.lattice, self.fractional, self.numbers)
        return Crystal(numbers, fractional, lattice).niggli()

    def niggli(self) -> Crystal:
        """The same sites in the Niggli-reduced cell, its lattice lower triangular with a positive diagonal."""
        import spglib

        niggli = spglib.niggli_reduce(self.lattice)
        niggli = self.lattice if niggli is None else niggli
        niggli = -niggli if np.linalg.det(niggli) < 0 else niggli
        # Rotated to lower triangular: L L^T is the Gram matrix of any of its orientations.
        return Crystal(
            self.numbers, self.fractional @ self.lattice @ np.linalg.inv(niggli), np.linalg.cholesky(niggli @ niggli.T)
        )

    @staticmethod
    def batch(crystals: Sequence[Crystal]) -> Batch:
        """Padded tensors of CRYSTAL_FIELDS, in float32. The lattices must be lower triangular, see `reduced`.

        Raises CrystalError for another lattice and for more than MAX_SITES sites, naming the crystal.
        """
        for i, c in enumerate(crystals):
            if np.abs(np.triu(c.lattice, 1)).max() > 1e-6 * c.volume ** (1 / 3) or np.diag(c.lattice).min() <= 0:
                raise CrystalError(f"the lattice of crystal {i} is not lower triangular: take .reduced() of it")
            if len(c) > MAX_SITES:
                raise CrystalError(f"crystal {i} has {len(c)} sites, the limit is {MAX_SITES}")
        b, n = len(crystals), max(map(len, crystals), default=0)
        atom, position = torch.zeros(b, n, dtype=torch.long), torch.zeros(b, n, 3)
        mask = torch.zeros(b, n, dtype=torch.bool)
        for i, c in enumerate(crystals):
            atom[i, : len(c)] = torch.from_numpy(c.numbers - 1)
            position[i, : len(c)] = torch.from_numpy(c.fractional)
            mask[i, : len(c)] = True
        lattices = torch.from_numpy(np.stack([c.lattice for c in crystals]))
        cell = cell_numbers(lattices, mask.sum(1)).float()
        return Batch(CRYSTAL_FIELDS, {"atom": atom, "position": position, "cell": cell}, mask)

    @staticmethod
    def unbatch(batch: Batch) -> list[Crystal]:
        """The crystals of a batch. Raises CrystalError where one has no element at a site or no finite cell."""
        lattices = cell_matrix(batch.state["cell"].double(), batch.sites).cpu().numpy()
        atom, position, mask = (
            v.cpu().numpy() for v in (batch.state["atom"], batch.state["position"].double(), batch.mask)
        )
        return [Crystal(atom[i, m] + 1, position[i, m], lattices[i]) for i, m in enumerate(mask)]


def parse_formula(formula: str) -> dict[int, int]:
    """Atomic number -> count of a formula such as "SrTiO3" or "Ca(OH)2". Raises CrystalError with the reason."""
    from pymatgen.core import Composition

    try:
        counts = Composition(formula, strict=True).as_dict()
    except (ValueError, KeyError) as error:
        raise CrystalError(f"{formula!r} is not a formula: {error}") from error
    out = {}
    for symbol, count in counts.items():
        if symbol not in ELEMENTS:
            raise CrystalError(f"{formula!r} has the element {symbol!r}, known are {ELEMENTS[0]} to {ELEMENTS[-1]}")
        if count != round(count) or count < 1:
            raise CrystalError(f"{formula!r} has {count:g} {symbol}: counts must be whole numbers from 1 on")
        out[ELEMENTS.index(symbol) + 1] = round(count)
    if sum(out.values()) > MAX_SITES:
        raise CrystalError(f"{formula!r} has {sum(out.values())} atoms, the limit is {MAX_SITES}")
    return out


def sites_of(counts: dict[int, int]) -> np.ndarray:
    """Atomic numbers, one a site, of counts by atomic number."""
    return np.repeat(list(counts), list(counts.values()))
