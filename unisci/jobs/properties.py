"""The job that trains a property model: values by RDKit beside the cached graphs, then `fit`."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from unisci.autoregression.pard import examples
from unisci.autoregression.property_model import VALUES, PropertyModel, with_values
from unisci.batch import Batch
from unisci.design.properties import measure, named
from unisci.domains.molecule import Molecule
from unisci.jobs.config import ConfigError, PropertyJob
from unisci.jobs.molecules import MoleculeData, identity, prepare, resumable, write_json
from unisci.jobs.property_models import build_for, save
from unisci.order import Order
from unisci.rng import Rng
from unisci.training.data import load_batch, save_batch, widen
from unisci.training.fit import fit

PART = 2000  # graphs turned into molecules at once


def run(job: PropertyJob, progress: bool = True) -> Path:
    """Train, resuming what the folder holds; writes <out>/model.safetensors and returns the folder."""
    for name in job.properties:
        named(name)  # an unknown one is refused before the data are read
    resumable(job)
    data = with_properties(prepare(job.data, job.hops, job.out / "data"), job.properties, job.out / "data")
    torch.manual_seed(job.training.seed)
    write_json(job.out / "job.json", identity(job))
    model = build_for(job, widen(data.train)).to("cuda" if torch.cuda.is_available() else "cpu")
    validate = partial(errors, data=data.validation) if data.validation is not None else None
    averaged = fit(model, data.train, job.training.fit_config(), job.out / "checkpoints", examples, validate, progress)
    card = {"data": data.counts | {"source": job.data.smiles}, "training": job.training.model_dump()}
    if validate is not None:
        card["errors"] = validate(averaged)
    save(job.out / "model.safetensors", averaged, job, card)
    return job.out


def with_properties(data: MoleculeData, names: tuple[str, ...], folder: Path) -> MoleculeData:
    """The graphs with their values; measured once, then read from the folder. Raises ConfigError where RDKit cannot
    tell a property of a molecule of the data."""
    key, summary = {"properties": list(names)}, folder / "properties.json"
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


@torch.no_grad()
def errors(model: nn.Module, data: Batch, n: int = 2000) -> dict[str, float]:
    """Mean absolute errors of the prediction on n held-out molecules, whole and cut to a random block, each property in
    its unit; and the baseline that always says the mean."""
    assert isinstance(model, PropertyModel)
    batch = widen(data[slice(0, n)]).to(model.mean.device)
    out: dict[str, float] = {}
    for part, graphs in (("whole", batch), ("cut", examples(batch, Rng(0, batch.ids)))):
        order = Order(torch.where(graphs.mask, graphs.given["rank"], -1))
        mean, _ = model(graphs.state, None, graphs.mask, graphs.given, order)
        error = (mean - graphs.given[VALUES]).abs().mean(0)
        out |= {f"{name} {part}": float(e) for name, e in zip(model.names, error, strict=True)}
    spread = (batch.given[VALUES] - model.mean).abs().mean(0)
    return out | {f"{name} mean": float(e) for name, e in zip(model.names, spread, strict=True)}
