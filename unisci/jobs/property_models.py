"""Property models from configurations to weights files and back."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from unisci.autoregression.conditions import VALUES
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.jobs import weights_file
from unisci.jobs.config import NetworkConfig, PropertyJob
from unisci.jobs.graphs import build_product, frequencies, sizes
from unisci.networks.graph_transformer import GraphHead

FORMAT = "unisci-properties-1"


def build(
    config: NetworkConfig,
    noise: str,
    hops: int,
    classes: tuple[str, ...],
    names: tuple[str, ...],
    atom: Tensor,
    bond: Tensor,
    mean: Tensor,
    std: Tensor,
) -> PropertyModel:
    """An untrained property model. atom (K,), bond (4,): class frequencies; mean, std (P,): of the data's values."""
    product = build_product(noise, classes, atom, bond)
    return PropertyModel(GraphHead(sizes(config, product), 2 * len(names)), product, names, mean, std, hops)


def build_for(job: PropertyJob, data: Batch) -> PropertyModel:
    """An untrained property model for graphs with their values."""
    values = data.given[VALUES]
    moments = values.mean(0), values.std(0).clamp(min=1e-6)
    classes = data.schema["atom"].classes
    names = tuple(name.lower() for name in job.properties)  # as wants speak of them
    return build(job.network, job.noise, job.hops, classes, names, *frequencies(data), *moments)


def save(path: Path, model: PropertyModel, job: PropertyJob, card: dict) -> None:
    """Write a property model as one safetensors file in half precision."""
    spec = {
        "network": job.network.model_dump(),
        "noise": job.noise,
        "hops": job.hops,
        "classes": list(model.classes),
        "names": list(model.names),
    }
    exact = {"mean": model.mean, "std": model.std} | {f"frequency.{k}": p.m for k, p in model.product.processes.items()}
    tensors = {k: v.half() for k, v in model.state_dict().items()} | exact
    parameters = sum(p.numel() for p in model.parameters())
    card = card | {"parameters": parameters, "sizes": asdict(model.network.trunk.config)}
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    weights_file.write(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def load(path: Path, device: torch.device | str = "cpu") -> PropertyModel:
    """The property model of a weights file. Raises ValueError where it is damaged, foreign or of another format."""
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        spec = json.loads(metadata["spec"])
        tensors = {k: v.float() for k, v in tensors.items()}
        frequency = [tensors.pop(f"frequency.{k}") for k in ("atom", "bond")]
        frequency = [f / f.sum() for f in frequency]
        config, names, classes = NetworkConfig(**spec["network"]), tuple(spec["names"]), tuple(spec["classes"])
        moments = tensors["mean"], tensors["std"]
        model = build(config, spec["noise"], spec["hops"], classes, names, *frequency, *moments)
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    return model.eval().to(device)
