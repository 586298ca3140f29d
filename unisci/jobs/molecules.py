"""Jobs on molecules: read SMILES into a cache, train, draw."""

import csv
import json
import os
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unisci.autoregression.pard import Pard, examples, ordered
from unisci.batch import Batch
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.jobs.config import ConfigError, DataConfig, MoleculeJob, PropertyJob
from unisci.jobs.models import build_for, network_sizes, save_weights
from unisci.jobs.references import find_smiles, read_smiles
from unisci.jobs.runs import generate
from unisci.jobs.weights_file import digest
from unisci.rng import Rng
from unisci.training.data import load_batch, save_batch, widen
from unisci.training.fit import distributed, fit


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


def run(job: MoleculeJob, progress: bool = True) -> Path:
    """Train, then draw job.sample.n molecules into <out>/samples; returns the folder."""
    weights = train(job, progress)
    first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
    if job.sample.n and first:
        for _ in generate(str(weights), job.sample.n, job.out / "samples", job.sample.seed, job.sample.steps):
            pass
    return job.out


def train(job: MoleculeJob, progress: bool = True) -> Path:
    """Run the job's training, resuming what its folder holds; writes and returns <out>/model.safetensors."""
    resumable(job)
    many = distributed()
    first = not many or torch.distributed.get_rank() == 0
    if first:
        prepare(job.data, job.model.hops, job.out / "data")
    if many:
        torch.distributed.barrier()
    data = prepare(job.data, job.model.hops, job.out / "data")
    torch.manual_seed(job.training.seed)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if first:
        write_json(job.out / "job.json", identity(job))
    model = build_for(job.model, widen(data.train)).to(device)
    validate = partial(validity, n=job.training.validate_samples, steps=job.sample.steps)
    deal = _whole if job.model.parallel else examples
    averaged = fit(model, data.train, job.training.fit_config(), job.out / "checkpoints", deal, validate, progress)
    path = job.out / "model.safetensors"
    if first:
        card = {"data": data.counts | {"source": job.data.smiles}, "training": job.training.model_dump()}
        card |= network_sizes(averaged) | {"device": device.split(":")[0]}
        save_weights(path, averaged, job.model, job.sample.steps, card)
    return path


def resumable(job: MoleculeJob | PropertyJob) -> None:
    """Check that the job found beside its results, if any, is the same up to sampling, and its SMILES too.

    Raises ConfigError where the folder holds a run of another job.
    """
    mine, path = identity(job), job.out / "job.json"
    if path.is_file() and mine | json.loads(path.read_text()) != mine:
        raise ConfigError(
            f"{job.out} holds a run of another configuration or other SMILES ({path}): choose another out, or delete it"
        )


def identity(job: MoleculeJob | PropertyJob) -> dict:
    """What makes two runs the same: all but where they are and what is drawn at the end."""
    return job.model_dump(mode="json", exclude={"sample", "out"}) | {"hash": digest(find_smiles(job.data.smiles))}


def write_json(path: Path, value: dict) -> None:
    """Write atomically."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1))
    temporary.rename(path)


def validity(model: nn.Module, n: int, steps: int, seed: int = 0) -> dict[str, float]:
    """Shares of n drawn molecules that are valid, and of these that are distinct."""
    assert isinstance(model, Pard)
    ids = torch.arange(n, device=model.first.device)
    smiles = [m.smiles for m in Molecule.unbatch(model.generate(Rng(seed, ids), steps)) if m.smiles]
    return {"valid": len(smiles) / n, "unique": len(set(smiles)) / max(1, len(smiles))}


def _whole(batch: Batch, rng: Rng) -> Batch:
    return batch
