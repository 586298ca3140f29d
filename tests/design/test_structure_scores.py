import numpy as np
from rdkit import Chem
from rdkit.Chem import rdForceFieldHelpers

from tests.small_structures import embedded
from unisci.design import structure_scores
from unisci.design.structure_scores import energy, mmff
from unisci.domains.molecule import Molecule
from unisci.metrics.strain import mmff_strain


def here(monkeypatch):
    """Starting workers takes seconds: the same work in this process."""
    strain = lambda m: "MMFF94 lacks a parameter" if "B" in m.atoms else mmff_strain(m.rdkit)
    monkeypatch.setattr(structure_scores, "mmff_strains", lambda molecules, workers: [strain(m) for m in molecules])


def test_strain_is_the_energy_above_the_minimum(monkeypatch):
    here(monkeypatch)
    molecule = embedded("CCO")
    relaxed = Chem.Mol(molecule.rdkit)
    assert rdForceFieldHelpers.MMFFOptimizeMolecule(relaxed, maxIters=5000) == 0
    minimum = molecule.with_positions(relaxed.GetConformer().GetPositions())
    found = mmff([molecule, minimum])
    np.testing.assert_allclose(found["strain"][0], found["energy"][0] - found["energy"][1], atol=1e-3)
    assert found["strain"][0] > 0.1 > abs(found["strain"][1]) and found["strain_rmsd"][1] < 0.01
    assert found["strain_reason"].tolist() == [None, None]


def test_what_the_force_field_does_not_know_has_a_reason(monkeypatch):
    here(monkeypatch)
    boron = Molecule.from_smiles("OBO", hydrogens=True)
    found = mmff([boron.with_positions(np.random.default_rng(0).normal(size=(len(boron.atoms), 3)))])
    assert found[["energy", "strain", "strain_rmsd"]].isna().all(axis=None)
    assert found["strain_reason"].tolist() == ["MMFF94 lacks a parameter"]


def test_no_molecules_have_no_rows():
    assert len(mmff([])) == 0 and list(mmff([])) == ["energy", "strain", "strain_rmsd", "strain_reason"]


def test_energy_is_of_the_conformer():
    molecule = embedded("CO")
    stretched = molecule.with_positions(molecule.positions * 1.5)
    assert energy(stretched.rdkit) > energy(molecule.rdkit) + 100
