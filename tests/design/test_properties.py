import numpy as np
import pytest
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors

from unisci.design.properties import known, measure, named
from unisci.domains.molecule import Molecule
from unisci.metrics.descriptors import sa

SMILES = ("CCO", "c1ccccc1N", "[NH3+]CC(=O)[O-]")
VALID = [Molecule.from_smiles(s) for s in SMILES]
TWO_PIECES = Molecule.from_text("C O", "")
TOO_MANY_BONDS = Molecule.from_text("O C C C", "0-1:1 0-2:1 0-3:1")


@pytest.mark.parametrize(
    "name, function",
    [
        ("qed", QED.qed),
        ("logp", Crippen.MolLogP),
        ("sa", sa),
        ("mass", Descriptors.MolWt),
        ("tpsa", Descriptors.TPSA),
        ("RingCount", Descriptors.RingCount),
        ("MAXPARTIALCHARGE", Descriptors.MaxPartialCharge),
    ],
)
def test_names_are_those_functions_in_upper_and_lower_case(name, function):
    expected = [function(Chem.MolFromSmiles(s)) for s in SMILES]
    for spelling in (name, name.upper(), name.lower()):
        np.testing.assert_allclose(measure(spelling, VALID), expected, rtol=1e-6)


def test_every_known_property_has_a_name_in_lower_case():
    assert len(known()) > 200 and all(k == k.lower() for k in known())
    assert {"qed", "logp", "sa", "mass", "tpsa"} <= known().keys()


@pytest.mark.parametrize("name, near", [("tpas", "tpsa"), ("molweight", "mol"), ("", "qed"), ("gibberish!", "qed")])
def test_an_unknown_name_says_what_is_near(name, near):
    with pytest.raises(ValueError, match=rf"unknown property '{name}'; near are .*{near}.*pass a function"):
        named(name)
    with pytest.raises(ValueError, match="unknown property"):
        measure(name, VALID)


@pytest.mark.parametrize("prop", ["logp", lambda molecules: [len(m.atoms) for m in molecules]])
def test_invalid_molecules_have_no_value_and_the_others_keep_their_rows(prop):
    mixed = [TWO_PIECES, VALID[0], TOO_MANY_BONDS, *VALID[1:]]
    values = measure(prop, mixed)
    assert values.dtype == float and np.isnan(values[[0, 2]]).all()
    np.testing.assert_array_equal(values[[1, 3, 4]], measure(prop, VALID))


def test_a_function_sees_valid_molecules_alone_and_is_not_called_for_none():
    seen = []

    def size(molecules):
        seen.append([m.smiles for m in molecules])
        return [len(m.atoms) for m in molecules]

    assert measure(size, [VALID[0], TWO_PIECES, VALID[1]])[[0, 2]].tolist() == [3, 7]
    assert seen == [["CCO", VALID[1].smiles]]
    assert np.isnan(measure(size, [TWO_PIECES])).all() and len(measure(size, [])) == 0
    assert len(seen) == 1


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 4, 2.0, [[1.0]] * 3, ["many", "few", "none"]])
def test_what_is_no_number_for_each_molecule_is_refused(values):
    with pytest.raises(ValueError):
        measure(lambda molecules: values, VALID)


def test_the_refusal_names_both_numbers():
    with pytest.raises(ValueError, match=r"shape \(2,\) for 3 molecules"):
        measure(lambda molecules: [1.0, 2.0], VALID)
