from dataclasses import replace
from pathlib import Path

import pytest

from unisci.jobs.config import ConfigError, CrystalJob, MoleculeJob, SeriesJob, StructureJob, read_job

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SMALL = "job: molecules\nout: runs/x\ntraining:\n  steps: 7\n  lr: 1.0e-3\n"


@pytest.fixture
def small(tmp_path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def read(path: Path, text: str, overrides: list[str] = ()) -> MoleculeJob:
    path.write_text(text)
    return read_job(path, overrides)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.name)
def test_shipped_configurations_parse(path):
    job = read_job(path)
    assert job.out.parts[0] == "runs"
    if isinstance(job, CrystalJob):
        assert job.orbits.training.warmup != 200 or job.data.validation is not None
        return
    assert job.training.steps >= 1
    if isinstance(job, StructureJob):
        assert job.data.structures and (job.training.steps, job.model.width) in ((11_000, 128), (300, 32))
        return
    if isinstance(job, SeriesJob):
        assert any(s.hold_out for s in job.data) and job.training.steps != type(job.training)().steps
        return
    # They are what they say, not defaults that a wrong key left in place.
    if isinstance(job, MoleculeJob):
        assert job.model.denoiser != type(job.model)().denoiser
    else:
        assert job.properties and job.training.steps != type(job.training)().steps


def test_there_are_shipped_configurations():
    assert {
        "molecules_qm9.yaml",
        "molecules_tiny.yaml",
        "crystals_mp20.yaml",
        "crystals_tiny.yaml",
        "molecules3d_qm9.yaml",
        "molecules3d_tiny.yaml",
        "series_tiny.yaml",
    } <= {p.name for p in CONFIGS}


def test_values_that_are_not_named_are_the_defaults(small):
    job = read_job(small)
    assert (job.training.steps, job.training.lr) == (7, 1e-3)
    rest = job.model_dump(exclude={"out": True, "training": {"steps", "lr"}})
    default = MoleculeJob(job="molecules", out=Path("elsewhere"))
    assert rest == default.model_dump(exclude={"out": True, "training": {"steps", "lr"}})


@pytest.mark.parametrize(
    "text, named",
    [
        (SMALL + "trainig: {}\n", "trainig"),
        (SMALL + "  stesp: 3\n", "training.stesp"),
        (SMALL + "model:\n  denoiser: {widht: 8}\n", "model.denoiser.widht"),
    ],
)
def test_an_unknown_key_is_named_with_its_group(small, text, named):
    with pytest.raises(ConfigError) as error:
        read(small, text)
    lines = str(error.value).splitlines()
    assert str(small) in lines[0] and [line.split(":")[0].strip() for line in lines[1:]] == [named]


@pytest.mark.parametrize(
    "text, named",
    [
        ("job: crystals\nout: x\n", "data"),
        ("job: graphs\nout: x\n", "job"),
        ("job: molecules\n", "out"),
        (SMALL + "model: {noise: gaussian}\n", "model.noise"),
        (SMALL + "model: {condition: logp}\n", "model.condition"),
        (SMALL + "data: {max_atoms: 65}\n", "data.max_atoms"),
        (SMALL + "data: {max_rejected: 1.5}\n", "data.max_rejected"),
        (SMALL + "  ema: 1\n", "training.ema"),
        (SMALL + "  batch_size: 0\n", "training.batch_size"),
        (SMALL + "  seed: many\n", "training.seed"),
    ],
)
def test_a_wrong_value_is_named(small, text, named):
    with pytest.raises(ConfigError, match=rf"(?m)^  {named}: "):
        read(small, text)


def test_every_error_is_told_at_once(small):
    with pytest.raises(ConfigError) as error:
        read(small, "job: molecules\nout: x\ndata: {hold_out: -1}\nmodel: {hops: 9}\n")
    assert "data.hold_out" in str(error.value) and "model.hops" in str(error.value)


def test_overrides_in_both_spellings(small):
    job = read_job(small, ["--training.steps", "3", "--model.denoiser.width=8", "--out", "runs/y", "--sample.n=0"])
    assert (job.training.steps, job.model.denoiser.width, job.out, job.sample.n) == (3, 8, Path("runs/y"), 0)
    assert job.training.lr == 1e-3  # a key beside the changed one stays


@pytest.mark.parametrize("word, value", [("2e-3", 2e-3), ("1", 1.0), ("0.5", 0.5)])  # YAML itself reads 2e-3 as text
def test_numbers_may_be_written_as_people_do(small, word, value):
    assert read_job(small, ["--training.lr", word]).training.lr == value
    assert read(small, f"job: molecules\nout: x\ntraining: {{lr: {word}}}\n").training.lr == value


def test_overrides_of_other_types(small):
    job = read_job(small, ["--model.causal", "true", "--data.limit=null", "--data.column", "s", "--data.hold_out=0"])
    assert (job.model.causal, job.data.limit, job.data.column, job.data.hold_out) == (True, None, "s", 0)


def test_the_last_override_wins(small):
    assert read_job(small, ["--training.steps=3", "--training.steps=4"]).training.steps == 4


def test_overrides_are_checked_as_the_file_is(small):
    with pytest.raises(ConfigError, match=r"training\.stpes"):
        read_job(small, ["--training.stpes", "3"])
    with pytest.raises(ConfigError, match=r"training\.steps"):
        read_job(small, ["--training.steps=0"])


@pytest.mark.parametrize("words", [["training.steps", "3"], ["--training.steps"], ["3"], ["-x", "3"]])
def test_a_word_that_is_no_override_is_refused_with_the_spelling(small, words):
    with pytest.raises(ConfigError, match="write --key value"):
        read_job(small, words)


def test_a_value_cannot_be_overridden_as_a_group(small):
    with pytest.raises(ConfigError, match=r"--training\.steps\.x: steps is a value"):
        read_job(small, ["--training.steps.x", "3"])


def test_a_group_cannot_be_overridden_as_a_value(small):
    with pytest.raises(ConfigError, match="training"):
        read_job(small, ["--training", "3"])


def test_an_override_that_is_not_yaml_is_named(small):
    with pytest.raises(ConfigError, match=r"--out"):
        read_job(small, ["--out", "[runs"])


def test_overrides_leave_the_callers_list_alone(small):
    words = ["--training.steps", "3"]
    read_job(small, words)
    assert words == ["--training.steps", "3"]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml"):
        read_job(tmp_path / "absent.yaml")
    with pytest.raises(ConfigError, match="cannot read"):
        read_job(tmp_path)


@pytest.mark.parametrize("text", ["- job\n- out\n", "molecules\n", "", "3\n"])
def test_yaml_that_is_not_a_mapping_is_refused(small, text):
    with pytest.raises(ConfigError, match="mapping"):
        read(small, text)


def test_broken_yaml_is_refused_with_its_place(small):
    with pytest.raises(ConfigError, match="line 2"):
        read(small, "job: molecules\nout: [runs\n")


def test_a_binary_file_is_refused(small):
    small.write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ConfigError, match="cannot read"):
        read_job(small)


def test_yaml_tags_run_nothing(small, tmp_path):
    trap = tmp_path / "trap"
    tag = f'!!python/object/apply:os.mkdir ["{trap}"]'
    with pytest.raises(ConfigError):
        read(small, f"job: molecules\nout: {tag}\n")
    with pytest.raises(ConfigError):
        read(small, SMALL, ["--out", tag])
    assert not trap.exists()


def test_a_job_cannot_be_changed_after_reading(small):
    with pytest.raises(ValueError, match="frozen"):
        read_job(small).training.steps = 3


def test_parallel_training_without_causal_sight_is_refused(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("job: molecules\nout: out\nmodel: {parallel: true}\n")
    with pytest.raises(ConfigError, match="causal: true"):
        read_job(path)
    assert read_job(path, ["--model.causal", "true"]).model.parallel


def test_nothing_is_told_unless_it_is_named(small):
    assert read_job(small).model.condition == () and read_job(small).start is None
    job = read(small, SMALL + "start: molecules-qm9\nmodel: {condition: [logp, qed]}\n")
    assert job.model.condition == ("logp", "qed") and job.start == "molecules-qm9"


def test_a_stage_that_names_one_key_of_its_training_keeps_its_own_defaults(tmp_path):
    text = "job: crystals\nout: runs/x\ndata: {crystals: aflow}\n"
    job = read(tmp_path / "c.yaml", text + "orbits: {training: {steps: 9}}\n", ["--refiner.training.steps", "8"])
    orbits, refiner = job.orbits.training, job.refiner.training
    assert (orbits.steps, orbits.lr, orbits.ema, orbits.weight_decay, orbits.batch_size) == (
        9,
        1.5e-3,
        0.998,
        0.05,
        128,
    )
    assert (refiner.steps, refiner.lr, refiner.ema, refiner.weight_decay, refiner.batch_size) == (
        8,
        1.5e-3,
        0.9995,
        0.01,
        64,
    )


@pytest.mark.parametrize(
    "words, key", [(["--data.most_sites", "65"], "most_sites"), (["--rankers.epoch", "2"], "epoch")]
)
def test_a_crystal_job_names_what_is_wrong(tmp_path, words, key):
    with pytest.raises(ConfigError, match=key):
        read(tmp_path / "c.yaml", "job: crystals\nout: runs/x\ndata: {crystals: aflow}\n", words)
    with pytest.raises(ConfigError, match="data"):
        read(tmp_path / "c.yaml", "job: crystals\nout: runs/x\n")


SERIES = "job: series\nout: runs/x\ndata: [{series: eeg, hold_out: 48}]\n"


def test_a_series_job_has_the_defaults_of_the_forecaster(tmp_path):
    from unisci.forecasting.trained import MLP, TRAINING
    from unisci.forecasting.window_model import PATTERNS, Patterns
    from unisci.jobs.series import network_of

    job = read(tmp_path / "s.yaml", SERIES)
    own = {"checkpoint_every": TRAINING.checkpoint_every}
    assert replace(job.training.fit_config(), **own) == TRAINING
    assert network_of(job) == MLP and Patterns(**job.patterns.model_dump()) == PATTERNS
    assert read(tmp_path / "s.yaml", SERIES + "data: [{series: x.csv, freq: 1}]\n").data[0].freq == "1"


@pytest.mark.parametrize(
    "text, key",
    [
        ("data: []\n", "data"),
        ("data: [{series: eeg, weight: 0}]\n", "data.0.weight"),
        ("data: [{series: eeg, wide: true, id: a}]\n", "data.0"),
        ("data: [{series: eeg, counted: true, time: a}]\n", "data.0"),
        ("network: {kind: cnn}\n", "network"),
        ("network: {kind: mlp, layers: 3}\n", "network.mlp.layers"),
        ("patterns: {gaps: 2}\n", "patterns.gaps"),
        ("sample: {n: 5}\n", "sample.n"),
    ],
)
def test_a_series_job_names_what_is_wrong(tmp_path, text, key):
    with pytest.raises(ConfigError, match=rf"(?m)^  {key}: "):
        read(tmp_path / "s.yaml", SERIES + text)


def test_less_than_a_horizon_cannot_judge(tmp_path):
    with pytest.raises(ConfigError, match="eeg holds out 23 steps: give 0, or at least the horizon of 24"):
        read(tmp_path / "s.yaml", SERIES.replace("48", "23"))
    assert read(tmp_path / "s.yaml", SERIES.replace("48", "24")).data[0].hold_out == 24
