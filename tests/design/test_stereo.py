"""Hands of geometries against SMILES: every stereoisomer of every molecule beside every other one's geometry."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from rdkit.Chem.EnumerateStereoisomers import EnumerateStereoisomers

from unisci.design.stereo import CENTRES, Hand, asks, hand, isomer, placed

FLAT = [
    "CC(O)N",  # one centre
    "CC=CC",
    "CC(O)C(O)C",  # a meso form
    "CC(O)C(F)C(O)C",  # a centre that only its arms' hands make one
    "CC1CC(C)C1",  # cis and trans without a hand
    "CC=CC=CC",  # E,Z and Z,E are one molecule
    "CC=CC(O)C",
    "CN1CC1C",  # a nitrogen that cannot turn inside out
    "CC(F)C=CC(F)C",
]


def isomers(flat: str) -> dict[str, Chem.Mol]:
    """Each stereoisomer by its SMILES, with hydrogens and a geometry of its own."""
    out = {}
    for mol in EnumerateStereoisomers(Chem.MolFromSmiles(flat)):
        smiles = Chem.CanonSmiles(Chem.MolToSmiles(mol))
        target = Chem.AddHs(Chem.MolFromSmiles(smiles))
        if rdDistGeom.EmbedMolecule(target, randomSeed=1) == 0:
            out[smiles] = target
    return out


def mirror(mol: Chem.Mol) -> str:
    out = Chem.RemoveHs(mol)
    for atom in out.GetAtoms():
        atom.SetChiralTag(CENTRES.get(atom.GetChiralTag(), atom.GetChiralTag()))
    return Chem.CanonSmiles(Chem.MolToSmiles(out))


@pytest.mark.parametrize("flat", FLAT)
def test_every_isomer_is_told_from_every_other(flat):
    found = isomers(flat)
    assert len(found) > 1
    for smiles, made in found.items():
        x = made.GetConformer().GetPositions()
        for wanted, target in found.items():
            same_order = x[list(made.GetSubstructMatch(target, useChirality=False))]
            # A match by the graph alone may swap atoms that chirality tells apart, hydrogens of one atom among them;
            # either way it is a geometry of the molecule `smiles`.
            expected = Hand.SAME if wanted == smiles else Hand.MIRROR if wanted == mirror(made) else Hand.OTHER
            assert hand(target, same_order) is expected, (smiles, wanted)
            reflected = {Hand.SAME: Hand.MIRROR, Hand.MIRROR: Hand.SAME}.get(expected, Hand.OTHER)
            if expected is Hand.SAME and mirror(made) == smiles:
                reflected = Hand.SAME  # not handed
            assert hand(target, same_order * [-1, 1, 1]) is reflected, (smiles, wanted)


def test_what_is_not_asked_for_is_free():
    found = isomers("CC=CC(O)C")
    flat, half = (Chem.AddHs(Chem.MolFromSmiles(s)) for s in ("CC=CC(O)C", "C/C=C/C(O)C"))
    assert not asks(flat) and asks(half)
    for smiles, made in found.items():
        order = list(made.GetSubstructMatch(flat, useChirality=False))
        assert hand(flat, made.GetConformer().GetPositions()[order]) is Hand.SAME
        order = list(made.GetSubstructMatch(half, useChirality=False))
        expected = Hand.SAME if "/C=C/" in smiles else Hand.OTHER
        assert hand(half, made.GetConformer().GetPositions()[order]) is expected


def test_the_isomer_of_a_geometry_is_its_smiles():
    for smiles, made in isomers("CC(F)C=CC(F)C").items():
        assert isomer(made) == smiles


def test_a_placed_molecule_is_a_copy():
    mol = Chem.AddHs(Chem.MolFromSmiles("C[C@H](O)N"))
    rdDistGeom.EmbedMolecule(mol, randomSeed=1)
    x = mol.GetConformer().GetPositions()
    mirrored = placed(mol, x * [1, 1, -1])
    assert mol.GetNumConformers() == mirrored.GetNumConformers() == 1
    np.testing.assert_allclose(mirrored.GetConformer().GetPositions(), x * [1, 1, -1])
    texts = [Chem.MolToSmiles(Chem.RemoveHs(m)) for m in (mol, mirrored)]
    assert texts == [Chem.CanonSmiles(s) for s in ("C[C@H](O)N", "C[C@@H](O)N")]
