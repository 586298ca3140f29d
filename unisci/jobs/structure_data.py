"""Molecules in space for training: read or embedded once into a cache of tensors, so that training needs no RDKit."""

import csv
import json
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import torch

from unisci.batch import Batch
from unisci.jobs.base_config import ConfigError
from unisci.jobs.structure_config import StructureDataConfig
from unisci.jobs.weights_file import digest, write_json
from unisci.training.data import load_batch, save_batch

FIELDS = ("atom", "bond", "position")
Reject = tuple[int, str, str]  # number of the row, name, reason


class StructureData(NamedTuple):
    """train and validation molecules, of fields "atom", "bond", "position"; counts of what was read and rejected."""

    train: Batch
    validation: Batch | None
    counts: dict


def prepare(config: StructureDataConfig, folder: Path) -> StructureData:
    """Read the molecules once into `folder`; later calls read that cache. rejects.csv lists those that cannot be held.

    Collated molecules are taken as they are, without RDKit. Raises ConfigError where more than config.max_rejected of
    the rows are rejected, or fewer than two are left, ValueError where the source is damaged or does not exist.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, cache, summary = source(config.structures), folder / "structures.safetensors", folder / "data.json"
    key = identity(config)
    if not (summary.is_file() and json.loads(summary.read_text())["config"] == key):
        batch, rejects, rows = _read(config, path)
        with (folder / "rejects.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("row", "name", "reason"), *rejects])
        reasons = dict(Counter(reason.partition(":")[0] for _, _, reason in rejects).most_common())
        if len(rejects) > config.max_rejected * rows or batch is None or len(batch) < 2:
            raise ConfigError(
                f"{len(rejects)} of {rows} molecules of {config.structures} were rejected ({reasons}), more than "
                f"data.max_rejected = {config.max_rejected:g} allows; see {folder / 'rejects.csv'}"
            )
        save_batch(batch, cache)
        write_json(summary, {"config": key, "counts": {"rows": rows, "rejected": reasons}})
    batch, counts = load_batch(cache), json.loads(summary.read_text())["counts"]
    held = torch.zeros(len(batch), dtype=torch.bool)
    if config.hold_out:
        held[:: config.hold_out] = True
    counts |= {"train": int((~held).sum()), "validation": int(held.sum())}
    return StructureData(batch[~held], batch[held] if held.any() else None, counts)


def identity(config: StructureDataConfig) -> dict:
    """What makes two caches the same: what the source holds, wherever it lies, and how it is read."""
    return config.model_dump() | {"structures": digest(source(config.structures))}


def source(name: str) -> Path:
    """The file of a name. Raises ConfigError where there is none."""
    path = Path(name)
    if path.suffix not in (".sdf", ".safetensors"):
        from unisci.jobs.references import find_smiles  # which knows RDKit

        return find_smiles(name)
    if not path.is_file():
        raise ConfigError(f"no file {name!r} with molecules: give an .sdf, a .safetensors, or SMILES")
    return path


def _read(config: StructureDataConfig, path: Path) -> tuple[Batch | None, list[Reject], int]:
    """The molecules that are small enough, the rejects, and the number of all rows."""
    if path.suffix == ".safetensors":
        return _collated(config, path)
    from unisci.jobs.structure_files import embedded, of_sdf

    molecules, rejects = (of_sdf if path.suffix == ".sdf" else embedded)(config, path)
    if not molecules:
        return None, rejects, len(rejects)
    from unisci.domains.molecule import Molecule

    return Molecule.batch(molecules), rejects, len(molecules) + len(rejects)


def _collated(config: StructureDataConfig, path: Path) -> tuple[Batch, list[Reject], int]:
    batch = load_batch(path)
    if missing := [k for k in FIELDS if k not in batch.state]:
        raise ConfigError(f"{path} has no {missing[0]!r}: it is no cache of molecules in space")
    batch = batch[: config.limit] if config.limit else batch
    state = {k: batch.state[k] for k in FIELDS}
    batch = Batch({k: batch.schema[k] for k in FIELDS}, state, batch.mask, {}, torch.arange(len(batch)))
    finite = (batch.state["position"].isfinite() | ~batch.mask[..., None]).flatten(1).all(1)
    small, ids = batch.sites <= config.max_atoms, batch.ids
    rejects = [(i, "", "a position is not finite") for i in ids[~finite].tolist()]
    large = ids[finite & ~small].tolist()
    rejects += [(i, "", f"too large: {int(batch.sites[i])} atoms, data.max_atoms = {config.max_atoms}") for i in large]
    kept = batch[finite & small]
    return kept.trim(int(kept.sites.max())) if len(kept) else kept, rejects, len(batch)
