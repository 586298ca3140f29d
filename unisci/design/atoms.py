"""Wants of atoms and bonds, joined by `&` with others (`unisci.design.targets`):

Without("F") & Contains("N", 2) & Keep("c1ccccc1")
Formula("C7H10O2")
Composition("C4N")
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from unisci.design.formulas import all_atoms, check_element, distance, heavy, heavy_atoms, parse_formula, plain
from unisci.design.wants import Want, both
from unisci.domains.molecule import Molecule, MoleculeError


@dataclass(frozen=True)
class Contains(Want):
    """`least` atoms or more of an element. Raises ValueError for an unknown element, and where least is no count."""

    element: str
    least: int = 1

    def __post_init__(self) -> None:
        check_element(self.element)
        if not self.least >= 1 or self.least % 1:
            raise ValueError(f"least must be a whole number from 1 on, got {self.least}")

    @property
    def needs(self) -> Counter[str]:
        return Counter({self.element: self.least})

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.array([max(0, self.least - heavy_atoms(m)[self.element]) for m in molecules], float)

    def __str__(self) -> str:
        return f"contains {self.element}" if self.least == 1 else f"contains {self.least} {self.element}"


@dataclass(frozen=True)
class Without(Want):
    """No atom of an element: never drawn at all. Raises ValueError for an unknown element."""

    element: str

    def __post_init__(self) -> None:
        check_element(self.element)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.array([heavy_atoms(m)[self.element] for m in molecules], float)

    def clash(self, other: Want) -> str | None:
        return both(self, other) if self.element in other.needs else None

    def __str__(self) -> str:
        return f"without {self.element}"


@dataclass(frozen=True)
class Formula(Want):
    """Exactly this molecular formula, hydrogens included: Formula("C6H6O"). Raises ValueError where it is none."""

    formula: str

    def __post_init__(self) -> None:
        parse_formula(self.formula)

    @property
    def needs(self) -> Counter[str]:
        return heavy(parse_formula(self.formula))

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """How many atoms are missing or too many."""
        wanted = parse_formula(self.formula)
        return np.array([np.nan if m.rdkit is None else distance(all_atoms(m), wanted) for m in molecules])

    def clash(self, other: Want) -> str | None:
        another = isinstance(other, Formula) and parse_formula(self.formula) != parse_formula(other.formula)
        return both(self, other) if another or other.needs - self.needs else None

    def __str__(self) -> str:
        return f"formula {self.formula}"


@dataclass(frozen=True)
class Composition(Want):
    """Heavy atoms in the proportions of a formula, in any number: Composition("C4N") is met by 4 C and 1 N, 8 C and 2
    N. Raises ValueError where it is no formula, or one of hydrogen alone."""

    formula: str

    def __post_init__(self) -> None:
        if not self.needs:
            raise ValueError(f"a composition counts heavy atoms, which {self.formula!r} has none of")

    @property
    def needs(self) -> Counter[str]:
        """The least whole numbers in these proportions."""
        counts = heavy(parse_formula(self.formula))
        return Counter({k: n // math.gcd(*counts.values()) for k, n in counts.items()})

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """How many atoms are missing or too many for the nearest multiple."""
        unit, out = self.needs, []
        for found in map(heavy_atoms, molecules):
            multiples = ({k: n * v for k, n in unit.items()} for v in range(1, sum(found.values()) + 2))
            out.append(min(distance(found, Counter(m)) for m in multiples))
        return np.array(out, float)

    def __str__(self) -> str:
        return f"composition {self.formula}"


@dataclass(frozen=True)
class Keep(Want):
    """Grown from a scaffold, whose atoms and bonds stay as they are; new atoms bond to it where valence allows.

    scaffold: SMILES. Raises ValueError where it cannot be held.
    """

    scaffold: str

    def __post_init__(self) -> None:
        _ = self.molecule

    @property
    def molecule(self) -> Molecule:
        try:
            return Molecule.from_smiles(self.scaffold)
        except MoleculeError as error:
            raise ValueError(f"the scaffold {self.scaffold!r} cannot be kept: {error}") from error

    @property
    def needs(self) -> Counter[str]:
        return heavy_atoms(self.molecule)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """0 where the scaffold is a substructure, aromatic or as its Kekule bonds, else 1."""
        aromatic, kekule = Chem.MolFromSmiles(self.scaffold), plain(self.molecule)
        there = lambda m: m.rdkit.HasSubstructMatch(aromatic) or plain(m).HasSubstructMatch(kekule)
        return np.array([np.nan if m.rdkit is None else float(not there(m)) for m in molecules])

    def clash(self, other: Want) -> str | None:
        return both(self, other) if isinstance(other, Keep) else None

    def __str__(self) -> str:
        return f"keep {self.scaffold}"
