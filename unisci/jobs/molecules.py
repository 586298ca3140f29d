"""Jobs on molecules: train, draw."""

import json
import os
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unisci.autoregression.pard import Pard, examples
from unisci.batch import Batch
from unisci.domains.molecule import Molecule
from unisci.jobs.config import ConfigError, MoleculeJob, PropertyJob
from unisci.jobs.data import columns_of, prepare, with_properties, write_json
from unisci.jobs.models import begin_from, build_for, network_sizes, save_weights
from unisci.jobs.references import find_smiles
from unisci.jobs.runs import generate
from unisci.jobs.weights_file import digest
from unisci.rng import Rng
from unisci.training.data import widen
from unisci.training.fit import distributed, fit


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
    told = job.model.condition
    columns_of(job.data, told)  # an unknown one is refused before the data are read
    resumable(job)
    many = distributed()
    first = not many or torch.distributed.get_rank() == 0
    folder = job.out / "data"
    read = lambda: with_properties(prepare(job.data, job.model.hops, folder, told), told, folder)
    if first:
        read()
    if many:
        torch.distributed.barrier()
    data = read()
    torch.manual_seed(job.training.seed)
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    if first:
        write_json(job.out / "job.json", identity(job))
    model = build_for(job.model, widen(data.train))
    if job.start is not None:
        begin_from(model, job.start)
    model = model.to(device)
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
    path = job.out / "job.json"
    if path.is_file() and _identity_of(json.loads(path.read_text()), job) != identity(job):
        raise ConfigError(
            f"{job.out} holds a run of another configuration or other SMILES ({path}): choose another out, or delete it"
        )


def identity(job: MoleculeJob | PropertyJob) -> dict:
    """What makes two runs the same: all but where they are and what is drawn at the end."""
    return job.model_dump(mode="json", exclude={"sample", "out"}) | {"hash": digest(find_smiles(job.data.smiles))}


def _identity_of(found: dict, job: MoleculeJob | PropertyJob) -> dict | None:
    """The identity that another release wrote, with the defaults of keys that it did not know; None for another job."""
    try:
        same = type(job).model_validate({k: v for k, v in found.items() if k != "hash"} | {"out": job.out})
    except ValueError:
        return None
    return identity(same) | {"hash": found.get("hash")}


def validity(model: nn.Module, n: int, steps: int, seed: int = 0) -> dict[str, float]:
    """Shares of n drawn molecules that are valid, and of these that are distinct."""
    assert isinstance(model, Pard)
    ids = torch.arange(n, device=model.first.device)
    smiles = [m.smiles for m in Molecule.unbatch(model.generate(Rng(seed, ids), steps)) if m.smiles]
    return {"valid": len(smiles) / n, "unique": len(set(smiles)) / max(1, len(smiles))}


def _whole(batch: Batch, rng: Rng) -> Batch:
    return batch
