"""Conformers: distances under rotation, reflection and relabelling; COV and MAT by hand; ETKDG."""

import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import rdDistGeom
from scipy.spatial.transform import Rotation

from unisci.domains.molecule import Molecule
from unisci.metrics.conformer_distances import best_rmsd, coverage, distances
from unisci.metrics.conformers import etkdg, evaluate_conformers
from unisci.metrics.strain import mmff_strain

TURN = Rotation.from_rotvec([0.4, -1.1, 2.0]).as_matrix()


@pytest.fixture(scope="module")
def alanine():
    """A chiral molecule with a carboxylate's symmetry."""
    return etkdg(Molecule.from_smiles("CC(N)C(=O)O"), 2, 1)


def heavy(molecule):
    return molecule.heavy().rdkit


def relabelled(molecule, seed=0):
    order = np.random.default_rng(seed).permutation(len(molecule.atoms))
    atoms = tuple(molecule.atoms[i] for i in order)
    return Molecule(atoms, molecule.bonds[np.ix_(order, order)], molecule.positions[:, order])


def by_name(*args, **kwargs):
    return {m.name: m for m in evaluate_conformers(*args, workers=1, **kwargs)}


def test_a_turned_or_relabelled_copy_is_at_zero(alanine):
    turned = alanine.with_positions(alanine.positions @ TURN + [3, -2, 1])
    matrix, faults = distances([heavy(turned), heavy(relabelled(turned))], heavy(alanine))
    assert faults == {} and matrix.shape == (4, 2)
    np.testing.assert_allclose(matrix[[0, 1, 2, 3], [0, 1, 0, 1]], 0, atol=1e-5)
    assert matrix[0, 1] > 0.05  # two conformers


def test_a_mirror_image_is_another_conformer_of_a_chiral_molecule(alanine):
    mirror = [1, 1, -1]
    image = alanine.with_positions(alanine.positions * mirror)
    assert best_rmsd(heavy(image), heavy(alanine), 0, 0) > 0.3
    flat = etkdg(Molecule.from_smiles("c1ccccc1C"), 1)
    assert best_rmsd(heavy(flat.with_positions(flat.positions * mirror)), heavy(flat)) < 0.1


def test_symmetries_of_the_graph_are_tried_and_hydrogens_ignored(alanine):
    # Neopentane: any permutation of its four arms is the same molecule.
    arms = etkdg(Molecule.from_smiles("CC(C)(C)C"), 1)
    swapped = arms.positions.copy()
    swapped[0, [0, 2, 3, 4]] = swapped[0, [4, 0, 3, 2]]
    swapped[0, 5:] = 9 * np.random.default_rng(0).normal(size=swapped[0, 5:].shape)
    assert best_rmsd(heavy(arms.with_positions(swapped)), heavy(arms)) < 0.05
    chain = etkdg(Molecule.from_smiles("CCCCO"), 1)
    swapped = chain.positions.copy()
    swapped[0, [0, 1]] = swapped[0, [1, 0]]  # no symmetry of this one
    assert best_rmsd(heavy(chain.with_positions(swapped)), heavy(chain)) > 0.3


def test_another_molecule_and_a_failure_are_rows_of_inf(alanine):
    other = etkdg(Molecule.from_smiles("CC(O)C(=O)N"), 1)
    part = etkdg(Molecule.from_smiles("CCC(=O)O"), 1)
    whole = etkdg(Molecule.from_smiles("CC(N)C(=O)OC"), 1)
    matrix, faults = distances([heavy(other), heavy(part), heavy(whole), "lost", heavy(alanine)], heavy(alanine))
    assert np.isinf(matrix[:4]).all() and np.isfinite(matrix[4:]).all() and len(matrix) == 6
    assert faults == {"another molecule": 3, "lost": 1}


def test_cov_and_mat_by_hand():
    d = np.array([[0.1, 0.9, 0.6], [0.5, 0.8, 2.0]])  # 2 made, 3 of the reference
    c = coverage(d, 0.5)
    assert (c.cov_recall, c.mat_recall) == (1 / 3, pytest.approx((0.1 + 0.8 + 0.6) / 3))
    assert (c.cov_precision, c.mat_precision) == (1, pytest.approx((0.1 + 0.5) / 2))  # at the threshold is covered
    assert coverage(d.T, 0.5) == pytest.approx((c.cov_precision, c.mat_precision, c.cov_recall, c.mat_recall))
    lost = coverage(np.vstack([d, np.full((2, 3), np.inf)]), 0.5)
    assert lost == pytest.approx((1 / 3, 0.5, 0.5, 0.3))
    none = coverage(np.full((2, 3), np.inf), 0.5)
    assert none[::2] == (0, 0) and np.isnan(none[1::2]).all()


def test_every_molecule_and_conformer_is_counted(alanine):
    chain = etkdg(Molecule.from_smiles("CCCCCO"), 3, 2)
    invalid = Molecule(("C", "H"), np.zeros((2, 2), np.int8), np.zeros((1, 2, 3)))
    flat = Molecule.from_smiles("CC(N)C(=O)O")
    made = [relabelled(alanine), [chain.with_positions(chain.positions[0] @ TURN), invalid], None, flat]
    rows = by_name(made, [alanine, chain, alanine, alanine], threshold=0.01)
    assert rows["cov_recall"].value == pytest.approx((1 + 1 / 3 + 0 + 0) / 4) and rows["cov_recall"].n == 4
    assert rows["cov_precision"].value == pytest.approx((1 + 1 / 2 + 0 + 0) / 4)
    assert rows["cov_precision_median"].value == pytest.approx(0.25)
    assert rows["mat_recall"].n == rows["mat_precision"].n == 2
    assert rows["mat_precision"].value == pytest.approx(0, abs=1e-5) and rows["mat_recall"].value > 0.1
    failures = {"no conformer": 2, "conformers: not valid: fragments": 1, "conformers: no positions": 1}
    assert all(row.failures == failures for row in rows.values()) and len(rows) == 8


def test_a_molecule_beyond_its_time_has_no_cover(alanine):
    many = alanine.with_positions(np.tile(alanine.positions, (300, 1, 1)))
    rows = by_name([many], [many], limit=0.2)
    assert rows["cov_recall"].value == 0 and rows["mat_recall"].n == 0
    assert rows["cov_recall"].failures == {"time out": 1}


def test_bad_input_is_named(alanine):
    with pytest.raises(ValueError, match="2 entries made for 1 reference"):
        evaluate_conformers([alanine, alanine], [alanine])
    with pytest.raises(ValueError, match="threshold is 0"):
        evaluate_conformers([alanine], [alanine], threshold=0)
    with pytest.raises(ValueError, match=r"reference\[1\].*no positions"):
        evaluate_conformers([alanine] * 2, [alanine, alanine.with_positions(None)])
    with pytest.raises(ValueError, match="n must be at least 1"):
        etkdg(alanine, 0)


def test_etkdg_keeps_the_graph_and_depends_on_the_seed_alone():
    ethanol = Molecule.from_smiles("CCO")
    one, same, other = etkdg(ethanol, 3, 0), etkdg(ethanol, 3, 0), etkdg(ethanol, 3, 1)
    assert one.explicit and one.smiles == "CCO" and one.positions.shape == (3, 9, 3)
    np.testing.assert_array_equal(one.positions, same.positions)
    both = np.concatenate([one.positions, other.positions])
    assert all(np.abs(both[i] - both[j]).max() > 1e-3 for i in range(6) for j in range(i))


def tags(molecule):
    mol = Chem.Mol(molecule.rdkit)
    found = set()
    for c in molecule.rdkit.GetConformers():
        Chem.AssignStereochemistryFrom3D(mol, c.GetId())
        found.add(Chem.MolToSmiles(Chem.RemoveHs(mol)))
    return found


@pytest.mark.parametrize("smiles", ["C[C@H](N)C(=O)O", "C[C@@H](N)C(=O)O", "F/C=C/C", r"F/C=C\C"])
def test_etkdg_keeps_the_stereoisomer_of_the_positions(smiles):
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    rdDistGeom.EmbedMolecule(mol, randomSeed=3)
    molecule = Molecule.from_rdkit(mol, hydrogens=True)
    assert tags(etkdg(molecule, 4, 0)) == {Chem.CanonSmiles(smiles)}
    assert len(tags(etkdg(molecule.with_positions(None), 12, 0))) == 2


@pytest.mark.parametrize("smiles", ["CC12CC(C1)C2", "C1C2C1C1OC21"])
def test_etkdg_finds_cages_too(smiles):
    """With enforced chirality there is no conformer of the first, and few of the second."""
    first = etkdg(Molecule.from_smiles(smiles), 1, 0)
    again = etkdg(first, 2, 1)
    assert again.conformers == 2 and tags(again) == tags(first)


def test_relaxed_conformers_are_minima_and_need_parameters():
    chain = Molecule.from_smiles("CCCO")
    assert (
        mmff_strain(etkdg(chain, 1, 0, relaxed=True).rdkit).energy < 0.01 < mmff_strain(etkdg(chain, 1, 0).rdkit).energy
    )
    with pytest.raises(ValueError, match="MMFF94 lacks a parameter"):
        etkdg(Molecule.from_smiles("CB(C)C"), 1, 0, relaxed=True)
