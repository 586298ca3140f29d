"""Crystals become tensors once: what each is, which are left out and why, and that training then needs no chemistry."""

import csv
import subprocess
import sys

import numpy as np
import pytest
import torch
from pandas import DataFrame

from tests.domains.test_templates import perovskite, rock_salt
from tests.jobs.small_crystals import small_crystals, small_job, write_crystals, wurtzite
from unisci.autoregression.crystals import templates
from unisci.domains.crystal import Crystal
from unisci.domains.orbit_batches import WyckoffTable, orbits_of
from unisci.domains.template_files import load_templates
from unisci.domains.templates import TemplateLibrary
from unisci.jobs import crystal_data
from unisci.jobs.config import ConfigError
from unisci.jobs.crystal_data import prepare
from unisci.lattice import cell_numbers
from unisci.training.data import widen


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNISCI_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_crystals(tmp_path_factory.mktemp("source") / "train.npz", small_crystals())


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    return prepare(small_job(source, source).data, tmp_path_factory.mktemp("data"))


def rejects(folder) -> list[dict]:
    with (folder / "rejects.csv").open() as file:
        return list(csv.DictReader(file))


def cif_table(path, crystals, more=()):
    """A .csv with columns material_id and cif."""
    cifs = [c.cif for c in crystals] + list(more)
    DataFrame({"material_id": [f"mp-{i}" for i in range(len(cifs))], "cif": cifs}).to_csv(path, index=False)
    return path


# ---- what comes out --------------------------------------------------------------------------------------


def test_orbits_and_sites_are_the_crystals(data):
    crystals = small_crystals()
    assert data.counts["train"] == data.counts["orbits"] == len(crystals) and data.validation is None
    for found in (Crystal.unbatch(widen(data.sites)), [o.crystal for o in orbits_of(widen(data.orbits), data.table)]):
        for a, b in zip(found, crystals, strict=True):
            assert sorted(a.numbers) == sorted(b.numbers) and a.volume == pytest.approx(b.volume, rel=1e-5)
            assert a.structure.get_space_group_info() == b.structure.get_space_group_info()
    assert set(data.orbits.state["group"].tolist()) == {221, 225}
    assert [data.library[i].formula for i in range(len(crystals))] == [c.formula for c in crystals]


def test_each_crystal_has_the_templates_that_retrieval_finds_without_it(data):
    library, batch = TemplateLibrary.from_crystals(small_crystals()), widen(data.sites)
    for k in range(2):
        given = templates(batch, torch.full((len(batch),), k))
        for i, crystal in enumerate(small_crystals()):
            template = library.retrieve(crystal.numbers, 2, [i])[k]
            n = len(crystal)
            assert template.row != i and float(given["template_distance"][i]) == pytest.approx(template.distance)
            # Those of one structure type lie exactly on the crystal, whichever way they were set before.
            off = given["template_position"][i, :n] - batch.state["position"][i, :n]
            assert float((off - off.round()).abs().max()) < 1e-5
            cell = cell_numbers(torch.from_numpy(template.crystal.lattice)[None], torch.tensor([n]))[0].float()
            torch.testing.assert_close(given["template_cell"][i], cell, rtol=1e-4, atol=1e-4)


def test_where_there_are_fewer_templates_the_rest_is_marked(tmp_path):
    source = write_crystals(tmp_path / "few.npz", [rock_salt(11, 17), rock_salt(19, 17), perovskite(38, 22, 8)])
    data = prepare(small_job(tmp_path, source).data, tmp_path / "data")
    distance = data.sites.given["template_distance"]
    assert (distance >= 0).tolist() == [[True, False], [True, False], [False, False]]
    assert distance[2].tolist() == [-1, -1]


def test_tables_are_those_of_the_crystals(data):
    from unisci.domains.elements import element_features

    library = TemplateLibrary.from_crystals(small_crystals())
    np.testing.assert_allclose(data.volumes, library.atomic_volumes, rtol=1e-5)
    np.testing.assert_allclose(data.features, element_features(), rtol=1e-6)
    fresh = WyckoffTable.from_text(data.table.text)
    assert len(fresh) == len(data.table) == 5 and (fresh.multiplicities == data.table.multiplicities).all()


def test_the_validation_set_keeps_what_the_table_knows(source, tmp_path):
    held = write_crystals(tmp_path / "held.npz", [rock_salt(3, 53, 3.9), wurtzite(), perovskite(57, 13, 8)])
    job = small_job(tmp_path, source, data={"validation": str(held), "max_rejected": 0.4})
    data = prepare(job.data, tmp_path / "data")
    assert [o.crystal.formula for o in orbits_of(widen(data.validation), data.table)] == ["LiI", "LaAlO3"]
    assert data.counts["validation"] == 2 and data.counts["validation rejected"] == {"unknown position": 1}
    (row,) = rejects(tmp_path / "data")
    assert (row["part"], row["name"]) == ("validation", "s1") and "186b is not in training" in row["reason"]
    with pytest.raises(ConfigError, match=r"1 of 3 crystals of .*held\.npz were rejected"):
        prepare(small_job(tmp_path, source, data={"validation": str(held)}).data, tmp_path / "refused")


# ---- what is left out ------------------------------------------------------------------------------------


def test_rejects_are_listed_with_their_reasons(tmp_path):
    sites = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.25], [0.1, 0.2, 0.3], [0.7, 0.1, 0.6], [0.3, 0.8, 0.6]]
    large = Crystal([3, 11, 19, 8, 8, 9], sites, np.diag([5.0, 6.0, 7.0]))
    source = cif_table(tmp_path / "t.csv", [*small_crystals(), large], ["no cif at all"])
    job = small_job(tmp_path, source, data={"max_rejected": 0.1})
    data = prepare(job.data, tmp_path / "data")
    assert data.counts["rows"] == 25 and data.counts["rejected"] == {"not read": 1, "too large": 1}
    assert len(data.sites) == len(data.orbits) == len(data.library) == 23
    found = {r["name"]: r["reason"] for r in rejects(tmp_path / "data")}
    assert found.keys() == {"mp-23", "mp-24"} and found["mp-23"] == "too large: 6 sites, data.most_sites = 5"
    with pytest.raises(ConfigError, match=r"2 of 25 crystals .*'not read': 1.*max_rejected = 0.05"):
        prepare(small_job(tmp_path, source).data, tmp_path / "refused")
    assert len(rejects(tmp_path / "refused")) == 2 and not (tmp_path / "refused" / "data.json").exists()


def test_a_crystal_without_orbits_is_listed_and_stays_a_template(tmp_path):
    salt = rock_salt(19, 17)
    twice = Crystal(
        np.tile(salt.numbers, 2),
        np.concatenate([salt.fractional, salt.fractional + np.array([1, 0, 0])]) / [2, 1, 1],
        salt.lattice * [[2], [1], [1]],
    )
    source = write_crystals(tmp_path / "twice.npz", [*small_crystals(), twice])
    data = prepare(small_job(tmp_path, source).data, tmp_path / "data")
    assert (len(data.sites), len(data.orbits), len(data.library)) == (24, 23, 24)
    assert data.counts["rejected"] == {"no orbits": 1} and "no orbits: " in rejects(tmp_path / "data")[0]["reason"]


def test_a_source_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no crystals '.*absent\.csv'"):
        prepare(small_job(tmp_path, tmp_path / "absent.csv").data, tmp_path / "data")
    source = write_crystals(tmp_path / "large.npz", [perovskite(38, 22, 8)])
    with pytest.raises(ConfigError, match=r"no crystal has at most data\.most_sites = 4 sites"):
        prepare(small_job(tmp_path, source, data={"most_sites": 4}).data, tmp_path / "data")


# ---- the cache -------------------------------------------------------------------------------------------


def test_the_cache_is_read_until_what_it_is_of_changes(tmp_path, monkeypatch):
    source, folder = cif_table(tmp_path / "t.csv", small_crystals()), tmp_path / "data"
    first = prepare(small_job(tmp_path, source).data, folder)
    with monkeypatch.context() as patch:
        patch.setattr(crystal_data, "_write", lambda *a: pytest.fail("read again"))
        moved = source.rename(tmp_path / "elsewhere.csv")
        again = prepare(small_job(tmp_path, moved, data={"workers": 3}).data, folder)
    for a, b in ((first.sites, again.sites), (first.orbits, again.orbits)):
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state) and torch.equal(a.mask, b.mask)
        assert all(torch.equal(a.given[k], b.given[k]) for k in a.given)
    assert (
        prepare(small_job(tmp_path, moved, data={"templates": 1}).data, folder).sites.given["template_cell"].shape[1]
        == 1
    )
    cif_table(moved, small_crystals()[:20])
    assert prepare(small_job(tmp_path, moved).data, folder).counts["train"] == 20


def test_a_folder_of_cifs_is_known_by_what_it_holds(tmp_path):
    folder = tmp_path / "cifs"
    folder.mkdir()
    for i, c in enumerate(small_crystals()[:3]):
        (folder / f"{i}.cif").write_text(c.cif)
    key = crystal_data.identity(small_job(tmp_path, folder).data)
    (folder / "notes.txt").write_text("not a crystal")
    assert crystal_data.identity(small_job(tmp_path, folder).data) == key
    (folder / "1.cif").write_text(small_crystals()[5].cif)
    assert crystal_data.identity(small_job(tmp_path, folder).data) != key


@pytest.mark.slow
def test_processes_change_nothing(source, data, tmp_path):
    other = prepare(small_job(tmp_path, source, data={"workers": 2}).data, tmp_path / "data")
    for a, b in ((data.sites, other.sites), (data.orbits, other.orbits)):
        assert all(torch.equal(a.state[k], b.state[k]) for k in a.state)
        assert all(torch.equal(a.given[k], b.given[k]) for k in a.given)


def test_training_from_the_cache_needs_no_chemistry(source, tmp_path):
    """Without rankers, which read candidates by pymatgen's tables."""
    job = small_job(tmp_path / "out", source, rankers={"count": 0})
    prepare(job.data, job.out / "data")
    (tmp_path / "job.yaml").write_text(job.model_dump_json())
    code = f"""
import sys
sys.modules |= dict.fromkeys(("pymatgen", "moyopy", "spglib", "ase"))
from pathlib import Path
from unisci.jobs.config import read_job
from unisci.jobs.crystals import run
run(read_job(Path({str(tmp_path / "job.yaml")!r})), progress=False)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert (job.out / "model.safetensors").is_file()
    assert load_templates(job.out / "data" / "library.npz").names[0] == "s0"
