"""`unisci conformers`, and `unisci generate` and `verify` with weights of molecules in space."""

import pytest
from typer.testing import CliRunner

from tests.jobs.small import write_weights
from tests.small_structures import write_structures
from unisci.design.structure_samples import StructureSamples
from unisci.jobs import evaluate
from unisci.jobs.cli import app
from unisci.jobs.models import load


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> str:
    claims = {"validity": 0.5, "molecules_stable_by_bonds": 0.99, "molecules_stable_by_distances": 0.0}
    return write_structures(tmp_path_factory.mktemp("weights"), measured=claims)


def ask(*words):
    return CliRunner().invoke(app, [str(w) for w in words])


def test_conformers(weights, tmp_path):
    (tmp_path / "more.smi").write_text("CO\nCCl\n")
    done = ask(
        "conformers",
        "C/C=C/O",
        tmp_path / "more.smi",
        "-n",
        2,
        "-o",
        tmp_path / "out",
        "--weights",
        weights,
        "--seed",
        3,
    )
    assert done.exit_code == 0, done.output
    found = StructureSamples.from_parquet(tmp_path / "out" / "samples.parquet")
    assert found.table["input"].tolist() == ["C/C=C/O"] * 2 + ["CO"] * 2 + ["CCl"] and set(found.table["seed"]) == {3}
    assert f"{len(found.valid())} conformers in" in done.output and "conformers.xyz" in done.output
    assert "CCl: 1 without positions: this model knows no Cl" in done.output


def test_conformers_need_weights_that_place_molecules(tmp_path):
    flat = write_weights(tmp_path / "flat.safetensors")
    done = ask("conformers", "CO", "-o", tmp_path / "out", "--weights", flat)
    assert "places no molecules in space" in str(done.exception) and not (tmp_path / "out").exists()


def test_generate(weights, tmp_path):
    done = ask("generate", weights, "-n", 4, "-o", tmp_path / "out", "--steps", 2, "--batch-size", 3)
    assert done.exit_code == 0, done.output
    assert "4 samples in" in done.output and "molecules.sdf" in done.output and "xyz" not in done.output
    found = StructureSamples.from_parquet(tmp_path / "out" / "samples.parquet")
    assert found.table["atoms"].tolist() == load(weights).generate(4, steps=2).table["atoms"].tolist()


def test_generate_what_is_wanted(weights, tmp_path):
    done = ask("generate", weights, "-n", 3, "-o", tmp_path / "out", "--where", "Contains(C)", "--particles", 2)
    assert done.exit_code == 0 and "all: met by" in done.output and "hit_rates.csv" in done.output


def test_generate_all_at_once(weights, tmp_path, monkeypatch):
    monkeypatch.setattr("unisci.design.structure_designer.AT_ONCE", 2)
    done = ask("generate", weights, "-n", 3, "-o", tmp_path / "out", "--at-once")
    assert done.exit_code == 0, done.output
    assert len(StructureSamples.from_parquet(tmp_path / "out" / "samples.parquet")) == 3


@pytest.mark.parametrize(
    "words, message",
    [
        (("--workers", 2), "one process"),
        (("--composition", "NaCl"), "for crystals only"),
        (("--relax",), "for crystals only"),
    ],
)
def test_what_is_not_for_molecules_in_space(weights, tmp_path, words, message):
    done = ask("generate", weights, "-n", 2, "-o", tmp_path / "out", *words)
    assert message in str(done.exception) and not (tmp_path / "out").exists()


def test_at_once_is_for_molecules_in_space(tmp_path):
    done = ask("generate", write_weights(tmp_path / "flat.safetensors"), "-n", 2, "-o", tmp_path / "out", "--at-once")
    assert "for molecules in space" in str(done.exception) and not (tmp_path / "out").exists()


def test_validity_and_stability_are_held_against_the_card(weights):
    checks = {c.name: c for c in evaluate.verify(weights, 12)}
    samples = load(weights).generate(12, seed=12345)
    assert list(checks) == ["validity", "molecules_stable_by_distances", "molecules_stable_by_bonds"]
    assert checks["validity"].measured == len(samples.valid()) / 12
    from unisci.metrics.stability import stability_by_bonds

    expected = {m.name: m.value for m in stability_by_bonds(samples)}["molecules_stable_by_bonds"]
    assert checks["molecules_stable_by_bonds"].measured == expected < 1
    assert checks["molecules_stable_by_distances"].holds


def test_a_folder_is_judged_with_stability(weights, tmp_path):
    assert ask("generate", weights, "-n", 4, "-o", tmp_path / "out", "--steps", 2).exit_code == 0
    found = {m.name: m for m in evaluate.evaluate(tmp_path / "out", fcd=False)}
    assert found["validity"].n == 4 and found["molecules_stable_by_bonds"].n == 4
    assert (tmp_path / "out" / "metrics.csv").read_text().count("stable_by") == 4
