"""Every usual layout gives the same crystals, and what is wrong in one is a row, not the end."""

import numpy as np
import pandas
import pytest

from tests.domains.test_crystal import PARTIAL, PEROVSKITE, ROCK_SALT
from unisci.domains.crystal import Crystal
from unisci.domains.crystal_files import read_crystals

CRYSTALS = [Crystal.from_structure(ROCK_SALT), Crystal.from_structure(PEROVSKITE)]
NAMES = ["salt", "titanate"]


def folder(path):
    path = path / "cifs"
    path.mkdir()
    for name, crystal in zip(NAMES, CRYSTALS, strict=True):
        (path / f"{name}.cif").write_text(crystal.cif)
    (path / "notes.txt").write_text("not a CIF")
    return path


def csv(path):
    pandas.DataFrame({"material_id": NAMES, "cif": [c.cif for c in CRYSTALS]}).to_csv(path / "a.csv")
    return path / "a.csv"


def parquet(path):
    pandas.DataFrame({"id": NAMES, "cif": [c.cif for c in CRYSTALS]}).to_parquet(path / "a.parquet")
    return path / "a.parquet"


def extxyz(path):
    from ase.io import write

    write(path / "a.extxyz", [c.atoms for c in CRYSTALS], format="extxyz")
    return path / "a.extxyz"


@pytest.mark.parametrize("make", [folder, csv, parquet, extxyz])
def test_layouts(make, tmp_path):
    found = read_crystals(make(tmp_path))
    assert [c.formula for c in found.crystals] == ["NaCl", "SrTiO3"] and len(found.rejects) == 0
    assert list(found.names) == (["0", "1"] if make is extxyz else NAMES)
    assert [c.volume for c in found.crystals] == pytest.approx([c.volume for c in CRYSTALS], rel=1e-6)


def test_one_cif(tmp_path):
    assert [c.formula for c in read_crystals(folder(tmp_path) / "salt.cif").crystals] == ["NaCl"]


def test_a_bad_entry_is_a_row_with_its_reason(tmp_path):
    path = folder(tmp_path)
    (path / "a.cif").write_text("data_nothing\n")
    (path / "b.cif").write_text(str(PARTIAL.to(fmt="cif")))
    found = read_crystals(path)
    assert list(found.names) == NAMES and list(found.rejects["name"]) == ["a", "b"]
    assert "not a CIF" in found.rejects["reason"][0] and "occupied" in found.rejects["reason"][1]


def test_a_missing_cif_in_a_table_is_a_row(tmp_path):
    pandas.DataFrame({"cif": [CRYSTALS[0].cif, np.nan]}).to_csv(tmp_path / "a.csv")
    found = read_crystals(tmp_path / "a.csv")
    assert list(found.names) == ["0"] and list(found.rejects["name"]) == ["1"]


@pytest.mark.parametrize(
    "name, text, message",
    [("a.csv", "x,y\n1,2\n", 'no column "cif"'), ("a.doc", "", "'.doc'"), (None, "", "does not exist")],
)
def test_what_cannot_be_read_at_all(tmp_path, name, text, message):
    if name:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        read_crystals(tmp_path / (name or "nowhere"))


def test_a_folder_without_cifs(tmp_path):
    with pytest.raises(ValueError, match=r"no \.cif"):
        read_crystals(tmp_path)
