"""Runs of crystal generation into a folder, part by part, resumable: see `unisci.jobs.runs` for the parts.

samples.parquet, samples.csv     one row a sample, best first
cif/*.cif  crystals.extxyz       the structures, as refined or as relaxed
crystals.html                    the best of each formula to turn with the mouse, without network
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from unisci.design.crystal_designer import CrystalDesigner
from unisci.design.crystal_samples import ARRAYS, CrystalSamples
from unisci.design.parse import parse
from unisci.design.view3d import html
from unisci.jobs.config import ConfigError
from unisci.jobs.runs import open_folder, write_manifest

PART = 20  # samples a part: what a kill can cost
SHOWN = 12  # structures on the page
FILES = ("samples.csv", "samples.parquet", "cif", "crystals.extxyz", "crystals.html", "manifest.json")


@dataclass(frozen=True)
class CrystalRun:
    """What a folder holds: samples 0 to n - 1 of each composition (or of new crystals), and how they were made."""

    weights: str
    hash: str
    n: int
    seed: int
    steps: int
    composition: tuple[str, ...] = ()
    templates: str | None = None
    spacegroup: int | None = None
    elements: tuple[str, ...] = ()
    units: int | None = None
    where: str | None = None
    particles: int | None = None
    relax: bool = False
    part: int = PART

    def settings(self) -> dict:
        """What the manifest says of it."""
        found = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {k: v for k, v in found.items() if v not in (None, [], False)}

    @property
    def total(self) -> int:
        """All samples."""
        return self.n * max(1, len(self.composition))


def generate(
    designer: CrystalDesigner, run: CrystalRun, out: Path, on_done: Callable[[int], None] = lambda done: None
) -> Iterator[int]:
    """Generate into `out`, yielding how many samples are on disk; a run found there is continued.

    Every argument is checked before any compute: raises ConfigError where `out` holds something else, ValueError
    where an argument makes no sense. When it stops early the files are made from what is done.
    """
    for formula in run.composition or (None,):
        _stream(designer, run, formula, range(1))
    open_folder(out, run)
    return _generate(designer, run, out, on_done)


def _stream(designer: CrystalDesigner, run: CrystalRun, formula: str | None, ids: range) -> Iterator[CrystalSamples]:
    return designer.stream(
        composition=formula,
        seed=run.seed,
        templates=_templates(run.templates),
        spacegroup=run.spacegroup,
        elements=list(run.elements) or None,
        units=run.units,
        where=None if run.where is None else parse(run.where),
        particles=run.particles or 1,
        ids=ids,
        steps=run.steps,
    )


def _templates(named: str | None) -> str | tuple | None:
    return () if named == "none" else named


def _generate(designer: CrystalDesigner, run: CrystalRun, out: Path, on_done: Callable[[int], None]) -> Iterator[int]:
    began, done = time.perf_counter(), 0
    try:
        for c, formula in enumerate(run.composition or (None,)):
            for first in range(0, run.n, run.part):
                ids = range(first, min(first + run.part, run.n))
                path = out / "parts" / f"part-{c:05d}-{first:07d}.parquet"
                if not path.exists():
                    _make_part(designer, run, formula, ids, path)
                done += len(ids)
                on_done(done)
                write_manifest(out, run, done, time.perf_counter() - began)
                yield done
    finally:
        finish(out)


def _make_part(designer: CrystalDesigner, run: CrystalRun, formula: str | None, ids: range, path: Path) -> None:
    samples = CrystalSamples.join(list(_stream(designer, run, formula, ids)))
    if run.relax:
        samples = samples.relax()
    temporary = path.with_suffix(".tmp")
    samples.to_parquet(temporary)
    temporary.rename(path)


def finish(out: Path) -> None:
    """Make the files for users from the parts."""
    parts = sorted((out / "parts").glob("part-*.parquet"))
    if not parts:
        return
    samples = CrystalSamples.join([_read(p) for p in parts]).symmetrize().rank()
    samples.to_parquet(out / "samples.parquet")
    samples.to_frame().drop(columns=list(ARRAYS), errors="ignore").to_csv(out / "samples.csv", index=False)
    for old in (out / "cif").glob("*.cif"):
        old.unlink()
    samples.to_cif(out / "cif")
    samples.to_extxyz(out / "crystals.extxyz")
    best = samples.keep([i for i, rank in enumerate(samples.table["rank"]) if rank == 1][:SHOWN])
    titles = (f"<h3>{row.formula}, sample {row.id}</h3>" for row in best.table.itertuples())
    page = [title + html(crystal) for title, crystal in zip(titles, best, strict=True)]
    (out / "crystals.html").write_text("\n".join(page))


def _read(part: Path) -> CrystalSamples:
    try:
        return CrystalSamples.from_parquet(part)
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{part} is damaged: delete it and run the same command again ({error})") from error
