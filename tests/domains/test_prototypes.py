"""AFLOW's prototypes are what their labels say, and a library survives its cache, whatever befalls the file."""

import gzip
import json
import re

import numpy as np
import pytest

import unisci.domains.prototypes as prototypes
from tests.domains.test_templates import perovskite, rock_salt
from unisci.domains.crystal import MAX_SITES, Crystal
from unisci.domains.prototypes import aflow_prototypes, cache_folder, cached, named_library, read_library, write_library
from unisci.domains.symmetry import spacegroup
from unisci.domains.templates import TemplateLibrary

ENTRIES = [("salt", rock_salt(11, 17)), ("torn", "not a CIF"), ("titanate", perovskite(38, 22, 8))]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISCI_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def small():
    return named_library(ENTRIES, "three")


def same(a, b):
    assert a.names == b.names and a.rejects.values.tolist() == b.rejects.values.tolist()
    for key in prototypes.ARRAYS:
        one, two = getattr(a.library, key), getattr(b.library, key)
        assert one.dtype == two.dtype and np.array_equal(one, two), key


def test_aflow_prototypes_have_the_groups_of_their_labels(folder):
    found = aflow_prototypes()
    assert len(found) == len(found.library) == len(set(found.names)) and len(found) + len(found.rejects) == 288
    assert all("the limit is 64" in reason for reason in found.rejects["reason"])
    labels = [int(re.search(r"_(?:[a-z][A-Z]\d+)_(\d+)_", name)[1]) for name in found.names]
    assert np.mean(found.library.spacegroups() == labels) > 0.9
    by_name = {name: found.library[row] for row, name in enumerate(found.names)}
    assert by_name["HgS Cinnabar (B9, AB_hP6_154_a_b)"].formula == "HgS"
    assert by_name["ThH2 (L'2, A2B_tI6_139_d_a)"].formula == "ThH2"
    assert len(by_name["Cu Copper (A1, A_cF4_225_a)"]) == 1
    assert not any(set(name) & set('\\${}"') or "None" in name for name in found.names)
    Crystal.batch([found.library[row] for row in range(len(found))])  # each reduced, none too large
    same(found, aflow_prototypes())
    assert len(list(folder.iterdir())) == 1


def test_entries_become_reduced_crystals_with_names():
    found = named_library([*ENTRIES, ("cube", rock_salt(12, 8)), ("large", large())], "five")
    assert found.names == ("salt", "titanate", "cube")
    assert [found.library[row].formula for row in range(3)] == ["NaCl", "SrTiO3", "MgO"]
    assert found.library.spacegroups().tolist() == [225, 221, 225]
    assert found.rejects.values.tolist() == [
        ["torn", "not a CIF"],
        ["large", f"{MAX_SITES + 1} sites in the primitive cell, the limit is {MAX_SITES}"],
    ]


def large():
    rng = np.random.default_rng(0)
    return Crystal(rng.integers(1, 90, MAX_SITES + 1), rng.random((MAX_SITES + 1, 3)), np.eye(3) * 12)


def test_supercells_are_reduced_and_what_cannot_be_is_a_reject(monkeypatch):
    double = perovskite(38, 22, 8).structure.make_supercell((1, 1, 2))
    assert len(named_library([("double", Crystal.from_structure(double))], "one").library[0]) == 5

    def fail(crystal):
        raise np.linalg.LinAlgError("not positive definite")

    monkeypatch.setattr(Crystal, "reduced", fail)
    with pytest.raises(ValueError, match="one: none of 2 crystals is left, torn: not a CIF; salt: cannot be reduced"):
        named_library(ENTRIES[:2], "one")


def test_nothing_is_an_error():
    with pytest.raises(ValueError, match="three: empty"):
        named_library([], "three")


def test_the_cache_builds_once_for_each_key(folder):
    built = []
    build = lambda: built.append(1) or small()
    first, again = cached(b"a", build), cached(b"a", build)
    same(first, again)
    assert len(built) == 1 and len(list(folder.iterdir())) == 1
    cached(b"b", build)
    assert len(built) == 2 and len(list(folder.iterdir())) == 2


def test_another_format_is_built_anew(monkeypatch, folder):
    cached(b"a", small)
    (path,) = folder.iterdir()
    monkeypatch.setattr(prototypes, "FORMAT", prototypes.FORMAT + 1)
    with pytest.raises(ValueError, match="format"):
        read_library(path)
    cached(b"a", small)
    assert len(list(folder.iterdir())) == 2


def test_a_damaged_cache_is_built_anew(folder):
    cached(b"a", small)
    (path,) = folder.iterdir()
    whole, built = path.read_bytes(), []
    damaged = [b"", b"rubbish", whole[: len(whole) // 2], whole[:-1]]
    for at in range(0, len(whole), 499):
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    for data in damaged:
        path.write_bytes(data)
        same(cached(b"a", lambda: built.append(1) or small()), small())
    assert len(built) > 4
    same(read_library(path), small())


def test_arrays_that_do_not_fit_together_are_refused(tmp_path):
    named = small()
    for change in ({"names": ("salt",)}, {"library": TemplateLibrary(*arrays(named, offsets=np.array([0, 2, 6])))}):
        write_library(prototypes.NamedLibrary(**(vars(named) | change)), tmp_path / "a.npz")
        with pytest.raises(ValueError, match="no library"):
            read_library(tmp_path / "a.npz")


def arrays(named, **changed):
    return [changed.get(key, getattr(named.library, key)) for key in prototypes.ARRAYS]


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("UNISCI_CACHE", str(tmp_path / "file"))
    same(cached(b"a", small), small())


def test_an_error_of_the_build_stands_alone():
    def fail():
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        cached(b"a", fail)
    assert caught.value.__context__ is None


def test_a_write_is_all_or_nothing(tmp_path, monkeypatch):
    write_library(small(), tmp_path / "a.npz")
    before = (tmp_path / "a.npz").read_bytes()

    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(np, "savez", fail)
    with pytest.raises(OSError, match="full"):
        write_library(small(), tmp_path / "a.npz")
    assert [p.name for p in tmp_path.iterdir()] == ["a.npz"] and (tmp_path / "a.npz").read_bytes() == before


def test_where_the_cache_lies(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("UNISCI_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
    assert cache_folder() == tmp_path / "x" / "unisci"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "unisci"


def test_partly_occupied_prototypes_and_plain_json_are_read():
    from tests.domains.test_crystal import PARTIAL, ROCK_SALT

    tags = {"mineral": "Lavarevi\\'{c}ite", "strukturbericht": "None", "aflow": "x"}
    entries = [{"snl": s.as_dict(), "tags": tags} for s in (ROCK_SALT, PARTIAL)]
    for data in (json.dumps(entries).encode(), gzip.compress(json.dumps(entries).encode())):
        (name, crystal), (_, reason) = prototypes._prototypes(data)
        assert name == "NaCl Lavarevicite (x)" and len(crystal) == 8 and "occupied" in reason


def test_select_keeps_the_rows_and_the_volumes_per_element():
    named = named_library(
        [("salt", rock_salt(11, 17)), ("t", perovskite(38, 22, 8)), ("mgo", rock_salt(12, 8))], "three"
    )
    for rows in (named.library.spacegroups() == 225, np.array([0, 2])):
        chosen = named.select(rows)
        assert chosen.names == ("salt", "mgo") and [chosen.library[r].formula for r in range(2)] == ["NaCl", "MgO"]
        assert np.array_equal(chosen.library.atomic_volumes, named.library.atomic_volumes)
        assert chosen.library.groups.tolist() == [225, 225]
    back = named.library.select(np.array([2, 1]))
    assert [t.row for t in back.retrieve(np.array([38, 22, 8, 8, 8]), 1)] == [1] and back[0].formula == "MgO"
    plain = TemplateLibrary.from_crystals([rock_salt(11, 17)])
    assert plain.select(np.array([0])).groups is None
    for rows in (named.library.spacegroups() == 1, np.array([], int)):
        with pytest.raises(ValueError, match="no crystals"):
            named.select(rows)


def test_space_groups_are_found_once_for_each_symprec(monkeypatch):
    import unisci.domains.templates as templates

    off = perovskite(38, 22, 8)
    off.fractional[1, 2] += 0.01  # titanium, 0.04 angstrom along c
    library, asked = TemplateLibrary.from_crystals([rock_salt(11, 17), off]), []
    monkeypatch.setattr(templates, "spacegroup", lambda c, symprec: asked.append(symprec) or spacegroup(c, symprec))
    assert library.spacegroups().tolist() == library.spacegroups().tolist() == [225, 99]
    assert library.spacegroups(0.1).tolist() == [225, 221] and asked == [0.01, 0.01, 0.1, 0.1]
    known = TemplateLibrary(library.numbers, library.fractional, library.offsets, library.lattice, np.array([1, 2]))
    assert known.spacegroups().tolist() == [1, 2] and known.spacegroups(0.1).tolist() == [225, 221]
