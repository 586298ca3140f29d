"""Molecule metrics: small sets counted by hand, and laws over random ones."""

import hashlib
import math
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.metrics import descriptors
from unisci.metrics.molecules import Reference, canonical, evaluate, markdown, read, table

POOL = ["CCO", "CC", "c1ccccc1", "CC(=O)O", "C1CC1", "N#N", "C(C)(C)(C)(C)C", "CC.O", "not smiles", None]
REFERENCE = Reference.from_smiles("tiny", ["OCC", "C1CCCCC1", "c1ccccc1C"])
lists = st.lists(st.sampled_from(POOL), min_size=0, max_size=12)


def by_name(*args, **kwargs):
    return {m.name: m for m in evaluate(*args, **kwargs)}


def test_counts_by_hand():
    smiles = ["CCO", "OCC", "CC", "C(C)(C)(C)(C)C", "CC.O", None, "CCC", "xyz", None, ""]
    reasons = [None, None, None, None, None, "no bonds", "corrected", None, None, None]
    m = by_name(smiles, reasons, REFERENCE)
    assert m["validity"].value == 3 / 10 and m["validity"].n == 10
    failures = {
        "sanitising: AtomValence": 1,
        "fragments": 1,
        "no bonds": 1,
        "corrected": 1,
        "not a SMILES": 1,
        "no reason given": 1,
        "no atoms": 1,
    }
    assert m["validity"].failures == failures
    assert m["uniqueness"].value == 2 / 3 and m["uniqueness"].n == 3  # CCO twice, CC
    assert m["novelty"].value == 1 / 2 and m["novelty"].n == 2  # CCO is in the reference
    assert (m["novelty"].reference, m["novelty"].reference_hash) == ("tiny", REFERENCE.sha256)
    # Elements: C 6, O 2 against C 15, O 1 of the reference; bonds: 5 single against 2 + 6 + 1 single, 6 aromatic.
    assert m["atoms_tv"].value == pytest.approx(2 / 8 - 1 / 16)
    assert m["bonds_tv"].value == pytest.approx(1 - 9 / 15)
    assert m["rings_tv"].value == 1  # no ring against two of six


@pytest.mark.parametrize(
    ("smiles", "expected"),
    [
        ("OC(C)=O", "CC(=O)O"),
        ("N[C@@H](C)C(=O)O", "CC(N)C(=O)O"),
        ("F/C=C/F", "FC=CF"),
        ("[2H]C([2H])C", "CC"),
        ("[13CH4]", "C"),
        ("C1=CC=CC=C1", "c1ccccc1"),
    ],
)
def test_canonical_drops_stereo_isotopes_and_hydrogens(smiles, expected):
    assert canonical(smiles) == (expected, None)


@settings(max_examples=30, deadline=None)
@given(lists, st.randoms())
def test_order_of_samples_changes_nothing(smiles, random):
    shuffled = list(smiles)
    random.shuffle(shuffled)
    a, b = evaluate(smiles, reference=REFERENCE), evaluate(shuffled, reference=REFERENCE)
    assert repr(a) == repr(b)  # repr, as NaN differs from itself


@settings(max_examples=30, deadline=None)
@given(lists)
def test_values_are_bounded_and_inside_their_intervals(smiles):
    for m in evaluate(smiles, reference=REFERENCE):
        if m.name in ("validity", "uniqueness", "novelty") or m.name.endswith("_tv"):
            assert math.isnan(m.value) or 0 <= m.value <= 1
        assert math.isnan(m.low) == math.isnan(m.high)
        assert math.isnan(m.low) or m.low <= m.value <= m.high
        assert m.reference is None or len(m.reference_hash) == 64
        if m.name == "validity":
            assert m.n == len(smiles) and sum(m.failures.values()) == m.n - round(m.n * (m.value if m.n else 0))


@settings(max_examples=30, deadline=None)
@given(lists)
def test_repeating_every_sample_halves_uniqueness_and_keeps_validity(smiles):
    one, two = by_name(smiles), by_name(smiles * 2)
    if one["validity"].n and one["uniqueness"].n:
        assert two["uniqueness"].value == one["uniqueness"].value / 2
        assert two["validity"].value == one["validity"].value
        assert two["qed"].value == pytest.approx(one["qed"].value)


def test_a_set_against_itself_has_distance_zero_and_no_novelty():
    reference = Reference.from_smiles("self", ["CCO", "c1ccccc1", "CC(=O)O", "C1CC1N"])
    m = by_name(reference.smiles, reference=reference)
    assert m["novelty"].value == 0
    assert all(v.value == pytest.approx(0) for k, v in m.items() if k.endswith(("_tv", "_w1")))


def test_a_descriptor_that_raises_is_counted(monkeypatch):
    def fragile(mol):
        if mol.GetNumAtoms() == 3:
            raise RuntimeError("three atoms\nand a second line")
        return float("nan") if mol.GetNumAtoms() == 2 else 1.0

    monkeypatch.setitem(descriptors.VALUES, "qed", fragile)
    m = by_name(["CCO", "CCC", "C", "CC"])
    assert m["qed"].failures == {"RuntimeError: three atoms": 2, "not a number: nan": 1}
    assert (m["qed"].n, m["qed"].value, m["logp"].n) == (1, 1.0, 4)


def test_reference():
    lines = ["CCO", "OCC", "CC.O", "nonsense", "C"]
    reference = Reference.from_smiles("mine", lines)
    assert reference.smiles == ("C", "CCO")
    assert reference.failures == {"fragments": 1, "not a SMILES": 1}
    assert reference.sha256 == hashlib.sha256(b"C\nCCO\n").hexdigest()
    assert reference.sha256 == Reference.from_smiles("other", lines[::-1]).sha256
    limited = Reference.from_smiles("mine", ["C" * n for n in range(1, 30)], limit=7)
    assert len(limited.profile.values["qed"]) == 7


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="2 smiles but 1 reasons"):
        read(["C", "CC"], [None])
    with pytest.raises(ValueError, match=r"smiles\[1\] is 3"):
        read(["C", 3])
    with pytest.raises(ValueError, match=r"'empty' has no valid molecule.*fragments"):
        Reference.from_smiles("empty", ["C.C"])
    with pytest.raises(ValueError, match=r"use Reference\.from_smiles"):
        Reference("unsorted", ("CC", "C"))


def test_nothing_valid_gives_nan_not_an_error():
    m = by_name([None, None], ["a", "b"], REFERENCE)
    assert m["validity"].value == 0 and m["validity"].high < 1
    assert all(math.isnan(v.value) for k, v in m.items() if k.endswith("_w1") or k in ("uniqueness", "novelty", "sa"))


def test_table_and_markdown():
    metrics = evaluate(["CCO", "CC", None, None], [None, None, "a|b", "c\nd"], REFERENCE)
    frame = table(metrics)
    assert list(frame["name"][:3]) == ["validity", "uniqueness", "novelty"] and frame["value"][0] == 0.5
    assert frame["failures"][0] == "a|b: 1; c\nd: 1"
    lines = markdown(metrics).splitlines()
    assert len(lines) == len(metrics) + 2
    assert lines[2] == "| validity | 0.5 | 0.15 to 0.85 | 4 | a\\|b: 1; c d: 1 |  |"
    assert lines[4].endswith(f"| tiny@{REFERENCE.sha256[:8]} |")


def test_intervals_rest_on_the_seed_alone():
    smiles = ["C" * n for n in range(1, 40)]
    a, b = by_name(smiles, reference=REFERENCE, seed=1), by_name(smiles, reference=REFERENCE, seed=2)
    assert a == by_name(smiles, reference=REFERENCE, seed=1)
    assert a["logp"].low != b["logp"].low and a["logp"].value == b["logp"].value


def test_import_is_light():
    heavy = "{'fcd_torch', 'scipy', 'pandas', 'matplotlib'} & sys.modules.keys()"
    code = f"import sys, unisci.metrics.molecules; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)
