"""Runs of molecules in space: what was interrupted goes on, nothing is made twice, another run is refused."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from tests.small_structures import small_designer
from unisci.design.structure_drawings import CELL
from unisci.design.structure_samples import StructureSamples
from unisci.domains.molecule import MoleculeError
from unisci.domains.molecule_files import read_sdf, read_xyz
from unisci.jobs.base_config import ConfigError
from unisci.jobs.structure_runs import ConformerRun, StructureRun, conformers, files, generate

RUN = StructureRun("small", "hash", 10, 0, 2, part=4)
ASKED = ConformerRun("small", "hash", ("CCO", "CCl", "CO"), 2, 0, 2, part=2)


@pytest.fixture(scope="module")
def designer(tmp_path_factory):
    return small_designer(tmp_path_factory.mktemp("structures"))


def samples(out) -> StructureSamples:
    return StructureSamples.from_parquet(out / "samples.parquet")


def test_the_files_of_generated_molecules(designer, tmp_path):
    out = tmp_path / "out"
    told = []
    assert list(generate(designer, RUN, out, told.append)) == [4, 8, 10] == told
    names = {"samples.parquet", "molecules.sdf", "molecules.png", "molecules.html", "manifest.json"}
    assert {p.name for p in out.iterdir()} == names | {"parts"} and set(files(out, "molecules")) == names
    expected, found = designer.generate(10, steps=2), samples(out)
    assert found.table["atoms"].tolist() == expected.table["atoms"].tolist()
    for a, b in zip(found, expected, strict=True):
        assert a.conformers == b.conformers
        if a.conformers:
            np.testing.assert_allclose(a.positions, b.positions, atol=2e-3)
    assert len(read_sdf(out / "molecules.sdf")[0]) == found.table["valid"].sum() > 0
    assert (out / "molecules.html").read_text().count("<canvas") == found[:4].table["valid"].sum()
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"] and manifest["run"] == {
        "weights": "small",
        "hash": "hash",
        "n": 10,
        "seed": 0,
        "steps": 2,
        "part": 4,
    }


def test_an_interrupted_run_goes_on_with_the_same_samples(designer, tmp_path):
    list(generate(designer, RUN, tmp_path / "whole"))
    jobs = generate(designer, RUN, tmp_path / "cut")
    assert next(jobs) == 4
    jobs.close()
    assert len(samples(tmp_path / "cut")) == 4  # what was done is there to be read
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "parts").iterdir()}
    list(generate(designer, RUN, tmp_path / "cut"))
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    tables = [samples(tmp_path / k).table.drop(columns="seconds") for k in ("whole", "cut")]
    pd.testing.assert_frame_equal(*tables)


def test_what_was_wanted_is_in_the_folder(designer, tmp_path):
    run = replace(RUN, n=5, where="Contains('C')", particles=2, push=1.0)
    list(generate(designer, run, tmp_path / "out", batch_size=2))
    assert "meets" in samples(tmp_path / "out").table
    assert pd.read_csv(tmp_path / "out" / "hit_rates.csv")["n"].tolist() == [5, 5]
    assert "hit_rates.csv" in files(tmp_path / "out", "molecules")


def test_all_at_once(designer, tmp_path):
    list(generate(designer, replace(RUN, n=3, at_once=True), tmp_path / "out"))
    expected = designer.generate(3, steps=2, at_once=True)
    assert samples(tmp_path / "out").table["atoms"].tolist() == expected.table["atoms"].tolist()
    assert not (tmp_path / "out" / "molecules.png").exists() or expected.table["valid"].any()


@pytest.mark.parametrize("change", [{"seed": 1}, {"n": 3}, {"steps": 3}, {"at_once": True}])
def test_another_run_is_refused(designer, tmp_path, change):
    short = replace(RUN, n=2)
    list(generate(designer, short, tmp_path / "out"))
    with pytest.raises(ConfigError, match=f"another run.*{next(iter(change))}"):
        generate(designer, replace(short, **change), tmp_path / "out")


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"seed": -1}, {"steps": 0}, {"where": "Below(qed, 1)", "at_once": True, "particles": 2, "push": 1.0}],
)
def test_bad_arguments_are_refused_before_a_folder_is_made(designer, tmp_path, change):
    with pytest.raises(ValueError, match=r"at least|seed|leave out"):
        generate(designer, replace(RUN, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named(designer, tmp_path):
    list(generate(designer, RUN, tmp_path / "out"))
    part = sorted((tmp_path / "out" / "parts").iterdir())[1]
    part.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="delete"):
        list(generate(designer, RUN, tmp_path / "out"))


# ---- conformers ----------------------------------------------------------------------------------


def test_the_files_of_conformers(designer, tmp_path):
    out = tmp_path / "out"
    assert list(conformers(designer, ASKED, out)) == [1, 2, 3]
    names = {"samples.parquet", "manifest.json"} | {f"conformers.{k}" for k in ("sdf", "xyz", "png", "html")}
    assert {p.name for p in out.iterdir()} == names | {"parts"}
    found, expected = samples(out), designer.conformers(ASKED.molecules, 2, steps=2)
    assert found.table["input"].tolist() == ["CCO", "CCO", "CCl", "CO", "CO"]
    assert "knows no Cl" in found.table["reason"][2]
    for a, b in zip(found, expected, strict=True):
        assert a.positions is None or np.abs(a.positions - b.positions).max() < 2e-3
    assert [m.smiles for m in read_sdf(out / "conformers.sdf")[0]] == ["CCO", "CCO", "CO", "CO"]
    frames = (out / "conformers.xyz").read_text().count("\n0 ") + (out / "conformers.xyz").read_text().count("\n1 ")
    assert frames == 4 and read_xyz(out / "conformers.xyz") is not None
    assert json.loads((out / "manifest.json").read_text())["run"]["molecules"] == list(ASKED.molecules)
    assert Image.open(out / "conformers.png").size[0] == 2 * CELL[0]  # both conformers, not the graph alone


def test_conformers_go_on(designer, tmp_path):
    jobs = conformers(designer, ASKED, tmp_path / "cut")
    assert next(jobs) == 1
    jobs.close()
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "parts").iterdir()}
    assert list(conformers(designer, ASKED, tmp_path / "cut"))[-1] == 3 and len(samples(tmp_path / "cut")) == 5
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    with pytest.raises(ConfigError, match=r"another run \(molecules"):
        conformers(designer, replace(ASKED, molecules=("CCO",)), tmp_path / "cut")


def test_one_molecule_that_cannot_be_placed_is_an_error_before_a_folder_is_made(designer, tmp_path):
    with pytest.raises(MoleculeError, match="knows no Cl"):
        conformers(designer, replace(ASKED, molecules=("CCl",)), tmp_path / "out")
    for change in ({"molecules": ()}, {"n": 0}, {"steps": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match="1 or more"):
            conformers(designer, replace(ASKED, **change), tmp_path / "out")
    assert not (tmp_path / "out").exists()
