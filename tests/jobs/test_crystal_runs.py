"""Runs of crystals into a folder: what was interrupted goes on, nothing is made twice, another run is refused."""

import json
from dataclasses import replace

import pandas as pd
import pytest
from typer.testing import CliRunner

from tests.small_crystals import small_generator
from unisci.design.crystal_designer import CrystalDesigner
from unisci.design.crystal_samples import CrystalSamples
from unisci.domains.crystal_files import read_crystals
from unisci.jobs.cli import app
from unisci.jobs.config import ConfigError
from unisci.jobs.crystal_models import save
from unisci.jobs.crystal_runs import FILES, CrystalRun, generate
from unisci.jobs.evaluate import evaluate, verify

DESIGNER = CrystalDesigner(small_generator(), "hash", {}, steps=2)
RUN = CrystalRun("small", "hash", 5, 0, 2, ("NaCl", "SrTiO3"), templates="none", part=2)


def run(out, settings=RUN, designer=DESIGNER) -> list[int]:
    return list(generate(designer, settings, out))


def test_the_files_of_a_run(tmp_path):
    assert run(tmp_path / "out") == [2, 4, 5, 7, 9, 10]
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {*FILES, "parts"}
    table, samples = pd.read_csv(out / "samples.csv"), CrystalSamples.from_parquet(out / "samples.parquet")
    assert sorted(zip(table["composition"], table["id"], strict=True)) == [
        (f, i) for f in ("NaCl", "SrTiO3") for i in range(5)
    ]
    assert table["formula"].tolist() == samples.table["formula"].tolist()
    assert table.groupby("formula")["rank"].min().tolist() == [1, 1] and table["spacegroup"].notna().all()
    assert len(list((out / "cif").iterdir())) == 10 == len(read_crystals(out / "cif").crystals)
    assert len(read_crystals(out / "crystals.extxyz").crystals) == 10
    assert (out / "crystals.html").read_text().count("<canvas") == 2
    assert json.loads((out / "manifest.json").read_text())["complete"]


def test_an_interrupted_run_goes_on_with_the_same_samples(tmp_path):
    run(tmp_path / "whole")
    jobs = generate(DESIGNER, RUN, tmp_path / "cut")
    assert [next(jobs), next(jobs)] == [2, 4]
    jobs.close()
    assert len(pd.read_csv(tmp_path / "cut" / "samples.csv")) == 4  # what was done is there to be read
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut" / "parts").iterdir()}
    run(tmp_path / "cut")
    assert all(p.stat().st_mtime_ns == when for p, when in kept.items())
    tables = [pd.read_csv(tmp_path / k / "samples.csv").drop(columns="seconds") for k in ("whole", "cut")]
    pd.testing.assert_frame_equal(*tables, atol=1e-4)


@pytest.mark.parametrize("change", [{"seed": 1}, {"composition": ("NaCl",)}, {"relax": True}, {"n": 6}])
def test_another_run_is_refused(tmp_path, change):
    short = replace(RUN, n=1)
    run(tmp_path / "out", short)
    with pytest.raises(ConfigError, match=f"another run.*{next(iter(change))}"):
        run(tmp_path / "out", replace(short, **change))


def test_bad_arguments_are_refused_before_a_folder_is_made(tmp_path):
    with pytest.raises(ValueError, match="never saw"):
        run(tmp_path / "out", replace(RUN, composition=("NaCl", "LiF")))
    assert not (tmp_path / "out").exists()


def test_a_damaged_part_is_named(tmp_path):
    run(tmp_path / "out")
    part = sorted((tmp_path / "out" / "parts").iterdir())[1]
    part.write_bytes(b"no parquet")
    with pytest.raises(ConfigError, match="delete"):
        run(tmp_path / "out")


def test_the_command_line(tmp_path):
    weights = tmp_path / "small.safetensors"
    save(weights, small_generator(), {"summary": "a test"})
    ask = lambda *words: CliRunner().invoke(app, ["generate", str(weights), "-o", str(tmp_path / "out"), *words])
    done = ask("--composition", "NaCl", "-n", "3", "--templates", "none", "--steps", "2", "--units", "1")
    assert done.exit_code == 0, done.output
    assert "3 samples" in done.output and "crystals.html" in done.output
    table = pd.read_csv(tmp_path / "out" / "samples.csv")
    assert table["formula"].tolist() == ["NaCl"] * 3 and set(table["source"]) == {"draw"}


def test_a_run_is_judged_against_known_crystals(tmp_path):
    run(tmp_path / "out")
    known = CrystalSamples.from_parquet(tmp_path / "out" / "samples.parquet").keep([0, 5])
    known.to_cif(tmp_path / "known")
    found = {m.name: m for m in evaluate(tmp_path / "out", str(tmp_path / "known"))}
    assert found["structure_valid"].n == 10 and found["novelty"].value < 1
    assert (tmp_path / "out" / "metrics.csv").is_file()
    with pytest.raises(ConfigError, match="--reference"):
        evaluate(tmp_path / "out")


def test_weights_are_held_against_their_card(tmp_path):
    path = tmp_path / "small.safetensors"
    save(path, small_generator(), {"measured": {"validity": 1.0}})
    (check,) = verify(str(path), 20)
    assert check.name == "validity" and 0 <= check.low <= check.measured <= check.high <= 1
