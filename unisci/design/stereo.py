"""Stereochemistry that is asked for, against that of a geometry.

A network that sees distances alone draws a molecule and its mirror image with equal odds. R and S of centres and E and
Z of double bonds are read from the positions; those that were not asked for are free.
"""

from enum import IntEnum

import numpy as np
from rdkit import Chem

CENTRES = {
    Chem.ChiralType.CHI_TETRAHEDRAL_CW: Chem.ChiralType.CHI_TETRAHEDRAL_CCW,
    Chem.ChiralType.CHI_TETRAHEDRAL_CCW: Chem.ChiralType.CHI_TETRAHEDRAL_CW,
}
DOUBLE = (Chem.BondStereo.STEREOE, Chem.BondStereo.STEREOZ)


class Hand(IntEnum):
    """How a geometry lies to what was asked for: as asked, its mirror image, or neither."""

    SAME = 1
    MIRROR = -1
    OTHER = 0


def asks(target: Chem.Mol) -> bool:
    """Whether a molecule names the stereochemistry of an atom or bond."""
    return bool(_centres(target) or _double(target))


def hand(target: Chem.Mol, positions: np.ndarray) -> Hand:
    """target: with all hydrogens as atoms and the stereochemistry asked for; positions (n, 3) of its atoms."""
    if not asks(target):
        return Hand.SAME
    found = placed(target, positions)
    wanted = _smiles(_with(target, {}, {i: target.GetBondWithIdx(i).GetStereo() for i in _double(target)}))
    tags = {i: _tag(found, i) for i in _centres(target)}
    bonds = {i: found.GetBondWithIdx(i).GetStereo() for i in _double(target)}
    # As SMILES, so that a symmetry of the graph may put the right centres in another order.
    if _smiles(_with(target, tags, bonds)) == wanted:
        return Hand.SAME
    mirrored = {i: CENTRES.get(tag, tag) for i, tag in tags.items()}
    return Hand.MIRROR if _smiles(_with(target, mirrored, bonds)) == wanted else Hand.OTHER


def placed(mol: Chem.Mol, positions: np.ndarray) -> Chem.Mol:
    """A copy with one conformer, whose stereochemistry it has."""
    out, conformer = Chem.Mol(mol), Chem.Conformer(mol.GetNumAtoms())
    out.RemoveAllConformers()
    conformer.SetPositions(np.ascontiguousarray(positions, np.float64))
    out.AddConformer(conformer, assignId=True)
    Chem.AssignStereochemistryFrom3D(out, replaceExistingTags=True)
    return out


def isomer(mol: Chem.Mol) -> str:
    """SMILES with the stereochemistry of the first conformer, hydrogens implicit."""
    found = placed(mol, mol.GetConformer().GetPositions())
    return Chem.MolToSmiles(Chem.RemoveHs(found))


def _centres(mol: Chem.Mol) -> list[int]:
    return [a.GetIdx() for a in mol.GetAtoms() if a.GetChiralTag() in CENTRES]


def _double(mol: Chem.Mol) -> list[int]:
    return [b.GetIdx() for b in mol.GetBonds() if b.GetStereo() in DOUBLE]


def _tag(found: Chem.Mol, i: int) -> Chem.ChiralType:
    """The side of a centre in the conformer; of a nitrogen in a small ring too, which RDKit reads from SMILES alone."""
    atom = found.GetAtomWithIdx(i)
    if atom.GetDegree() != 3:
        return atom.GetChiralTag()
    x = found.GetConformer().GetPositions()
    bonds = [x[b.GetOtherAtomIdx(i)] - x[i] for b in atom.GetBonds()]
    clockwise = np.linalg.det(bonds) < 0
    return Chem.ChiralType.CHI_TETRAHEDRAL_CW if clockwise else Chem.ChiralType.CHI_TETRAHEDRAL_CCW


def _with(target: Chem.Mol, tags: dict[int, Chem.ChiralType], bonds: dict[int, Chem.BondStereo]) -> Chem.Mol:
    """The target with other tags of its centres and other sides of its double bonds."""
    out = Chem.Mol(target)
    for i, tag in tags.items():
        out.GetAtomWithIdx(i).SetChiralTag(tag)
    for i, side in bonds.items():
        out.GetBondWithIdx(i).SetStereo(side)
    Chem.SetDoubleBondNeighborDirections(out)  # else the marks of the SMILES would overrule the sides
    return out


def _smiles(mol: Chem.Mol) -> str:
    """Canonical, of what the tags and sides say; read again, for then none is left that is no centre."""
    return Chem.CanonSmiles(Chem.MolToSmiles(mol))
