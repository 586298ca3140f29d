import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
import pytest
from rdkit import Chem
from rdkit.Chem import QED, Crippen, Descriptors

from unisci.design.samples import Samples
from unisci.domains.molecule import Molecule

ETHANOL, BENZENE, AMMONIUM, GLYCINE = "CCO", "c1ccccc1", "[NH4+]", "[NH3+]CC(=O)[O-]"


def graph(atoms: str, bonds: str = "") -> Molecule:
    return Molecule.from_text(atoms, bonds)


TOO_MANY_BONDS = graph("C C C O C C", "0-1:1 0-2:1 0-3:1 0-4:1 0-5:1")
TWO_PIECES = graph("C O")
EMPTY = graph("")


@pytest.fixture
def samples() -> Samples:
    """Valid, invalid for each reason, and repeated ones; ids are not positions."""
    molecules = [Molecule.from_smiles(s) for s in (ETHANOL, BENZENE, "OCC", AMMONIUM, GLYCINE)]
    molecules.insert(1, TOO_MANY_BONDS)
    molecules[3:3] = [TWO_PIECES, EMPTY]
    return Samples.of(molecules, [10, 11, 12, 13, 14, 15, 16, 17], 0.25, "abc123", 7)


ONLY_INVALID = Samples.of([TOO_MANY_BONDS, TWO_PIECES], [0, 1], 0.1, "abc123", 0)
SMILES = [ETHANOL, None, BENZENE, None, None, ETHANOL, AMMONIUM, "[NH3+]CC(=O)[O-]"]


def texts(samples: Samples) -> list[tuple[str, str]]:
    return [m.to_text() for m in samples]


# ---- a sequence with a table -------------------------------------------------------------------------


def test_the_table_says_all_of_each_sample(samples):
    table = samples.table
    assert list(table.columns[:9]) == ["id", "smiles", "valid", "reason", "seconds", "model", "seed", "atoms", "bonds"]
    assert table["smiles"].tolist() == samples.smiles
    assert [s and Chem.CanonSmiles(s) for s in SMILES] == samples.smiles
    assert table["valid"].tolist() == [s is not None for s in SMILES]
    reasons = [None, "sanitising: AtomValence", None, "fragments", "no atoms", None, None, None]
    assert table["reason"].tolist() == reasons
    assert table.loc[0, ["id", "seconds", "model", "seed", "atoms", "bonds"]].tolist() == [
        10, 0.25, "abc123", 7, "C C O", "0-1:1 1-2:1",
    ]  # fmt: skip


def test_it_is_a_sequence(samples):
    assert isinstance(samples, Sequence) and len(samples) == 8
    assert samples[0].smiles == ETHANOL and samples[-1] is samples.molecules[7]
    assert [m.to_text() for m in samples] == texts(samples) and next(reversed(samples)) is samples[-1]
    assert samples[2] in samples and samples.index(samples[2]) == 2
    assert samples[np.int64(3)] is samples.molecules[3]
    with pytest.raises(IndexError):
        samples[8]


@pytest.mark.parametrize(
    "cut", [slice(2), slice(3, 6), slice(None, None, -1), slice(-2, None), slice(1, 7, 3), slice(5, 5)]
)
def test_slices_keep_rows_and_molecules_together(samples, cut):
    part = samples[cut]
    assert isinstance(part, Samples) and len(part) == len(range(8)[cut])
    assert part.table["id"].tolist() == [10 + i for i in range(8)[cut]]
    assert part.table["smiles"].tolist() == part.smiles == samples.smiles[cut]
    assert part.table.index.tolist() == list(range(len(part)))


def test_keep_takes_positions_in_their_order(samples):
    part = samples.keep([5, 0, 5])
    assert part.table["id"].tolist() == [15, 10, 15] and part.smiles == [ETHANOL] * 3


def test_valid_and_dedupe(samples):
    valid = samples.valid()
    assert valid.table["id"].tolist() == [10, 12, 15, 16, 17] and valid.table["valid"].all()
    distinct = samples.dedupe()
    assert distinct.table["id"].tolist() == [10, 12, 16, 17]  # the first of each, invalid ones gone
    assert len(set(distinct.smiles)) == len(distinct)
    assert len(samples) == 8  # the samples themselves are left alone


def test_nothing_valid_is_no_error():
    assert len(ONLY_INVALID.valid()) == len(ONLY_INVALID.dedupe()) == 0
    assert list(ONLY_INVALID.valid().score().table.columns[9:]) == ["qed", "logp", "sa", "mass"]


def test_molecules_and_rows_must_be_as_many(samples):
    with pytest.raises(ValueError, match="8 molecules, but 7 rows"):
        Samples(samples.molecules, samples.table.iloc[:7])


def test_join_keeps_the_order(samples):
    joined = Samples.join([samples[4:], samples[:2]])
    assert joined.table["id"].tolist() == [14, 15, 16, 17, 10, 11] and joined.smiles == joined.table["smiles"].tolist()
    assert joined.table.index.tolist() == list(range(6))
    assert texts(Samples.join([samples])) == texts(samples)
    with pytest.raises(ValueError, match="no samples"):
        Samples.join([])


# ---- scores -------------------------------------------------------------------------------------------


def test_default_scores_are_those_of_rdkit(samples):
    table = samples.score().table
    for column, function in (("qed", QED.qed), ("logp", Crippen.MolLogP), ("mass", Descriptors.MolWt)):
        expected = [function(Chem.MolFromSmiles(s)) if s else np.nan for s in SMILES]
        np.testing.assert_allclose(table[column], expected, err_msg=column)
    assert table["mass"][0] == pytest.approx(46.069, abs=1e-3)
    assert (table["sa"].notna() == table["valid"]).all() and table["sa"].dropna().between(1, 10).all()
    assert not {"qed", "mass"} & set(samples.table.columns)  # the samples themselves are left alone


def test_your_own_score_sees_the_valid_molecules_in_order(samples):
    seen = []

    def heavy(mols):
        seen.extend(Chem.MolToSmiles(m) for m in mols)
        return np.array([m.GetNumHeavyAtoms() for m in mols])

    scored = samples.score(heavy, "size").score(lambda mols: [-1.0] * len(mols), "other")
    assert seen == samples.valid().smiles
    np.testing.assert_array_equal(scored.table["size"], [3, np.nan, 6, np.nan, np.nan, 3, 1, 5])
    assert scored.table["other"].dropna().tolist() == [-1.0] * 5
    assert scored.dedupe().table["size"].tolist() == [3, 6, 1, 5]  # a score stays with its sample


def test_a_score_again_replaces_the_column(samples):
    twice = samples.score(lambda m: [1.0] * len(m)).score(lambda m: [2.0] * len(m))
    assert twice.table["score"].dropna().unique().tolist() == [2.0]


@pytest.mark.parametrize("values", [[], [1.0], [1.0] * 6, [1.0] * 8])
def test_a_score_of_another_length_is_refused(samples, values):
    with pytest.raises(ValueError, match=f"{len(values)} values for 5 molecules"):
        samples.score(lambda mols: values)


@pytest.mark.parametrize("name", ["id", "smiles", "valid", "atoms", "bonds"])
def test_a_score_cannot_overwrite_what_a_sample_is(samples, name):
    with pytest.raises(ValueError, match=name):
        samples.score(lambda mols: [0.0] * len(mols), name)


# ---- files ---------------------------------------------------------------------------------------------


def test_to_frame_is_a_copy(samples):
    frame = samples.to_frame()
    frame.loc[0, "smiles"] = "changed"
    assert samples.table.loc[0, "smiles"] == ETHANOL


@pytest.mark.parametrize("scored", [False, True])
def test_parquet_round_trip_keeps_everything_invalid_graphs_too(samples, tmp_path, scored):
    samples = samples.score() if scored else samples
    samples.to_parquet(tmp_path / "s.parquet")
    back = Samples.from_parquet(tmp_path / "s.parquet")
    assert texts(back) == texts(samples) and back.smiles == samples.smiles
    assert back.table["reason"].tolist() == samples.table["reason"].tolist()
    pd.testing.assert_frame_equal(back.table, samples.table, check_dtype=False)
    assert len(back.dedupe()) == 4


def test_parquet_of_only_valid_or_only_invalid_samples(samples, tmp_path):
    for part in (samples.valid(), ONLY_INVALID, ONLY_INVALID.valid()):
        part.to_parquet(tmp_path / "s.parquet")
        back = Samples.from_parquet(str(tmp_path / "s.parquet"))
        assert texts(back) == texts(part) and back.table["reason"].tolist() == part.table["reason"].tolist()


def test_generated_samples_round_trip(drawn, tmp_path):
    drawn.to_parquet(tmp_path / "s.parquet")
    back = Samples.from_parquet(tmp_path / "s.parquet")
    assert texts(back) == texts(drawn) and back.smiles == drawn.smiles
    pd.testing.assert_frame_equal(back.table, drawn.table, check_dtype=False)


def test_smi_holds_the_valid_samples_with_their_ids(samples, tmp_path):
    samples.to_smi(tmp_path / "s.smi")
    lines = (tmp_path / "s.smi").read_text().split("\n")
    expected = [f"{s}\t{i}" for s, i in zip(samples.smiles, range(10, 18), strict=True) if s]
    assert lines == [*expected, ""]
    text = io.StringIO()
    samples.write_smi(text)
    assert text.getvalue() == (tmp_path / "s.smi").read_text()


def test_sdf_holds_the_valid_samples_with_their_properties(samples, tmp_path):
    samples.score().to_sdf(tmp_path / "s.sdf")
    records = list(Chem.SDMolSupplier(str(tmp_path / "s.sdf")))
    valid = samples.score().valid().table
    assert [Chem.MolToSmiles(m) for m in records] == valid["smiles"].tolist()
    for mol, row in zip(records, valid.to_dict("records"), strict=True):
        assert mol.GetProp("_Name") == mol.GetProp("id") == str(row["id"])
        assert mol.GetProp("smiles") == row["smiles"] and mol.GetProp("model") == "abc123"
        assert float(mol.GetProp("qed")) == row["qed"] and not mol.HasProp("reason")
        positions = mol.GetConformer().GetPositions()
        assert not positions[:, 2].any()  # drawn in the plane
        if len(positions) > 1:
            assert np.linalg.norm(positions[0] - positions[1]) > 0.5


def test_sdf_of_generated_samples_reads_back(drawn, tmp_path):
    drawn.to_sdf(tmp_path / "s.sdf")
    records = list(Chem.SDMolSupplier(str(tmp_path / "s.sdf")))
    assert [Chem.MolToSmiles(m) for m in records] == drawn.valid().smiles


def test_a_property_of_several_lines_tears_no_record(samples, tmp_path):
    table = samples.table.assign(note="first\n\n$$$$\nlast")
    Samples(samples.molecules, table).to_sdf(tmp_path / "s.sdf")
    assert len([m for m in Chem.SDMolSupplier(str(tmp_path / "s.sdf")) if m is not None]) == 5


def test_files_without_a_valid_sample_are_empty(tmp_path):
    ONLY_INVALID.to_smi(tmp_path / "s.smi")
    ONLY_INVALID.to_sdf(tmp_path / "s.sdf")
    assert (tmp_path / "s.smi").read_text() == (tmp_path / "s.sdf").read_text() == ""


# ---- pictures -------------------------------------------------------------------------------------------


def test_draw_gives_a_picture_as_large_as_its_grid(samples):
    assert samples.draw().size == (6 * 180, 140)
    assert samples.draw(most=4, columns=2).size == (2 * 180, 2 * 140)
    pixels = np.asarray(samples.draw(most=1, columns=1).convert("L"))
    assert pixels.min() < 128 < pixels.max()  # something is drawn


def test_nothing_to_draw_is_an_error():
    with pytest.raises(ValueError, match="no valid sample"):
        ONLY_INVALID.draw()


def test_notebooks_show_counts_and_drawings(samples):
    html = samples._repr_html_()
    assert html.startswith("<p>8 samples, 5 valid</p>") and html.count("<svg") == 1
    assert ONLY_INVALID._repr_html_() == "<p>2 samples, 0 valid</p>"
    assert repr(samples) == "Samples(8 molecules, 5 valid)"
    assert samples[0]._repr_svg_().count("<svg") == 1 and TWO_PIECES._repr_svg_() is None
