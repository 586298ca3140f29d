"""Validity: the rules by hand, and SMACT's test in the words of the version that published numbers rest on."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import Composition, Lattice, Structure

from tests.metrics.crystals import moved, perovskite, rock_salt, triclinic
from unisci.metrics.cells import cell
from unisci.metrics.crystal_validity import _pauling, composition_valid, faults, structure_fault
from unisci.metrics.workers import Answer


class Here:
    """Workers in this process; the i-th structure of `stuck`, and its j-th formula, time out."""

    def __init__(self, structure, formula):
        self.stuck = {structure_fault: structure, composition_valid: formula}

    def map(self, function, tasks):
        stuck = self.stuck[function]
        return [Answer(None, "time out") if i == stuck else Answer(function(*t), None) for i, t in enumerate(tasks)]


def formula(text):
    return cell(Structure(Lattice.cubic(9), *zip(*[(e, [0, 0, 0]) for e in _symbols(text)], strict=True))).formula


def _symbols(text):
    return [e.symbol for e, n in Composition(text).items() for _ in range(int(n))]


@pytest.mark.parametrize(
    ("text", "valid"),
    [
        ("NaCl", True),
        ("NaCl2", False),
        ("Na2Cl2", True),
        ("Fe", True),  # exempt: an element
        ("Xe", True),
        ("FeNi", True),  # exempt: metals
        ("NaPb3", True),
        ("SrTiO3", True),
        ("Fe3O4", False),  # one state for each element
        ("KrNe", False),
        ("Pm2O3", True),  # no electronegativity of Pm in the tables: CDVAE takes it as passed
        ("PmTiO3", True),
    ],
)
def test_compositions_by_hand(text, valid):
    assert composition_valid(formula(text)) is valid


def test_it_is_not_the_function_of_newer_smact():
    from smact.screening import smact_validity

    assert not smact_validity("Pm2O3", oxidation_states_set="smact14") and composition_valid(formula("Pm2O3"))


chi = st.one_of(st.none(), st.sampled_from([0.9, 1.5, 1.5, 2.6, 3.4]))


@given(st.lists(st.tuples(st.integers(-3, 3), chi), min_size=2, max_size=5))
def test_pauling_is_that_of_smact_2_inside_cdvae(pairs):
    def smact_2():
        for (q1, x1), (q2, x2) in combinations(pairs, 2):
            if (q1 > 0 and q2 < 0 and x1 >= x2) or (q1 < 0 and q2 > 0 and x1 <= x2) or x1 is None or x2 is None:
                return False
        return True

    try:
        expected = smact_2()
    except TypeError:
        expected = True
    assert _pauling([q for q, _ in pairs], [x for _, x in pairs]) == expected


def pair(distance, a=4.0):
    return cell(Structure(Lattice.cubic(a), ["Fe", "Fe"], [[0, 0, 0], [0, 0, 1 - distance / a]]))  # across the border


@pytest.mark.parametrize("make", [rock_salt, perovskite, triclinic])
def test_known_crystals_are_valid_in_any_cell(make):
    assert structure_fault(cell(make())) is None
    assert structure_fault(cell(moved(make()))) is None


def test_structures_by_hand():
    assert structure_fault(pair(0.49)) == "distance"
    assert structure_fault(pair(0.51)) is None
    assert structure_fault(pair(0.0)) == "distance"  # two sites on one place
    thin = Structure(Lattice.orthorhombic(0.49, 8, 8), ["Fe"], [[0, 0, 0]])
    assert structure_fault(cell(thin)) == "distance"  # the site's own image
    assert structure_fault(cell(Structure(Lattice.orthorhombic(0.51, 8, 8), ["Fe"], [[0, 0, 0]]))) is None
    skew = np.array([[4.0, 0, 0], [3.8, 0.3, 0], [0, 0, 5.0]])  # b - a is 0.36 angstrom long, b is not
    assert structure_fault(cell(Structure(skew, ["Fe"], [[0, 0, 0]]))) == "distance"
    tiny = cell(rock_salt())._replace(lattice=np.diag([0.4, 0.4, 0.4]))
    assert structure_fault(tiny) == "volume"


def test_faults_of_a_list():
    bad = rock_salt()
    bad.translate_sites([0], bad[4].frac_coords - bad[0].frac_coords)
    items = [
        cell(rock_salt()),
        "no structure",
        cell(bad),
        cell(perovskite(elements=("Na", "K", "Cl"))),
        cell(triclinic()),
    ]
    structure, composition = faults(items, Here(structure=0, formula=2))
    assert structure == ["time out", "no structure", "distance", None, None]
    assert composition == [None, "no structure", None, "no neutral choice of states", "time out"]
