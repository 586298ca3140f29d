"""The job that trains a property model on the cached graphs and their values."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from unisci.autoregression.conditions import VALUES
from unisci.autoregression.pard import examples
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.jobs.config import PropertyJob
from unisci.jobs.data import columns_of, prepare, with_properties, write_json
from unisci.jobs.molecules import identity, resumable
from unisci.jobs.property_models import build_for, save
from unisci.order import Order
from unisci.rng import Rng
from unisci.training.data import widen
from unisci.training.fit import fit


def run(job: PropertyJob, progress: bool = True) -> Path:
    """Train, resuming what the folder holds; writes <out>/model.safetensors and returns the folder."""
    columns_of(job.data, job.properties)  # an unknown one is refused before the data are read
    resumable(job)
    folder = job.out / "data"
    data = with_properties(prepare(job.data, job.hops, folder, job.properties), job.properties, folder)
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
