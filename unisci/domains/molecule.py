"""Molecules as heavy-atom graphs with kekulised bonds: SMILES and RDKit objects in, a Batch, and back.

Hydrogens are implicit; stereochemistry and isotopes are not kept. An atom class is an element with its formal charge,
written "N" or "N+1". A Molecule always exists, valid or not: `reason` says why RDKit refuses it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from rdkit import Chem, rdBase

from unisci.batch import Batch, Field, Schema

BONDS = ("none", "single", "double", "triple")
_BOND_TYPES = (None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
_ORDER = {Chem.BondType.SINGLE: 1, Chem.BondType.DOUBLE: 2, Chem.BondType.TRIPLE: 3}
MAX_ATOMS = 64


class MoleculeError(ValueError):
    """A SMILES or RDKit molecule that cannot be held as a heavy-atom graph; the message is the reason."""


@dataclass(frozen=True, eq=False)
class Molecule:
    """atoms: class names, one per heavy atom; bonds (n, n) int8, symmetric, 0-3 = bond order."""

    atoms: tuple[str, ...]
    bonds: np.ndarray

    def __post_init__(self) -> None:
        n = len(self.atoms)
        if self.bonds.shape != (n, n):
            raise ValueError(f"bonds have shape {self.bonds.shape}, expected ({n}, {n}) for {n} atoms")

    @classmethod
    def from_smiles(cls, smiles: str) -> "Molecule":
        """Parse one SMILES. Raises MoleculeError with the reason where it cannot be held."""
        with rdBase.BlockLogs():
            mol = Chem.MolFromSmiles(smiles)
        if mol is None:
            raise MoleculeError("RDKit cannot parse it")
        return cls.from_rdkit(mol)

    @classmethod
    def from_rdkit(cls, mol: Chem.Mol) -> "Molecule":
        """From an RDKit molecule of one fragment. Raises MoleculeError with the reason where it cannot be held."""
        with rdBase.BlockLogs():
            try:
                mol = Chem.RemoveHs(Chem.Mol(mol))
            except Chem.MolSanitizeException as error:
                raise MoleculeError(f"sanitising: {error}") from error
        n = mol.GetNumAtoms()
        if not 1 <= n <= MAX_ATOMS:
            raise MoleculeError(f"{n} heavy atoms, the limit is {MAX_ATOMS}")
        if len(Chem.GetMolFrags(mol)) > 1:
            raise MoleculeError("more than one fragment")
        for atom in mol.GetAtoms():
            if atom.GetAtomicNum() < 2:
                raise MoleculeError("a hydrogen or dummy atom that cannot be made implicit")
            if atom.GetNumRadicalElectrons():
                raise MoleculeError("radical electrons")
        try:
            Chem.Kekulize(mol, clearAromaticFlags=True)
        except Chem.KekulizeException as error:
            raise MoleculeError("cannot be kekulised") from error
        bonds = np.zeros((n, n), np.int8)
        for bond in mol.GetBonds():
            if bond.GetBondType() not in _ORDER:
                raise MoleculeError(f"a bond of type {bond.GetBondType()}")
            i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
            bonds[i, j] = bonds[j, i] = _ORDER[bond.GetBondType()]
        return cls(tuple(_atom_class(a) for a in mol.GetAtoms()), bonds)

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

    @cached_property
    def _checked(self) -> tuple[Chem.Mol | None, str | None]:
        mol = Chem.RWMol()
        for name in self.atoms:
            symbol, charge = parse_class(name)
            with rdBase.BlockLogs():
                try:
                    atom = Chem.Atom(symbol)
                except RuntimeError:
                    return None, f"unknown element {symbol!r}"
            atom.SetFormalCharge(charge)
            mol.AddAtom(atom)
        for i, j in zip(*np.nonzero(np.tril(self.bonds)), strict=True):
            mol.AddBond(int(i), int(j), _BOND_TYPES[self.bonds[i, j]])
        with rdBase.BlockLogs():
            try:
                Chem.SanitizeMol(mol)
            except Chem.MolSanitizeException as error:
                return None, f"sanitising: {type(error).__name__.removesuffix('Exception')}"
        if len(Chem.GetMolFrags(mol)) != 1:
            return None, "fragments" if self.atoms else "no atoms"
        return mol.GetMol(), None

    @property
    def rdkit(self) -> Chem.Mol | None:
        """The sanitised RDKit molecule, None where `reason` says why there is none."""
        return self._checked[0]

    @property
    def reason(self) -> str | None:
        """Why the graph is not a valid molecule (sanitises, one fragment), None where it is."""
        return self._checked[1]

    @cached_property
    def smiles(self) -> str | None:
        """Canonical SMILES, None where invalid."""
        return None if self.rdkit is None else Chem.MolToSmiles(self.rdkit)

    def __repr__(self) -> str:
        return f"Molecule({self.smiles or 'invalid: ' + str(self.reason)})"

    def _repr_svg_(self) -> str | None:
        from rdkit.Chem.Draw import rdMolDraw2D

        if self.rdkit is None:
            return None
        drawer = rdMolDraw2D.MolDraw2DSVG(220, 160)
        rdMolDraw2D.PrepareAndDrawMolecule(drawer, self.rdkit)
        drawer.FinishDrawing()
        return drawer.GetDrawingText()

    @staticmethod
    def batch(items: Sequence["Molecule"], classes: tuple[str, ...] | None = None, sites: int | None = None) -> Batch:
        """Dense batch of fields "atom" (B, N) and "bond" (B, N, N); `classes`: by default those present, by count.

        Raises ValueError where an atom class is not in `classes`, or a molecule has more than `sites` atoms.
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
        return Batch(schema(classes), state, torch.from_numpy(mask))

    @staticmethod
    def unbatch(batch: Batch) -> list["Molecule"]:
        """The molecules of a batch, one per sample, valid or not."""
        classes = batch.schema["atom"].classes
        atom, bond = batch.state["atom"].cpu().numpy(), batch.state["bond"].cpu().numpy().astype(np.int8)
        keep = batch.mask.cpu().numpy()
        return [
            Molecule(tuple(classes[k] for k in a[m]), np.ascontiguousarray(e[m][:, m]))
            for a, e, m in zip(atom, bond, keep, strict=True)
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


def parse_class(name: str) -> tuple[str, int]:
    """("N", 1) from "N+1"."""
    symbol = name.rstrip("+-0123456789")
    return symbol, int(name[len(symbol) :] or 0)


def _atom_class(atom: Chem.Atom) -> str:
    charge = atom.GetFormalCharge()
    return atom.GetSymbol() + (f"{charge:+d}" if charge else "")
