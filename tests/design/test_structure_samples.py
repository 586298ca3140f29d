"""Molecules in space with one row each: what goes to a file comes back, and every number is of the right molecule."""

import re
from io import StringIO

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem

from tests.small_structures import embedded
from unisci.design import structure_samples, structure_scores
from unisci.design.samples import Samples
from unisci.design.structure_drawings import CELL, LEGEND
from unisci.design.structure_samples import StructureSamples
from unisci.design.structure_scores import energy
from unisci.design.targets import Above, Below
from unisci.domains.molecule import Molecule
from unisci.domains.molecule_files import read_sdf, read_xyz
from unisci.metrics.strain import Strain

GOOD = ["CCO", "C[C@H](O)F", "C/C=C/C", "CCO"]
BROKEN = Molecule(("O", "O"), np.array([[0, 3], [3, 0]], np.int8))
FLAT = Molecule.from_smiles("CC", hydrogens=True)


@pytest.fixture(scope="module")
def samples() -> StructureSamples:
    """Valid, invalid, valid, without positions, valid, valid."""
    good = [embedded(s, k) for k, s in enumerate(GOOD)]
    molecules = [good[0], BROKEN, good[1], FLAT, good[2], good[3]]
    reasons = [None, None, None, "too large", None, None]
    extra = pd.DataFrame({"input": list("abcdef")}, index=range(10, 16))
    return StructureSamples.of(molecules, [5, 6, 7, 8, 9, 10], 0.5, "hash", 3, reasons, extra)


@pytest.fixture
def strains(monkeypatch):
    """Strain without workers: a number of atoms, so that rows can be told apart."""
    fake = lambda molecules, workers: [Strain(len(m.atoms), workers) for m in molecules]
    monkeypatch.setattr(structure_scores, "mmff_strains", fake)


def test_the_table(samples):
    table = samples.table
    assert table["valid"].tolist() == [True, False, True, False, True, True]
    assert table["reason"].tolist() == [None, "sanitising: AtomValence", None, "too large", None, None]
    assert table["smiles"].tolist() == ["CCO", None, "CC(O)F", "CC", "CC=CC", "CCO"]
    assert table["input"].tolist() == list("abcdef") and set(table["seed"]) == {3} and set(table["model"]) == {"hash"}
    assert table["isomer"][0] == "CCO" and table["isomer"][1] is None is table["isomer"][3]
    assert {table["isomer"][2]} < {"C[C@H](O)F", "C[C@@H](O)F"} and table["isomer"][4] in ("C/C=C/C", "C/C=C\\C")


def test_without_a_reason_told_the_lack_of_positions_is_one():
    assert StructureSamples.of([FLAT], [0], 0.1, "h", 0).table["reason"].tolist() == ["no positions"]


def test_a_sequence_of_molecules_is_cut_as_samples_are(samples):
    assert isinstance(samples, Samples) and len(samples) == 6 and samples[1] is BROKEN
    assert isinstance(samples[1:3], StructureSamples) and isinstance(samples.keep([2]), StructureSamples)
    assert samples.valid().table["id"].tolist() == [5, 7, 9, 10]
    assert samples.dedupe().table["id"].tolist() == [5, 7, 9] and isinstance(samples.dedupe(), StructureSamples)
    joined = StructureSamples.join([samples[:2], samples[2:]])
    pd.testing.assert_frame_equal(joined.table, samples.table)
    assert repr(samples) == "StructureSamples(6 molecules, 4 valid)"


def test_parquet_round_trip(samples, tmp_path):
    samples.to_parquet(tmp_path / "a.parquet")
    back = StructureSamples.from_parquet(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(back.table, samples.table)
    for m, k in zip(back, samples, strict=True):
        assert m.to_text() == k.to_text() and m.conformers == k.conformers
        assert m.positions is None or (m.positions == k.positions).all()
    assert back.table["reason"][0] is None and back.table["isomer"][1] is None
    table = pd.read_parquet(tmp_path / "a.parquet")
    np.testing.assert_allclose(table["positions"][0], samples[0].positions[0].ravel())
    assert table["positions"][1] is None


def test_tables_of_runs_without_a_position_have_the_same_columns(samples, tmp_path):
    import pyarrow.parquet as pq

    samples.to_parquet(tmp_path / "a.parquet")
    samples.keep([1, 3]).to_parquet(tmp_path / "b.parquet")
    schemas = [pq.read_schema(tmp_path / f"{k}.parquet").remove_metadata() for k in "ab"]
    assert schemas[0] == schemas[1]
    assert StructureSamples.from_parquet(tmp_path / "b.parquet")[0].positions is None


def test_the_frame_has_positions(samples):
    frame = samples.to_frame()
    assert frame["positions"][0].shape == (9, 3) and frame["positions"][1] is None
    assert "positions" not in samples.table


def test_sdf_has_positions_and_properties(samples, tmp_path):
    samples.to_sdf(tmp_path / "a.sdf")
    molecules, rejects, properties = read_sdf(tmp_path / "a.sdf")
    assert not rejects and [m.smiles for m in molecules] == ["CCO", "CC(O)F", "CC=CC", "CCO"]
    np.testing.assert_allclose(molecules[1].positions, samples[2].positions, atol=1e-4)
    assert [p["_Name"] for p in properties] == ["5", "7", "9", "10"]
    assert properties[1]["isomer"] == samples.table["isomer"][2] and properties[1]["input"] == "c"
    assert "reason" not in properties[1]
    mols = [m for m in Chem.SDMolSupplier(str(tmp_path / "a.sdf"), removeHs=False)]
    assert all(m.GetConformer().Is3D() for m in mols)


def test_xyz_has_the_atoms_and_positions(samples, tmp_path):
    samples.to_xyz(tmp_path / "a.xyz")
    molecules, rejects, comments = read_xyz(tmp_path / "a.xyz")
    assert not rejects and [m.smiles for m in molecules] == ["CCO", "CC(O)F", "CC=CC", "CCO"]
    np.testing.assert_allclose(molecules[0].positions, samples[0].positions, atol=1e-7)
    assert comments[0] == "5 CCO" and comments[1] == f"7 {samples.table['isomer'][2]}"
    file = StringIO()
    samples.write_xyz(file)
    assert file.getvalue() == (tmp_path / "a.xyz").read_text()


def test_scores_are_of_the_right_rows(samples, strains):
    scored = samples.score(workers=7)
    flat = Samples.of([Molecule.from_smiles(s) for s in GOOD], range(4), 0, "", 0).score().table
    rows = [0, 2, 4, 5]
    for name in ("qed", "logp", "sa", "mass"):  # as of the molecules without explicit hydrogens
        np.testing.assert_allclose(scored.table[name][rows], flat[name])
        assert scored.table[name][[1, 3]].isna().all()
    assert scored.table["strain"].tolist()[::2] == [9, 9, 12] and scored.table["strain_rmsd"][0] == 7
    assert scored.table["energy"][rows].notna().all() and scored.table["strain_reason"].tolist() == [None] * 6
    assert isinstance(scored, StructureSamples) and "qed" not in samples.table


def test_a_score_of_yours_sees_hydrogens_and_conformers(samples):
    scored = samples.score(lambda mols: [m.GetConformer().GetPositions()[0, 0] for m in mols], "x")
    assert scored.table["x"][2] == samples[2].positions[0][0, 0]
    assert scored.table["x"].isna().tolist() == [False, True, False, True, False, False]
    for name in ("positions", "isomer", "smiles"):
        with pytest.raises(ValueError, match="choose another name"):
            samples.score(lambda mols: [0.0] * len(mols), name)


def test_scores_of_nothing_valid(samples, strains):
    assert samples.keep([1, 3]).score().table["qed"].isna().all()


def test_wants_are_judged_without_explicit_hydrogens(samples):
    found = samples.meets(Below("heavyatomcount", 3.5) & Above("qed", 0.1))
    assert found.table["meets"].tolist() == [True, False, False, False, False, True]
    flat = Samples.of([Molecule.from_smiles("CCO")], [0], 0, "", 0).meets(Above("qed", 0.1))
    np.testing.assert_allclose(found.table["qed"][0], flat.table["qed"][0])
    assert found.hit_rates()["n"].tolist() == [6] * 3


def test_the_picture_is_of_graphs(samples):
    assert samples.draw().size == Samples.of([Molecule.from_smiles(s) for s in GOOD], range(4), 0, "", 0).draw().size
    assert "<svg" in samples._repr_html_() and "4 valid" in samples._repr_html_()
    with pytest.raises(ValueError, match="no valid"):
        samples.keep([1, 3]).draw()


def test_the_picture_of_conformers_has_one_for_each(samples):
    """A line of drawings, where the graphs share a sheet that is six wide."""
    width = CELL[0]
    assert samples.draw_conformers().size[0] == 4 * width
    assert samples.draw_conformers(columns=2).size[0] == 2 * width
    assert samples.draw_conformers(most=1).size == (width, CELL[1] + LEGEND)
    with pytest.raises(ValueError, match="positions"):
        samples.keep([1, 3]).draw_conformers()


def test_conformers_are_labelled_by_their_energy_above_the_lowest(monkeypatch):
    told = []
    monkeypatch.setattr(structure_samples, "sheet", lambda molecules, legends, columns: told.extend(legends))
    made = [embedded("CCO", 0), embedded("CCO", 1), embedded("CO", 0)]
    low = np.array([energy(m.rdkit) for m in made[:2]])
    StructureSamples.of(made, [0, 1, 0], 0, "", 0).draw_conformers()
    ends = [f"+{e:.1f} kcal/mol" for e in (*(low - low.min()), 0.0)]
    assert told == [f"{i}: {e}\n{s}" for i, e, s in zip((0, 1, 0), ends, ("CCO", "CCO", "CO"), strict=True)]
    told.clear()
    StructureSamples.of(made[:1], [7], 0, "", 0).draw_conformers()
    assert told == ["7: +0.0 kcal/mol"]


def test_the_page_shows_the_valid_ones(samples):
    page = samples.page()
    assert re.findall("<h3>(.*?)</h3>", page)[0] == "CCO, sample 5" and page.count("<canvas") == 4
    assert samples.page(1).count("<canvas") == 1
    assert not re.search(r"https?:|src=|import\(|fetch\(", page)
