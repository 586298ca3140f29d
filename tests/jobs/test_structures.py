"""The job of molecules in space: its data, its training without RDKit, what it writes, and what it refuses."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.jobs.small import write_weights
from tests.small_structures import embedded
from unisci.design.structure_samples import StructureSamples
from unisci.domains.molecule import Molecule
from unisci.domains.molecule_files import write_sdf
from unisci.jobs import structure_files
from unisci.jobs.base_config import ConfigError
from unisci.jobs.models import load
from unisci.jobs.structure_config import StructureJob
from unisci.jobs.structure_data import prepare
from unisci.jobs.structures import build_for, held_out, run, train
from unisci.training.data import load_batch, save_batch

DATA = {"hold_out": 5, "max_atoms": 9, "max_rejected": 0.1}
SMILES = ["CO", "CCO", "CN", "CC", "CF", "C=O", "C#N", "CC=O", "O", "CNC"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """molecules.sdf and molecules.safetensors of ten molecules, the first one's positions not finite in the second, and
    weights that draw graphs."""
    folder = tmp_path_factory.mktemp("data")
    molecules = [embedded(s, k) for k, s in enumerate(SMILES)]
    write_sdf(folder / "molecules.sdf", molecules)
    batch = Molecule.batch(molecules)
    save_batch(batch, folder / "whole.safetensors")
    batch.state["position"][0, 0, 0] = torch.inf
    save_batch(batch, folder / "molecules.safetensors")
    (folder / "molecules.smi").write_text("\n".join([*SMILES, "C1C", "c1ccccc1"]))
    write_weights(folder / "graphs.safetensors")
    return folder


def small_job(folder: Path, out: Path, source: str = "whole.safetensors", **changes) -> StructureJob:
    training = {"steps": 6, "batch_size": 4, "ema": 0.5, "warmup": 2, "checkpoint_every": 2, "validate_every": 3}
    values = {
        "job": "molecules3d",
        "out": out,
        "graphs": str(folder / "graphs.safetensors"),
        "data": {"structures": str(folder / source)} | DATA | changes.pop("data", {}),
        "model": {"width": 16, "layers": 1, "heads": 2, "edge": 8, "radial": 4} | changes.pop("model", {}),
        "training": training | changes.pop("training", {}),
    }
    return StructureJob.model_validate(values | changes)


def embed_quickly(monkeypatch):
    monkeypatch.setattr(
        structure_files, "etkdg", lambda m, n, seed: m.with_positions(np.ones((n, len(m.atoms), 3)) * seed)
    )


# ---- data ----------------------------------------------------------------------------------------


def test_collated_molecules_are_taken_as_they_are(folder, tmp_path):
    data = prepare(small_job(folder, tmp_path).data, tmp_path)
    whole = load_batch(folder / "whole.safetensors")
    assert data.counts == {"rows": 10, "rejected": {"too large": 1}, "train": 7, "validation": 2}
    assert data.validation.ids.tolist() == [0, 5] and data.train.ids.tolist() == [1, 2, 3, 4, 6, 7, 8]
    assert SMILES[9] == "CNC"  # ten atoms
    assert torch.equal(data.train.state["position"][0], whole.state["position"][1, : data.train.mask.shape[1]])
    assert set(data.train.state) == {"atom", "bond", "position"} and data.train.mask.shape[1] == 9


def test_what_cannot_be_learnt_from_is_listed(folder, tmp_path):
    config = small_job(folder, tmp_path, "molecules.safetensors", data={"max_rejected": 0.2}).data
    data = prepare(config, tmp_path)
    assert data.counts["rejected"] == {"a position is not finite": 1, "too large": 1}
    assert (tmp_path / "rejects.csv").read_text().splitlines()[1:] == [
        "0,,a position is not finite",
        '9,,"too large: 10 atoms, data.max_atoms = 9"',
    ]
    with pytest.raises(ConfigError, match=r"2 of 10 molecules.*max_rejected = 0.15"):
        prepare(config.model_copy(update={"max_rejected": 0.15}), tmp_path)


@pytest.mark.parametrize(
    "source, limit, kept", [("molecules.sdf", None, 9), ("molecules.sdf", 3, 3), ("whole.safetensors", 3, 3)]
)
def test_files_of_molecules(folder, tmp_path, source, limit, kept):
    config = small_job(folder, tmp_path, source, data={"limit": limit, "hold_out": 0}).data
    data = prepare(config, tmp_path)
    assert len(data.train) == kept and data.validation is None
    assert data.counts["rows"] == (limit or 10)
    smiles = [m.smiles for m in Molecule.unbatch(data.train)]
    assert smiles == [Molecule.from_smiles(s).smiles for s in SMILES[:kept]]


def test_smiles_are_embedded(folder, tmp_path, monkeypatch):
    embed_quickly(monkeypatch)
    config = small_job(folder, tmp_path, "molecules.smi", data={"hold_out": 0, "max_rejected": 0.5}).data
    data = prepare(config, tmp_path)
    assert data.counts["rejected"] == {"RDKit cannot parse it": 1, "too large": 2} and data.counts["train"] == 9
    assert "11,C1C,RDKit cannot parse it" in (tmp_path / "rejects.csv").read_text()


def test_the_cache_is_read_while_its_source_is_the_same(folder, tmp_path, monkeypatch):
    config = small_job(folder, tmp_path, "molecules.sdf").data
    prepare(config, tmp_path)
    monkeypatch.setattr("unisci.jobs.structure_data._read", lambda *_: pytest.fail("read again"))
    copy = tmp_path / "elsewhere.sdf"
    copy.write_bytes((folder / "molecules.sdf").read_bytes())
    assert len(prepare(config.model_copy(update={"structures": str(copy)}), tmp_path).train) == 7
    with pytest.raises(pytest.fail.Exception):
        prepare(config.model_copy(update={"max_atoms": 8}), tmp_path)


@pytest.mark.parametrize("name", ["absent.sdf", "absent.safetensors", "absent.smi"])
def test_a_source_that_is_not_there(tmp_path, name):
    with pytest.raises(ConfigError, match="no file"):
        prepare(small_job(tmp_path, tmp_path, name).data, tmp_path)


def test_a_cache_of_graphs_is_none_of_structures(tmp_path):
    save_batch(Molecule.batch([Molecule.from_smiles("CO")]), tmp_path / "graphs.safetensors")
    with pytest.raises(ConfigError, match="no 'position'"):
        prepare(small_job(tmp_path, tmp_path, "graphs.safetensors").data, tmp_path / "data")


# ---- training ------------------------------------------------------------------------------------


def test_a_job_trains_and_draws(folder, tmp_path):
    job = small_job(folder, tmp_path / "run", sample={"n": 3, "steps": 2})
    assert run(job, progress=False) == tmp_path / "run"
    designer = load(str(tmp_path / "run" / "model.safetensors"))
    assert designer.steps == 2 and designer.structures.parts == 0.3
    assert (
        designer.structures.sizes.tolist()
        == torch.bincount(prepare(job.data, tmp_path / "run" / "data").train.sites).tolist()
    )
    assert len(StructureSamples.from_parquet(tmp_path / "run" / "samples" / "samples.parquet")) == 3
    card = designer.card
    assert card["data"]["train"] == 7 and card["held out"]["loss"] > 0 and card["training"]["steps"] == 6
    assert card["parameters"] == sum(p.numel() for p in designer.structures.parameters())


def test_training_from_a_cache_needs_no_rdkit(folder, tmp_path):
    """Up to the weights file."""
    text = small_job(folder, tmp_path / "run").model_dump_json()
    code = f"""
import sys
sys.modules |= dict.fromkeys(("rdkit", "rdkit.Chem"))
from unisci.jobs.structure_config import StructureJob
from unisci.jobs.structures import train
print(train(StructureJob.model_validate_json({text!r}), progress=False))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert load(done.stdout.split()[-1]).structures.sizes.sum() == 7


def test_a_killed_job_ends_as_one_that_was_not(folder, tmp_path):
    whole = train(small_job(folder, tmp_path / "whole"), progress=False)
    cut = small_job(folder, tmp_path / "cut")
    train(cut, progress=False)
    (tmp_path / "cut" / "model.safetensors").unlink()
    steps = sorted((tmp_path / "cut" / "checkpoints").glob("step-*.pt"))
    steps[-1].unlink()  # as if it had ended at the one before
    train(cut, progress=False)
    a, b = (load(str(p)).structures.state_dict() for p in (whole, tmp_path / "cut" / "model.safetensors"))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("change", [{"model": {"parts": 0.5}}, {"training": {"lr": 1e-4}}, {"data": {"max_atoms": 8}}])
def test_another_job_in_the_folder_is_refused(folder, tmp_path, change):
    job = small_job(folder, tmp_path, training={"steps": 1})
    train(job, progress=False)
    changed = {k: job.model_dump()[k] | v for k, v in change.items()}
    with pytest.raises(ConfigError, match="another configuration"):
        train(
            job.model_copy(update={k: type(getattr(job, k)).model_validate(v) for k, v in changed.items()}),
            progress=False,
        )
    train(job.model_copy(update={"graphs": job.graphs}), progress=False)  # the same again is not


def test_what_is_impossible_is_refused_before_anything_is_read(folder, tmp_path):
    with pytest.raises(ValueError, match="no weights 'absent'"):
        train(small_job(folder, tmp_path / "a", graphs="absent"), progress=False)
    with pytest.raises(ValueError, match=r"no format mark|damaged"):
        train(small_job(folder, tmp_path / "a", graphs=str(folder / "whole.safetensors")), progress=False)
    with pytest.raises(ValueError, match="multiple of heads"):
        train(small_job(folder, tmp_path / "a", model={"heads": 3}), progress=False)
    assert not (tmp_path / "a").exists()


def test_checkpoints_of_another_network_are_refused(folder, tmp_path):
    train(small_job(folder, tmp_path, training={"steps": 2}), progress=False)
    (tmp_path / "job.json").unlink()
    with pytest.raises(ConfigError, match="other sizes"):
        train(small_job(folder, tmp_path, model={"width": 8}, training={"steps": 2}), progress=False)


def test_the_held_out_loss_is_that_of_training(folder, tmp_path):
    job = small_job(folder, tmp_path)
    data = prepare(job.data, tmp_path)
    torch.manual_seed(0)
    model = build_for(job, data.train)
    assert model.profile_counts.sum() == 7
    found = held_out(model, data.train, 3)["loss"]
    assert np.isfinite(found) and found != held_out(model, data.train, 7)["loss"]
    assert model.training and held_out(model, data.train, 3)["loss"] == found


def test_job_json_says_what_the_run_is(folder, tmp_path):
    train(small_job(folder, tmp_path, training={"steps": 1}), progress=False)
    kept = json.loads((tmp_path / "job.json").read_text())
    assert kept["model"]["width"] == 16 and "out" not in kept and "sample" not in kept and "graphs" not in kept
