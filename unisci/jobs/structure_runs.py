"""Runs of molecules in space into a folder, part by part, resumable: see `unisci.jobs.runs` for the parts.

samples.parquet                          one row a sample, with its positions
molecules.sdf .png .html                 what was generated: records, graphs, the first ones to turn with the mouse
conformers.sdf .xyz .png .html           the same of conformers that were asked for; the picture shows them in space
hit_rates.csv                            what share of the samples meets each want, where something was wanted
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from unisci.design.designer import check_ids
from unisci.design.parse import parse
from unisci.design.structure_designer import StructureDesigner
from unisci.design.structure_samples import StructureSamples
from unisci.design.structure_tasks import asked
from unisci.jobs.base_config import ConfigError
from unisci.jobs.runs import Settled, open_folder, write_hit_rates, write_manifest

PART = 100  # samples a part: what a kill can cost
SUFFIXES = (".sdf", ".xyz", ".png", ".html")


@dataclass(frozen=True)
class StructureRun:
    """What a folder holds: samples 0 to n - 1 of a seed, and how they were made. steps: of positions."""

    weights: str
    hash: str
    n: int
    seed: int
    steps: int
    where: str | None = None
    particles: int | None = None
    push: float | None = None
    at_once: bool = False
    part: int = PART

    def settings(self) -> dict:
        """What the manifest says of it."""
        return {k: v for k, v in asdict(self).items() if v is not None and v is not False}

    @property
    def total(self) -> int:
        """All samples."""
        return self.n


@dataclass(frozen=True)
class ConformerRun:
    """What a folder holds: n conformers of each molecule, and how they were made."""

    weights: str
    hash: str
    molecules: tuple[str, ...]
    n: int
    seed: int
    steps: int
    part: int = PART

    def settings(self) -> dict:
        """What the manifest says of it."""
        return asdict(self) | {"molecules": list(self.molecules)}

    @property
    def total(self) -> int:
        """All molecules."""
        return len(self.molecules)


class _Part(NamedTuple):
    """One file of parts: how many samples or molecules it is of, and what makes it."""

    name: str
    size: int
    make: Callable[[], StructureSamples]


def files(out: Path, stem: str) -> list[str]:
    """The names of a finished run's files in its folder."""
    names = ("samples.parquet", *(stem + s for s in SUFFIXES), "hit_rates.csv", "manifest.json")
    return [name for name in names if (out / name).is_file()]


def generate(
    designer: StructureDesigner,
    run: StructureRun,
    out: Path,
    on_done: Callable[[int], None] = lambda done: None,
    batch_size: int | None = None,
) -> Iterator[int]:
    """Generate into `out`, yielding how many samples are on disk; a run found there is continued.

    Every argument is checked before any compute: raises ConfigError where `out` holds something else, ValueError
    where an argument makes no sense. When it stops early the files are made from what is done.
    """
    check_ids(run.n, None)
    _stream(designer, run, range(1), batch_size)
    open_folder(out, run)
    firsts = range(0, run.n, run.part)
    ids = {k: range(k, min(k + run.part, run.n)) for k in firsts}
    join = lambda k: StructureSamples.join(list(_stream(designer, run, ids[k], batch_size)))
    parts = [_Part(f"part-{k:010d}.parquet", len(ids[k]), lambda k=k: join(k)) for k in firsts]
    return _generate(run, parts, out, "molecules", on_done)


def conformers(
    designer: StructureDesigner, run: ConformerRun, out: Path, on_done: Callable[[int], None] = lambda done: None
) -> Iterator[int]:
    """The same for conformers, yielding how many molecules are done. Raises MoleculeError too where one molecule alone
    is asked for and cannot be placed; of several, those are rows with the reason."""
    if not run.molecules or run.n < 1 or run.seed < 0 or run.steps < 1:
        raise ValueError(f"conformers need a molecule, n and steps of 1 or more and a seed of 0 or more, got {run}")
    if len(run.molecules) == 1:
        asked(run.molecules[0], designer.structures)
    open_folder(out, run)
    size = max(1, run.part // run.n)
    chunks = {k: run.molecules[k : k + size] for k in range(0, len(run.molecules), size)}
    make = lambda k: designer.conformers(chunks[k], run.n, run.seed, run.steps)
    parts = [_Part(f"part-{k:010d}.parquet", len(c), lambda k=k: make(k)) for k, c in chunks.items()]
    return _generate(run, parts, out, "conformers", on_done)


def _stream(
    designer: StructureDesigner, run: StructureRun, ids: range, batch_size: int | None
) -> Iterator[StructureSamples]:
    """Raises ValueError where the run cannot be drawn."""
    wanted = {} if run.where is None else {"where": parse(run.where), "particles": run.particles, "push": run.push}
    return designer.stream(
        seed=run.seed, steps=run.steps, ids=ids, at_once=run.at_once, batch_size=batch_size, **wanted
    )


def _generate(run: Settled, parts: list[_Part], out: Path, stem: str, on_done: Callable[[int], None]) -> Iterator[int]:
    began, done = time.perf_counter(), 0
    try:
        for part in parts:
            path = out / "parts" / part.name
            if not path.exists():
                temporary = path.with_suffix(".tmp")
                part.make().to_parquet(temporary)
                temporary.rename(path)
            done += part.size
            on_done(done)
            write_manifest(out, run, done, time.perf_counter() - began)
            yield done
    finally:
        finish(out, stem)


def finish(out: Path, stem: str) -> None:
    """Make the files for users from the parts, a part at a time in memory."""
    parts = sorted((out / "parts").glob("part-*.parquet"))
    if not parts:
        return
    table = out / "samples.tmp"
    with pq.ParquetWriter(table, _read(parts[0]).schema) as rows:
        for part in parts:
            rows.write_table(_read(part))
    table.rename(out / "samples.parquet")
    _write(out / f"{stem}.sdf", parts, StructureSamples.write_sdf)
    if stem == "conformers":  # of generated molecules a format without bonds would lose half
        _write(out / f"{stem}.xyz", parts, StructureSamples.write_xyz)
    shown = next((s for s in map(StructureSamples.from_parquet, parts) if s.table["valid"].any()), None)
    if shown is not None:
        picture = shown.draw_conformers() if stem == "conformers" else shown.dedupe().draw()
        picture.save(out / f"{stem}.png")
        (out / f"{stem}.html").write_text(shown.page())
    write_hit_rates(out)


def _write(path: Path, parts: list[Path], write: Callable[[StructureSamples, TextIO], None]) -> None:
    """One text file of all parts, in place at once."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as file:
        for part in parts:
            write(StructureSamples.from_parquet(part), file)
    temporary.rename(path)


def _read(part: Path) -> pa.Table:
    try:
        return pq.read_table(part).replace_schema_metadata()
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{part} is damaged: delete it and run the same command again ({error})") from error
