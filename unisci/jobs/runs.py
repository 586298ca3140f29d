"""Runs of generation into a folder, in parts that a kill cannot damage, by one process or several, resumable.

parts/part-<first position>.parquet   one row a sample, written under a temporary name, then renamed
manifest.json                         what is run, by what, and how far it came
samples.parquet molecules.smi molecules.sdf molecules.png     made from the parts at the end
hit_rates.csv                         what share of the samples meets each want, where something was wanted
"""

import contextlib
import json
import multiprocessing
import platform
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Protocol

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from unisci.design.designer import Designer, check_ids
from unisci.design.parse import parse, spelled
from unisci.design.samples import Samples
from unisci.design.table import hit_rates, met_columns
from unisci.jobs.config import ConfigError
from unisci.jobs.models import load

PART = 1000  # samples a part: what a kill can cost


@dataclass(frozen=True)
class Run:
    """What a folder holds: samples 0 to n - 1 of a seed, by weights of a name and hash, at so many calls a block, and
    what they are steered by; None where they are not."""

    weights: str
    hash: str
    n: int
    seed: int
    steps: int
    part: int
    where: str | None = None
    particles: int | None = None
    push: float | None = None

    def settings(self) -> dict:
        """What the manifest says of it."""
        return {k: v for k, v in asdict(self).items() if v is not None}

    @property
    def total(self) -> int:
        """All samples."""
        return self.n


Task = tuple[Run, tuple[int, int], Path, int | None]  # run, part, folder, batch size
Told = Callable[[int], None]


class OutputFull(OSError):
    """The samples could not be written; what was written before is whole."""


def generate(
    weights: str,
    n: int,
    out: Path,
    seed: int = 0,
    steps: int | None = None,
    batch_size: int | None = None,
    workers: int = 1,
    device: str = "cpu",
    on_done: Told = lambda done: None,
    where: str | None = None,
    particles: int = 4,
    push: float = 1.0,
) -> Iterator[int]:
    """Generate into `out`, yielding how many samples are on disk; a run found there is continued.

    on_done(k) is told as samples finish, before they are on disk (by one process; several tell part by part). where:
    wants as text, see `unisci.design.parse`; particles and push: see `Designer.generate`.

    Every argument is checked before any compute: raises ConfigError where `out` holds something else, ValueError
    where a number makes no sense. When it stops early, by an error or a closed iterator, the files are made from what
    is done.
    """
    designer = load(weights, device)
    check_ids(n, None)
    for name, value in (("workers", workers), ("batch_size", batch_size), ("steps", steps)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    run = Run(weights, designer.hash, n, seed, steps or designer.steps, PART)
    if where is not None:
        run = replace(run, where=spelled(where), particles=particles, push=float(push))
    _stream(designer, run, range(n), batch_size)  # refuses what cannot be drawn
    open_folder(out, run)
    return _generate(designer, run, out, batch_size, workers, device, on_done)


def _generate(
    designer: Designer, run: Run, out: Path, batch_size: int | None, workers: int, device: str, on_done: Told
) -> Iterator[int]:
    parts = [(k, min(k + run.part, run.n)) for k in range(0, run.n, run.part)]
    todo = [p for p in parts if not _part_path(out, p).exists()]
    done, began = run.n - sum(b - a for a, b in todo), time.perf_counter()
    yield done
    try:
        told = lambda finished: on_done(done + finished)
        for size in _sizes(designer, [(run, p, out, batch_size) for p in todo], workers, device, told):
            done += size
            on_done(done)
            write_manifest(out, run, done, time.perf_counter() - began)
            yield done
        finish(out)
    except BaseException as error:
        # Also after Ctrl-C or a closed iterator: what is done becomes readable files. On a full disk the parts remain.
        with contextlib.suppress(OSError, ConfigError):
            finish(out)
        if not isinstance(error, OSError):
            raise
        message = f"{error.strerror or error} after {done} of {run.n} samples; make room and run the same command again"
        raise OutputFull(error.errno, message) from error


def _sizes(designer: Designer, tasks: list[Task], workers: int, device: str, told: Told) -> Iterator[int]:
    """Make the parts, here or in worker processes, and yield the size of each as it is done."""
    if workers == 1 or len(tasks) < 2:
        yield from (_make_part(designer, *task, told) for task in tasks)
        return
    threads = max(1, torch.get_num_threads() // workers)
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(tasks)), context, _start_worker, (tasks[0][0].weights, device, threads))
    try:
        for made in as_completed([pool.submit(_work, task) for task in tasks]):
            yield made.result()
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process was killed, as for want of memory: use fewer workers;") from error
    finally:
        pool.shutdown(cancel_futures=True)


class Settled(Protocol):
    """What a folder can hold: a run of n samples with settings that tell it from others."""

    @property
    def total(self) -> int: ...
    def settings(self) -> dict: ...


def open_folder(out: Path, run: Settled) -> None:
    """Make the folder for a run, or find that run in it. Raises ConfigError where it holds something else."""
    manifest = out / "manifest.json"
    if manifest.is_file():
        try:
            found = dict(json.loads(manifest.read_text())["run"])
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{manifest} is not a manifest of this program: choose another folder") from error
        asked = run.settings()
        if found != asked:
            differing = sorted(k for k in found | asked if found.get(k) != asked.get(k))
            raise ConfigError(
                f"{out} holds another run ({', '.join(differing)} differ): choose another folder, or delete it"
            )
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not a run of this program: choose a new or empty folder")
    (out / "parts").mkdir(parents=True, exist_ok=True)
    if not manifest.is_file():
        write_manifest(out, run, 0, 0.0)


def _part_path(out: Path, part: tuple[int, int]) -> Path:
    return out / "parts" / f"part-{part[0]:010d}.parquet"


def _make_part(
    designer: Designer, run: Run, part: tuple[int, int], out: Path, batch_size: int | None, told: Told | None = None
) -> int:
    samples = Samples.join(list(_stream(designer, run, range(*part), batch_size, told)))
    path = _part_path(out, part)
    temporary = path.with_suffix(".tmp")
    try:
        samples.to_parquet(temporary)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    return len(samples)


def _stream(
    designer: Designer, run: Run, ids: range, batch_size: int | None, told: Told | None = None
) -> Iterator[Samples]:
    if run.where is None:
        return designer.stream(None, run.seed, run.steps, ids, batch_size, told)
    where = parse(run.where)
    return designer.stream(None, run.seed, run.steps, ids, batch_size, told, where, run.particles, run.push)


_WORKER: list[Designer] = []  # the designer of a worker process, loaded once


def _start_worker(weights: str, device: str, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends it at once, without a word; its part is made again
    torch.set_num_threads(threads)
    _WORKER.append(load(weights, device))


def _work(task: Task) -> int:
    return _make_part(_WORKER[0], *task)


def write_manifest(out: Path, run: Settled, done: int, seconds: float) -> None:
    """Write manifest.json: the run, how far it came, and the versions that made it."""
    versions = {name: version(name) for name in ("unisci", "torch", "rdkit", "numpy")}
    manifest = {
        "run": run.settings(),
        "done": done,
        "complete": done == run.total,
        "seconds": round(seconds, 3),
        "versions": versions | {"python": platform.python_version()},
    }
    temporary = out / "manifest.tmp"
    temporary.write_text(json.dumps(manifest, indent=1))
    temporary.rename(out / "manifest.json")


def finish(out: Path) -> None:
    """Make samples.parquet, molecules.smi, molecules.sdf, molecules.png and hit_rates.csv from the parts, a part at a
    time in memory.
    """
    parts = sorted((out / "parts").glob("part-*.parquet"))
    if not parts:
        return
    temporary = {name: out / f"{name}.tmp" for name in ("samples.parquet", "molecules.smi", "molecules.sdf")}
    try:
        _merge(parts, *temporary.values(), picture=out / "molecules.png")
        for name, path in temporary.items():
            path.replace(out / name)
        write_hit_rates(out)
    finally:
        for path in temporary.values():
            path.unlink(missing_ok=True)


def write_hit_rates(out: Path) -> None:
    """Write hit_rates.csv where samples.parquet says that something was wanted."""
    if met := met_columns(pq.read_schema(out / "samples.parquet").names):
        hit_rates(pd.read_parquet(out / "samples.parquet", columns=met)).to_csv(out / "hit_rates.csv", index=False)


def _merge(parts: list[Path], table: Path, smi: Path, sdf: Path, picture: Path) -> None:
    drawn = False
    with pq.ParquetWriter(table, _read(parts[0]).schema) as rows, smi.open("w") as lines, sdf.open("w") as records:
        for path in parts:
            rows.write_table(_read(path))
            samples = Samples.from_parquet(path)
            samples.write_smi(lines)
            samples.write_sdf(records)
            if not drawn and samples.table["valid"].any():
                samples.draw().save(picture)
                drawn = True


def _read(part: Path) -> pa.Table:
    try:
        return pq.read_table(part).replace_schema_metadata()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{part} is damaged: delete it and run the same command again ({error})") from error
