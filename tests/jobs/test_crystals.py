"""The job: three stages, one file; what is finished is not done again, and what does not fit is refused."""

import csv
import json
import math
import shutil

import pytest
import torch

from tests.domains.test_templates import perovskite, rock_salt
from tests.jobs.small_crystals import small_crystals, small_job, write_crystals
from unisci.autoregression.ranker_training import examples, train_ranker
from unisci.domains.candidates import CandidateReader
from unisci.domains.templates import TemplateLibrary
from unisci.jobs import crystals
from unisci.jobs.config import ConfigError
from unisci.jobs.crystal_data import prepare
from unisci.jobs.crystal_models import load_generator
from unisci.jobs.crystals import held_out, run
from unisci.rng import Rng
from unisci.training import fit as fitting
from unisci.training.data import widen


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_crystals(tmp_path_factory.mktemp("source") / "train.npz", small_crystals())


@pytest.fixture(scope="module")
def done(source, tmp_path_factory):
    """The folder of a finished job, to be read only."""
    return run(small_job(tmp_path_factory.mktemp("done") / "out", source), progress=False)


def copied(done, tmp_path, *without):
    """A copy of the folder without these files."""
    out = tmp_path / "out"
    shutil.copytree(done, out)
    for name in without:
        (out / name).unlink()
    return out


def weights(folder, name):
    (path,) = sorted((folder / name).glob("step-*6.pt"))
    return torch.load(path, weights_only=True)


def no_training(patch):
    patch.setattr(fitting, "_step", lambda *a: pytest.fail("a step was taken"))
    patch.setattr(crystals, "train_ranker", lambda *a: pytest.fail("a ranker was trained"))
    patch.setattr(crystals, "examples", lambda *a: pytest.fail("examples were read"))


def test_the_file_holds_the_averages_of_the_three_stages(done, source):
    generator, card, _ = load_generator(done / "model.safetensors")
    for name, model in (("orbits", generator.orbits), ("refiner", generator.refiner)):
        state = weights(done, name)
        assert state["step"] == 6 and state["ema"].keys() == model.state_dict().keys()
        for k, v in model.state_dict().items():
            torch.testing.assert_close(v, state["ema"][k].float(), rtol=1e-3, atol=1e-4)
    assert len(generator.rankers) == 1 and generator.most_sites == 5
    ranker = torch.load(done / "rankers" / "ranker-0.pt", weights_only=True)
    torch.testing.assert_close(generator.rankers[0].own.weight, ranker["own.weight"], rtol=1e-3, atol=1e-4)
    assert generator.elements == (3, 8, 9, 11, 17, 19, 20, 22, 35, 37, 38, 40, 55, 56, 82)
    assert generator.refiner.sizes.tolist() == [0, 0, 15, 0, 0, 8] and generator.refiner.without == 0.4
    assert generator.refiner.denoiser.network.config.templates
    assert card["data"]["train"] == 23 and card["data"]["source"] == str(source) and "held out" not in card
    count = lambda m: sum(p.numel() for p in m.parameters())
    assert card["parameters"] == {
        "orbits": count(generator.orbits),
        "refiner": count(generator.refiner),
        "rankers": count(generator.rankers[0]),
    }
    assert card["orbits"]["training"]["steps"] == 6 and card["refiner"]["width"] == 16


def test_networks_begin_with_the_volumes_and_facts_of_the_data(done, source, tmp_path):
    data = prepare(small_job(done, source).data, done / "data")
    job = small_job(
        tmp_path / "one",
        source,
        orbits={"training": {"steps": 1, "lr": 1e-9}},
        refiner={"training": {"steps": 1, "lr": 1e-9}},
    )
    orbits = crystals.train_orbits(job, data, "cpu", False)
    refiner = crystals.train_refiner(job, data, "cpu", False)
    assert torch.equal(orbits.words.element.features, data.features)
    torch.testing.assert_close(
        orbits.denoiser.network.log_volume, data.volumes.clamp(min=1).log(), rtol=1e-4, atol=1e-4
    )
    torch.testing.assert_close(
        refiner.denoiser.network.condition.log_volume, data.volumes[1:].log(), rtol=1e-4, atol=1e-4
    )


def test_training_lowers_the_losses(source, tmp_path):
    training = {"steps": 30, "batch_size": 8, "ema": 0.8, "warmup": 3, "lr": 1e-2, "checkpoint_every": 0}
    job = small_job(tmp_path, source, orbits={"training": training}, refiner={"training": training})
    data = prepare(job.data, tmp_path / "data")
    for stage, batch in ((crystals.train_orbits, data.orbits), (crystals.train_refiner, data.sites)):
        model, batch = stage(job, data, "cpu", False), widen(batch)
        start = small_job(
            tmp_path / "start",
            source,
            orbits={"training": {"steps": 1, "lr": 1e-9}},
            refiner={"training": {"steps": 1, "lr": 1e-9}},
        )
        before = stage(start, data, "cpu", False)
        with torch.no_grad():
            losses = [sum(float(m.loss(batch, Rng(k, batch.ids))) for k in range(4)) for m in (before, model)]
        assert losses[1] < 0.8 * losses[0], stage


# ---- what is there is not done again ---------------------------------------------------------------------


def test_finished_stages_are_taken_as_they_are(done, source, tmp_path, monkeypatch):
    straight = (done / "model.safetensors").read_bytes()
    out = copied(done, tmp_path, "model.safetensors", "job.json")  # as if they came from elsewhere
    no_training(monkeypatch)
    assert (run(small_job(out, source), progress=False) / "model.safetensors").read_bytes() == straight


def test_one_checkpoint_a_stage_is_enough(done, source, tmp_path, monkeypatch):
    out = tmp_path / "out"
    for name in ("orbits", "refiner"):
        (out / name).mkdir(parents=True)
        shutil.copy(done / name / "step-000000006.pt", out / name)
    shutil.copytree(done / "rankers", out / "rankers")
    no_training(monkeypatch)
    assert (run(small_job(out, source), progress=False) / "model.safetensors").read_bytes() == (
        done / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize("stage", ["orbits", "refiner", "rankers"])
def test_a_job_that_is_stopped_continues_to_the_same_bytes(done, source, tmp_path, monkeypatch, stage):
    job, begun = small_job(tmp_path / "out", source), []
    shutil.copytree(done / "data", tmp_path / "out" / "data")

    def stop(*a, **k):
        begun.append(1)
        if len(begun) > {"orbits": 3, "refiner": 9, "rankers": 0}[stage]:
            raise KeyboardInterrupt
        return step(*a, **k)

    step = fitting._step
    with monkeypatch.context() as patch:
        patch.setattr(
            crystals if stage == "rankers" else fitting, "train_ranker" if stage == "rankers" else "_step", stop
        )
        with pytest.raises(KeyboardInterrupt):
            run(job, progress=False)
    assert not (job.out / "model.safetensors").exists()
    assert (run(job, progress=False) / "model.safetensors").read_bytes() == (done / "model.safetensors").read_bytes()


def test_only_the_rankers_that_are_missing_are_trained(done, source, tmp_path, monkeypatch):
    job = small_job(tmp_path / "out", source, rankers={"count": 3})
    data = prepare(small_job(done, source).data, done / "data")
    (job.out / "rankers").mkdir(parents=True)
    shutil.copy(done / "rankers" / "ranker-0.pt", job.out / "rankers" / "ranker-1.pt")
    seeds = []
    monkeypatch.setattr(crystals, "train_ranker", lambda *a: seeds.append(a[3]) or train_ranker(*a))
    rankers = crystals.train_rankers(job, data)
    assert seeds == [0, 2] and len(rankers) == 3 and not any(r.training for r in rankers)
    assert torch.equal(rankers[0].own.weight, rankers[1].own.weight)  # the copy is of seed 0
    reader = CandidateReader(TemplateLibrary.from_crystals(small_crystals()))
    again = train_ranker(examples(reader), data.features, 1, 2)
    torch.testing.assert_close(rankers[2].own.weight, again.own.weight)
    assert len(crystals.train_rankers(job, data)) == 3 and seeds == [0, 2]


# ---- judging ---------------------------------------------------------------------------------------------


def test_held_out_crystals_are_judged_and_told(source, tmp_path):
    held = write_crystals(tmp_path / "held.npz", [rock_salt(3, 53, 3.9), perovskite(57, 13, 8), rock_salt(12, 8, 3.0)])
    training = {
        "steps": 4,
        "batch_size": 8,
        "warmup": 2,
        "checkpoint_every": 0,
        "validate_every": 2,
        "validate_samples": 2,
    }
    job = small_job(tmp_path / "out", source, data={"validation": str(held)}, orbits={"training": training})
    run(job, progress=False)
    with (job.out / "orbits" / "log.csv").open() as file:
        told = {(r["step"], r["name"]): float(r["value"]) for r in csv.DictReader(file)}
    generator, card, _ = load_generator(job.out / "model.safetensors")
    batch = prepare(job.data, job.out / "data").validation
    now = held_out(generator.orbits, batch, 2)
    for name in ("formula", "words", "exact", "geometry"):
        assert {(s, n) for s, n in told if n == name} == {("2", name), ("4", name)}
        assert card["held out"][name] == pytest.approx(told["4", name], rel=1e-4)
        assert now[name] == pytest.approx(card["held out"][name], rel=0.05, abs=0.05)
    assert held_out(generator.orbits, batch, 3)["words"] != now["words"]


def test_the_numbers_of_a_model_that_knows_nothing_but_the_rules(done, source):
    """Even over what is possible: the surprise is the log of how many ways there are."""
    generator, _, _ = load_generator(done / "model.safetensors")
    data, model = prepare(small_job(done, source).data, done / "data"), generator.orbits
    for p in model.words.parameters():
        p.data.zero_()
    numbers = held_out(model.train(), data.orbits, 15)  # the rock salts
    assert model.training and numbers["formula"] == pytest.approx(3 * math.log(101) + 2 * math.log(65), rel=1e-5)
    salt = widen(data.orbits[slice(0, 15)])
    ways = model.rules.possible(salt.state["counts"]).sum(1)
    assert numbers["words"] >= float(ways.double().log().mean()) and numbers["exact"] == 0.0


# ---- refusals --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["orbits", "refiner"])
def test_impossible_sizes_are_refused_before_the_data_are_read(tmp_path, stage):
    with pytest.raises(ValueError, match="width 15 is not a multiple of heads 2"):
        run(small_job(tmp_path / "out", tmp_path / "absent.csv", **{stage: {"width": 15}}), progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"rankers": {"count": 2}},
        {"orbits": {"dropout": 0.2}},
        {"data": {"templates": 1}},
        {"refiner": {"without": 0.5}},
        {"refiner": {"parts": 0.5}},
    ],
)
def test_a_folder_of_another_job_is_refused(done, source, tmp_path, changes):
    before = (done / "model.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="holds a run of another configuration"):
        run(small_job(done, source, **changes), progress=False)
    other = write_crystals(tmp_path / "other.npz", small_crystals()[:9])
    with pytest.raises(ConfigError, match="or other crystals"):
        run(small_job(done, other), progress=False)
    assert (done / "model.safetensors").read_bytes() == before


def test_the_same_job_may_move_and_use_other_processes(done, source, tmp_path, monkeypatch):
    out = copied(done, tmp_path)
    moved = shutil.copy(source, tmp_path / "moved.npz")
    no_training(monkeypatch)
    run(small_job(out, moved, data={"workers": 4}), progress=False)
    assert json.loads((out / "job.json").read_text()) == json.loads((done / "job.json").read_text())


@pytest.mark.parametrize("stage", ["orbits", "refiner", "rankers"])
def test_a_checkpoint_of_another_network_is_named(done, source, tmp_path, stage):
    out = copied(done, tmp_path, "job.json")
    path = next(iter((out / stage).glob("ranker-0.pt" if stage == "rankers" else "step-*6.pt")))
    state = torch.load(path, weights_only=True)
    tensors = state if stage == "rankers" else state["model"]
    name = next(k for k, v in tensors.items() if v.dim() == 2)
    tensors[name] = tensors[name][1:]
    torch.save(state, path)
    with pytest.raises(ConfigError, match=rf"{path.name} holds a model of other sizes"):
        run(small_job(out, source), progress=False)
