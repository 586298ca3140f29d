import math

import pytest

from tests.design.by_hand import (
    BENZENE,
    DIFLUOROMETHANE,
    EMPTY,
    ETHANOL,
    GLYCINE,
    METHANE,
    PHENOL,
    PYRIDINE,
    TWO_PIECES,
    gaps,
    mol,
)
from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
from unisci.design.targets import Above


def test_elements_are_counted_of_invalid_molecules_too():
    molecules = (METHANE, DIFLUOROMETHANE, TWO_PIECES, EMPTY)
    assert gaps(Contains("F"), *molecules) == [1, 0, 0, 1]
    assert gaps(Contains("F", 3), *molecules) == [3, 1, 2, 3]
    assert gaps(Without("F"), *molecules) == [0, 2, 1, 0]
    assert gaps(Contains("N"), GLYCINE) == [0] and gaps(Without("O"), GLYCINE) == [2]  # charged atoms are atoms


def test_a_formula_counts_hydrogens():
    assert gaps(Formula("C6H6O"), PHENOL, BENZENE, TWO_PIECES) == [0, 1, None]
    assert gaps(Formula("C2H6O"), ETHANOL, METHANE) == [0, 1 + 2 + 1]
    assert gaps(Formula("C2H5NO2"), GLYCINE) == [0]
    assert gaps(Formula("C2H4O"), ETHANOL, mol("CC=O"), mol("C1CO1")) == [2, 0, 0]  # isomers all, ethanol not
    assert gaps(Formula("OH6C2"), ETHANOL) == gaps(Formula("CH3CH2OH"), ETHANOL) == [0]


def test_a_composition_is_a_proportion_of_heavy_atoms():
    assert gaps(Composition("CF2"), DIFLUOROMETHANE, METHANE, TWO_PIECES) == [0, 2, 1]
    assert gaps(Composition("C2N2O4"), GLYCINE, mol("NCC(=O)O"), mol("NC(=O)O")) == [1, 1, 0]
    assert gaps(Composition("C10N2"), PYRIDINE, mol("c1ccncc1-c1ccncc1"), BENZENE) == [0, 0, 2]
    assert gaps(Composition("CH4"), BENZENE, METHANE, EMPTY) == [0, 0, 1]  # all carbon, in any number
    assert Composition("C4H9N2").needs == {"C": 2, "N": 1}


def test_a_scaffold_is_kept_as_aromatic_or_as_kekule_bonds():
    assert gaps(Keep("c1ccccc1"), BENZENE, PHENOL, PYRIDINE, TWO_PIECES) == [0, 0, 1, None]
    assert gaps(Keep("C1=CC=CC=C1"), PHENOL) == [0]
    assert gaps(Keep("CO"), ETHANOL, PHENOL, BENZENE) == [0, 0, 1]
    # A chain of double bonds that becomes part of an aromatic ring is still there, bond by bond.
    assert gaps(Keep("C=CC=C"), BENZENE, mol("C=CC=C"), mol("CCCC")) == [0, 0, 1]


def test_atoms_without_which_a_want_cannot_be_met():
    assert Contains("F", 3).needs == {"F": 3} and Keep("CC[NH3+]").needs == {"C": 2, "N": 1}
    assert Formula("CH4O").needs == {"C": 1, "O": 1} and Composition("C2N2H").needs == {"C": 1, "N": 1}
    assert not Above("qed", 1).needs and not Without("F").needs


@pytest.mark.parametrize("want", [Contains("C"), Without("C"), Formula("CH4"), Composition("C"), Keep("C")])
def test_no_molecules_have_no_gaps(want):
    assert want.gap([]).shape == (0,)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Contains("Xx"), "unknown element 'Xx'"),
        (lambda: Contains("cl"), "unknown element 'cl'"),
        (lambda: Contains("C", 0), "least must be a whole number from 1 on, got 0"),
        (lambda: Without("CC"), "unknown element 'CC'"),
        (lambda: Without(""), "unknown element ''"),
        (lambda: Formula("C6Hx"), "unknown element 'Hx'"),
        (lambda: Formula("6C"), "not a formula"),
        (lambda: Formula(""), "not a formula"),
        (lambda: Formula("C-1"), "not a formula"),
        (lambda: Composition("H4"), "'H4' has none"),
        (lambda: Composition("what"), "not a formula"),
        (lambda: Keep("not a smiles"), "cannot be kept: RDKit cannot parse it"),
        (lambda: Keep("CC.O"), "cannot be kept: more than one fragment"),
        (lambda: Keep("*C"), "cannot be kept: a hydrogen or dummy atom"),
        (lambda: Contains("C", 1.5), "a whole number from 1 on, got 1.5"),
        (lambda: Contains("C", math.nan), "got nan"),
        (lambda: Contains("C", math.inf), "got inf"),
    ],
)
def test_a_want_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
