"""Crystals for training: read once into a cache of tensors, so that training needs neither pymatgen nor moyopy.

A crystal is used three times: as orbits, as sites beside aligned templates, and as a template of others.
"""

import csv
import hashlib
import json
import multiprocessing
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from pandas import DataFrame
from safetensors.torch import load_file, save_file
from torch import Tensor

from unisci.autoregression.template_examples import beside_templates
from unisci.batch import Batch
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.elements import element_features
from unisci.domains.orbit_batches import WyckoffTable, batch_of
from unisci.domains.prototypes import Map, NamedLibrary
from unisci.domains.template_files import load_templates, save_templates
from unisci.domains.templates import TemplateLibrary
from unisci.domains.wyckoff import Orbits
from unisci.jobs.config import ConfigError, CrystalDataConfig
from unisci.jobs.data import write_json
from unisci.jobs.weights_file import digest
from unisci.training.data import load_batch, save_batch

Reject = tuple[str, str, str]  # part, name, "kind: reason"


@dataclass(frozen=True, eq=False)
class CrystalData:
    """orbits: ORBIT_FIELDS of the training crystals, validation: of others, of positions that the table holds; sites:
    CRYSTAL_FIELDS of the training crystals, with K templates each as `unisci.autoregression.crystals.templates` reads
    them; features (101, F), volumes (101,) of the elements; library: the training crystals, in the order of `sites`."""

    orbits: Batch
    validation: Batch | None
    sites: Batch
    table: WyckoffTable
    features: Tensor
    volumes: Tensor
    library: TemplateLibrary
    counts: dict


def prepare(config: CrystalDataConfig, folder: Path) -> CrystalData:
    """Read, reduce and align the crystals once into `folder`; later calls read that cache. rejects.csv lists those that
    cannot be read or are too large, and those without orbits, which are sites and templates all the same.

    Raises ConfigError where more than config.max_rejected of a source are rejected or none has orbits, ValueError where
    a source does not exist or holds nothing that can be used.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key, summary = identity(config), folder / "data.json"
    if not (summary.is_file() and json.loads(summary.read_text())["config"] == key):
        with _workers(config.workers) as map:
            counts = _write(config, folder, map)
        write_json(summary, {"config": key, "counts": counts})
    counts = json.loads(summary.read_text())["counts"]
    tensors, held = load_file(folder / "tables.safetensors"), folder / "validation.safetensors"
    table = WyckoffTable.from_text((folder / "positions.txt").read_text())
    vars(table)["multiplicities"] = tensors["multiplicities"].numpy()  # counted anew they would ask for moyopy
    library = load_templates(folder / "library.npz").library
    vars(library)["atomic_volumes"] = tensors["volumes"].numpy()
    orbits, sites = (load_batch(folder / f"{k}.safetensors") for k in ("orbits", "sites"))
    validation = load_batch(held) if counts["validation"] else None
    features, volumes = (tensors[k].float() for k in ("features", "volumes"))
    return CrystalData(orbits, validation, sites, table, features, volumes, library, counts)


def identity(config: CrystalDataConfig) -> dict:
    """What makes two caches the same: what the sources hold, wherever they lie, and how it is read. Raises ValueError
    where a source does not exist."""
    sources = {k: _hash(getattr(config, k)) for k in ("crystals", "validation") if getattr(config, k) is not None}
    return config.model_dump(exclude={"workers"}) | sources


def _hash(source: str) -> str:
    """Of what a source holds, or which release carries it."""
    path = Path(source)
    if source == "aflow":
        return f"pymatgen {version('pymatgen')}"
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        raise ValueError(f"no crystals {source!r}: give a file, a folder of .cif files, or aflow")
    parts = [f"{p.name} {digest(p)}\n" for p in sorted(path.iterdir()) if p.suffix.lower() == ".cif"]
    return hashlib.sha256("".join(parts).encode()).hexdigest()[:16]


def _write(config: CrystalDataConfig, folder: Path, map: Map) -> dict:
    """All files of the cache but its key; the counts of what was read and rejected."""
    named, rejects, rows = _read(config.crystals, "train", config, map)
    crystals = [named.library[i] for i in range(len(named))]
    library = TemplateLibrary.from_crystals(crystals)  # whose volumes are those of these crystals alone
    orbits = list(map(_orbits, crystals))
    rejects += [("train", n, o) for n, o in zip(named.names, orbits, strict=True) if isinstance(o, str)]
    known = [o for o in orbits if not isinstance(o, str)]
    table = WyckoffTable.of(known)
    held, refused, held_rows = _validation(config, table, map) if config.validation else ([], [], 0)
    path = folder / "rejects.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("part", "name", "reason"), *rejects, *refused])
    _refuse(config.crystals, rejects, rows, config.max_rejected, path)
    _refuse(config.validation or "", refused, held_rows, config.max_rejected, path)
    if not known:
        raise ConfigError(f"{config.crystals}: no crystal has orbits; see {path}")
    save_batch(batch_of(known, table), folder / "orbits.safetensors")
    if held:
        save_batch(batch_of(held, table), folder / "validation.safetensors")
    save_batch(beside_templates(crystals, library, config.templates, map), folder / "sites.safetensors")
    save_templates(named, folder / "library.npz")
    (folder / "positions.txt").write_text(table.text)
    tables = {"features": element_features(), "volumes": library.atomic_volumes, "multiplicities": table.multiplicities}
    save_file({k: torch.from_numpy(v).clone() for k, v in tables.items()}, folder / "tables.safetensors")
    return {
        "rows": rows,
        "rejected": _kinds(rejects),
        "train": len(crystals),
        "orbits": len(known),
        "validation": len(held),
        "validation rows": held_rows,
        "validation rejected": _kinds(refused),
    }


def _read(source: str, part: str, config: CrystalDataConfig, map: Map) -> tuple[NamedLibrary, list[Reject], int]:
    """The reduced crystals that are small enough, the rejects, and the number of all rows."""
    named = load_templates(None if source == "aflow" else source, map)
    rejects = [(part, name, f"not read: {why}") for name, why in named.rejects.itertuples(index=False)]
    rows, sites = len(named) + len(rejects), np.diff(named.library.offsets)
    large = sites > config.most_sites
    rejects += [
        (part, named.names[i], f"too large: {sites[i]} sites, data.most_sites = {config.most_sites}")
        for i in np.flatnonzero(large)
    ]
    if large.all():
        raise ConfigError(f"{source}: no crystal has at most data.most_sites = {config.most_sites} sites")
    kept = named.select(~large)
    return NamedLibrary(kept.library, kept.names, DataFrame(columns=["name", "reason"])), rejects, rows


def _validation(config: CrystalDataConfig, table: WyckoffTable, map: Map) -> tuple[list[Orbits], list[Reject], int]:
    """Orbits of positions that the table holds, the rejects, and the number of all rows."""
    named, rejects, rows = _read(config.validation, "validation", config, map)
    held = []
    for name, o in zip(named.names, map(_orbits, (named.library[i] for i in range(len(named)))), strict=True):
        if isinstance(o, str):
            rejects.append(("validation", name, o))
        elif new := [p for p in o.positions if p not in table.rows]:
            rejects.append(("validation", name, f"unknown position: {new[0].group}{new[0].letter} is not in training"))
        else:
            held.append(o)
    return held, rejects, rows


def _refuse(source: str, rejects: list[Reject], rows: int, most: float, path: Path) -> None:
    """Raise ConfigError where the rejects of a source are more than the share `most` of its rows."""
    if len(rejects) > most * rows:
        raise ConfigError(
            f"{len(rejects)} of {rows} crystals of {source} were rejected ({_kinds(rejects)}), more than "
            f"data.max_rejected = {most:g} allows; see {path}"
        )


def _kinds(rejects: list[Reject]) -> dict[str, int]:
    return dict(Counter(reason.partition(":")[0] for _, _, reason in rejects).most_common())


def _orbits(crystal: Crystal) -> Orbits | str:
    """Its orbits, or why there are none."""
    try:
        found = Orbits.of(crystal)
        batch_of([found], WyckoffTable.of([found]))
        return found
    except CrystalError as error:
        return f"no orbits: {error}"


@contextmanager
def _workers(count: int) -> Iterator[Map]:
    """The map of `count` processes, results in order; the built-in map for one."""
    if count == 1:
        yield map
        return
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(count, context, torch.set_num_threads, (1,)) as pool:
            yield lambda call, items: pool.map(call, items := list(items), chunksize=1 + len(items) // 500)
    except BrokenProcessPool as error:
        raise ChildProcessError("a worker process was killed, as for want of memory: use fewer workers") from error
