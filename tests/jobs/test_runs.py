import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from rdkit import Chem

from tests.jobs.small import STEPS, write_weights
from unisci.design.designer import Designer
from unisci.design.parse import parse
from unisci.design.samples import Samples
from unisci.domains.molecule import Molecule
from unisci.jobs import runs
from unisci.jobs.config import ConfigError
from unisci.jobs.models import load
from unisci.jobs.runs import OutputFull, generate

N = 17
FILES = {"manifest.json", "samples.parquet", "molecules.smi", "molecules.sdf", "molecules.png", "parts"}
GRAPHS = ["id", "smiles", "valid", "reason", "model", "seed", "atoms", "bonds"]  # all but the time that each took


@pytest.fixture(autouse=True)
def short_parts(monkeypatch):
    """Parts of five samples, so that seventeen make four."""
    monkeypatch.setattr(runs, "PART", 5)


@pytest.fixture(scope="module")
def whole(weights, tmp_path_factory) -> Path:
    """A run that nothing interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "PART", 5)
        assert list(generate(weights, N, out)) == [0, 5, 10, 15, 17]
    return out


def killed_at_the_second_part(task) -> int:
    """What a worker does in place of its work; it must be found by name in another process."""
    if task[1][0] == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return WORK(task)


WORK = runs._work


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())


def rows(out: Path) -> pd.DataFrame:
    table = pd.read_parquet(out / "samples.parquet")[GRAPHS].astype(object)
    return table.where(table.notna(), None)


def records(out: Path) -> list[tuple[str, str]]:
    supplier = Chem.SDMolSupplier(str(out / "molecules.sdf"))
    return [(mol.GetProp("_Name"), Chem.MolToSmiles(mol)) for mol in supplier]


def listing(out: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(out)): (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()}


def assert_same_samples(out: Path, other: Path) -> None:
    """Same graphs, SMILES and ids, and text files equal byte by byte."""
    pd.testing.assert_frame_equal(rows(out), rows(other))
    assert (out / "molecules.smi").read_bytes() == (other / "molecules.smi").read_bytes()
    assert records(out) == records(other)


# ---- what a run leaves ---------------------------------------------------------------------------


def test_the_files_agree_with_each_other(whole, weights):
    assert {p.name for p in whole.iterdir()} == FILES
    table = rows(whole)
    assert table["id"].tolist() == list(range(N))
    assert 0 < table["valid"].sum() < N and (table["valid"] == table["smiles"].notna()).all()
    assert (table["valid"] == table["reason"].isna()).all()
    valid = table[table["valid"]]
    lines = [line.split("\t") for line in (whole / "molecules.smi").read_text().splitlines()]
    assert lines == [[s, str(i)] for s, i in zip(valid["smiles"], valid["id"], strict=True)]
    assert records(whole) == [(str(i), s) for s, i in zip(valid["smiles"], valid["id"], strict=True)]
    assert (whole / "molecules.png").read_bytes().startswith(b"\x89PNG")
    graphs = [Molecule.from_text(a, b) for a, b in zip(table["atoms"], table["bonds"], strict=True)]
    assert [m.smiles for m in graphs] == table["smiles"].tolist()
    designer = load(weights)
    asked = {"weights": weights, "hash": designer.hash, "n": N, "seed": 0, "steps": STEPS, "part": 5}
    assert manifest(whole)["run"] == asked
    assert manifest(whole)["done"] == N and manifest(whole)["complete"] is True
    assert set(table["model"]) == {designer.hash}


def test_the_folder_holds_what_the_designer_draws(whole, weights):
    samples = load(weights).generate(N)
    read = Samples.from_parquet(whole / "samples.parquet")
    assert read.smiles == samples.smiles
    assert [m.to_text() for m in read] == [m.to_text() for m in samples]


def test_parts_hold_the_rows_once_each(whole):
    parts = sorted((whole / "parts").iterdir())
    assert [p.name for p in parts] == [f"part-{k:010d}.parquet" for k in (0, 5, 10, 15)]
    assert [len(pd.read_parquet(p)) for p in parts] == [5, 5, 5, 2]


def test_a_complete_run_again_computes_nothing(whole, weights, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a complete run was computed again")

    monkeypatch.setattr(Designer, "generate", refuse)
    before = rows(whole)
    assert list(generate(weights, N, whole)) == [N]
    pd.testing.assert_frame_equal(rows(whole), before)


def test_seed_and_steps_reach_the_samples(weights, tmp_path):
    assert list(generate(weights, 6, tmp_path / "a", seed=3, steps=2))[-1] == 6
    assert rows(tmp_path / "a")["atoms"].tolist() == load(weights).generate(6, seed=3, steps=2).table["atoms"].tolist()
    assert set(rows(tmp_path / "a")["seed"]) == {3}


def test_a_run_without_a_valid_sample_has_files_without_a_picture(weights, tmp_path):
    designer = load(weights)
    seed = next(s for s in range(100) if not designer.generate(2, seed=s).valid())
    assert list(generate(weights, 2, tmp_path / "out", seed=seed))[-1] == 2
    assert {p.name for p in (tmp_path / "out").iterdir()} == FILES - {"molecules.png"}
    assert (tmp_path / "out" / "molecules.smi").read_text() == ""
    assert not rows(tmp_path / "out")["valid"].any()


# ---- the same samples, however they are made ------------------------------------------------------


@pytest.mark.parametrize("size", [1, 7, 64])
def test_the_batch_size_changes_no_sample(whole, weights, tmp_path, size, monkeypatch):
    monkeypatch.setattr(runs, "PART", 1000)  # one part, so that the batch size alone cuts
    assert list(generate(weights, N, tmp_path / "out", batch_size=size))[-1] == N
    assert_same_samples(tmp_path / "out", whole)


@pytest.mark.slow
def test_two_workers_give_the_samples_of_one(whole, weights, tmp_path):
    done = list(generate(weights, N, tmp_path / "out", workers=2))
    assert done[0] == 0 and done[-1] == N and len(done) == 5 and done == sorted(done)
    assert_same_samples(tmp_path / "out", whole)


# ---- stopped and continued ------------------------------------------------------------------------


def failing_at(monkeypatch, number: int, error: BaseException, partial: bytes = b"half") -> None:
    """Writing part `number` leaves `partial` and raises `error`."""
    write, calls = Samples.to_parquet, []

    def to_parquet(self, path):
        calls.append(path)
        if len(calls) == number:
            Path(path).write_bytes(partial)
            raise error
        write(self, path)

    monkeypatch.setattr(Samples, "to_parquet", to_parquet)


def assert_holds_first_part(out: Path, whole: Path) -> None:
    """Readable files of the five samples that were done, nothing half-written under a final name."""
    assert [p.name for p in sorted((out / "parts").glob("*.parquet"))] == ["part-0000000000.parquet"]
    pd.testing.assert_frame_equal(rows(out), rows(whole).iloc[:5])
    valid = rows(whole).iloc[:5]["smiles"].dropna().tolist()
    assert [line.split("\t")[0] for line in (out / "molecules.smi").read_text().splitlines()] == valid
    assert [s for _, s in records(out)] == valid
    assert not list(out.glob("*.tmp"))
    assert manifest(out)["done"] == 5 and manifest(out)["complete"] is False


def test_an_error_inside_a_part_costs_that_part_alone(whole, weights, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_at(patch, 2, RuntimeError("a cosmic ray"))
        with pytest.raises(RuntimeError, match="cosmic"):
            list(generate(weights, N, out))
    assert_holds_first_part(out, whole)
    assert list(generate(weights, N, out)) == [5, 10, 15, 17]
    assert_same_samples(out, whole)
    assert manifest(out)["complete"] is True


def test_ctrl_c_leaves_readable_files_and_a_manifest(whole, weights, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_at(patch, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            list(generate(weights, N, out))
    assert_holds_first_part(out, whole)
    assert list(generate(weights, N, out)) == [5, 10, 15, 17]
    assert_same_samples(out, whole)


def test_a_closed_iterator_leaves_readable_files(whole, weights, tmp_path):
    out = tmp_path / "out"
    progress = generate(weights, N, out)
    assert [next(progress), next(progress)] == [0, 5]
    progress.close()
    assert_holds_first_part(out, whole)


KILLED = """
import os, signal, sys
from unisci.design.parse import parse
from unisci.design.samples import Samples
from unisci.jobs import runs
runs.PART = 5
write, calls = Samples.to_parquet, []
def to_parquet(self, path):
    calls.append(path)
    if len(calls) == 2:
        open(path, "wb").write(b"half")
        os.kill(os.getpid(), signal.SIGKILL)
    write(self, path)
Samples.to_parquet = to_parquet
list(runs.generate(sys.argv[1], int(sys.argv[2]), runs.Path(sys.argv[3])))
"""


def test_a_killed_run_continues_to_the_same_bytes(whole, weights, tmp_path):
    out = tmp_path / "out"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    killed = subprocess.run([sys.executable, "-c", KILLED, weights, str(N), str(out)], env=environment, timeout=120)
    assert killed.returncode == -9
    assert [p.name for p in sorted((out / "parts").glob("*.parquet"))] == ["part-0000000000.parquet"]
    assert manifest(out)["done"] == 5 and not (out / "samples.parquet").exists()
    assert list(generate(weights, N, out)) == [5, 10, 15, 17]
    assert_same_samples(out, whole)
    assert {p.name for p in out.iterdir()} == FILES


def test_parts_in_any_order_are_completed(whole, weights, tmp_path):
    """As workers leave them: a later part may be done where an earlier one is not."""
    out = tmp_path / "out"
    list(generate(weights, N, out))
    (out / "parts" / "part-0000000005.parquet").unlink()
    assert list(generate(weights, N, out)) == [12, 17]
    assert_same_samples(out, whole)


def test_a_damaged_part_is_named_and_made_again(whole, weights, tmp_path):
    out = tmp_path / "out"
    list(generate(weights, N, out))
    part = out / "parts" / "part-0000000005.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(ConfigError, match=r"part-0000000005\.parquet is damaged: delete it"):
        list(generate(weights, N, out))
    part.unlink()
    assert list(generate(weights, N, out)) == [12, 17]
    assert_same_samples(out, whole)


def test_the_columns_have_the_same_types_whatever_they_hold(whole, weights, tmp_path):
    """Also where no sample is valid, or all are: tables of several runs can be read together."""
    designer = load(weights)
    seed = next(s for s in range(100) if not designer.generate(2, seed=s).valid())
    list(generate(weights, 2, tmp_path / "out", seed=seed))
    schemas = [pq.read_schema(folder / "samples.parquet").remove_metadata() for folder in (whole, tmp_path / "out")]
    assert schemas[0] == schemas[1]


@pytest.mark.slow
def test_a_worker_that_is_killed_stops_the_run_with_a_word(whole, weights, tmp_path, monkeypatch):
    """As the kernel does where memory ends; the run must neither hang nor lose what is done."""
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(runs, "_work", killed_at_the_second_part)
        with pytest.raises(OSError, match=r"a worker process was killed.*fewer workers.*of 17 samples"):
            list(generate(weights, N, out, workers=2))
    assert manifest(out)["complete"] is False
    assert list(generate(weights, N, out, workers=2))[-1] == N
    assert_same_samples(out, whole)


# ---- a full disk ----------------------------------------------------------------------------------


def full(name: object = "part") -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(name))


def test_a_full_disk_says_how_far_the_run_came(whole, weights, tmp_path, monkeypatch):
    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        failing_at(patch, 2, full())
        with pytest.raises(OutputFull, match=r"No space left on device after 5 of 17 samples") as error:
            list(generate(weights, N, out))
    assert error.value.errno == errno.ENOSPC
    assert not list((out / "parts").glob("*.tmp"))  # the half part gives its room back
    assert_holds_first_part(out, whole)
    assert list(generate(weights, N, out)) == [5, 10, 15, 17]
    assert_same_samples(out, whole)


def test_a_disk_that_fills_while_the_files_are_made_is_told(whole, weights, tmp_path, monkeypatch):
    """All parts are written, but not samples.parquet: that run has not succeeded."""
    out = tmp_path / "out"

    def fail(parts, table, smi, sdf, picture):
        table.write_bytes(b"half")
        raise full(table)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "_merge", fail)
        with pytest.raises(OutputFull, match=r"No space left on device after 17 of 17 samples"):
            list(generate(weights, N, out))
    assert {p.name for p in out.iterdir()} == {"manifest.json", "parts"}
    assert list(generate(weights, N, out)) == [N]
    assert_same_samples(out, whole)


# ---- folders and arguments that are refused --------------------------------------------------------


@pytest.mark.parametrize(
    "change, named",
    [({"seed": 1}, "seed"), ({"n": 18}, "n"), ({"steps": 9}, "steps"), ({"seed": 1, "n": 3}, "n, seed")],
)
def test_a_folder_of_another_run_is_refused_and_kept(whole, weights, change, named):
    before = listing(whole)
    with pytest.raises(ConfigError, match=rf"holds another run \({named} differ\)"):
        generate(weights, change.pop("n", N), whole, **change)
    assert listing(whole) == before


@pytest.mark.parametrize(
    "change, named",
    [
        ({"where": "Below(heavyatomcount, 3)"}, "where"),
        ({"particles": 3}, "particles"),
        ({"push": 0.5}, "push"),
        ({"where": None}, "particles, push, where"),
    ],
)
def test_a_steered_run_goes_on_by_the_same_wants_alone(weights, tmp_path, change, named):
    steered = {"where": "Below(heavyatomcount, 2) & Without(F)", "particles": 2}
    run = generate(weights, 7, tmp_path / "out", **steered)
    assert [next(run), next(run)] == [0, 5]
    run.close()
    assert pd.read_csv(tmp_path / "out" / "hit_rates.csv")["n"].tolist() == [5, 5, 5]
    before = listing(tmp_path / "out")
    with pytest.raises(ConfigError, match=rf"holds another run \({named} differ\)"):
        generate(weights, 7, tmp_path / "out", **steered | change)
    assert listing(tmp_path / "out") == before
    assert list(generate(weights, 7, tmp_path / "out", **steered)) == [5, 7]
    assert manifest(tmp_path / "out")["run"]["where"] == "Below('heavyatomcount', 2) & Without('F')"
    whole = load(weights).generate(7, where=parse(steered["where"]), particles=2)
    assert Samples.from_parquet(tmp_path / "out" / "samples.parquet").smiles == whole.smiles
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "out" / "hit_rates.csv"), whole.hit_rates())


def test_a_run_that_is_not_steered_is_not_continued_by_one_that_is(whole, weights):
    with pytest.raises(ConfigError, match=r"\(particles, push, where differ\)"):
        generate(weights, N, whole, where="Without(F)")
    assert not (whole / "hit_rates.csv").exists()


def test_a_folder_of_other_weights_is_refused_and_kept(whole, tmp_path):
    before = listing(whole)
    with pytest.raises(ConfigError, match="hash"):
        generate(write_weights(tmp_path / "other.safetensors", seed=1), N, whole)
    assert listing(whole) == before


def test_a_foreign_folder_is_refused_and_kept(weights, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match="not a run of this program"):
        generate(weights, N, tmp_path)
    assert listing(tmp_path) == before and not (tmp_path / "parts").exists()
    with pytest.raises(ConfigError, match="not a run of this program"):
        generate(weights, N, tmp_path / "thesis.tex")
    assert listing(tmp_path) == before


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"run": 3}', "\x00"])
def test_a_folder_with_a_foreign_manifest_is_refused(weights, tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    before = listing(tmp_path)
    with pytest.raises(ConfigError, match=r"manifest\.json"):
        generate(weights, N, tmp_path)
    assert listing(tmp_path) == before and not (tmp_path / "parts").exists()


def test_an_empty_folder_is_used(weights, tmp_path):
    assert list(generate(weights, 2, tmp_path))[-1] == 2
    assert (tmp_path / "samples.parquet").is_file()


@pytest.mark.parametrize(
    "change",
    [{"n": 0}, {"n": -3}, {"seed": -1}, {"steps": 0}, {"steps": -1}, {"workers": 0}, {"batch_size": 0}],
    ids=lambda c: "_".join(f"{k}{v}" for k, v in c.items()),
)
def test_numbers_that_make_no_sense_are_refused_before_anything_is_done(weights, tmp_path, change, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("computed before the arguments were checked")

    monkeypatch.setattr(Designer, "stream", refuse)
    name, value = next(iter(change.items()))
    with pytest.raises(ValueError, match=rf"{name} must be .*{value}"):
        generate(weights, change.pop("n", N), tmp_path / "out", **change)
    assert not (tmp_path / "out").exists()


def test_unknown_weights_create_no_folder(tmp_path):
    with pytest.raises(ValueError, match="no weights"):
        generate("molecules-absent", N, tmp_path / "out")
    assert not (tmp_path / "out").exists()
