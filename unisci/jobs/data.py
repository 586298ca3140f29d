"""Molecules for training: SMILES read once into a cache of ordered graphs, and their properties beside them: values of
the table that the SMILES are of where it has a column of that name, else what RDKit measures."""

import csv
import json
import math
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from unisci.autoregression.conditions import VALUES, with_values
from unisci.autoregression.pard import ordered
from unisci.batch import Batch
from unisci.design.properties import measure, named
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.jobs.config import ConfigError, DataConfig
from unisci.jobs.references import find_smiles, read_values, table_columns
from unisci.jobs.weights_file import digest, write_json
from unisci.training.data import load_batch, save_batch, widen

PART = 2000  # graphs turned into molecules at once


@dataclass(frozen=True)
class MoleculeData:
    """train and validation graphs, ordered by structure; counts of what was read and why rows were rejected."""

    train: Batch
    validation: Batch | None
    counts: dict


def columns_of(config: DataConfig, names: tuple[str, ...]) -> dict[str, str]:
    """Those of the properties `names` that are columns of the data's table, upper and lower case alike: name -> column.

    Raises ValueError for a name that is neither a column nor a property that RDKit measures.
    """
    present = {column.lower(): column for column in table_columns(config.smiles)}
    for name in names:
        if name.lower() not in present:
            named(name)
    return {name: present[name.lower()] for name in names if name.lower() in present}


def prepare(config: DataConfig, hops: int, folder: Path, names: tuple[str, ...] = ()) -> MoleculeData:
    """Parse the SMILES once into `folder`; later calls read that cache. Rejected rows are listed in rejects.csv.

    names: properties, of which the table's columns are read beside the SMILES; rows without a finite number in each of
    them are then rejected, and so are molecules that the table has already, as one of two values is wrong. Raises
    ConfigError where more than config.max_rejected of the rows are rejected, or fewer than two are left.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = config.model_dump() | {"hops": hops, "hash": digest(find_smiles(config.smiles))}
    columns = columns_of(config, names)
    key |= {"columns": list(columns)} if columns else {}
    summary = folder / "data.json"
    if summary.is_file() and json.loads(summary.read_text())["config"] == key:
        counts = json.loads(summary.read_text())["counts"]
        held = load_batch(folder / "validation.safetensors") if counts["validation"] else None
        return MoleculeData(load_batch(folder / "train.safetensors"), held, counts)
    molecules, values, rejects = _parse(config, columns)
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
    batch = with_values(batch, torch.tensor(values)) if columns else batch
    held = torch.zeros(len(batch), dtype=torch.bool)
    if config.hold_out:
        held[:: config.hold_out] = True
    counts = {"rows": rows, "rejected": reasons, "train": int((~held).sum()), "validation": int(held.sum())}
    save_batch(batch[~held], folder / "train.safetensors")
    if counts["validation"]:
        save_batch(batch[held], folder / "validation.safetensors")
    write_json(summary, {"config": key, "counts": counts})
    return prepare(config, hops, folder, names)


def _parse(
    config: DataConfig, columns: dict[str, str]
) -> tuple[list[Molecule], list[list[float]], list[tuple[int, str, str]]]:
    """Molecules, their values in these columns, and the rejected rows with reasons."""
    molecules, values, rejects, seen = [], [], [], set()
    for line, smiles, cells in read_values(config.smiles, config.column, tuple(columns.values())):
        if config.limit is not None and len(molecules) == config.limit:
            break
        try:
            if not smiles.strip():
                raise MoleculeError("no SMILES")
            molecule = Molecule.from_smiles(smiles)
            if len(molecule.atoms) > config.max_atoms:
                raise MoleculeError(f"more than {config.max_atoms} heavy atoms")
            numbers = [_number(name, cell) for name, cell in zip(columns, cells, strict=True)]
            if columns and molecule.smiles in seen:
                raise MoleculeError("the molecule of an earlier line again")
            seen.add(molecule.smiles if columns else None)
            molecules.append(molecule)
            values.append(numbers)
        except MoleculeError as error:
            rejects.append((line, smiles, str(error)))
    return molecules, values, rejects


def _number(name: str, cell: str | float | None) -> float:
    try:
        value = float(cell or "nan") if isinstance(cell, str | None) else float(cell)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise MoleculeError(f"{name} is no finite number")
    return value


def with_properties(data: MoleculeData, names: tuple[str, ...], folder: Path) -> MoleculeData:
    """The graphs, of `prepare` with the same names, with their values; measured once, then read from the folder.
    Without names, the data as they are. Raises ConfigError where RDKit cannot tell a property of one of the molecules.
    """
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
            parts[part] = with_values(batch, values_of(batch, names, tuple(of.get("columns", ()))))
            save_batch(parts[part], path)
    write_json(summary, key)
    return replace(data, **parts)


def values_of(batch: Batch, names: tuple[str, ...], columns: tuple[str, ...] = ()) -> Tensor:
    """The values (B, P) of the molecules of a batch, which has those of `columns`. Raises ConfigError where one is not
    finite."""
    rows = []
    for first in range(0, len(batch), PART):
        part = batch[slice(first, first + PART)]
        molecules = Molecule.unbatch(widen(part)) if set(names) - set(columns) else []
        found = {name: part.given[VALUES][:, k].double() for k, name in enumerate(columns)}
        found |= {name: torch.from_numpy(measure(name, molecules)) for name in names if name not in columns}
        rows.append(torch.stack([found[name] for name in names], 1))
    values = torch.cat(rows).float()
    for name, column in zip(names, values.T, strict=True):
        if not bool(column.isfinite().all()):
            bad = int((~column.isfinite()).sum())
            raise ConfigError(f"property {name!r} has no finite value for {bad} of {len(column)} molecules of the data")
    return values
