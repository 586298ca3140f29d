"""Stability by hand-made geometries and graphs, and against RDKit's own valence model."""

import numpy as np
import pytest
from rdkit import Chem, rdBase

from unisci.domains.molecule import Molecule
from unisci.metrics.stability import (
    bond_orders,
    by_bonds,
    by_distances,
    stability_by_bonds,
    stability_by_distances,
    valences,
)

TETRAHEDRON = np.array([[1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / np.sqrt(3)


def in_space(atoms, positions, bonds=None):
    n = len(atoms)
    return Molecule(
        tuple(atoms), np.zeros((n, n), np.int8) if bonds is None else bonds, np.array(positions, float)[None]
    )


def methane(length=1.09):
    return in_space("CHHHH", np.vstack([np.zeros(3), length * TETRAHEDRON]))


def ethene(length=1.33):
    x, y = 1.09 * np.cos(np.pi / 3), 1.09 * np.sin(np.pi / 3)
    half = length / 2
    hydrogens = [[-half - x, y, 0], [-half - x, -y, 0], [half + x, y, 0], [half + x, -y, 0]]
    return in_space("CCHHHH", [[-half, 0, 0], [half, 0, 0], *hydrogens])


def carbon_dioxide():
    return in_space("OCO", [[-1.162, 0, 0], [0, 0, 0], [1.162, 0, 0]])


def benzene(length):
    turn = np.arange(6) * np.pi / 3
    ring = np.stack([np.cos(turn), np.sin(turn), 0 * turn], 1)
    return in_space("CCCCCCHHHHHH", np.vstack([length * ring, (length + 1.09) * ring]))


@pytest.mark.parametrize("make", [methane, ethene, carbon_dioxide])
def test_small_molecules_are_stable_by_distances(make):
    atoms, whole = stability_by_distances([make()])
    assert (atoms.name, atoms.value, atoms.n) == ("atoms_stable_by_distances", 1, len(make().atoms))
    assert (whole.name, whole.value, whole.n) == ("molecules_stable_by_distances", 1, 1)
    assert whole.failures == {}


def test_benzene_is_known_to_fail_by_distances():
    """True aromatic bonds (1.395) lie beyond a double bond's 134 + 5 pm: each carbon has three bonds of order 1."""
    atoms, whole = stability_by_distances([benzene(1.395)])
    assert (atoms.value, whole.value, whole.failures) == (0.5, 0, {"C with 3": 1})
    assert stability_by_distances([benzene(1.385)])[1].failures == {"C with 5": 1}


@pytest.mark.parametrize(
    ("pair", "limits"),
    [("CC", (1.64, 1.39, 1.23)), ("CN", (1.57, 1.34, 1.19)), ("CO", (1.53, 1.25, 1.16)), ("NN", (1.55, 1.30, 1.13)),
     ("NO", (1.50, 1.26)), ("OO", (1.58, 1.26)), ("CH", (1.19,)), ("OH", (1.06,)), ("CF", (1.45,)), ("HH", (0.84,))],
)  # fmt: skip
def test_orders_change_at_length_plus_margin(pair, limits):
    for elements in (pair, pair[::-1]):
        for order, limit in enumerate(limits, 1):
            for shift, expected in ((-1e-6, order), (1e-6, order - 1)):
                made = bond_orders(elements, np.array([[0, 0, 0], [0, 0, limit + shift]]))
                assert made.tolist() == [[0, expected], [expected, 0]]


def test_an_atom_has_no_bond_with_itself_and_none_with_an_element_outside_the_table():
    assert bond_orders(["C", "Xe", "C"], np.zeros((3, 3))).tolist() == [[0, 0, 3], [0, 0, 0], [3, 0, 0]]
    assert not by_distances(["Xe", "Na"], np.zeros((2, 3))).stable.any()


def test_charges_do_not_count_by_distances():
    """Ammonium has the four bonds of N+1, and the rule knows only N."""
    ion = in_space(("N+1", "H", "H", "H", "H"), np.vstack([np.zeros(3), 1.02 * TETRAHEDRON]))
    atoms, whole = stability_by_distances([ion])
    assert (atoms.value, whole.failures) == (0.8, {"N+1 with 4": 1})


def test_counts_and_failures_over_several_molecules():
    flat, nowhere = Molecule.from_smiles("C", hydrogens=True), methane().with_positions(np.full((5, 3), np.nan))
    none = Molecule((), np.zeros((0, 0), np.int8))
    atoms, whole = stability_by_distances([methane(), methane(1.3), flat, nowhere, none])
    failures = {"C with 0": 1, "no positions": 2, "positions that are not finite": 1}
    assert (whole.value, whole.n, whole.failures) == (0.2, 5, failures)
    assert (atoms.value, atoms.n) == (5 / 20, 20)  # each hydrogen at 1.3 has no bond either
    assert atoms.low < 0.25 < atoms.high
    assert all(np.isnan([m.value, m.low, m.high]).all() and m.n == 0 for m in stability_by_distances([]))


@pytest.mark.parametrize(
    "smiles", ["C", "C=C", "O=C=O", "c1ccccc1", "C[N+](C)(C)CC(=O)[O-]", "C[N+](=O)[O-]", "CS(=O)(=O)O", "[C-]#[O+]"]
)
def test_true_graphs_are_stable_by_bonds(smiles):
    atoms, whole = stability_by_bonds([Molecule.from_smiles(smiles, hydrogens=True)])
    assert (atoms.value, whole.value, whole.failures) == (1, 1, {})


def test_by_bonds_names_the_first_unstable_atom():
    complete = Molecule.from_smiles("CO", hydrogens=True)
    bonds = complete.bonds.copy()
    bonds[0, 1] = bonds[1, 0] = 2
    wrong = Molecule(complete.atoms, bonds)
    atoms, whole = stability_by_bonds([complete, wrong, Molecule.from_smiles("CO")])
    assert whole.failures == {"C with 1": 1, "C with 5": 1} and whole.value == 1 / 3
    assert atoms.value == (6 + 4) / 14 and atoms.n == 14


def test_both_pieces_of_two_fragments_may_be_stable():
    water = Molecule.from_smiles("O", hydrogens=True)
    pair = Molecule(water.atoms * 2, np.kron(np.eye(2, dtype=np.int8), water.bonds))
    assert stability_by_bonds([pair])[1].value == 1


def radical_free(symbol, charge):
    """Numbers of single bonds, to fluorine, with which RDKit accepts the atom and gives it no radical electron."""
    for count in range(8):
        mol = Chem.RWMol()
        atom = Chem.Atom(symbol)
        atom.SetFormalCharge(charge)
        atom.SetNoImplicit(True)
        mol.AddAtom(atom)
        for _ in range(count):
            mol.AddBond(0, mol.AddAtom(Chem.Atom("F")), Chem.BondType.SINGLE)
        with rdBase.BlockLogs():
            problems = Chem.DetectChemistryProblems(mol)
            if not problems:
                Chem.SanitizeMol(mol)
        if not problems and mol.GetAtomWithIdx(0).GetNumRadicalElectrons() == 0:
            yield count


@pytest.mark.parametrize("symbol", ["B", "C", "N", "O", "F"])
@pytest.mark.parametrize("charge", [-1, 0, 1])
def test_valences_are_those_of_rdkit(symbol, charge):
    name = symbol + (f"{charge:+d}" if charge else "")
    assert set(valences(name)) == set(radical_free(symbol, charge))


@pytest.mark.parametrize("name", ["H", "Si", "P", "S", "Cl", "Br", "I", "S+1", "P+1", "Cl-1"])
def test_valences_of_heavier_elements_are_those_of_rdkit(name):
    symbol = name.rstrip("+-1")
    assert set(valences(name)) == set(radical_free(symbol, int(name[len(symbol) :] or 0)))


def test_a_proton_has_no_bond_and_an_unknown_element_no_valence():
    with rdBase.BlockLogs():
        assert (valences("H+1"), valences("Na+1"), valences("Qq")) == ((0,), (0,), ())
        assert by_bonds(("H+1", "Qq"), np.zeros((2, 2), np.int8)).stable.tolist() == [True, False]
