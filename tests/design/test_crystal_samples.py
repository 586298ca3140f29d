from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.calculators.emt import EMT
from ase.db import connect
from ase.io import read

from tests.metrics.crystals import caesium_chloride, moved, perovskite, rock_salt
from unisci.design import crystal_samples, crystal_scores
from unisci.design.crystal_samples import OWN, CrystalSamples
from unisci.design.crystal_scores import Reference
from unisci.design.potentials import Evaluation, ase_calculator
from unisci.domains.crystal import Crystal
from unisci.domains.crystal_files import read_crystals
from unisci.metrics.workers import Workers

SALT, CSCL, PEROVSKITE = (Crystal.from_structure(s) for s in (rock_salt(), caesium_chloride(), perovskite()))
MOVED = Crystal.from_structure(moved(rock_salt().get_primitive_structure()))
THIN = Crystal(np.array([11, 17]), np.array([[0, 0, 0], [0, 0, 0.5]]), np.diag([20, 20, 0.6]))


pytestmark = pytest.mark.usefixtures("no_processes")


@pytest.fixture
def samples() -> CrystalSamples:
    """Valid, invalid and repeated ones; ids are not positions."""
    extra = pd.DataFrame(
        {"composition": ["NaCl"] * 4 + ["SrTiO3"], "score": [0.1, 0.5, 0.9, 0.2, 0.4]}, index=range(3, 8)
    )
    return CrystalSamples.of([SALT, THIN, CSCL, MOVED, PEROVSKITE], [10, 11, 12, 13, 14], 0.25, "abc123", 7, extra)


def metals() -> CrystalSamples:
    """Two coppers of which one is further from the minimum, gold, and a cell of no room."""
    crystals = [Crystal.from_ase(a) for a in (bulk("Cu", a=3.8), bulk("Cu", "bcc", a=2.9), bulk("Au", a=4.2))]
    crystals.append(Crystal(np.array([29, 29]), np.array([[0, 0, 0], [0, 0, 0.02]]), 4 * np.eye(3)))
    return CrystalSamples.of(crystals, [0, 1, 2, 3], 0.1, "m", 0)


def same_crystals(a: Sequence[Crystal], b: Sequence[Crystal], tolerance: float = 0.0) -> None:
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x.numbers, y.numbers)
        np.testing.assert_allclose(x.fractional, y.fractional, rtol=0, atol=tolerance)
        np.testing.assert_allclose(x.lattice, y.lattice, rtol=0, atol=tolerance)


# ---- a sequence with a table -------------------------------------------------------------------------


def test_the_table_says_all_of_each_sample(samples):
    table = samples.table
    assert list(table.columns) == [*OWN, "composition", "score"]
    assert table["id"].tolist() == [10, 11, 12, 13, 14] and table["sites"].tolist() == [8, 2, 2, 2, 5]
    assert table["formula"].tolist() == ["NaCl"] * 4 + ["SrTiO3"]
    assert table["valid"].tolist() == [True, False, True, True, True]
    assert table["reason"].tolist() == [None, "distance", None, None, None]
    np.testing.assert_allclose(table["volume"], [c.volume for c in samples])
    np.testing.assert_allclose(table["density"], [c.density for c in samples])
    assert table.loc[4, ["seconds", "model", "seed", "score"]].tolist() == [0.25, "abc123", 7, 0.4]


def test_it_is_a_sequence(samples):
    assert isinstance(samples, Sequence) and len(samples) == 5
    assert samples[0] is SALT and samples[-1] is PEROVSKITE and list(samples)[2] is CSCL
    part = samples[1:4:2]
    assert list(part) == [THIN, MOVED] and part.table["id"].tolist() == [11, 13] and list(part.table.index) == [0, 1]
    assert repr(samples) == "CrystalSamples(5 crystals, 4 valid)"
    assert "5 crystals, 4 valid" in samples._repr_html_() and "SrTiO3" in samples._repr_html_()


def test_keep_valid_join(samples):
    kept = samples.keep([4, 0])
    assert list(kept) == [PEROVSKITE, SALT] and kept.table["id"].tolist() == [14, 10]
    assert samples.valid().table["id"].tolist() == [10, 12, 13, 14]
    joined = CrystalSamples.join([kept, samples.valid()])
    assert joined.table["id"].tolist() == [14, 10, 10, 12, 13, 14] and list(joined.table.index) == list(range(6))
    assert list(joined)[:2] == [PEROVSKITE, SALT]
    with pytest.raises(ValueError, match="no samples to join"):
        CrystalSamples.join([])


def test_none_at_all():
    none = CrystalSamples.of([], [], 0.0, "m", 0)
    assert len(none) == len(none.valid()) == len(none.dedupe()) == len(none.symmetrize()) == 0
    assert len(none.relax(EMT())) == 0 and list(none.table.columns) == list(OWN)


def test_the_door(samples):
    with pytest.raises(ValueError, match="1 crystals, 2 ids and 1 extra rows"):
        CrystalSamples.of([SALT], [0, 1], 0.0, "m", 0)
    with pytest.raises(ValueError, match="1 crystals, 1 ids and 2 extra rows"):
        CrystalSamples.of([SALT], [0], 0.0, "m", 0, pd.DataFrame({"x": [1, 2]}))
    with pytest.raises(ValueError, match=r"extra columns \['lattice', 'seed'\]"):
        CrystalSamples.of([SALT], [0], 0.0, "m", 0, pd.DataFrame({"seed": [1], "lattice": [2]}))
    with pytest.raises(ValueError, match="2 crystals, but 5 rows"):
        CrystalSamples((SALT, SALT), samples.table)


def test_the_frame_is_a_copy(samples):
    frame = samples.to_frame()
    frame["id"] = 0
    assert samples.table["id"].tolist() == [10, 11, 12, 13, 14]


# ---- what comes after ----------------------------------------------------------------------------------


def test_dedupe_takes_the_first_of_each_structure(samples):
    """The moved salt is the first; caesium chloride is another structure of its formula; the thin one is not valid."""
    assert samples.dedupe().table["id"].tolist() == [10, 12, 14]
    assert samples.keep([3, 0]).dedupe().table["id"].tolist() == [13]


def test_symmetrize_changes_the_crystal_and_its_row(samples):
    found = samples.keep([3, 4]).symmetrize(0.01)
    assert found.table["spacegroup"].tolist() == [225, 221]
    assert found.table["sites"].tolist() == [8, 5] and found.table["id"].tolist() == [13, 14]
    assert found.table["volume"][0] == pytest.approx(4 * samples.table["volume"][3]) and len(found[0]) == 8
    assert found.table["density"][0] == pytest.approx(samples.table["density"][3])
    assert samples.table["sites"][3] == 2  # those given are as they were


def test_relax_changes_the_crystal_and_its_row():
    given = metals()
    found = given.relax(EMT(), fmax=0.01)
    table = found.table
    assert table["converged"].tolist() == [True, True, True, False]
    assert table["relax_reason"].tolist() == [None, None, None, "ran away: two sites within 0.5 A"]
    assert found[3] is given[3] and np.isnan(table["energy_per_atom"][3])
    assert (table["relax_steps"] >= 1).all() and (table["relax_fmax"][:3] < 0.01).all()
    np.testing.assert_allclose(table["volume"], [c.volume for c in found])
    assert table["volume"][0] < given.table["volume"][0] - 1
    energies = [
        e.energy / len(c) for c, e in zip(found, ase_calculator(EMT())([c.atoms for c in found[:3]]), strict=False)
    ]
    np.testing.assert_allclose(table["energy_per_atom"][:3], energies, atol=1e-9)


def test_relax_takes_a_potential_and_its_limits():
    found = metals()[:1].relax(ase_calculator(EMT()), fmax=1e-4, steps=2)
    assert found.table["relax_reason"].tolist() == ["not converged in 2 steps"]
    seen = []

    def still(structures):
        seen.extend(structures)
        return [Evaluation(0.0, np.zeros((len(a), 3)), np.zeros((3, 3))) for a in structures]

    metals()[:3].relax(still)
    assert len(seen) == 3


def test_score_and_rank():
    reference = Reference.of(metals()[:3].crystals, ase_calculator(EMT()))
    found = metals().relax(EMT()).score(reference, known=[Crystal.from_ase(bulk("Cu", a=3.6))])
    above = found.table["energy_above_reference"]
    assert above[:3].min() == pytest.approx(0.0, abs=1e-3) and np.isnan(above[3])
    assert found.table["above_reason"].tolist() == [None, None, None, "no energy"]
    assert found.table["smact"].tolist() == [True] * 4 and found.table["smact_reason"].tolist() == [None] * 4
    assert found.table["novel"][0] == False and found.table["novel"][2] == True  # noqa: E712
    ranked = found.rank()
    assert ranked.table["energy_above_reference"][:3].is_monotonic_increasing and ranked.table["id"][3] == 3
    coppers = ranked.table[ranked.table["formula"] == "Cu"]
    assert coppers["rank"].tolist()[:2] == [1, 2] and pd.isna(coppers["rank"].tolist()[2])
    assert [c.formula for c in ranked] == ranked.table["formula"].tolist()


def test_a_reference_needs_energies(samples):
    with pytest.raises(ValueError, match="call relax first"):
        samples.score(Reference(("Na", "Cl"), (0.0, 0.0)))


def test_scores_without_reference_or_known(samples):
    found = samples.score()
    assert list(found.table.columns) == [*samples.table.columns, "smact", "smact_reason"]
    assert found.table["smact"].tolist() == [True] * 5


def test_rank_by_the_score_of_the_model(samples):
    ranked = samples.rank()
    assert ranked.table["id"].tolist() == [12, 11, 14, 13, 10] and ranked.table["rank"].tolist() == [1, 2, 1, 3, 4]
    assert ranked[0] is CSCL
    assert samples.rank("density", largest=True).table["density"].is_monotonic_decreasing


# ---- files ---------------------------------------------------------------------------------------------


def test_parquet_and_back(samples, tmp_path):
    found = samples.symmetrize()
    found.to_parquet(tmp_path / "out.parquet")
    back = CrystalSamples.from_parquet(tmp_path / "out.parquet")
    same_crystals(back, found)
    pd.testing.assert_frame_equal(back.table, found.table)
    samples.valid().to_parquet(tmp_path / "valid.parquet")  # all reasons are None
    assert CrystalSamples.from_parquet(tmp_path / "valid.parquet").table["reason"].tolist() == [None] * 4


def test_cif_and_back(samples, tmp_path):
    paths = samples.to_cif(tmp_path / "cifs")
    assert [p.name for p in paths] == ["NaCl_10.cif", "NaCl_11.cif", "NaCl_12.cif", "NaCl_13.cif", "SrTiO3_14.cif"]
    back = read_crystals(tmp_path / "cifs")
    np.testing.assert_allclose([c.volume for c in back.crystals], samples.table["volume"], rtol=1e-8)


def test_extxyz_and_back(samples, tmp_path):
    samples.to_extxyz(tmp_path / "out.extxyz")
    same_crystals(read_crystals(tmp_path / "out.extxyz").crystals, samples, 1e-7)
    info = read(tmp_path / "out.extxyz", index=1).info
    assert info["formula"] == "NaCl" and info["reason"] == "distance" and info["score"] == 0.5 and not info["valid"]
    assert "reason" not in read(tmp_path / "out.extxyz", index=0).info


def test_ase_database_and_back(samples, tmp_path):
    samples.to_ase_db(tmp_path / "out.db")
    with connect(tmp_path / "out.db") as database:
        assert [row.sample_id for row in database.select("score>0.3")] == [11, 12, 14]
        same_crystals([Crystal.from_ase(row.toatoms()) for row in database.select()], samples, 1e-9)


def test_view_is_of_the_crystal_asked_for(samples):
    pytest.importorskip("py3Dmol")
    assert "SrTiO3" in samples.view(4)._make_html()


@pytest.mark.slow
def test_in_processes_of_their_own(samples, monkeypatch):
    for module in (crystal_samples, crystal_scores):
        monkeypatch.setattr(module, "Workers", Workers)
    found = samples.dedupe().score(known=[SALT])
    assert found.table["id"].tolist() == [10, 12, 14] and found.table["novel"].tolist() == [False, True, True]
    assert found.table["smact"].tolist() == [True] * 3
