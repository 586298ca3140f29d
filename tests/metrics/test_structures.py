"""Molecules in space: coordinates against RDKit's, distances against brute force, strain by springs."""

import itertools
from importlib.util import find_spec

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit.Chem import rdForceFieldHelpers, rdMolTransforms
from scipy.optimize import linear_sum_assignment
from scipy.spatial.transform import Rotation

from unisci.domains.molecule import Molecule
from unisci.metrics import pose_checks as poses
from unisci.metrics.conformers import etkdg
from unisci.metrics.descriptors import wasserstein
from unisci.metrics.internal_coordinates import (
    Coordinates,
    angles,
    average,
    circular_wasserstein,
    compare,
    gather,
    lengths,
    torsions,
)
from unisci.metrics.strain import (
    Strain,
    StrainError,
    fault,
    mmff_strain,
    strain,
    strain_metrics,
    superposed_rmsd,
)
from unisci.metrics.structures import evaluate_structures

POOL = ("CCO", "CC(N)C=O", "c1ccccc1O", "CC#N", "OC1CC1", "CC(=O)[O-]")


@pytest.fixture(scope="module")
def made():
    return [etkdg(Molecule.from_smiles(s), 1, i) for i, s in enumerate(POOL)]


@pytest.fixture(scope="module")
def amide():
    return etkdg(Molecule.from_smiles("CC(C)C(=O)N"), 1, 5)


def nitrogen(length):
    molecule = Molecule.from_smiles("N#N")
    return molecule.with_positions(np.array([[0, 0, 0], [0, 0, length]]))


def chains(mol, size):
    """All chains of atoms, each once, by trying every tuple."""
    bonded = lambda i, j: mol.GetBondBetweenAtoms(i, j) is not None
    for chain in itertools.permutations(range(mol.GetNumAtoms()), size):
        if chain[0] < chain[-1] and all(bonded(i, j) for i, j in itertools.pairwise(chain)):
            yield chain


@pytest.mark.parametrize("smiles", ["CC(C)C(=O)N", "C1CC1O"])
def test_all_coordinates_are_those_of_rdkit(smiles):
    mol = etkdg(Molecule.from_smiles(smiles), 1, 5).rdkit
    place = mol.GetConformer()
    pairs = ((lengths, 2, rdMolTransforms.GetBondLength), (angles, 3, rdMolTransforms.GetAngleDeg))
    for measure, size, rdkit in (*pairs, (torsions, 4, rdMolTransforms.GetDihedralDeg)):
        expected = sorted(rdkit(place, *chain) for chain in chains(mol, size))
        np.testing.assert_allclose(np.sort(measure(mol)[0]), expected, atol=1e-5)


def test_types_tell_elements_orders_and_aromatic_bonds_apart():
    kinds = lambda smiles, measure: set(measure(etkdg(Molecule.from_smiles(smiles), 1).rdkit)[1].tolist())
    assert len(kinds("CCO", lengths)) == 4  # C-C, C-O, C-H, O-H
    assert len(kinds("CC=C", lengths)) == 3
    assert len(kinds("c1ccccc1", lengths)) == 2  # all C-C alike, whichever Kekule structure
    assert len(kinds("CCO", angles)) == 5  # CCH, HCH, CCO, HCO, COH: ends are not ordered
    assert len(kinds("CCO", torsions)) == 2  # about C-C, about C-O
    for measure in (lengths, angles, torsions):
        assert kinds("CCO", measure) == kinds("OCC", measure)


def test_a_torsion_beside_a_straight_angle_is_counted_and_left_out():
    linear = etkdg(Molecule.from_smiles("CC#CC"), 1)
    found = gather([linear.rdkit], torsions)
    assert len(found.values) == 0 and found.straight == 3 + 3 + 1
    assert compare("x", found, found, circular_wasserstein).failures == {"beside a straight angle": 7}


def test_shifted_lengths_are_as_far_as_the_shift():
    draws = np.random.default_rng(0).normal(1.1, 0.02, 40)
    here, there = (gather([nitrogen(x).rdkit for x in draws + shift], lengths) for shift in (0.05, 0))
    row = compare("lengths_w1", here, there, wasserstein)
    assert row.value == pytest.approx(0.05, abs=1e-6) and row.n == 40 and row.low < 0.05 < row.high
    assert compare("lengths_w1", there, there, wasserstein).value == 0


def test_types_weigh_by_their_frequency_in_the_reference():
    reference = {1: np.zeros(30), 2: np.zeros(10), 3: np.zeros(7)}
    made = {1: np.full(2, 1.0), 2: np.full(9, 5.0), 4: np.zeros(3)}
    assert average(made, reference, wasserstein) == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert np.isnan(average({4: np.zeros(3)}, reference, wasserstein))


def test_types_of_one_side_only_are_counted():
    made = Coordinates(2, np.array([1.0, 2, 9]), np.array([1, 1, 4]), np.array([0, 1, 1]))
    reference = Coordinates(1, np.array([1.0, 2, 3, 4]), np.array([1, 1, 2, 2]), np.zeros(4, int))
    row = compare("x", made, reference, wasserstein)
    assert (row.value, row.n) == (0, 2)
    assert row.failures == {"of a type that the reference lacks": 1, "of the reference, of a type never made": 2}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(0, 1000))
def test_on_the_circle_w1_is_the_best_assignment(n, seed):
    a, b = np.random.default_rng(seed).uniform(-180, 180, (2, n))
    cost = np.abs((a[:, None] - b + 180) % 360 - 180)
    best = cost[linear_sum_assignment(cost)].mean()
    assert circular_wasserstein(a, b) == pytest.approx(best, abs=1e-9)
    assert circular_wasserstein(np.repeat(a, 2), b + 720) == pytest.approx(best, abs=1e-9)


def test_the_circle_has_no_end():
    assert circular_wasserstein(np.array([179.0]), np.array([-179.0])) == pytest.approx(2)
    a = np.random.default_rng(0).normal(175, 8, 50)
    assert circular_wasserstein(a, a + 7) == pytest.approx(7)
    assert np.isnan(circular_wasserstein(a, np.zeros(0)))


def test_a_relaxed_geometry_has_no_strain(amide):
    mol = amide.rdkit
    first = mmff_strain(mol)
    assert first.energy > 1 and first.rmsd > 0.01
    relaxed = etkdg(amide, 1, 5, relaxed=True)
    assert mmff_strain(relaxed.rdkit).energy == pytest.approx(0, abs=1e-3)
    assert mmff_strain(relaxed.rdkit).rmsd == pytest.approx(0, abs=1e-2)
    # The strain is the drop of MMFF94's own energy, and the geometry given stays where it was.
    field = lambda m: rdForceFieldHelpers.MMFFGetMoleculeForceField(
        m, rdForceFieldHelpers.MMFFGetMoleculeProperties(m)
    ).CalcEnergy()
    assert field(mol) - field(relaxed.rdkit) == pytest.approx(first.energy, abs=0.01)


def test_what_the_force_field_cannot_do_has_a_reason():
    boron = etkdg(Molecule.from_smiles("CB(C)C"), 1)
    with pytest.raises(StrainError, match="lacks a parameter"):
        mmff_strain(boron.rdkit)


class Spring(Calculator):
    """k / 2 (d - d0)^2 between the first two atoms."""

    implemented_properties = ("energy", "forces")

    def __init__(self, k, d0):
        super().__init__()
        self.k, self.d0 = k, d0

    def calculate(self, atoms=None, properties=None, system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.charges = atoms.get_initial_charges()
        gap = atoms.positions[1] - atoms.positions[0]
        d = np.linalg.norm(gap)
        force = self.k * (d - self.d0) * gap / d
        forces = np.zeros((len(atoms), 3))
        forces[:2] = force, -force
        self.results = {"energy": self.k / 2 * (d - self.d0) ** 2, "forces": forces}


def test_strain_of_a_spring():
    """0.2 angstrom too long: k / 2 0.2^2 eV, and each end moves by 0.1."""
    found = strain(nitrogen(1.3), Spring(10, 1.1), fmax=1e-4)
    assert found.energy == pytest.approx(0.2 * 23.0605, rel=1e-4)
    assert found.rmsd == pytest.approx(0.1, abs=1e-4)


def test_strain_refuses_what_is_no_molecule_in_space():
    spring = Spring(10, 1.1)
    with pytest.raises(StrainError, match="no positions"):
        strain(Molecule.from_smiles("N#N"), spring)
    with pytest.raises(StrainError, match="not converged"):
        strain(nitrogen(1.3), spring, steps=1)
    flat = Molecule.from_smiles("CO").with_positions(np.array([[0.0, 0, 0], [0, 0, 1.4]]))
    assert fault(flat) == "implicit hydrogens"
    ion = Molecule.from_smiles("[C-]#[O+]").with_positions(np.array([[0.0, 0, 0], [0, 0, 1.1]]))
    strain(ion, spring)
    assert spring.charges.tolist() == [-1, 1]


def test_superposed_rmsd_turns_but_does_not_reflect():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(7, 3))
    turned = a @ Rotation.from_rotvec([0.3, 2, -1]).as_matrix() + [1, 2, 3]
    assert superposed_rmsd(a, turned) == pytest.approx(0, abs=1e-7)
    assert superposed_rmsd(a, a * [1, 1, -1]) > 0.3
    b = rng.normal(size=(7, 3))
    _, best = Rotation.align_vectors(a - a.mean(0), b - b.mean(0))
    assert superposed_rmsd(a, b) == pytest.approx(best / np.sqrt(7))


def test_strain_metrics_count_every_failure():
    energies = np.arange(9.0) ** 2
    rows = strain_metrics("mmff", [*(Strain(e, 0.5) for e in energies), "lost", "lost", "late"])
    assert [r.name for r in rows] == ["mmff_strain_median", "mmff_strain_mean", "mmff_rmsd"]
    assert [r.value for r in rows] == [16, energies.mean(), 0.5]
    assert all(r.n == 9 and r.failures == {"late": 1, "lost": 2} for r in rows)
    assert (rows[0].low, rows[0].high) == (1, 49)  # the second and the last but one
    assert all(np.isnan(r.value) for r in strain_metrics("mmff", ["lost"]))


def test_everything_of_a_set_by_hand(made):
    methanol = Molecule.from_smiles("CO", hydrogens=True)
    bonds = methanol.bonds.copy()
    bonds[0, 2] = bonds[2, 0] = 0  # a hydrogen of the carbon goes: a radical and a lone atom
    torn = Molecule(methanol.atoms, bonds, np.zeros((1, 6, 3)))
    samples = [*made, made[0], torn, methanol]
    rows = {m.name: m for m in evaluate_structures(samples, made[:3], workers=1)}
    n = len(samples)
    assert (rows["validity"].value, rows["validity"].n) == ((n - 1) / n, n)
    assert rows["validity"].failures == {"fragments": 1}
    assert rows["uniqueness"].value == (n - 2) / (n - 1)  # ethanol twice
    assert (rows["novelty"].value, rows["novelty"].n) == ((n - 5) / (n - 2), n - 2)
    assert (rows["connected"].value, rows["connected"].failures) == ((n - 1) / n, {"2 fragments": 1})
    assert rows["molecules_stable_by_bonds"].failures == {"C with 3": 1}
    assert rows["molecules_stable_by_distances"].n == n
    assert rows["molecules_stable_by_distances"].failures["no positions"] == 1
    failures = {"no positions": 1, "not valid: fragments": 1}
    for name in ("mmff_strain_median", "mmff_strain_mean", "mmff_rmsd"):
        assert rows[name].n == n - 2 and rows[name].failures == failures
    expected = [mmff_strain(m.rdkit).energy for m in [*made, made[0]]]
    assert rows["mmff_strain_median"].value == pytest.approx(np.median(expected), rel=1e-3)
    for name in ("lengths_w1", "angles_w1", "torsions_w1"):
        assert rows[name].value >= 0 and rows[name].n == n - 2 and rows[name].reference == "reference"
        assert failures.items() <= rows[name].failures.items()
    assert len({rows[name].reference_hash for name in ("lengths_w1", "angles_w1", "novelty")}) == 2


def test_a_set_against_itself_and_the_reference_at_the_door(made):
    rows = {m.name: m for m in evaluate_structures(made[:2], made[1::-1], workers=1)}
    assert [rows[f"{name}_w1"].value for name in ("lengths", "angles", "torsions")] == [0, 0, 0]
    assert rows["novelty"].value == 0
    with pytest.raises(ValueError, match="none of the 1 reference molecules"):
        evaluate_structures(made[:1], [Molecule.from_smiles("CO")], workers=1)


def test_poses_need_a_package(made, monkeypatch):
    monkeypatch.setattr(poses, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"unisci\[molecules\]\""):
        poses.pose_checks(made)


@pytest.mark.skipif(find_spec("posebusters") is None, reason="needs posebusters")
def test_poses_of_good_and_broken_molecules(made):
    crushed = made[2].with_positions(0.5 * made[2].positions)
    row = poses.pose_checks([made[0], made[2], crushed, Molecule.from_smiles("CO")], workers=1)
    assert (row.name, row.value, row.n) == ("posebusters_valid", 0.5, 4)
    assert row.failures == {"bond lengths": 1, "no positions": 1}
