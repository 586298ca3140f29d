"""Formulas and counts of atoms: what wants of elements and graphs are measured by."""

import re
from collections import Counter

import numpy as np
from rdkit import Chem

from unisci.domains.molecule import Molecule, parse_class

ELEMENTS = frozenset(Chem.GetPeriodicTable().GetElementSymbol(k) for k in range(1, 119))


def check_element(symbol: str) -> None:
    """Raise ValueError where there is no such element."""
    if symbol not in ELEMENTS:
        raise ValueError(f"unknown element {symbol!r}: write its symbol, as in 'Cl'")


def parse_formula(formula: str) -> Counter[str]:
    """Counter(C=6, H=6, O=1) of "C6H6O". Raises ValueError where it is not a formula of known elements."""
    if not re.fullmatch(r"([A-Z][a-z]?[0-9]*)+", formula):
        raise ValueError(f"{formula!r} is not a formula such as C6H6O")
    counts: Counter[str] = Counter()
    for symbol, number in re.findall(r"([A-Z][a-z]?)([0-9]*)", formula):
        check_element(symbol)
        counts[symbol] += int(number or 1)
    return +counts


def heavy(counts: Counter[str]) -> Counter[str]:
    """The counts but for hydrogen's."""
    return Counter({k: n for k, n in counts.items() if k != "H"})


def heavy_atoms(molecule: Molecule) -> Counter[str]:
    """Atoms by element, hydrogens left out; of an invalid molecule too."""
    return Counter(parse_class(a)[0] for a in molecule.atoms)


def all_atoms(molecule: Molecule) -> Counter[str]:
    """Atoms by element of a valid molecule, implicit hydrogens counted."""
    return heavy_atoms(molecule) + Counter(H=sum(a.GetTotalNumHs() for a in molecule.rdkit.GetAtoms()))


def distance(a: Counter[str], b: Counter[str]) -> int:
    """How many atoms must go or come to make one of the other."""
    return sum(abs(a[k] - b[k]) for k in a.keys() | b.keys())


def plain(molecule: Molecule) -> Chem.Mol:
    """Elements, charges and Kekule bonds alone, nothing perceived, to be matched as a graph."""
    mol = Chem.RWMol()
    for name in molecule.atoms:
        symbol, charge = parse_class(name)
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        mol.AddAtom(atom)
    for i, j in zip(*np.nonzero(np.tril(molecule.bonds)), strict=True):
        mol.AddBond(int(i), int(j), (None, *map(Chem.BondType.values.get, (1, 2, 3)))[molecule.bonds[i, j]])
    return mol.GetMol()
