"""What a Molecule holds from and to RDKit: atom classes, kekulised bonds, positions; hydrogens implicit or as sites."""

from collections.abc import Sequence

import numpy as np
from rdkit import Chem, rdBase
from rdkit.Chem import rdDetermineBonds

MAX_ATOMS = 64
_BOND_TYPES = (None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)
_TRIALS = 10_000  # of sets of bond orders; one that fits is among the first where there is one
# A bond is at most this times the sum of the covalent radii: 1.3 is too much across cages, less for stretched bonds.
_REACHES = (1.2, 1.15, 1.3)
_ORDER = {kind: order for order, kind in enumerate(_BOND_TYPES) if order}


class MoleculeError(ValueError):
    """A SMILES, RDKit molecule or record that cannot be held as a molecular graph; the message is the reason."""


def parse_class(name: str) -> tuple[str, int]:
    """("N", 1) from "N+1"."""
    symbol = name.rstrip("+-0123456789")
    return symbol, int(name[len(symbol) :] or 0)


def parse_smiles(smiles: str) -> Chem.Mol:
    """The RDKit molecule of one SMILES. Raises MoleculeError where RDKit cannot parse it."""
    with rdBase.BlockLogs():
        mol = Chem.MolFromSmiles(smiles)
    if mol is None:
        raise MoleculeError("RDKit cannot parse it")
    return mol


def from_rdkit(mol: Chem.Mol, hydrogens: bool) -> tuple[tuple[str, ...], np.ndarray, np.ndarray | None]:
    """Atom classes (n,), bonds (n, n) int8, positions (C, n, 3) or None of a molecule of one fragment.

    hydrogens: every hydrogen is a site, those that were implicit last; otherwise none is. Conformers that are not 3D
    are left out. Raises MoleculeError with the reason where it cannot be held.
    """
    with rdBase.BlockLogs():
        try:
            mol = Chem.Mol(mol)
            if hydrogens:
                Chem.SanitizeMol(mol)
            else:
                mol = Chem.RemoveHs(mol)
        except Chem.MolSanitizeException as error:
            raise MoleculeError(f"sanitising: {error}") from error
    _refuse(mol, hydrogens)
    if hydrogens:
        mol = Chem.AddHs(mol, addCoords=True)
    try:
        Chem.Kekulize(mol, clearAromaticFlags=True)
    except Chem.KekulizeException as error:
        raise MoleculeError("cannot be kekulised") from error
    n = mol.GetNumAtoms()
    bonds = np.zeros((n, n), np.int8)
    for bond in mol.GetBonds():
        if bond.GetBondType() not in _ORDER:
            raise MoleculeError(f"a bond of type {bond.GetBondType()}")
        i, j = bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()
        bonds[i, j] = bonds[j, i] = _ORDER[bond.GetBondType()]
    conformers = [c.GetPositions() for c in mol.GetConformers() if c.Is3D()]
    return tuple(_atom_class(a) for a in mol.GetAtoms()), bonds, np.stack(conformers) if conformers else None


def to_rdkit(
    atoms: tuple[str, ...], bonds: np.ndarray, positions: np.ndarray | None
) -> tuple[Chem.Mol | None, str | None]:
    """The sanitised molecule and None, or None and the reason why there is none.

    Where a site is a hydrogen the molecule is read as complete, so no atom gets a hydrogen beside those given.
    """
    mol = Chem.RWMol()
    complete = has_hydrogens(atoms)
    for name in atoms:
        symbol, charge = parse_class(name)
        with rdBase.BlockLogs():
            try:
                atom = Chem.Atom(symbol)
            except RuntimeError:
                return None, f"unknown element {symbol!r}"
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(complete)
        mol.AddAtom(atom)
    for i, j in zip(*np.nonzero(np.tril(bonds)), strict=True):
        mol.AddBond(int(i), int(j), _BOND_TYPES[bonds[i, j]])
    with rdBase.BlockLogs():
        try:
            Chem.SanitizeMol(mol)
        except Chem.MolSanitizeException as error:
            return None, f"sanitising: {type(error).__name__.removesuffix('Exception')}"
    if len(Chem.GetMolFrags(mol)) != 1:
        return None, "fragments" if atoms else "no atoms"
    for atom in mol.GetAtoms() if complete else ():
        if missing := atom.GetNumRadicalElectrons():
            has, k = atom.GetTotalValence(), atom.GetIdx()
            return None, f"unfinished: {atoms[k]} at {k} has {has} of {has + missing} bonds"
    if positions is not None and not np.isfinite(positions).all():
        return None, "a position is not finite"
    for xyz in () if positions is None else positions:
        conformer = Chem.Conformer(len(atoms))
        conformer.SetPositions(xyz)
        mol.AddConformer(conformer, assignId=True)
    return mol.GetMol(), None


def perceive_bonds(numbers: Sequence[int], positions: np.ndarray, charge: int) -> Chem.Mol:
    """The molecule of atomic numbers (n,) at positions (n, 3) of total charge `charge` in which all atoms are complete.

    Kim and Kim 2015, DOI 10.1002/bkcs.10334. Raises MoleculeError with the reason where there is none.
    """
    heavy = sum(z > 1 for z in numbers)
    if heavy > MAX_ATOMS:
        raise MoleculeError(f"{heavy} heavy atoms, the limit is {MAX_ATOMS}")
    mol = Chem.RWMol()
    for z in numbers:
        mol.AddAtom(Chem.Atom(z))
    conformer = Chem.Conformer(len(numbers))
    conformer.SetPositions(positions)
    mol.AddConformer(conformer)
    with rdBase.BlockLogs():
        for reach in _REACHES:
            rdDetermineBonds.DetermineConnectivity(mol, useVdw=True, covFactor=reach)
            whole = len(Chem.GetMolFrags(mol)) == 1
            if whole and (found := _with_orders(mol, charge)) is not None:
                return found
    raise MoleculeError(f"no bonds of total charge {charge} complete every atom" if whole else "more than one fragment")


def without_hydrogens(mol: Chem.Mol) -> Chem.Mol:
    """A copy with its hydrogens implicit, but those that RDKit cannot do without, such as both of H2."""
    with rdBase.BlockLogs():
        return Chem.RemoveHs(mol)


def has_hydrogens(atoms: tuple[str, ...]) -> bool:
    """Whether one of these atom classes is hydrogen."""
    return any(parse_class(name)[0] == "H" for name in atoms)


def picture(mol: Chem.Mol) -> str:
    """The drawing in two dimensions as the text of an SVG, hydrogens implicit."""
    from rdkit.Chem.Draw import rdMolDraw2D

    mol = without_hydrogens(mol)
    mol.RemoveAllConformers()  # a projection of the 3D positions would be drawn otherwise
    drawer = rdMolDraw2D.MolDraw2DSVG(220, 160)
    rdMolDraw2D.PrepareAndDrawMolecule(drawer, mol)
    drawer.FinishDrawing()
    return drawer.GetDrawingText()


def _with_orders(mol: Chem.Mol, charge: int) -> Chem.Mol | None:
    """The molecule with the orders of its bonds perceived, None where RDKit finds none.

    Whether it does depends on the numbering: of nitrobenzenes it misses one in five, but none with the elements sorted.
    """
    z = np.array([atom.GetAtomicNum() for atom in mol.GetAtoms()])
    for order in (np.argsort(z, kind="stable"), np.argsort(-z, kind="stable"), np.arange(len(z))):
        trial = Chem.RenumberAtoms(mol, order.tolist())
        try:
            rdDetermineBonds.DetermineBondOrders(trial, charge=charge, embedChiral=False, maxIterations=_TRIALS)
            Chem.SanitizeMol(trial)
        except (ValueError, RuntimeError):
            continue
        return Chem.RenumberAtoms(trial, np.argsort(order).tolist())
    return None


def _refuse(mol: Chem.Mol, hydrogens: bool) -> None:
    """Raises MoleculeError where a sanitised molecule has what a Molecule does not hold."""
    n = mol.GetNumHeavyAtoms() if hydrogens else mol.GetNumAtoms()
    if n > MAX_ATOMS or not mol.GetNumAtoms():
        raise MoleculeError(f"{n} heavy atoms, the limit is {MAX_ATOMS}")
    if len(Chem.GetMolFrags(mol)) > 1:
        raise MoleculeError("more than one fragment")
    for atom in mol.GetAtoms():
        if atom.GetAtomicNum() < (1 if hydrogens else 2):
            raise MoleculeError("a hydrogen or dummy atom that cannot be made implicit")
        if atom.GetNumRadicalElectrons():
            raise MoleculeError("radical electrons")


def _atom_class(atom: Chem.Atom) -> str:
    charge = atom.GetFormalCharge()
    return atom.GetSymbol() + (f"{charge:+d}" if charge else "")
