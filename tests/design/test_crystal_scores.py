import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from pymatgen.core import Structure

from tests.metrics.crystals import caesium_chloride, moved, perovskite, rattled, rock_salt, triclinic
from unisci.design.crystal_scores import Reference, above, measures, novel, ranks, smact, standardised
from unisci.design.potentials import Evaluation, ase_calculator
from unisci.domains.crystal import Crystal

pytestmark = pytest.mark.usefixtures("no_processes")


def crystal(structure: Structure) -> Crystal:
    return Crystal.from_structure(structure)


# ---- the hull -----------------------------------------------------------------------------------------

HAND = Reference(("Na", "Na2", "Cl2", "NaCl", "NaCl3"), (-1.0, -1.2, -2.0, -3.0, -2.2))


@pytest.mark.parametrize(
    "formula, energy, expected",
    [
        ("NaCl", -3.0, 0.0),
        ("Na2Cl2", -2.5, 0.5),
        ("NaCl", -3.5, -0.5),  # below what is known
        ("Na", -1.0, 0.2),  # the more stable of two sodiums counts
        ("Na3Cl", -2.0, 0.1),  # half Na, half NaCl: (-1.2 - 3.0) / 2 = -2.1
        ("NaCl3", -2.2, 0.3),  # half NaCl, half Cl: -2.5; the known one is not stable
        ("NaCl7", -2.0, 0.25),  # a quarter NaCl, three quarters Cl
    ],
)
def test_above_the_hull_by_hand(formula, energy, expected):
    value, reason = HAND.above(formula, energy)
    assert reason is None and value == pytest.approx(expected, abs=1e-9)


def test_three_elements_by_hand():
    reference = Reference(("Sr", "Ti", "O2", "SrO", "TiO2"), (0.0, 0.0, 0.0, -3.0, -3.3))
    mixture = (2 * -3.0 + 3 * -3.3) / 5
    assert reference.above("SrTiO3", -3.4)[0] == pytest.approx(-3.4 - mixture)
    assert reference.above("SrO", -2.9)[0] == pytest.approx(0.1)


def test_a_missing_element_is_a_reason():
    value, reason = HAND.above("KNaBr", -1.0)
    assert np.isnan(value) and reason == "the reference has no phase of K, Br alone"
    assert HAND.above("NaCl", np.nan)[1] == "no energy"
    table = above(HAND, ["NaCl", "KCl"], [-2.0, -2.0])
    assert table["energy_above_reference"][0] == pytest.approx(1.0) and np.isnan(table["energy_above_reference"][1])
    assert table["above_reason"].tolist() == [None, "the reference has no phase of K alone"]
    assert list(above(HAND, [], [])) == ["energy_above_reference", "above_reason"]


METALS = [Crystal.from_ase(a) for a in (bulk("Cu", a=3.7), bulk("Au", a=4.2), bulk("Cu", "bcc", a=3.0))]


def test_a_reference_from_a_potential_as_given_and_relaxed():
    potential = ase_calculator(EMT())
    given, relaxed = Reference.of(METALS, potential, relaxed=True), Reference.of(METALS, potential)
    assert given.formulas == relaxed.formulas == ("Cu1", "Au1", "Cu1") and given.rejects == ()
    expected = [potential([c.atoms])[0].energy for c in METALS]
    np.testing.assert_allclose(given.energies, expected, atol=1e-9)
    assert all(r < g - 1e-3 for r, g in zip(relaxed.energies, given.energies, strict=True))
    assert relaxed.elements == {"Cu", "Au"}


def test_energies_are_an_atom_and_formulas_of_whole_cells():
    doubled = Crystal.from_ase(bulk("Cu", a=3.7).repeat((2, 1, 1)))
    reference = Reference.of([doubled], ase_calculator(EMT()), relaxed=True)
    assert reference.formulas == ("Cu2",)
    assert reference.energies[0] == pytest.approx(ase_calculator(EMT())([METALS[0].atoms])[0].energy, abs=1e-9)


@pytest.mark.parametrize("relaxed", [True, False])
def test_what_the_potential_cannot_do_is_rejected(relaxed):
    no_gold = lambda structures: [
        Evaluation.failed(len(a), "no gold") if 79 in a.numbers else ase_calculator(EMT())([a])[0] for a in structures
    ]
    reference = Reference.of(METALS, no_gold, relaxed=relaxed)
    assert reference.rejects == (("Au1", "no gold"),) and reference.elements == {"Cu"}
    with pytest.raises(ValueError, match="no energy of any of the 1 crystals"):
        Reference.of(METALS[1:2], no_gold, relaxed=relaxed)


def test_a_reference_that_does_not_converge_is_rejected():
    with pytest.raises(ValueError, match="not converged in 1 steps"):
        Reference.of(METALS[:1], ase_calculator(EMT()), steps=1)


# ---- composition, novelty, symmetry, measures -----------------------------------------------------------


def test_smact_says_why():
    table = smact([crystal(rock_salt()), crystal(rock_salt(elements=("Na", "He"))), METALS[0]])
    assert table["smact"].tolist() == [True, False, True]
    assert table["smact_reason"].tolist() == [None, "no neutral choice of states", None]


def test_novel_in_any_cell(tmp_path):
    ours = [crystal(s) for s in (moved(rock_salt().get_primitive_structure()), caesium_chloride(), perovskite())]
    assert novel(ours, [crystal(rock_salt()), crystal(perovskite())]).tolist() == [False, True, False]
    (tmp_path / "one.cif").write_text(ours[1].cif)
    assert novel(ours, tmp_path).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="no known crystal"):
        novel(ours, [])


def test_standardised_cells():
    base = [rattled(perovskite(), 1e-3), moved(rock_salt().get_primitive_structure()), triclinic()]
    crystals, table = standardised([crystal(s) for s in base], 0.01)
    assert table["spacegroup"].tolist() == [221, 225, 1]
    assert table["spacegroup_symbol"].tolist() == ["Pm-3m", "Fm-3m", "P1"]
    assert table["symprec"].tolist() == [0.01] * 3 and table["symmetrize_reason"].tolist() == [None] * 3
    assert [len(c) for c in crystals] == [5, 8, 6]
    np.testing.assert_allclose(crystals[1].lattice, 5.6 * np.eye(3), atol=1e-6)
    edge = np.diag(crystals[0].lattice)
    np.testing.assert_allclose(crystals[0].lattice, edge[0] * np.eye(3), atol=1e-9)  # no rattle is left
    assert standardised([crystal(base[0])], 1e-5)[1]["spacegroup"].tolist() == [1]


def test_a_failure_to_standardise_keeps_the_crystal():
    same = Crystal(np.array([11, 11]), np.array([[0, 0, 0], [0, 0, 1e-4]]), 4 * np.eye(3))
    crystals, table = standardised([same, crystal(rock_salt())], 0.01)
    assert crystals[0] is same and table["spacegroup"].isna().tolist() == [True, False]
    assert table["symmetrize_reason"][0] and table["symmetrize_reason"][1] is None
    with pytest.raises(ValueError, match="symprec is 0"):
        standardised([same], 0)


def test_without_a_package_its_name(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "smact", None)
    with pytest.raises(ImportError, match="pip install smact"):
        smact([])


def test_measures():
    thin = Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0, 0, 0.5]]), np.diag([20, 20, 0.6]))
    table = measures([crystal(rock_salt()), thin])
    assert table["formula"].tolist() == ["NaCl", "NaCl"] and table["sites"].tolist() == [8, 2]
    np.testing.assert_allclose(table["volume"], [5.6**3, 240])
    assert table["density"][0] == pytest.approx(4 * 58.44 / 5.6**3 * 1.66054, rel=1e-3)
    assert table["valid"].tolist() == [True, False] and table["reason"].tolist() == [None, "distance"]


# ---- ranks --------------------------------------------------------------------------------------------

TABLE = pd.DataFrame(
    {
        "formula": ["A", "B", "A", "B", "A"],
        "energy_per_atom": [-1.0, -5.0, -2.0, np.nan, -2.0],
        "energy_above_reference": [0.3, 0.1, 0.0, np.nan, 0.1],
        "score": [0.2, 0.9, 0.2, 0.1, 0.8],
    }
)


@pytest.mark.parametrize(
    "columns, by, largest, order, places",
    [
        (list(TABLE), None, None, [2, 1, 4, 0, 3], [3, 1, 1, None, 2]),  # over all formulas; ties as they are
        (["formula", "energy_per_atom", "score"], None, None, [2, 4, 0, 1, 3], [3, 1, 1, None, 2]),  # A first
        (["formula", "score"], None, None, [1, 4, 0, 2, 3], [2, 1, 3, 2, 1]),  # large is good
        (list(TABLE), "score", False, [3, 0, 2, 4, 1], [1, 2, 2, 1, 3]),
        (list(TABLE), "energy_above_reference", True, [0, 1, 4, 2, 3], [1, 1, 3, None, 2]),
    ],
)
def test_ranks_by_hand(columns, by, largest, order, places):
    rows, rank = ranks(TABLE[columns], by, largest)
    assert rows == order
    assert [None if pd.isna(r) else int(r) for r in rank] == places


def test_no_column_to_rank_by():
    with pytest.raises(ValueError, match="no column energy_above_reference or energy_per_atom or score to rank by"):
        ranks(TABLE[["formula"]], None, None)
    with pytest.raises(ValueError, match="no column gap to rank by"):
        ranks(TABLE, "gap", None)
