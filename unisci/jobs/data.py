"""Molecules for training: SMILES read once into a cache of ordered graphs, and what they measure beside them."""

import csv
import json
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unisci.autoregression.conditions import with_values
from unisci.autoregression.pard import ordered
from unisci.batch import Batch
from unisci.design.properties import measure
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.jobs.config import ConfigError, DataConfig
from unisci.jobs.references import find_smiles, read_smiles
from unisci.jobs.weights_file import digest
from unisci.training.data import load_batch, save_batch, widen

PART = 2000  # graphs turned into molecules at once


@dataclass(frozen=True)
class MoleculeData:
    """train and validation graphs, ordered by structure; counts of what was read and why rows were rejected."""

    train: Batch
    validation: Batch | None
    counts: dict


def prepare(config: DataConfig, hops: int, folder: Path) -> MoleculeData:
    """Parse the SMILES once into `folder`; later calls read that cache. Rejected rows are listed in rejects.csv.

    Raises ConfigError where more than config.max_rejected of the rows are rejected, or fewer than two are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = config.model_dump() | {"hops": hops, "hash": digest(find_smiles(config.smiles))}
    summary = folder / "data.json"
    if summary.is_file() and json.loads(summary.read_text())["config"] == key:
        counts = json.loads(summary.read_text())["counts"]
        held = load_batch(folder / "validation.safetensors") if counts["validation"] else None
        return MoleculeData(load_batch(folder / "train.safetensors"), held, counts)
    molecules, rejects = _parse(config)
    rows = len(molecules) + len(rejects)
    with (folder / "rejects.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("line", "smiles", "reason"), *rejects])
    reasons = dict(Counter(reason for _, _, reason in rejects).most_common())
    if len(rejects) > config.max_rejected * rows or len(molecules) < 2:
        raise ConfigError(
            f"{len(rejects)} of {rows} rows of {config.smiles} were rejected ({reasons}), more than "
            f"data.max_rejected = {config.max_rejected:g} allows; see {folder / 'rejects.csv'}"
        )
    batch = ordered(Molecule.batch(molecules), hops)
    held = torch.zeros(len(batch), dtype=torch.bool)
    if config.hold_out:
        held[:: config.hold_out] = True
    counts = {"rows": rows, "rejected": reasons, "train": int((~held).sum()), "validation": int(held.sum())}
    save_batch(batch[~held], folder / "train.safetensors")
    if counts["validation"]:
        save_batch(batch[held], folder / "validation.safetensors")
    write_json(summary, {"config": key, "counts": counts})
    return prepare(config, hops, folder)


def _parse(config: DataConfig) -> tuple[list[Molecule], list[tuple[int, str, str]]]:
    molecules, rejects = [], []
    for line, smiles in read_smiles(config.smiles, config.column):
        if config.limit is not None and len(molecules) == config.limit:
            break
        try:
            if not smiles.strip():
                raise MoleculeError("no SMILES")
            molecule = Molecule.from_smiles(smiles)
            if len(molecule.atoms) > config.max_atoms:
                raise MoleculeError(f"more than {config.max_atoms} heavy atoms")
            molecules.append(molecule)
        except MoleculeError as error:
            rejects.append((line, smiles, str(error)))
    return molecules, rejects


def with_properties(data: MoleculeData, names: tuple[str, ...], folder: Path) -> MoleculeData:
    """The graphs with their values; measured once, then read from the folder. Without names, the data as they are.
    Raises ConfigError where RDKit cannot tell a property of a molecule of the data."""
    if not names:
        return data
    of = json.loads((folder / "data.json").read_text())["config"]
    key, summary = {"properties": list(names), "data": of}, folder / "properties.json"
    done = summary.is_file() and json.loads(summary.read_text()) == key
    parts = {}
    for part in ("train", "validation"):
        batch, path = getattr(data, part), folder / f"{part}-properties.safetensors"
        if batch is None:
            parts[part] = None
        elif done:
            parts[part] = load_batch(path)
        else:
            parts[part] = with_values(batch, values_of(batch, names))
            save_batch(parts[part], path)
    write_json(summary, key)
    return replace(data, **parts)


def values_of(batch: Batch, names: tuple[str, ...]) -> Tensor:
    """The values (B, P) of the molecules of a batch. Raises ConfigError where one is not finite."""
    rows = []
    for first in range(0, len(batch), PART):
        molecules = Molecule.unbatch(widen(batch[slice(first, first + PART)]))
        rows.append(torch.stack([torch.from_numpy(measure(name, molecules)) for name in names], 1))
    values = torch.cat(rows).float()
    for name, column in zip(names, values.T, strict=True):
        if not bool(column.isfinite().all()):
            bad = int((~column.isfinite()).sum())
            raise ConfigError(f"property {name!r} has no finite value for {bad} of {len(column)} molecules of the data")
    return values


def write_json(path: Path, value: dict) -> None:
    """Write atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)
