import numpy as np
import pytest
from rdkit.Chem import Crippen

from tests.design.by_hand import DIFLUOROMETHANE, ETHANOL, METHANE, PHENOL, TWO_PIECES, size
from unisci.design.atoms import Contains, Without
from unisci.design.samples import Samples
from unisci.design.targets import Above, Between, Maximize
from unisci.metrics.intervals import proportion

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
