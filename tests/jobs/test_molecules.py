import csv
import gzip
import json
import lzma
from pathlib import Path

import pytest
import torch

from tests.jobs.small import MODEL, NCI, small_job, small_smiles
from unisci.autoregression.conditions import VALUES
from unisci.design.properties import measure
from unisci.domains.molecule import Molecule
from unisci.jobs import data, molecules
from unisci.jobs.config import ConfigError, DataConfig, ModelConfig, NetworkConfig
from unisci.jobs.data import prepare, with_properties
from unisci.jobs.models import load
from unisci.jobs.molecules import run, train
from unisci.jobs.references import EMBEDDED, read_smiles, reference
from unisci.rng import Rng
from unisci.training import fit

GOOD = ["CCO", "CC(=O)N", "C1CC1", "c1ccccc1", "CC#N", "OCC=O", "N", "CF", "C=CC", "CC(C)C", "OC1CC1", "NCC(=O)O"]


@pytest.fixture
def smiles(tmp_path) -> Path:
    path = tmp_path / "good.smi"
    path.write_text("".join(f"{s}\tmolecule {i}\n" for i, s in enumerate(GOOD)))
    return path


def config(path: Path, **changes) -> DataConfig:
    return DataConfig(**{"smiles": str(path), "hold_out": 4} | changes)


def rejects(folder: Path) -> list[list[str]]:
    with (folder / "rejects.csv").open(newline="") as file:
        return list(csv.reader(file))


def graphs(batch) -> list[str | None]:
    return [m.smiles for m in Molecule.unbatch(batch)]


def stop_training(monkeypatch, at: int | None = None, error: BaseException | None = None) -> None:
    """Fail at the first step, or right after the checkpoint of step `at` is written."""
    if at is None:
        monkeypatch.setattr(molecules, "fit", lambda *a, **k: pytest.fail("training began"))
        return
    save = fit.save_checkpoint

    def save_checkpoint(folder, step, *rest):
        save(folder, step, *rest)
        if step == at:
            raise error or RuntimeError("a cosmic ray")

    monkeypatch.setattr(fit, "save_checkpoint", save_checkpoint)


# ---- reading SMILES -------------------------------------------------------------------------------


def test_bad_lines_are_listed_with_their_number_and_reason(tmp_path):
    path = tmp_path / "mixed.smi"
    lines = [*GOOD[:6], "not-a-smiles", "C(C)(C)(C)(C)C", "CC.O", "", "[CH3]", "*CC", "C" * 65, *GOOD[6:]]
    path.write_text("\n".join(lines) + "\n")
    data = prepare(config(path, max_rejected=0.5), 1, tmp_path / "data")
    head, *rows = rejects(tmp_path / "data")
    assert head == ["line", "smiles", "reason"]
    assert rows == [
        ["7", "not-a-smiles", "RDKit cannot parse it"],
        ["8", "C(C)(C)(C)(C)C", "RDKit cannot parse it"],
        ["9", "CC.O", "more than one fragment"],
        ["11", "[CH3]", "radical electrons"],
        ["12", "*CC", "a hydrogen or dummy atom that cannot be made implicit"],
        ["13", "C" * 65, "65 heavy atoms, the limit is 64"],
    ]
    assert data.counts["rows"] == 18 and sum(data.counts["rejected"].values()) == 6
    assert data.counts["rejected"]["RDKit cannot parse it"] == 2
    assert sorted(graphs(data.train) + graphs(data.validation)) == sorted(Molecule.from_smiles(s).smiles for s in GOOD)


def test_every_hold_out_th_row_is_for_validation(smiles, tmp_path):
    canonical = [Molecule.from_smiles(s).smiles for s in GOOD]
    data = prepare(config(smiles, hold_out=4), 1, tmp_path / "a")
    assert graphs(data.validation) == canonical[::4]
    assert graphs(data.train) == [s for i, s in enumerate(canonical) if i % 4]
    assert (data.counts["train"], data.counts["validation"]) == (9, 3)
    none = prepare(config(smiles, hold_out=0), 1, tmp_path / "b")
    assert none.validation is None and graphs(none.train) == canonical


def test_limit_and_max_atoms(smiles, tmp_path):
    assert prepare(config(smiles, limit=5, hold_out=0), 1, tmp_path / "a").counts["rows"] == 5
    data = prepare(config(smiles, max_atoms=4, hold_out=0, max_rejected=1.0), 1, tmp_path / "b")
    assert data.train.mask.shape[1] == 4
    assert {reason for _, _, reason in rejects(tmp_path / "b")[1:]} == {"more than 4 heavy atoms"}


def test_a_csv_file_with_empty_cells_and_another_column(tmp_path):
    path = tmp_path / "table.csv"
    good = [f"m{i},{s}," for i, s in enumerate(GOOD)]
    path.write_text("\n".join(["name,structure,note", *good, "empty,,", '"two\nlines",CC.O,', "short"]) + "\n")
    data = prepare(config(path, column="structure", max_rejected=0.3), 1, tmp_path / "data")
    assert data.counts["train"] + data.counts["validation"] == len(GOOD)
    # Line numbers are those of an editor, also after a cell that holds a line break.
    expected = [["14", "", "no SMILES"], ["16", "CC.O", "more than one fragment"], ["17", "", "no SMILES"]]
    assert rejects(tmp_path / "data")[1:] == expected


@pytest.mark.parametrize("head", ["smiles", "SMILES", "Smiles", "\ufeffsmiles"])
def test_the_column_smiles_is_found(tmp_path, head):
    path = tmp_path / "table.csv"
    path.write_text(f"{head},value\nCCO,1\nN,2\n", encoding="utf-8")
    assert list(read_smiles(str(path))) == [(2, "CCO"), (3, "N")]


@pytest.mark.parametrize("column", [None, "smile"])
def test_a_missing_column_is_named_with_those_there_are(tmp_path, column):
    path = tmp_path / "table.csv"
    path.write_text("id,structure\n1,CCO\n")
    with pytest.raises(ConfigError, match=rf"no column '{column or 'smiles'}'; its columns are id, structure"):
        list(read_smiles(str(path), column))


def test_compressed_files_are_read(tmp_path):
    text = b"CCO\nN\n"
    (tmp_path / "a.smi.gz").write_bytes(gzip.compress(text))
    (tmp_path / "a.smi.xz").write_bytes(lzma.compress(text))
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"smiles\nCCO\n"))
    assert list(read_smiles(str(tmp_path / "a.smi.gz"))) == [(1, "CCO"), (2, "N")]
    assert list(read_smiles(str(tmp_path / "a.smi.xz"))) == [(1, "CCO"), (2, "N")]
    assert list(read_smiles(str(tmp_path / "a.csv.gz"))) == [(2, "CCO")]


def damaged_files() -> dict[str, bytes]:
    text = b"CCO\n" * 1000
    packed, xz = gzip.compress(text), lzma.compress(text)
    return {
        "binary.smi": b"\xff\xfe\x80\x00",
        "cut.smi.gz": packed[:-12],
        "flipped.smi.gz": packed[:15] + bytes([packed[15] ^ 0xFF]) + packed[16:],
        "foreign.smi.gz": text,
        "cut.smi.xz": xz[:-20],
        "foreign.smi.xz": text,
        "huge.csv": b'smiles\n"' + b"C" * 200_000,
    }


@pytest.mark.parametrize("name", damaged_files())
def test_a_damaged_file_is_one_error_that_names_it(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(damaged_files()[name])
    with pytest.raises(ConfigError, match=f"{name} is damaged"):
        list(read_smiles(str(path)))


def test_a_missing_file_names_the_embedded_sets(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.smi.*'nci', 'qm9'"):
        list(read_smiles(str(tmp_path / "absent.smi")))


def test_the_embedded_sets_are_what_their_cards_say():
    assert set(EMBEDDED) == {"nci", "qm9"} and EMBEDDED["nci"] == NCI
    qm9 = [s for _, s in read_smiles("qm9")]
    assert len(qm9) == 120_831 and len(set(qm9)) == len(reference("qm9").smiles)
    assert all(Molecule.from_smiles(s).smiles == s for s in qm9[::2000])


# ---- the cache ------------------------------------------------------------------------------------


def stamps(folder: Path) -> dict[str, int]:
    return {p.name: p.stat().st_mtime_ns for p in folder.iterdir()}


def test_the_cache_is_reused_and_rebuilt_when_its_configuration_changes(smiles, tmp_path):
    folder = tmp_path / "data"
    first = prepare(config(smiles), 1, folder)
    before = stamps(folder)
    again = prepare(config(smiles), 1, folder)
    assert stamps(folder) == before and again.counts == first.counts
    assert torch.equal(again.train.state["bond"], first.train.state["bond"])
    changed = prepare(config(smiles, hold_out=0), 1, folder)
    assert changed.counts["train"] == len(GOOD) and stamps(folder)["train.safetensors"] > before["train.safetensors"]
    before = stamps(folder)
    ranks = prepare(config(smiles, hold_out=0), 0, folder).train.given["rank"]
    assert int(ranks.max()) == 0 and stamps(folder)["train.safetensors"] > before["train.safetensors"]


def test_the_cache_follows_the_file(smiles, tmp_path):
    prepare(config(smiles), 1, tmp_path / "data")
    smiles.write_text("\n".join(GOOD[:8]))
    assert prepare(config(smiles), 1, tmp_path / "data").counts["rows"] == 8


# ---- training -------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0.1, 0.0])
def test_too_many_bad_rows_stop_the_job_before_training(tmp_path, monkeypatch, limit):
    stop_training(monkeypatch)
    path = tmp_path / "mixed.smi"
    path.write_text("\n".join([*GOOD, "x", "y"]))
    job = small_job(tmp_path / "out", path, data={"max_rejected": limit})
    with pytest.raises(ConfigError, match=r"2 of 14 rows .*RDKit cannot parse it.*max_rejected = 0.*rejects\.csv"):
        train(job, progress=False)
    assert len(rejects(tmp_path / "out" / "data")) == 3
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_after_a_refusal_the_corrected_job_may_use_the_folder(tmp_path):
    path = tmp_path / "mixed.smi"
    path.write_text("\n".join([*GOOD, "x", "y"]))
    changes = {"training": {"steps": 2}}
    with pytest.raises(ConfigError):
        train(small_job(tmp_path / "out", path, data={"max_rejected": 0.1}, **changes), progress=False)
    changes = {"training": {"steps": 2}}
    assert train(small_job(tmp_path / "out", path, data={"max_rejected": 0.2}, **changes), progress=False).is_file()


@pytest.mark.parametrize("text", ["", "CCO\n", "x\ny\n"])
def test_a_file_without_two_molecules_is_refused(tmp_path, text):
    path = tmp_path / "few.smi"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"few\.smi"):
        train(small_job(tmp_path / "out", path, data={"max_rejected": 1.0}), progress=False)


def test_the_result_loads_and_generates(tmp_path):
    path = tmp_path / "mixed.smi"
    path.write_text("\n".join([*GOOD, "CC.O"]))
    job = small_job(tmp_path / "out", path, data={"max_rejected": 0.2})
    assert run(job, progress=False) == tmp_path / "out"
    designer = load(str(tmp_path / "out" / "model.safetensors"))
    assert designer.steps == 2 and designer.model.room == 6
    assert set(designer.model.denoiser.product.schema["atom"].classes) == {"C", "O", "N", "F"}
    assert designer.card["data"]["rejected"] == {"more than one fragment": 1}
    assert designer.card["data"]["source"] == str(path)
    assert designer.card["parameters"] == sum(p.numel() for p in designer.model.parameters())
    manifest = json.loads((tmp_path / "out" / "samples" / "manifest.json").read_text())
    assert manifest["complete"] and manifest["run"]["hash"] == designer.hash
    assert len(designer.generate(4, seed=1)) == 4


def test_no_samples_are_drawn_where_none_are_asked_for(smiles, tmp_path):
    run(small_job(tmp_path / "out", smiles, sample={"n": 0}, training={"steps": 2}), progress=False)
    assert not (tmp_path / "out" / "samples").exists()


def test_a_finished_job_again_changes_nothing(smiles, tmp_path):
    job = small_job(tmp_path / "out", smiles)
    run(job, progress=False)
    weights, lines = (tmp_path / "out" / name for name in ("model.safetensors", "samples/molecules.smi"))
    before = weights.read_bytes(), lines.read_bytes()
    run(job, progress=False)
    assert (weights.read_bytes(), lines.read_bytes()) == before


@pytest.mark.parametrize("at, error", [(4, None), (8, KeyboardInterrupt()), (12, None)])
def test_a_stopped_job_continues_to_the_same_bytes(smiles, tmp_path, monkeypatch, at, error):
    straight = train(small_job(tmp_path / "straight", smiles), progress=False)
    job = small_job(tmp_path / "stopped", smiles)
    with monkeypatch.context() as patch:
        stop_training(patch, at, error)
        with pytest.raises((RuntimeError, KeyboardInterrupt)):
            train(job, progress=False)
    assert not (tmp_path / "stopped" / "model.safetensors").exists()
    assert train(job, progress=False).read_bytes() == straight.read_bytes()


def test_the_seed_changes_the_weights(smiles, tmp_path):
    jobs = [small_job(tmp_path / str(s), smiles, training={"steps": 2, "seed": s}) for s in (0, 1)]
    one, two = (load(str(train(job, progress=False))).model.state_dict() for job in jobs)
    assert any(not torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    "group", [{"training": {"lr": 1e-4}}, {"data": {"hold_out": 3}}, {"model": ModelConfig(hops=2)}]
)
def test_a_folder_of_another_job_is_refused_and_kept(smiles, tmp_path, group, monkeypatch):
    train(small_job(tmp_path / "out", smiles, training={"steps": 2}), progress=False)
    stop_training(monkeypatch)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    changes = {"training": {"steps": 2}} | group
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        train(small_job(tmp_path / "out", smiles, **changes), progress=False)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")} == before


def test_a_run_on_other_smiles_is_not_continued(smiles, tmp_path, monkeypatch):
    """The file has the same name, but not the same content: half a training on each would be neither."""
    job = small_job(tmp_path / "out", smiles, training={"steps": 2})
    train(job, progress=False)
    smiles.write_text("\n".join(GOOD[::-1]))
    stop_training(monkeypatch)
    with pytest.raises(ConfigError, match="other SMILES"):
        train(job, progress=False)


def test_how_many_samples_are_drawn_is_no_other_job(smiles, tmp_path):
    run(small_job(tmp_path / "out", smiles, sample={"n": 0}), progress=False)
    before = (tmp_path / "out" / "model.safetensors").read_bytes()
    run(small_job(tmp_path / "out", smiles, sample={"n": 4}), progress=False)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == before
    assert (tmp_path / "out" / "samples" / "samples.parquet").is_file()


def test_a_loss_that_is_not_finite_stops_with_advice(smiles, tmp_path):
    job = small_job(tmp_path / "out", smiles, training={"lr": 1e30, "warmup": 0, "clip": 1e30})
    with pytest.raises(FloatingPointError, match="lower lr"):
        train(job, progress=False)
    assert not (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_a_short_training_learns(tmp_path):
    """150 steps on small molecules: the loss falls, and far more samples are valid than before training."""
    path = tmp_path / "small.smi"
    path.write_text("\n".join(small_smiles(500, 9)))
    sizes = NetworkConfig(width=32, pair_width=16, layers=2, heads=4, product=4)
    model = ModelConfig(denoiser=sizes, head=MODEL.head)
    training = {"steps": 150, "batch_size": 64, "ema": 0.95, "warmup": 20, "validate_every": 75, "validate_samples": 20}
    job = small_job(tmp_path / "out", path, model=model, training=training, sample={"n": 100, "steps": 8})
    samples = load(str(run(job, progress=False) / "model.safetensors")).generate(100)
    assert len(samples.valid()) > 25
    with (tmp_path / "out" / "checkpoints" / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    losses = [float(r["value"]) for r in rows if r["name"] == "loss"]
    assert len(losses) == 3 and losses[-1] < 0.6 * losses[0]
    assert [r["step"] for r in rows if r["name"] == "valid"] == ["75", "150"]


# ---- training that is told properties ------------------------------------------------------------------

TOLD = MODEL.model_copy(update={"condition": ("logp", "mass")})


def test_a_conditional_job_measures_once_trains_and_loads_back(smiles, tmp_path, monkeypatch):
    job = small_job(tmp_path / "out", smiles, model=TOLD, training={"steps": 4})
    back = load(str(run(job, progress=False) / "model.safetensors")).model
    values = torch.tensor([[measure(n, [Molecule.from_smiles(s)])[0] for n in ("logp", "mass")] for s in GOOD])
    kept = torch.ones(len(GOOD), dtype=torch.bool)
    kept[:: job.data.hold_out] = False
    torch.testing.assert_close(back.conditions.mean, values[kept].mean(0).float(), rtol=1e-5, atol=1e-5)
    rng, wanted = Rng(0, torch.arange(9)), torch.tensor([[0.5, 40.0]]).expand(9, 2)
    assert len(Molecule.unbatch(back.generate(rng, 2, values=wanted, weight=2.0))) == 9
    monkeypatch.setattr(data, "measure", lambda *a: pytest.fail("measured again"))
    more = small_job(tmp_path / "out", smiles, model=TOLD, training={"steps": 4}, sample={"n": 0})
    (tmp_path / "out" / "model.safetensors").unlink()
    assert train(more, progress=False).is_file()


def test_values_are_measured_again_for_other_molecules(smiles, tmp_path):
    folder = tmp_path / "data"
    values = lambda hold_out: with_properties(prepare(config(smiles, hold_out=hold_out), 1, folder), ("mass",), folder)
    assert [len(values(k).train.given[VALUES]) for k in (4, 0, 4)] == [9, 12, 9]
    assert with_properties(prepare(config(smiles), 1, folder), (), folder).train.given.keys() == {"rank", "degree"}


def test_an_unknown_property_is_refused_before_the_data_are_read(smiles, tmp_path):
    job = small_job(tmp_path / "out", smiles, model=MODEL.model_copy(update={"condition": ("logq",)}))
    with pytest.raises(ValueError, match="unknown property 'logq'"):
        train(job, progress=False)
    assert not (tmp_path / "out").exists()


def test_a_job_may_start_from_weights_without_conditions(smiles, tmp_path):
    first = train(small_job(tmp_path / "first", smiles, training={"steps": 2}), progress=False)
    small = {"training": {"steps": 1, "lr": 1e-12}, "sample": {"n": 0}}
    job = small_job(tmp_path / "second", smiles, model=TOLD, start=str(first), **small)
    one, two = (load(str(p)).model for p in (first, train(job, progress=False)))
    rng = Rng(0, torch.arange(9))
    assert two.conditions is not None
    assert torch.equal(one.generate(rng, 2).state["bond"], two.generate(rng, 2).state["bond"])
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        train(small_job(tmp_path / "second", smiles, model=TOLD, training={"steps": 1, "lr": 1e-12}), progress=False)


def test_a_run_of_before_conditions_is_continued(smiles, tmp_path):
    """Its job.json lacks the keys of today; another value of one of them is another job."""
    job = small_job(tmp_path / "out", smiles, training={"steps": 2})
    before = train(job, progress=False).read_bytes()
    path = tmp_path / "out" / "job.json"
    found = json.loads(path.read_text())
    del found["start"], found["model"]["condition"]
    path.write_text(json.dumps(found))
    assert train(job, progress=False).read_bytes() == before
    path.write_text(json.dumps(found))
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        train(small_job(tmp_path / "out", smiles, model=TOLD, training={"steps": 2}), progress=False)
    for other in ({"job": "other"}, found | {"hash": "0"}, found | {"unknown": 1}):
        path.write_text(json.dumps(other))
        with pytest.raises(ConfigError, match="holds a run of another configuration"):
            train(job, progress=False)
