"""The job that trains a generator of crystals: orbits, then the refiner, then the rankers, each on the same data."""

import json
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystals import CrystalModel
from unisci.autoregression.orbits import OrbitModel
from unisci.autoregression.ranker_training import examples, train_ranker
from unisci.autoregression.retrieval import untrained_ranker
from unisci.batch import Batch
from unisci.domains.candidates import CandidateReader
from unisci.jobs import crystal_data
from unisci.jobs.config import ConfigError, CrystalJob
from unisci.jobs.crystal_data import CrystalData, prepare
from unisci.jobs.crystal_models import build_refiner, save
from unisci.jobs.data import write_json
from unisci.networks.atom_transformer import AtomTransformerConfig
from unisci.networks.orbit_transformer import OrbitTransformerConfig
from unisci.networks.template_ranker import TemplateRanker
from unisci.rng import Rng
from unisci.training.checkpoint import latest_checkpoint, load_checkpoint
from unisci.training.data import widen
from unisci.training.fit import fit


def run(job: CrystalJob, progress: bool = True) -> Path:
    """Train, resuming what the folder holds; writes <out>/model.safetensors and returns the folder.

    A finished <out>/orbits, <out>/refiner or file of <out>/rankers is not trained again. Raises ConfigError where the
    folder is of another configuration, other crystals or other networks.
    """
    orbit_sizes(job), refiner_sizes(job)  # impossible ones are refused before the data are read
    resumable(job)
    data = prepare(job.data, job.out / "data")
    write_json(job.out / "job.json", identity(job))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    orbits = train_orbits(job, data, device, progress)
    refiner = train_refiner(job, data, device, progress)
    rankers = train_rankers(job, data)
    elements = tuple(torch.from_numpy(data.library.numbers).unique().tolist())
    generator = CrystalGenerator(orbits, data.table, refiner, rankers, elements, job.data.most_sites)
    card = {"data": data.counts | {"source": job.data.crystals}, "device": device}
    card |= job.model_dump(include={"orbits", "refiner", "rankers"})
    models = {"orbits": orbits, "refiner": refiner, "rankers": nn.ModuleList(rankers)}
    card["parameters"] = {k: sum(p.numel() for p in m.parameters()) for k, m in models.items()}
    if data.validation is not None:
        card["held out"] = held_out(orbits, data.validation, job.orbits.training.validate_samples)
    save(job.out / "model.safetensors", generator, card)
    return job.out


def train_orbits(job: CrystalJob, data: CrystalData, device: str, progress: bool) -> OrbitModel:
    """The averaged model of <out>/orbits."""
    training, folder = job.orbits.training, job.out / "orbits"
    torch.manual_seed(training.seed)
    model = OrbitModel(orbit_sizes(job), data.table, data.features, data.volumes).to(device)
    _same_weights(folder, model)
    validate = None
    if data.validation is not None:
        validate = partial(held_out, data=data.validation, n=training.validate_samples)
    return fit(model, data.orbits, training.fit_config(), folder, validate=validate, progress=progress)


def train_refiner(job: CrystalJob, data: CrystalData, device: str, progress: bool) -> CrystalModel:
    """The averaged model of <out>/refiner."""
    training, folder = job.refiner.training, job.out / "refiner"
    torch.manual_seed(training.seed)
    sizes = torch.bincount(data.sites.sites)
    model = build_refiner(refiner_sizes(job), sizes, job.refiner.without, data.volumes, job.refiner.parts)
    _same_weights(folder, model.to(device))
    return fit(model, data.sites, training.fit_config(), folder, progress=progress)


def train_rankers(job: CrystalJob, data: CrystalData) -> tuple[TemplateRanker, ...]:
    """Those of <out>/rankers, ranker-<seed>.pt; what is missing is trained, on the CPU."""
    folder, rankers, read = job.out / "rankers", [], None
    folder.mkdir(parents=True, exist_ok=True)
    for seed in range(job.rankers.count):
        path = folder / f"ranker-{seed}.pt"
        if path.is_file():
            ranker, weights = untrained_ranker(data.features), load_checkpoint(path)
            _same(path, weights, ranker)
            ranker.load_state_dict(weights)
        else:
            read = read or examples(CandidateReader(data.library))
            ranker = train_ranker(read, data.features, job.rankers.epochs, seed)
            temporary = path.with_suffix(".tmp")
            torch.save(ranker.state_dict(), temporary)
            temporary.rename(path)
        rankers.append(ranker.eval())
    return tuple(rankers)


@torch.no_grad()
def held_out(model: nn.Module, data: Batch, n: int) -> dict[str, float]:
    """Of the first n crystals that were not trained on: mean surprise (nats) of their formula, and of group and
    positions given it; the share whose positions are more likely than all others together; the loss of the geometry."""
    assert isinstance(model, OrbitModel)
    device = next(model.parameters()).device
    batch = widen(data[slice(0, n)]).to(device)
    batch = batch.trim(int(batch.sites.max()))
    was = model.training
    model.eval()
    formula, words = model.surprise(batch)
    geometry = model.geometry_loss(batch, Rng(0, batch.ids))
    model.train(was)
    return {
        "formula": float(formula.mean()),
        "words": float(words.mean()),
        "exact": float((words < torch.tensor(2.0).log()).float().mean()),
        "geometry": float(geometry),
    }


def orbit_sizes(job: CrystalJob) -> OrbitTransformerConfig:
    """Of the orbits' two transformers. Raises ValueError where width is not a multiple of heads."""
    c = job.orbits
    return OrbitTransformerConfig(c.width, c.layers, c.heads, c.dropout)


def refiner_sizes(job: CrystalJob) -> AtomTransformerConfig:
    """Of the refiner's network, which reads templates. Raises ValueError where width is not a multiple of heads."""
    c = job.refiner
    return AtomTransformerConfig(width=c.width, layers=c.layers, heads=c.heads, templates=True)


def resumable(job: CrystalJob) -> None:
    """Raises ConfigError where the folder holds a run of another configuration or other crystals."""
    path = job.out / "job.json"
    if path.is_file() and json.loads(path.read_text()) != identity(job):
        raise ConfigError(
            f"{job.out} holds a run of another configuration or other crystals ({path}): choose another out, or delete "
            "it"
        )


def identity(job: CrystalJob) -> dict:
    """What makes two runs the same: all but where they are and how many processes prepare the data."""
    return job.model_dump(mode="json", exclude={"out", "data"}) | {"data": crystal_data.identity(job.data)}


def _same_weights(folder: Path, model: nn.Module) -> None:
    if found := latest_checkpoint(folder):
        _same(found, load_checkpoint(found).get("model", {}), model)


def _same(path: Path, weights: dict[str, Tensor], model: nn.Module) -> None:
    """Raises ConfigError where a file is of a model of other sizes."""
    shapes = lambda tensors: {k: v.shape for k, v in tensors.items()}
    if shapes(weights) != shapes(model.state_dict()):
        raise ConfigError(f"{path} holds a model of other sizes or other crystals than this job: delete it")
