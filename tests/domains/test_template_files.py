"""Whatever a user names as templates becomes one library, and is parsed once."""

import os

import numpy as np
import pytest

import unisci.domains.template_files as template_files
from tests.domains.test_crystal_files import CRYSTALS, NAMES, csv, extxyz, folder, parquet
from tests.domains.test_prototypes import same
from unisci.domains.crystal import Crystal
from unisci.domains.template_files import load_templates, save_templates


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISCI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def reads(monkeypatch):
    """The paths that were parsed."""
    read, real = [], template_files.read_crystals
    monkeypatch.setattr(template_files, "read_crystals", lambda path: read.append(path) or real(path))
    return read


def formulas(named):
    return [named.library[row].formula for row in range(len(named))]


@pytest.mark.parametrize("make", [folder, csv, parquet, extxyz])
def test_files_are_parsed_once(make, tmp_path, reads):
    first = load_templates(str(make(tmp_path)))
    assert formulas(first) == ["NaCl", "SrTiO3"] and list(first.names) == (["0", "1"] if make is extxyz else NAMES)
    assert [len(first.library[row]) for row in range(2)] == [2, 5]  # primitive
    (path,) = reads
    same(load_templates(path), first)
    assert len(reads) == 1


def test_one_cif_is_named_by_its_file(tmp_path, reads):
    path = folder(tmp_path) / "salt.cif"
    assert load_templates(path).names == ("salt",)
    copy = path.rename(path.with_name("halite.cif"))
    assert load_templates(copy).names == ("halite",)


def test_a_changed_source_is_parsed_anew(tmp_path, reads):
    path = folder(tmp_path)
    load_templates(path)
    (path / "more.cif").write_text(CRYSTALS[0].cif)
    assert load_templates(path).names == ("more", *NAMES)
    os.utime(path / "more.cif", ns=(1, 1))
    load_templates(path)
    assert len(reads) == 3
    (path / "notes.txt").write_text("of no matter")
    load_templates(path)
    assert len(reads) == 3
    table = csv(tmp_path)
    load_templates(table)
    table.write_text(table.read_text().replace("titanate", "tausonite"))
    assert load_templates(table).names == ("salt", "tausonite")


def test_two_folders_of_like_files_are_two_sources(tmp_path):
    for name, crystal in (("a", CRYSTALS[0].cif), ("b", CRYSTALS[0].cif.replace("Na", "Li"))):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.cif").write_text(crystal)
        os.utime(tmp_path / name / "x.cif", ns=(1, 1))
    assert formulas(load_templates(tmp_path / "a")) != formulas(load_templates(tmp_path / "b"))


def test_rejects_are_kept_by_the_cache(tmp_path):
    path = folder(tmp_path)
    (path / "broken.cif").write_text("data_nothing\n")
    for _ in range(2):
        found = load_templates(path)
        assert list(found.names) == NAMES and list(found.rejects["name"]) == ["broken"]
        assert "not a CIF" in found.rejects["reason"][0]


def test_all_rejected_says_why(tmp_path, cache):
    path = tmp_path / "bad"
    path.mkdir()
    for name in "abcde":
        (path / f"{name}.cif").write_text("data_nothing\n")
    with pytest.raises(ValueError, match=r"bad: none of 5 crystals is left, a: not a CIF.*; b: .*; c: ") as caught:
        load_templates(path)
    assert "; d: " not in str(caught.value) and not cache.exists()


def test_crystals_at_hand():
    found = load_templates(CRYSTALS)
    assert found.names == ("0", "1") and formulas(found) == ["NaCl", "SrTiO3"]
    same(load_templates(tuple(CRYSTALS), map=None), found)  # of the cache: nothing to map
    assert formulas(load_templates(CRYSTALS[::-1])) == ["SrTiO3", "NaCl"]
    with pytest.raises(ValueError, match="empty"):
        load_templates([])


@pytest.mark.parametrize("change", ["numbers", "fractional", "lattice"])
def test_other_crystals_are_another_key(change):
    a = CRYSTALS[0]
    arrays = {k: getattr(a, k).copy() for k in ("numbers", "fractional", "lattice")}
    arrays[change] = arrays[change] * (2 if change == "numbers" else 1.01)
    one, other = load_templates([a]), load_templates([Crystal(**arrays)])
    assert any(not np.array_equal(getattr(one.library, k), getattr(other.library, k)) for k in arrays)


def test_the_map_reduces():
    tasks = []
    mine = lambda function, items: [tasks.append(item) or function(item) for item in items]
    same(load_templates(CRYSTALS, mine), load_templates(CRYSTALS))
    assert tasks == CRYSTALS
    late = lambda function, items: ["time out", *map(function, items[1:])]
    found = load_templates(CRYSTALS[::-1], late)
    assert found.names == ("1",) and found.rejects.values.tolist() == [["0", "time out"]]


def test_saved_and_loaded(tmp_path):
    found = load_templates(CRYSTALS)
    save_templates(found, tmp_path / "mine.npz")
    same(load_templates(tmp_path / "mine.npz"), found)
    with pytest.raises(ValueError, match=r"\.npz"):
        save_templates(found, tmp_path / "mine.csv")


def test_none_is_aflow(monkeypatch):
    monkeypatch.setattr(template_files, "aflow_prototypes", lambda: "AFLOW's")
    assert load_templates() == "AFLOW's"


@pytest.mark.parametrize("name, text", [("a.npz", "rubbish"), ("missing.npz", None), ("missing", None), ("a.doc", "x")])
def test_what_is_no_source(tmp_path, name, text):
    if text:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=name):
        load_templates(tmp_path / name)


@pytest.mark.parametrize("source", [3, ["a.cif"]])
def test_what_is_no_crystal(source):
    with pytest.raises(ValueError, match="path or crystals"):
        load_templates(source)
