import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit.Chem import Crippen

from unisci.design.samples import Samples
from unisci.design.targets import (
    Above,
    Below,
    Between,
    Composition,
    Contains,
    Formula,
    Interval,
    Keep,
    Maximize,
    Target,
    Want,
    Wants,
    Without,
    elements,
    parse_formula,
    wants,
)
from unisci.domains.molecule import Molecule
from unisci.metrics.intervals import proportion


def mol(smiles: str) -> Molecule:
    return Molecule.from_smiles(smiles)


ETHANOL, BENZENE, PHENOL, GLYCINE = mol("CCO"), mol("c1ccccc1"), mol("Oc1ccccc1"), mol("[NH3+]CC(=O)[O-]")
METHANE, DIFLUOROMETHANE, PYRIDINE = mol("C"), mol("FCF"), mol("c1ccncc1")
TWO_PIECES = Molecule.from_text("C F", "")  # invalid, of one C and one F
EMPTY = Molecule.from_text("", "")


def size(molecules):
    return [len(m.atoms) for m in molecules]


def rings(molecules):
    return [m.rdkit.GetRingInfo().NumRings() for m in molecules]


def gaps(want: Want, *molecules: Molecule) -> list[float | None]:
    """None for NaN, which equals nothing."""
    return [None if math.isnan(g) else g for g in want.gap(molecules).tolist()]


# ---- gaps on molecules made by hand ------------------------------------------------------------------


def test_the_gap_of_an_interval_is_the_distance_to_it():
    molecules = (METHANE, ETHANOL, BENZENE, PHENOL, TWO_PIECES)  # of 1, 3, 6 and 7 atoms
    assert gaps(Between(size, 3, 6), *molecules) == [2, 0, 0, 1, None]
    assert gaps(Below(size, 3), *molecules) == [0, 0, 3, 4, None]
    assert gaps(Above(size, 6.5), *molecules) == [5.5, 3.5, 0.5, 0, None]
    assert gaps(Target(size, 5, 1), *molecules) == [3, 1, 0, 1, None]
    assert gaps(Target(size, 6, 0), *molecules) == [5, 3, 0, 1, None]
    logp = Crippen.MolLogP(ETHANOL.rdkit)
    assert Above("logP", 1).gap([ETHANOL])[0] == pytest.approx(1 - logp)
    assert Below("LOGP", -1).gap([ETHANOL])[0] == pytest.approx(logp + 1)


def test_maximize_is_met_wherever_it_has_a_value():
    assert gaps(Maximize(size, 1), METHANE, TWO_PIECES) == [0, None]
    assert Maximize(size, 1).values([METHANE, PHENOL]).tolist() == [1, 7]


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
    assert Composition("C4H9N2").unit == {"C": 2, "N": 1}


def test_a_scaffold_is_kept_as_aromatic_or_as_kekule_bonds():
    assert gaps(Keep("c1ccccc1"), BENZENE, PHENOL, PYRIDINE, TWO_PIECES) == [0, 0, 1, None]
    assert gaps(Keep("C1=CC=CC=C1"), PHENOL) == [0]
    assert gaps(Keep("CO"), ETHANOL, PHENOL, BENZENE) == [0, 0, 1]
    # A chain of double bonds that becomes part of an aromatic ring is still there, bond by bond.
    assert gaps(Keep("C=CC=C"), BENZENE, mol("C=CC=C"), mol("CCCC")) == [0, 0, 1]


@pytest.mark.parametrize(
    "want", [Between("qed", 0, 1), Maximize("qed", 1), Contains("C"), Without("C"), Formula("CH4"), Composition("C")]
)
def test_no_molecules_have_no_gaps(want):
    assert want.gap([]).shape == (0,) and Keep("C").gap([]).shape == (0,)


@given(st.floats(-3, 9), st.floats(0, 5))
def test_a_gap_is_zero_exactly_where_the_value_lies_inside(low, width):
    want = Between(size, low, low + width)
    for molecule, value in ((METHANE, 1), (ETHANOL, 3), (PHENOL, 7)):
        gap = want.gap([molecule])[0]
        assert gap >= 0 and (gap == 0) == (low <= value <= low + width)


# ---- what makes no sense is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Above("qedd", 1), "unknown property 'qedd'; near are qed"),
        (lambda: Maximize("qedd", 1), "unknown property 'qedd'"),
        (lambda: Above(3, 1), "a property is a name or a function"),
        (lambda: Between("qed", 2, 1), r"no value of qed lies in 2\.\.1"),
        (lambda: Above("qed", math.nan), "no value of qed"),
        (lambda: Below("QED", math.nan), "no value of qed"),
        (lambda: Between("qed", 0, math.nan), "no value of qed"),
        (lambda: Above("qed", math.inf), "no value of qed"),
        (lambda: Below("qed", -math.inf), "no value of qed"),
        (lambda: Interval("qed", math.nan), "no value of qed"),
        (lambda: Target("qed", math.nan, 1), "no value of qed"),
        (lambda: Target("qed", 1, -1), "a tolerance is 0 or more, got -1"),
        (lambda: Target("qed", 1, math.nan), "a tolerance is 0 or more"),
        (lambda: Maximize("qed", 0), "a temperature is positive, got 0"),
        (lambda: Maximize("qed", -1), "a temperature is positive"),
        (lambda: Maximize("qed", math.nan), "a temperature is positive"),
        (lambda: Contains("Xx"), "unknown element 'Xx'"),
        (lambda: Contains("cl"), "unknown element 'cl'"),
        (lambda: Contains("C", 0), "least must be at least 1, got 0"),
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
    ],
)
def test_a_want_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize(
    "a, b",
    [
        (Below("qed", 1), Above("qed", 2)),
        (Below("logP", 1), Above("LogP", 2)),  # the same property, however it is written
        (Below(size, 1), Above(size, 2)),
        (Between("qed", 0, 0.2), Target("qed", 0.5, 0.1)),
        (Without("F"), Contains("F", 2)),
        (Without("C"), Keep("CO")),
        (Without("O"), Formula("CH4O")),
        (Without("N"), Composition("CN")),
        (Keep("CO"), Keep("CN")),
        (Keep("CO"), Keep("CO")),
        (Formula("CH4"), Formula("C2H6")),
        (Formula("CH4O"), Contains("O", 2)),
    ],
)
def test_contradictions_are_refused_in_either_order_and_across_others(a, b):
    for one, other in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="cannot both be met"):
            one & other
        with pytest.raises(ValueError, match="cannot both be met"):
            one & Above("tpsa", 1) & other
        with pytest.raises(ValueError, match="cannot both be met"):
            wants([Above("tpsa", 1), one]) & Wants((other,))


@pytest.mark.parametrize(
    "a, b",
    [
        (Below("qed", 1), Above("qed", 1)),  # both ends are included
        (Below("qed", 1), Above("logp", 2)),
        (Below(size, 1), Above(rings, 2)),
        (Between("qed", 0, 1), Maximize("qed", 1)),
        (Without("F"), Contains("N")),
        (Without("H"), Formula("CH4")),
        (Without("N"), Keep("CO")),
        (Formula("CH4O"), Contains("O")),
        (Contains("N", 1), Contains("N", 3)),
    ],
)
def test_what_can_be_met_together_is_joined(a, b):
    assert (a & b).parts == (a, b) == wants([a, b]).parts


def test_two_functions_of_one_name_are_refused_for_their_columns_would_be_one():
    for a, b in ((lambda m: size(m), lambda m: rings(m)), (size, type("size", (), {"__call__": 0})())):
        with pytest.raises(ValueError, match="give your function another"):
            Above(a, 1) & Below(b, 3)

    def logp(molecules):
        return size(molecules)

    with pytest.raises(ValueError, match="two properties have the name 'logp'"):
        Above("LogP", 1) & Maximize(logp, 1)


def test_wants_are_joined_in_their_order_and_say_what_they_are():
    joined = Between("logP", 1, 2) & Above("qed", 0.55) & Without("F") & (Keep("CO") & Contains("N", 2))
    assert isinstance(joined, Wants) and len(joined.parts) == 5
    assert str(joined) == "logp 1..2 & qed >= 0.55 & without F & keep CO & contains 2 N"
    assert wants(joined) is joined and wants(Above("qed", 1)).parts == (Above("qed", 1),)
    assert str(Below(size, 3) & Maximize(rings, 2)) == "size <= 3 & large rings"
    assert str(Formula("CH4") & Composition("CN") & Contains("C")) == "formula CH4 & composition CN & contains C"
    assert Above(type("Scorer", (), {"__call__": lambda self, m: m})(), 1).name == "Scorer"


@pytest.mark.parametrize("bad", [["qed"], [Above("qed", 1), None]])
def test_what_is_no_want_is_refused(bad):
    with pytest.raises(ValueError, match="is not a want, such as"):
        wants(bad)


def test_a_want_without_a_gap_says_so():
    with pytest.raises(NotImplementedError, match="does not define gap"):
        Want().gap([METHANE])


def test_elements_without_which_a_want_cannot_be_met():
    assert elements(Contains("F")) == {"F"} and elements(Keep("C[NH3+]")) == {"C", "N"}
    assert elements(Formula("CH4O")) == {"C", "O"} and elements(Composition("C2N2H")) == {"C", "N"}
    assert elements(Above("qed", 1)) == elements(Without("F")) == set()


def test_parse_formula():
    assert parse_formula("C6H6O") == {"C": 6, "H": 6, "O": 1}
    assert parse_formula("CH3CH2Cl") == {"C": 2, "H": 5, "Cl": 1} and parse_formula("C2N0") == {"C": 2}


# ---- what samples meet -------------------------------------------------------------------------------


MOLECULES = [METHANE, ETHANOL, TWO_PIECES, PHENOL, DIFLUOROMETHANE]
SAMPLES = Samples.of(MOLECULES, range(10, 15), 0.1, "abc123", 0)


def test_meets_adds_values_and_what_is_met_where_invalid_ones_meet_nothing():
    met = SAMPLES.meets(Between(size, 1, 3) & Without("O") & Maximize("LogP", 1)).table
    np.testing.assert_array_equal(met["size"], [1, 3, np.nan, 7, 3])
    np.testing.assert_allclose(met["logp"][3], Crippen.MolLogP(PHENOL.rdkit))
    assert met["meets size 1..3"].tolist() == [True, True, False, False, True]
    assert met["meets without O"].tolist() == [True, False, False, False, True]  # the two pieces are invalid
    assert met["meets large logp"].tolist() == [True, True, False, True, True]
    assert met["meets"].tolist() == [True, False, False, False, True]
    assert met["id"].tolist() == list(range(10, 15)) and not any("meets" in c for c in SAMPLES.table.columns)


def test_hit_rates_count_invalid_samples_and_have_wilsons_intervals():
    rates = SAMPLES.meets([Between(size, 1, 3), Without("O")]).hit_rates()
    assert rates["want"].tolist() == ["size 1..3", "without O", "all"]
    assert rates["share"].tolist() == [0.6, 0.4, 0.4] and rates["n"].tolist() == [5, 5, 5]
    assert list(zip(rates["low"], rates["high"], strict=True)) == [proportion(k, 5) for k in (3, 2, 2)]


def test_hit_rates_of_nothing_wanted_are_refused():
    with pytest.raises(ValueError, match=r"without wants: call meets\(where\)"):
        SAMPLES.hit_rates()


def test_a_function_named_as_a_column_does_not_overwrite_it():
    def atoms(molecules):
        return size(molecules)

    met = SAMPLES.meets(Above(atoms, 3))
    assert met.table["atoms"].tolist() == SAMPLES.table["atoms"].tolist()
    assert met.table["atoms value"].dropna().tolist() == [1, 3, 7, 3]
    assert met.hit_rates()["share"].tolist() == [0.6, 0.6]


def test_a_function_whose_name_begins_as_the_columns_do_is_no_rate():
    def meetings(molecules):
        return size(molecules)

    assert SAMPLES.meets(Above(meetings, 3)).hit_rates()["want"].tolist() == ["meetings >= 3", "all"]


def test_meets_survives_the_file(tmp_path):
    met = SAMPLES.meets(Above(size, 3) & Contains("O"))
    met.to_parquet(tmp_path / "s.parquet")
    assert Samples.from_parquet(tmp_path / "s.parquet").hit_rates().equals(met.hit_rates())
