"""Crystal metrics as users call them: small sets counted by hand."""

import math
import subprocess
import sys

import pytest
from pymatgen.core import Structure

from tests.metrics.crystals import caesium_chloride, moved, rock_salt, triclinic
from unisci.metrics.crystals import Reference, evaluate_generation, evaluate_prediction, markdown, table

LIMIT = 120.0  # seconds: a busy machine must not make a miss


def small(a=5.6, elements=("Na", "Cl")):
    return rock_salt(a, elements).get_primitive_structure()


@pytest.fixture(scope="module")
def predicted():
    """Two polymorphs in the wrong order, one right at its second try, one that never came."""
    truth = Reference.from_crystals("truth", [small(), caesium_chloride(), triclinic(), small(elements=("Na", "Na"))])
    generated = [[caesium_chloride(), None], [moved(small()), None], [None, moved(triclinic())], [None, None]]
    baselines = {
        "perfect": lambda numbers: next(c for c in truth.cells if c.counts == _counts(numbers)),
        "none": lambda _: None,
    }
    return evaluate_prediction(generated, truth, baselines, workers=1, limit=LIMIT), truth


def _counts(numbers):
    return tuple(sorted((int(z), (numbers == z).sum()) for z in set(numbers.tolist())))


def test_prediction_by_hand(predicted):
    rows, truth = predicted
    m = {row.name: row for row in rows}
    for suffix in ("", "_as_given"):
        assert m[f"match_rate{suffix}"].value == 0 and m[f"match_rate{suffix}"].n == 4
        assert m[f"match_rate{suffix}"].failures == {"no match": 2, "no structure": 2}
        assert m[f"crmse{suffix}"].value == 0.5
        assert m[f"metre_match_rate{suffix}"].value == 0.5  # both polymorphs are there
        assert m[f"metre_rmse{suffix}"].value == pytest.approx(0, abs=1e-6)
        assert m[f"metre_crmse{suffix}"].value == pytest.approx(0.25, abs=1e-6)
        assert m[f"best_of_2_match_rate{suffix}"].value == 0.25
        assert m[f"match_rate_at_1{suffix}"].value == pytest.approx(1 / 8)
        assert m[f"perfect_match_rate{suffix}"].value == 0.75  # of two polymorphs it knows the first
        assert m[f"none_match_rate{suffix}"].failures == {"no structure": 4}
    assert all((row.reference, row.reference_hash) == ("truth", truth.sha256) for row in rows)
    assert len(m) == len(rows)


def test_prediction_prints(predicted):
    rows, _ = predicted
    assert len(table(rows)) == len(rows)
    assert "| metre_match_rate | 0.5 | " in markdown(rows)


def test_a_match_that_is_not_valid_is_counted_by_its_reason():
    """NaSr2 of one formula unit is an alloy and valid, NaCl2 is neither an alloy nor neutral."""
    odd = Structure(triclinic().lattice, ["Na", "Cl", "Cl"], triclinic().frac_coords[:3])
    truth = Reference.from_crystals("truth", [odd, caesium_chloride()])
    rows = {m.name: m for m in evaluate_prediction([[odd], [caesium_chloride()]], truth, workers=1, limit=LIMIT)}
    assert rows["match_rate"].value == 1
    assert rows["valid_match_rate"].value == 0.5
    assert rows["valid_match_rate"].failures == {"not valid: no neutral choice of states": 1}
    assert not any(name.startswith(("best_of", "match_rate_at")) for name in rows)


def test_generation_by_hand():
    """Seven: NaCl twice, CsCl's structure once, NaBr, one not neutral, one with two sites too near, one missing."""
    near = caesium_chloride()
    near.translate_sites([1], [0.45, 0.45, 0.45])
    odd = Structure(triclinic().lattice, ["Na", "Cl", "Cl"], triclinic().frac_coords[:3])
    generated = [small(), moved(small()), caesium_chloride(), small(elements=("Na", "Br")), odd, near, None]
    reference = Reference.from_crystals("train", [moved(caesium_chloride()), caesium_chloride(4.1, ("Cs", "Cl"))])
    rows = evaluate_generation(generated, reference, workers=1, limit=LIMIT)
    m = {row.name: row for row in rows}
    assert m["structure_valid"].value == pytest.approx(5 / 7)
    assert m["structure_valid"].failures == {"distance": 1, "no structure": 1}
    assert m["composition_valid"].value == pytest.approx(5 / 7)
    assert m["composition_valid"].failures == {"no neutral choice of states": 1, "no structure": 1}
    assert (m["valid"].value, m["valid"].n) == (pytest.approx(4 / 7), 7)
    assert (m["uniqueness"].value, m["uniqueness"].n) == (3 / 4, 4)
    assert (m["novelty"].value, m["novelty"].n) == (pytest.approx(2 / 3), 3)
    assert m["unique_novel"].value == pytest.approx(2 / 7)
    assert m["amd_precision"].n == 7 and m["amd_precision"].value >= 1 / 7
    assert m["amd_precision"].failures == {"not valid": 3}
    assert m["amd_recall"].n == 2 and m["amd_recall"].value >= 0.5
    densities = [small().density] * 2 + [caesium_chloride().density, small(elements=("Na", "Br")).density]
    # All generated are lighter, or all heavier, than no reference: W1 by its definition on sorted values.
    theirs = [caesium_chloride().density, caesium_chloride(4.1, ("Cs", "Cl")).density]
    expected = sum(abs(a - b) for a, b in zip(sorted(densities), sorted(theirs * 2), strict=True)) / 4
    assert m["density_w1"].value == pytest.approx(expected)
    assert m["elements_w1"].value == 0
    stamped = {name for name, row in m.items() if row.reference}
    assert stamped == {"novelty", "unique_novel", "amd_precision", "amd_recall", "density_w1", "elements_w1"}


def test_generation_of_nothing_valid():
    reference = Reference.from_crystals("train", [caesium_chloride()])
    m = {row.name: row for row in evaluate_generation([None, None], reference, workers=1, limit=LIMIT)}
    assert m["valid"].value == 0 and m["amd_recall"].value == 0 and m["unique_novel"].value == 0
    assert math.isnan(m["uniqueness"].value) and math.isnan(m["novelty"].value) and math.isnan(m["density_w1"].value)


@pytest.mark.parametrize("generated", [[], [[]], [[None], [None, None]], [[None]] * 3])
def test_refuses_unequal_numbers_of_predictions(generated):
    truth = Reference.from_crystals("truth", [small(), small()])
    with pytest.raises(ValueError, match="give one list to each crystal"):
        evaluate_prediction(generated, truth)


def test_importing_the_metrics_imports_nothing_heavy():
    code = "import sys, unisci.metrics.crystals; print([m for m in ('pymatgen', 'smact', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300)
    assert done.stdout.strip() == "[]"
