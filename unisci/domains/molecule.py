"""Molecules as graphs with kekulised bonds, flat or in space: SMILES and RDKit objects in, a Batch, and back.

Hydrogens are implicit, or all of them are sites of the class "H". Stereochemistry and isotopes are not kept, but where
there are positions these say which stereoisomer it is. An atom class is an element with its formal charge, written "N"
or "N+1". A Molecule always exists, valid or not: `reason` says why RDKit refuses it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from rdkit import Chem

from unisci.batch import Batch, Field, Schema
from unisci.domains import molecule_rdkit
from unisci.domains.molecule_rdkit import MAX_ATOMS, MoleculeError, parse_class

__all__ = ["BONDS", "MAX_ATOMS", "POSITION", "Molecule", "MoleculeError", "atom_classes", "parse_class", "schema"]

BONDS = ("none", "single", "double", "triple")
POSITION = Field("site", (3,))  # angstrom, the mean of the sites 0


@dataclass(frozen=True, eq=False)
class Molecule:
    """atoms: class names, one per site; bonds (n, n) int8, symmetric, 0-3 = bond order; positions (C, n, 3) float64 in
    angstrom, one conformer each, None where there is none.

    Sites are the heavy atoms, or all atoms: one "H" among them makes the molecule complete, so that no other hydrogen
    is added to any atom. Raises ValueError where the shapes differ.
    """

    atoms: tuple[str, ...]
    bonds: np.ndarray
    positions: np.ndarray | None = None

    def __post_init__(self) -> None:
        n = len(self.atoms)
        if self.bonds.shape != (n, n):
            raise ValueError(f"bonds have shape {self.bonds.shape}, expected ({n}, {n}) for {n} atoms")
        if self.positions is not None:
            positions = np.asarray(self.positions, np.float64)
            if positions.ndim != 3 or positions.shape[1:] != (n, 3):
                raise ValueError(f"positions have shape {positions.shape}, expected (conformers, {n}, 3)")
            object.__setattr__(self, "positions", positions if len(positions) else None)

    @classmethod
    def from_smiles(cls, smiles: str, hydrogens: bool = False) -> "Molecule":
        """Parse one SMILES; hydrogens: all of them as sites. Raises MoleculeError where it cannot be held."""
        return cls.from_rdkit(molecule_rdkit.parse_smiles(smiles), hydrogens)

    @classmethod
    def from_rdkit(cls, mol: Chem.Mol, hydrogens: bool = False) -> "Molecule":
        """From an RDKit molecule of one fragment with its 3D conformers; hydrogens: all of them as sites, those that
        are implicit in `mol` last. Raises MoleculeError with the reason where it cannot be held."""
        return cls(*molecule_rdkit.from_rdkit(mol, hydrogens))

    @classmethod
    def from_text(cls, atoms: str, bonds: str) -> "Molecule":
        """From the two texts of `to_text`."""
        names = tuple(atoms.split())
        matrix = np.zeros((len(names), len(names)), np.int8)
        for bond in bonds.split():
            i, j, order = (int(v) for v in bond.replace(":", "-").split("-"))
            matrix[i, j] = matrix[j, i] = order
        return cls(names, matrix)

    def to_text(self) -> tuple[str, str]:
        """The graph as two texts, valid or not: atoms "C C N+1", bonds "0-1:1 1-2:2" as site-site:order."""
        pairs = zip(*np.nonzero(np.triu(self.bonds)), strict=True)
        return " ".join(self.atoms), " ".join(f"{i}-{j}:{self.bonds[i, j]}" for i, j in pairs)

    def with_positions(self, positions: np.ndarray | None) -> "Molecule":
        """The same graph with other positions: (C, n, 3), or (n, 3) for one conformer, or None."""
        positions = None if positions is None else np.asarray(positions, np.float64)
        return replace(self, positions=positions[None] if positions is not None and positions.ndim == 2 else positions)

    def add_hydrogens(self) -> "Molecule":
        """With all hydrogens as sites after the heavy atoms, which keep their positions; RDKit places the hydrogens.

        Raises MoleculeError where the molecule is not valid.
        """
        if self.rdkit is None:
            raise MoleculeError(f"an invalid molecule has no hydrogens to add: {self.reason}")
        return self if self.explicit else Molecule.from_rdkit(self.rdkit, hydrogens=True)

    def heavy(self) -> "Molecule":
        """Without the "H" sites, valid or not."""
        keep = [k for k, name in enumerate(self.atoms) if parse_class(name)[0] != "H"]
        positions = None if self.positions is None else self.positions[:, keep]
        return Molecule(tuple(self.atoms[k] for k in keep), self.bonds[np.ix_(keep, keep)], positions)

    @property
    def conformers(self) -> int:
        """Number of conformers."""
        return 0 if self.positions is None else len(self.positions)

    @property
    def explicit(self) -> bool:
        """Whether all hydrogens are sites: there are "H" sites, or a valid molecule needs none."""
        if molecule_rdkit.has_hydrogens(self.atoms):
            return True
        return self.rdkit is not None and not any(a.GetTotalNumHs() for a in self.rdkit.GetAtoms())

    @cached_property
    def _checked(self) -> tuple[Chem.Mol | None, str | None]:
        return molecule_rdkit.to_rdkit(self.atoms, self.bonds, self.positions)

    @property
    def rdkit(self) -> Chem.Mol | None:
        """The sanitised RDKit molecule with its conformers, None where `reason` says why there is none."""
        return self._checked[0]

    @property
    def reason(self) -> str | None:
        """Why it is not a valid molecule (sanitises, one fragment, finite positions), None where it is.

        One with hydrogens as sites is not where an atom lacks a bond: "unfinished: C at 3 has 3 of 4 bonds".
        """
        return self._checked[1]

    @cached_property
    def smiles(self) -> str | None:
        """Canonical SMILES, hydrogens implicit; None where invalid."""
        if self.rdkit is None:
            return None
        explicit = molecule_rdkit.has_hydrogens(self.atoms)
        return Chem.MolToSmiles(molecule_rdkit.without_hydrogens(self.rdkit) if explicit else self.rdkit)

    def __repr__(self) -> str:
        return f"Molecule({self.smiles or 'invalid: ' + str(self.reason)})"

    def _repr_svg_(self) -> str | None:
        return None if self.rdkit is None else molecule_rdkit.picture(self.rdkit)

    @staticmethod
    def batch(items: Sequence["Molecule"], classes: tuple[str, ...] | None = None, sites: int | None = None) -> Batch:
        """Dense batch of fields "atom" (B, N) and "bond" (B, N, N); `classes`: by default those present, by count.

        Where all have positions also "position" (B, N, 3): the first conformer, the mean of the sites at 0. Raises
        ValueError where an atom class is not in `classes`, or a molecule has more than `sites` atoms.
        """
        if not items:
            raise ValueError("an empty list of molecules cannot be batched")
        classes = classes or atom_classes(items)
        index = {name: k for k, name in enumerate(classes)}
        n = sites or max(len(m.atoms) for m in items)
        atom = np.zeros((len(items), n), np.int64)
        bond = np.zeros((len(items), n, n), np.int64)
        mask = np.zeros((len(items), n), bool)
        for row, m in enumerate(items):
            k = len(m.atoms)
            if k > n or not set(m.atoms) <= index.keys():
                unknown = sorted(set(m.atoms) - index.keys())
                raise ValueError(
                    f"molecule {row}: unknown atoms {unknown}" if unknown else f"molecule {row} has {k} > {n} atoms"
                )
            atom[row, :k] = [index[a] for a in m.atoms]
            bond[row, :k, :k] = m.bonds
            mask[row, :k] = True
        state = {"atom": torch.from_numpy(atom), "bond": torch.from_numpy(bond)}
        fields = schema(classes)
        if all(m.conformers for m in items):
            position = np.zeros((len(items), n, 3), np.float32)
            for row, m in enumerate(items):
                position[row, : len(m.atoms)] = m.positions[0] - m.positions[0].mean(0)
            state["position"], fields["position"] = torch.from_numpy(position), POSITION
        return Batch(fields, state, torch.from_numpy(mask))

    @staticmethod
    def unbatch(batch: Batch) -> list["Molecule"]:
        """The molecules of a batch, one per sample, valid or not; with positions where the state has them."""
        classes = batch.schema["atom"].classes
        atom, bond = batch.state["atom"].cpu().numpy(), batch.state["bond"].cpu().numpy().astype(np.int8)
        keep = batch.mask.cpu().numpy()
        placed = "position" in batch.state
        position = batch.state["position"].double().cpu().numpy() if placed else [None] * len(atom)
        return [
            Molecule(tuple(classes[k] for k in a[m]), np.ascontiguousarray(e[m][:, m]), x[m][None] if placed else None)
            for a, e, x, m in zip(atom, bond, position, keep, strict=True)
        ]


def schema(classes: tuple[str, ...]) -> Schema:
    """The fields of a molecular graph; "degree" and "rank" are conditions of block-autoregressive models."""
    return {
        "atom": Field("site", classes=tuple(classes)),
        "bond": Field("pair", classes=BONDS),
        "degree": Field("site"),
        "rank": Field("site"),
    }


def atom_classes(items: Iterable[Molecule]) -> tuple[str, ...]:
    """The atom classes of the molecules, most frequent first, ties by name."""
    counts = Counter(a for m in items for a in m.atoms)
    return tuple(sorted(counts, key=lambda a: (-counts[a], a)))
