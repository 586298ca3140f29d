"""The job that trains a generator of molecules in space; from collated molecules it needs no RDKit but to draw."""

import json
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unisci.autoregression.structure_fields import Profiles
from unisci.autoregression.structures import StructureModel
from unisci.batch import Batch
from unisci.jobs import structure_data, weights_file
from unisci.jobs.base_config import ConfigError
from unisci.jobs.shipped import find_weights
from unisci.jobs.structure_config import StructureJob
from unisci.jobs.structure_data import prepare
from unisci.jobs.structure_models import build, save
from unisci.jobs.weights_file import write_json
from unisci.networks.atom_transformer import AtomTransformerConfig
from unisci.rng import Rng
from unisci.training.checkpoint import latest_checkpoint, load_checkpoint
from unisci.training.data import widen
from unisci.training.fit import fit

SOME = 20_000  # training graphs whose block sizes are counted


def run(job: StructureJob, progress: bool = True) -> Path:
    """Train, then draw job.sample.n molecules into <out>/samples; returns the folder."""
    path = train(job, progress)
    if job.sample.n:
        from unisci.jobs.models import load
        from unisci.jobs.structure_runs import StructureRun, generate

        designer = load(str(path))
        drawn = StructureRun(str(path), designer.hash, job.sample.n, job.sample.seed, job.sample.steps)
        for _ in generate(designer, drawn, job.out / "samples"):
            pass
    return job.out


def train(job: StructureJob, progress: bool = True) -> Path:
    """Run the job's training, resuming what its folder holds; writes and returns <out>/model.safetensors.

    Raises ConfigError where the folder is of another configuration, other molecules or another network, ValueError
    where job.graphs is no generator of molecular graphs, before anything is read or trained.
    """
    graphs = find_weights(job.graphs)
    weights_file.read(graphs, weights_file.MOLECULES)
    sizes(job, 1, 1)  # impossible ones are refused before the data are read
    resumable(job)
    data = prepare(job.data, job.out / "data")
    write_json(job.out / "job.json", identity(job))
    torch.manual_seed(job.training.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_for(job, data.train).to(device)
    checkpoints = job.out / "checkpoints"
    _same_weights(checkpoints, model)
    validate = None
    if data.validation is not None:
        validate = partial(held_out, data=data.validation, n=job.training.validate_samples)
    averaged = fit(model, data.train, job.training.fit_config(), checkpoints, validate=validate, progress=progress)
    card = {"data": data.counts | {"source": job.data.structures}, "device": device, "graphs": job.graphs}
    card |= job.model_dump(include={"model", "training"})
    card["parameters"] = sum(p.numel() for p in averaged.parameters())
    if validate is not None:
        card["held out"] = validate(averaged)
    save(job.out / "model.safetensors", averaged, graphs, job.sample.steps, card)
    return job.out / "model.safetensors"


def build_for(job: StructureJob, data: Batch) -> StructureModel:
    """An untrained model for training molecules."""
    counts = torch.bincount(data.sites)
    profiles = Profiles.of(widen(data[slice(0, SOME)]))
    atoms, bonds = (len(data.schema[k].classes) for k in ("atom", "bond"))
    return build(sizes(job, atoms, bonds), data.schema, counts, profiles, job.model.parts, job.model.scale)


def sizes(job: StructureJob, atoms: int, bonds: int) -> AtomTransformerConfig:
    """Of the network for so many classes. Raises ValueError where width is not a multiple of heads."""
    c = job.model
    return AtomTransformerConfig(
        classes=atoms, bonds=bonds, width=c.width, layers=c.layers, heads=c.heads, edge=c.edge, radial=c.radial
    )


@torch.no_grad()
def held_out(model: nn.Module, data: Batch, n: int) -> dict[str, float]:
    """The training loss of the first n molecules that were not trained on."""
    assert isinstance(model, StructureModel)
    batch = widen(data[slice(0, n)]).to(model.sizes.device)
    was = model.training
    model.eval()
    parts = [batch[slice(k, k + 256)] for k in range(0, len(batch), 256)]
    losses = [float(model.loss(part, Rng(0, part.ids))) * len(part) for part in parts]
    model.train(was)
    return {"loss": sum(losses) / len(batch)}


def resumable(job: StructureJob) -> None:
    """Raises ConfigError where the folder holds a run of another configuration or other molecules."""
    path = job.out / "job.json"
    if path.is_file() and json.loads(path.read_text()) != identity(job):
        raise ConfigError(
            f"{job.out} holds a run of another configuration or other molecules ({path}): choose another out, or "
            "delete it"
        )


def identity(job: StructureJob) -> dict:
    """What makes two runs the same: all but where they are, what is drawn at the end, and the graphs' weights."""
    kept = job.model_dump(mode="json", exclude={"out", "data", "sample", "graphs"})
    return kept | {"data": structure_data.identity(job.data)}


def _same_weights(folder: Path, model: nn.Module) -> None:
    """Raises ConfigError where the newest checkpoint is of a model of other sizes."""
    found = latest_checkpoint(folder)
    shapes = lambda tensors: {k: v.shape for k, v in tensors.items()}
    if found and shapes(load_checkpoint(found).get("model", {})) != shapes(model.state_dict()):
        raise ConfigError(f"{found} holds a model of other sizes or other molecules than this job: delete it")
