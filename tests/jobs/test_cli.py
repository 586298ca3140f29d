import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import typer
from typer.testing import CliRunner

from tests.jobs.small import NCI, write_weights
from unisci.design.atoms import Keep
from unisci.design.samples import Samples
from unisci.design.targets import Below
from unisci.jobs import cli, models
from unisci.jobs.models import load

COMMANDS = {
    "generate": [
        "--out",
        "--seed",
        "--steps",
        "--batch-size",
        "--workers",
        "--device",
        "--where",
        "--particles",
        "--push",
    ],
    "conformers": ["--n", "--out", "--weights", "--seed", "--steps", "--device", ".smi"],
    "train": ["CONFIG", "--key value", "--training.steps", "torchrun"],
    "evaluate": ["--reference", "--fcd"],
    "verify": ["weights", "--n"],
    "list": [],
    "forecast": [
        "--horizon",
        "-h",
        "--out",
        "--freq",
        "--weights",
        "--fit",
        "--steps",
        "--paths",
        "--levels",
        "--seed",
        "--roll",
        "--id",
        "--time",
        "--target",
        "--wide",
    ],
    "backtest": ["--horizon", "-h", "--out", "--windows", "--step", "--fit", "--wide"],
}
TINY = """
job: molecules
out: {out}
data: {{smiles: {smiles}}}
model:
  denoiser: {{width: 16, pair_width: 8, layers: 1, heads: 2, product: 2}}
  head: {{width: 16, pair_width: 8, layers: 1, heads: 2, product: 2}}
training: {{steps: 50, batch_size: 8}}
sample: {{n: 50, steps: 20}}
"""


@pytest.fixture
def call(monkeypatch, capsys):
    """Run the program's entry point as the shell would: (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["unisci", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        written = capsys.readouterr()
        return stop.value.code or 0, written.out, written.err

    return run


@pytest.fixture
def shelf(monkeypatch, tmp_path) -> Path:
    """A package folder whose only shipped weights are the small ones."""
    write_weights(tmp_path / "package" / "weights" / "molecules-small.safetensors")
    monkeypatch.setattr("unisci.jobs.shipped.files", lambda package: tmp_path / "package")
    return tmp_path


# ---- help ----------------------------------------------------------------------------------------


def test_the_commands_are_those_that_are_tested():
    found = {c.name or c.callback.__name__ for c in cli.app.registered_commands}
    assert found == set(COMMANDS)
    text = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200"}).output
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_is_explained(name):
    command = typer.main.get_command(cli.app).commands[name]
    result = CliRunner().invoke(cli.app, [name, "--help"], env={"COLUMNS": "200", "TERM": "dumb"})
    assert result.exit_code == 0
    assert all(word in result.output for word in COMMANDS[name]), result.output
    assert command.help and command.help.split("\n")[0] in " ".join(result.output.split())
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"{name} {parameter.name} has no help"


def test_no_command_prints_the_help(call):
    code, out, err = call()
    assert "generate" in out + err and code in (0, 2)  # 0 or 2 by the version of click


# ---- list and generate -----------------------------------------------------------------------------


def test_list_names_what_ships(call, shelf):
    code, out, _ = call("list")
    assert code == 0
    assert [line.split("\t")[::2] for line in out.splitlines()] == [["molecules-small", "untrained"]]
    assert out.split("\t")[1].endswith(" MB")


def test_generate_writes_a_folder_and_says_what(call, shelf):
    code, out, _ = call("generate", "molecules-small", "-n", 12, "--out", shelf / "out", "--seed", 5, "--steps", 2)
    assert code == 0 and out.startswith(f"12 samples in {shelf / 'out'}: samples.parquet, ")
    named = {name.strip() for name in out.split(": ")[1].split(", ")}
    assert named == {p.name for p in (shelf / "out").iterdir() if p.is_file()}
    table = pd.read_parquet(shelf / "out" / "samples.parquet")
    expected = load("molecules-small").generate(12, seed=5, steps=2).table
    assert table["atoms"].tolist() == expected["atoms"].tolist() and set(table["seed"]) == {5}


def test_generate_what_is_wanted_and_say_how_much_of_it_came(call, shelf):
    words = ("generate", "molecules-small", "-n", 12, "-o", shelf / "out", "--particles", 3)
    code, out, _ = call(*words, "--where", 'Below(heavyatomcount,2)&Keep("C")')
    where = Below("heavyatomcount", 2) & Keep("C")
    expected = load("molecules-small").generate(12, where=where, particles=3)
    assert code == 0 and Samples.from_parquet(shelf / "out" / "samples.parquet").smiles == expected.smiles
    rates = pd.read_csv(shelf / "out" / "hit_rates.csv")
    pd.testing.assert_frame_equal(rates, expected.hit_rates())
    first, *lines = out.splitlines()
    assert "hit_rates.csv" in first and [line.split(":")[0] for line in lines] == list(rates["want"])
    assert f"all: met by {rates['share'].iloc[-1]:.1%} (" in lines[-1] and lines[-1].endswith("of 12")
    # The same wants in another spelling are the same run; others are not.
    assert call(*words, "--where", "Below('heavyatomcount', 2.0) & Keep(C)")[0] == 0
    code, _, err = call(*words, "--where", "Below(heavyatomcount, 3) & Keep(C)")
    assert code == 2 and "holds another run (where differ)" in err


def test_generate_twice_continues(call, shelf):
    words = ("generate", "molecules-small", "-n", 4, "-o", shelf / "out")
    assert call(*words)[0] == 0
    before = (shelf / "out" / "molecules.smi").read_bytes()
    assert call(*words, "--batch-size", 1)[0] == 0  # the batch size is no part of what a run is
    assert (shelf / "out" / "molecules.smi").read_bytes() == before


@pytest.mark.parametrize(
    "words, named",
    [
        (["generate", "molecules-absent", "-o", "out"], "molecules-small"),
        (["generate", "molecules-small", "-o", "out", "-n", "0"], "n must be at least 1"),
        (["generate", "molecules-small", "-o", "out", "--seed", "-1"], "seed"),
        (["generate", "molecules-small", "-o", "out", "--steps", "0"], "steps"),
        (["generate", "molecules-small", "-o", "out", "--workers", "0"], "workers"),
        (["generate", "molecules-small", "-o", "out", "--batch-size", "0"], "batch_size"),
        (["generate", "molecules-small", "-o", "out", "--device", "cuda:99"], "cuda:99"),
        (["generate", "molecules-small", "-o", "out", "--where", "Foo(qed, 1)"], "'Foo' is not known: write Between"),
        (["generate", "molecules-small", "-o", "out", "--where", "Above(tpsa, 1)", "--particles", "1"], "particles=16"),
        (["generate", "molecules-small", "-o", "out", "--where", "Keep(CCCCCCC)"], "at most 6"),
        (["generate", "molecules-small", "-o", "out", "--where", "Without(F)", "--particles", "0"], "particles"),
        (["generate", "molecules-small", "-o", "out", "--where", "Without(F)", "--push", "nan"], "push"),
        (["generate", "molecules-small", "-o", "."], "choose a new or empty folder"),
        (["generate", "cut.safetensors", "-o", "out"], "damaged"),
        (["evaluate", "absent.smi"], "absent.smi"),
        (["evaluate", "other.csv"], "its columns are a, b"),
        (["evaluate", "good.smi", "--reference", "absent"], "'nci', 'qm9'"),
        (["verify", "molecules-small"], "no measured numbers"),
        (["verify", "molecules-absent"], "molecules-small"),
        (["train", "absent.yaml"], "absent.yaml"),
        (["train", "list.yaml"], "mapping"),
    ],
    ids=lambda v: "_".join(v).replace(".", "") if isinstance(v, list) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(call, shelf, monkeypatch, words, named):
    monkeypatch.chdir(shelf)
    Path("cut.safetensors").write_bytes(b"\x10\x00")
    Path("other.csv").write_text("a,b\n1,2\n")
    Path("good.smi").write_text("CCO\n")
    Path("list.yaml").write_text("- a\n")
    code, out, err = call(*words)
    assert code == 2 and out == ""
    assert err.startswith("unisci: ") and err.count("\n") == 1 and named in err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "words, named",
    [
        (["generate", "molecules-small"], "--out"),
        (["generate", "molecules-small", "-o", "x", "-n", "many"], "--n"),
        (["generate", "molecules-small", "-o", "x", "--warm", "2"], "--warm"),
        (["paint"], "paint"),
    ],
)
def test_wrong_usage_is_exit_code_2(call, shelf, words, named):
    code, out, err = call(*words)
    assert code == 2 and out == "" and named in err


STOPPED = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
from unisci.design.samples import Samples
from unisci.jobs import cli, runs
runs.PART = 5
write, calls = Samples.to_parquet, []
def to_parquet(self, path):
    calls.append(path)
    if len(calls) == 2:
        os.kill(os.getpid(), signal.SIGINT)
    write(self, path)
Samples.to_parquet = to_parquet
cli.main()
"""


@pytest.mark.slow
def test_the_exit_codes_of_the_program(weights, tmp_path):
    """In processes of their own: 2 for bad input, 130 after Ctrl-C with what is done in the folder, 0 for the rest."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}

    def shell(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, timeout=120)

    command = ["generate", weights, "-n", "12", "-o", str(tmp_path / "out")]
    bad = shell("-m", "unisci", *command, "--steps", "0")
    assert (bad.returncode, bad.stdout, bad.stderr) == (2, "", "unisci: steps must be at least 1, got 0\n")
    stopped = shell("-c", STOPPED, *command)
    assert stopped.returncode == 130, stopped.stderr
    assert "the same command continues" in stopped.stderr and "Traceback" not in stopped.stderr
    assert len(pd.read_parquet(tmp_path / "out" / "samples.parquet")) == 5
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["done"] == 5
    again = shell("-c", "from unisci.jobs import cli, runs\nruns.PART = 5\ncli.main()", *command)
    assert again.returncode == 0 and "12 samples" in again.stdout
    assert len(pd.read_parquet(tmp_path / "out" / "samples.parquet")) == 12


# ---- evaluate ---------------------------------------------------------------------------------------


def cells(out: str) -> dict[str, list[str]]:
    """The printed table by the metric's name."""
    lines = [[c.strip() for c in line.strip("|\n").split("|")] for line in out.splitlines()]
    assert lines[0][:4] == ["metric", "value", "95 % interval", "n"]
    return {line[0]: line[1:] for line in lines[2:]}


def test_evaluate_a_file(call, tmp_path):
    path = tmp_path / "mine.smi"
    path.write_text("CCO a\nOCC b\nc1ccccc1 c\nC(C)(C)(C)(C)C d\nCC.O e\n")
    code, out, _ = call("evaluate", path, "--no-fcd")
    assert code == 0
    table = cells(out)
    assert table["validity"][0] == "0.6" and table["validity"][2] == "5"
    assert "fragments: 1" in table["validity"][3] and "AtomValence: 1" in table["validity"][3]
    assert table["uniqueness"][0] == "0.6667" and table["uniqueness"][2] == "3"
    assert "novelty" not in table  # there is nothing to compare with
    assert [p.name for p in tmp_path.iterdir()] == ["mine.smi"]


def test_evaluate_against_a_file(call, tmp_path):
    (tmp_path / "mine.smi").write_text("CCO\nOCC\nc1ccccc1\nCCN\n")
    (tmp_path / "known.smi").write_text("OCC\nC\nCC\nCCN\nCCC\n")
    words = ("evaluate", tmp_path / "mine.smi", "--reference", tmp_path / "known.smi", "--no-fcd")
    table = cells(call(*words)[1])
    assert table["novelty"][0] == "0.3333" and table["novelty"][2] == "3"
    assert {"qed_w1", "logp_w1", "sa_w1", "atoms_tv", "bonds_tv", "rings_tv"} <= table.keys()
    assert "fcd_torch" not in table


def test_evaluate_a_run_counts_its_invalid_samples_and_leaves_a_table(call, shelf):
    call("generate", "molecules-small", "-n", 40, "-o", shelf / "out")
    samples = load("molecules-small").generate(40)
    code, out, _ = call("evaluate", shelf / "out", "--no-fcd")
    assert code == 0 and cells(out)["validity"][:3:2] == [f"{len(samples.valid()) / 40:.4g}", "40"]
    table = pd.read_csv(shelf / "out" / "metrics.csv").set_index("name")
    assert table.loc["validity", "value"] == len(samples.valid()) / 40
    counts = samples.table["reason"].value_counts()
    assert table.loc["validity", "failures"] == "; ".join(f"{k}: {counts[k]}" for k in sorted(counts.index))
    # The parquet file alone gives the same numbers.
    assert call("evaluate", shelf / "out" / "samples.parquet", "--no-fcd")[1] == out


def test_evaluate_an_empty_file_is_no_number(call, tmp_path):
    (tmp_path / "empty.smi").write_text("")
    code, out, _ = call("evaluate", tmp_path / "empty.smi", "--no-fcd")
    assert code == 0 and cells(out)["validity"][:3:2] == ["nan", "0"]


# ---- train ------------------------------------------------------------------------------------------


def test_train_with_overrides(call, tmp_path):
    smiles = tmp_path / "mine.smi"
    smiles.write_text("\n".join(NCI.read_text().split("\n")[:40]))
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(out=tmp_path / "not-here", smiles=smiles))
    words = ["--training.steps", 3, "--sample.n=4", "--sample.steps", 2, "--out", tmp_path / "out", "--data.limit=20"]
    code, out, _ = call("train", config, *words)
    assert code == 0 and out.endswith(f"weights in {tmp_path / 'out' / 'model.safetensors'}\n")
    job = json.loads((tmp_path / "out" / "job.json").read_text())
    assert (job["training"]["steps"], job["training"]["batch_size"], job["data"]["limit"]) == (3, 8, 20)
    assert len(pd.read_parquet(tmp_path / "out" / "samples" / "samples.parquet")) == 4
    assert load(str(tmp_path / "out" / "model.safetensors")).steps == 2
    assert not (tmp_path / "not-here").exists()


def test_train_names_every_wrong_key(call, tmp_path):
    config = tmp_path / "tiny.yaml"
    config.write_text(TINY.format(out=tmp_path / "out", smiles="nci"))
    code, out, err = call("train", config, "--training.stpes", 3, "--sample.n=-1")
    assert code == 2 and out == "" and "training.stpes" in err and "sample.n" in err
    assert not (tmp_path / "out").exists()


# ---- verify -----------------------------------------------------------------------------------------


def test_verify_by_the_card(call, weights, tmp_path):
    samples = load(weights).generate(60, seed=12345)
    true = len(samples.valid()) / 60
    right = write_weights(tmp_path / "right.safetensors", measured={"validity": true})
    wrong = write_weights(tmp_path / "wrong.safetensors", measured={"validity": 0.95})
    code, out, _ = call("verify", right, "-n", 60)
    assert code == 0 and "holds" in out and f"card {true:.4f}, now {true:.4f}" in out
    code, out, _ = call("verify", wrong, "-n", 60)
    assert code == 1 and "DIFFERS" in out and f"card 0.9500, now {true:.4f}" in out


def test_verify_measures_at_the_steps_of_the_card(call, tmp_path, monkeypatch):
    asked = []
    generate = models.Designer.generate

    def spy(self, n, seed=0, steps=None, **rest):
        asked.append((n, self.steps if steps is None else steps))
        return generate(self, n, seed, steps, **rest)

    monkeypatch.setattr(models.Designer, "generate", spy)
    call("verify", write_weights(tmp_path / "w.safetensors", measured={"validity": 0.25}), "-n", 20)
    assert asked == [(20, 3)]


@pytest.mark.slow
def test_the_shipped_weights_hold_what_their_card_claims(call):
    if "molecules-qm9" not in models.shipped():
        pytest.skip("the weights molecules-qm9 are not in this checkout")
    code, out, _ = call("verify", "molecules-qm9", "-n", 200)
    assert code == 0, out


def test_without_the_extra_evaluate_says_what_is_missing_and_does_the_rest(call, tmp_path, monkeypatch):
    monkeypatch.setattr("unisci.jobs.cli.find_spec", lambda name: None)
    (tmp_path / "mine.smi").write_text("CCO\nCCN\n")
    code, out, err = call("evaluate", tmp_path / "mine.smi", "--reference", tmp_path / "mine.smi")
    assert code == 0 and "novelty" in out and "fcd_torch" not in out and "unisci[metrics]" in err
