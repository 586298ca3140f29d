import csv
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.jobs.small import CLASSES, SIZES, write_weights
from tests.jobs.test_molecules import GOOD, stop_training
from unisci.autoregression.conditions import VALUES
from unisci.autoregression.pard import ordered
from unisci.autoregression.property_model import PropertyModel
from unisci.design.atoms import Contains
from unisci.design.properties import measure
from unisci.design.targets import Between
from unisci.domains.molecule import Molecule
from unisci.jobs import data as jobs_data
from unisci.jobs import properties, property_models
from unisci.jobs.config import ConfigError, PropertyJob, read_job
from unisci.jobs.data import prepare, with_properties
from unisci.jobs.models import load
from unisci.jobs.properties import run
from unisci.order import Order
from unisci.training.data import load_batch

NAMES = ("logp", "tpsa")


@pytest.fixture
def smiles(tmp_path) -> Path:
    path = tmp_path / "good.smi"
    path.write_text("\n".join(GOOD))
    return path


def small_job(out: Path, smiles: Path, **changes) -> PropertyJob:
    values = {
        "job": "properties",
        "out": out,
        "data": {"smiles": str(smiles), "hold_out": 4} | changes.pop("data", {}),
        "properties": NAMES,
        "network": SIZES,
        "training": {"steps": 8, "batch_size": 8, "ema": 0.9, "warmup": 2, "checkpoint_every": 4}
        | changes.pop("training", {}),
    }
    return PropertyJob.model_validate(values | changes)


def model(names=NAMES, classes=CLASSES) -> PropertyModel:
    """An untrained one."""
    torch.manual_seed(1)
    k = len(classes)
    moments = torch.linspace(0.1, 0.7, len(names)), torch.linspace(1.1, 1.7, len(names))
    frequencies = torch.arange(1.0, k + 1) / sum(range(1, k + 1)), torch.tensor([0.5, 0.47, 0.02, 0.01])
    return property_models.build(SIZES, "marginal", 1, classes, names, *frequencies, *moments).eval()


def write(path: Path, **changes) -> Path:
    property_models.save(path, model(**changes), small_job(path.parent, path, training={"steps": 1}), {"summary": "s"})
    return path


@torch.no_grad()
def outputs(model: PropertyModel) -> torch.Tensor:
    """What it says of three molecules, in units of the data's spread."""
    batch = ordered(Molecule.batch([Molecule.from_smiles(s) for s in ("CCO", "N", "FC=O")], model.classes, 6), 1)
    order = Order(batch.given["rank"].masked_fill(~batch.mask, -1))
    mean, std = model(batch.state, None, batch.mask, batch.given, order)
    return torch.cat([(mean - model.mean) / model.std, std / model.std])


# ---- training ------------------------------------------------------------------------------------------


def test_a_job_trains_writes_weights_and_loads_back(smiles, tmp_path, monkeypatch):
    trained, fit = [], properties.fit
    monkeypatch.setattr(properties, "fit", lambda *a: trained.append(fit(*a)) or trained[0])
    out = tmp_path / "out"
    assert run(small_job(out, smiles), progress=False) == out
    back = property_models.load(out / "model.safetensors")
    assert back.names == NAMES and back.hops == 1 and not back.training
    assert set(back.classes) == {"C", "O", "N", "F"}
    before, after = outputs(trained[0].eval()), outputs(back)
    assert before.std() > 0.1 and not torch.equal(before, after)  # half precision is what is written
    torch.testing.assert_close(before, after, atol=2e-2, rtol=2e-2)
    assert torch.equal(back.mean, trained[0].mean) and torch.equal(back.std, trained[0].std)  # these in full
    values = [[measure(n, [Molecule.from_smiles(s)])[0] for n in NAMES] for i, s in enumerate(GOOD) if i % 4]
    torch.testing.assert_close(back.mean, torch.tensor(values).mean(0).float(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(back.std, torch.tensor(values).std(0).float(), rtol=1e-5, atol=1e-5)
    frequencies = [p.m for p in trained[0].product.processes.values()]
    assert all(torch.allclose(p.m, m) for p, m in zip(back.product.processes.values(), frequencies, strict=True))


def test_the_card_tells_errors_and_what_the_mean_alone_would_have(smiles, tmp_path):
    run(small_job(tmp_path / "out", smiles), progress=False)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        card = json.loads(file.metadata()["card"])
    back = property_models.load(tmp_path / "out" / "model.safetensors")
    held = torch.tensor([[measure(n, [Molecule.from_smiles(s)])[0] for n in NAMES] for s in GOOD[::4]])
    mean = (held - back.mean).abs().mean(0)
    assert [card["errors"][f"{n} mean"] for n in NAMES] == pytest.approx(mean.tolist(), rel=1e-4)
    assert {f"{n} {part}" for n in NAMES for part in ("whole", "cut", "mean")} == card["errors"].keys()
    assert card["data"]["train"] == 9 and card["data"]["source"] == str(smiles)
    assert card["parameters"] == sum(p.numel() for p in back.parameters())


def test_without_held_out_rows_there_are_no_errors_to_tell(smiles, tmp_path):
    run(small_job(tmp_path / "out", smiles, data={"hold_out": 0}, training={"steps": 2}), progress=False)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert "errors" not in json.loads(file.metadata()["card"])


def test_validation_goes_to_the_log(smiles, tmp_path):
    run(small_job(tmp_path / "out", smiles, training={"steps": 4, "validate_every": 2}), progress=False)
    with (tmp_path / "out" / "checkpoints" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [r["step"] for r in rows if r["name"] == "logp whole"] == ["2", "4"]


@pytest.mark.parametrize("at, error", [(4, None), (8, KeyboardInterrupt())])
def test_a_stopped_job_continues_to_the_same_bytes(smiles, tmp_path, monkeypatch, at, error):
    straight = run(small_job(tmp_path / "straight", smiles), progress=False) / "model.safetensors"
    job = small_job(tmp_path / "stopped", smiles)
    with monkeypatch.context() as patch:
        stop_training(patch, at, error)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            run(job, progress=False)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    with monkeypatch.context() as patch:  # the values are read from the folder, not measured again
        patch.setattr(jobs_data, "measure", lambda *a: pytest.fail("measured again"))
        assert (run(job, progress=False) / "model.safetensors").read_bytes() == straight.read_bytes()


@pytest.mark.parametrize("changes", [{"properties": ("logp",)}, {"hops": 2}, {"training": {"lr": 1e-4}}])
def test_a_folder_of_another_job_is_refused(smiles, tmp_path, changes):
    run(small_job(tmp_path / "out", smiles, training={"steps": 1}), progress=False)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        run(small_job(tmp_path / "out", smiles, **{"training": {"steps": 1}} | changes), progress=False)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before


def test_values_stay_with_their_molecules(smiles, tmp_path):
    job = small_job(tmp_path / "out", smiles)
    prepared = prepare(job.data, job.hops, tmp_path / "data")
    data = with_properties(prepared, NAMES, tmp_path / "data")
    for batch in (data.train, data.validation):
        for name, column in zip(NAMES, batch.given[VALUES].T, strict=True):
            assert column.tolist() == pytest.approx(measure(name, Molecule.unbatch(batch)).tolist(), rel=1e-5, abs=1e-6)
    kept = load_batch(tmp_path / "data" / "train-properties.safetensors")
    assert torch.equal(kept.given[VALUES], data.train.given[VALUES])
    other = with_properties(prepared, ("mass",), tmp_path / "data")  # not what the folder holds
    assert other.train.given[VALUES].shape == (9, 1) and float(other.train.given[VALUES].min()) > 15


# ---- refusals ------------------------------------------------------------------------------------------


def test_an_unknown_property_is_refused_before_the_data_are_read(tmp_path):
    job = small_job(tmp_path / "out", tmp_path / "absent.smi", properties=("logp", "qedd"))
    with pytest.raises(ValueError, match="unknown property 'qedd'; near are qed"):
        run(job, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_property_without_a_finite_value_is_refused(smiles, tmp_path, monkeypatch):
    monkeypatch.setattr(jobs_data, "measure", lambda name, mols: measure(name, mols) * float("inf"))
    monkeypatch.setattr(properties, "fit", lambda *a, **k: pytest.fail("training began"))
    with pytest.raises(ConfigError, match="property 'logp' has no finite value for 9 of 9 molecules"):
        run(small_job(tmp_path / "out", smiles), progress=False)
    assert not (tmp_path / "out" / "data" / "properties.json").exists()


def test_the_shipped_configuration_is_a_job_of_properties():
    path = Path(__file__).parents[2] / "configs" / "properties_qm9.yaml"
    job = read_job(path, ["--training.steps", "7"])
    assert isinstance(job, PropertyJob) and job.properties == ("logp", "qed") and job.training.steps == 7
    with pytest.raises(ConfigError, match="model"):
        read_job(path, ["--model.hops", "1"])
    with pytest.raises(ConfigError, match="properties"):
        read_job(path, ["--properties", "[]"])


def test_a_weights_file_holds_the_same_model_up_to_half_precision(tmp_path):
    back = property_models.load(write(tmp_path / "p.safetensors"))
    torch.testing.assert_close(outputs(model()), outputs(back), atol=2e-2, rtol=2e-2)
    assert back.names == NAMES and back.classes == CLASSES


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99])
def test_a_cut_file_is_refused(tmp_path, share):
    path = write(tmp_path / "p.safetensors")
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    with pytest.raises(ValueError, match=r"p\.safetensors is damaged"):
        property_models.load(path)


def test_a_flipped_bit_is_refused(tmp_path):
    path = write(tmp_path / "p.safetensors")
    data = bytearray(path.read_bytes())
    data[-100] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match="numbers are not those that were written"):
        property_models.load(path)


def test_a_generators_file_is_no_model_of_properties_and_the_other_way_round(tmp_path):
    generator, known = write_weights(tmp_path / "g.safetensors"), write(tmp_path / "p.safetensors")
    with pytest.raises(ValueError, match=r"g\.safetensors has unisci-weights-1, this version reads unisci-properties"):
        load(generator, properties=generator)
    with pytest.raises(ValueError, match="has unisci-properties-1"):
        load(str(known))


# ---- beside a generator ----------------------------------------------------------------------------------


def test_the_file_of_the_same_name_beside_the_weights_is_found_and_another_can_be_named(tmp_path):
    generator = write_weights(tmp_path / "g.safetensors")
    assert load(generator).properties is None
    other = write(tmp_path / "other.safetensors", names=("mass",))
    assert load(generator, properties=str(other)).properties.names == ("mass",)
    write(tmp_path / "properties" / "g.safetensors")
    designer = load(generator)
    assert designer.properties.names == NAMES and not designer.properties.training
    assert load(generator, properties=other).properties.names == ("mass",)
    assert designer.hash == load(generator, properties=other).hash
    steered = designer.generate(3, where=Between("logp", 0, 1) & Contains("C"), particles=2)
    assert {"logp", "meets logp 0..1", "meets contains C", "meets"} <= set(steered.table.columns)


@pytest.mark.parametrize("classes", [CLASSES[:-1], ("O", "C", "N", "F", "N+1")])
def test_a_generator_of_other_atoms_is_refused(tmp_path, classes):
    generator = write_weights(tmp_path / "g.safetensors")
    known = write(tmp_path / "p.safetensors", classes=classes)
    with pytest.raises(ValueError, match=r"p\.safetensors knows the atoms .* the generator draws"):
        load(generator, properties=known)


def test_a_named_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"absent\.safetensors"):
        load(write_weights(tmp_path / "g.safetensors"), properties=tmp_path / "absent.safetensors")
