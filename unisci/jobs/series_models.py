"""Forecasters to weights files and back: one network of windows, what its inputs were like, and its card."""

import json
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.moments import Moments
from unisci.forecasting.temperature import HIGHEST, LOWEST
from unisci.forecasting.trained import NETWORKS, Trained, model_of
from unisci.forecasting.window_model import COSINE, Patterns
from unisci.forecasting.windows import WindowShape, window_schema
from unisci.jobs import weights_file

FORMAT = "unisci-series-1"
NAME = "unisci"  # of the columns of results


def save(path: Path, trained: Trained, card: dict, half: bool = True) -> None:
    """Write a model as one safetensors file; sizes, channels, frequency and card in its header.

    half: weights in half precision; those that it cannot hold, buffers and moments are kept as they are. Raises
    ValueError for a model with another noise than `unisci.forecasting.window_model.COSINE`, which the file cannot name.
    """
    model, network = trained.model, trained.model.denoiser.network
    if model.denoiser.product.processes != {"y": COSINE}:
        raise ValueError(f"a file of series holds models of cosine noise, got {model.denoiser.product.processes['y']}")
    spec = {
        "network": {"kind": type(network.config).__name__} | asdict(network.config),
        "shape": asdict(model.shape),
        "patterns": asdict(model.patterns),
        "channels": None if trained.channels is None else list(trained.channels),
        "freq": trained.freq,
        "steps": trained.steps,
        "columns": trained.columns,
        "temperature": trained.temperature,
    }
    weights, tensors = {k for k, _ in model.named_parameters()}, {}
    for k, v in model.state_dict().items():
        low = half and k in weights and bool(v.half().isfinite().all())
        tensors[f"model.{k}"] = v.detach().cpu().to(torch.half if low else v.dtype, copy=True).contiguous()
    for name, pair in vars(trained.moments).items():
        tensors |= {f"moments.{name}.{k}": v.clone() for k, v in zip(("mean", "std"), pair, strict=True)}
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    weights_file.write(path, tensors, metadata)


def load(path: Path, device: torch.device | str = "cpu") -> Forecaster:
    """The forecaster of a weights file. No network is used.

    Raises ValueError where the file is damaged, foreign, of another format version, or does not hold what its header
    promises, and for a device other than the CPU, on which paths are drawn.
    """
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        trained = _trained(json.loads(metadata["spec"]), json.loads(metadata["card"]), tensors)
    except (KeyError, StopIteration, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    if torch.device(device).type != "cpu":
        raise ValueError(f"device {str(device)!r} cannot be used: paths of series are drawn on the CPU")
    return Forecaster.of(trained, NAME)


def _trained(spec: dict, card: dict, tensors: dict[str, Tensor]) -> Trained:
    """The model of a header, filled with tensors. Raises one of many errors where the two differ."""
    sizes, channels = dict(spec["network"]), spec["channels"]
    kind = sizes.pop("kind")
    config = {c.__name__: c for c in NETWORKS}[kind](**sizes)
    shape = WindowShape(**spec["shape"])
    if (config.length, config.channels) != (shape.length, shape.channels):
        raise ValueError(f"the network reads windows of {config.length} steps, the shape is {shape}")
    if channels is not None and len(channels) != shape.channels:
        raise ValueError(f"the channels {channels} are not {shape.channels}")
    if not (isinstance(spec["steps"], int) and spec["steps"] > 0):
        raise ValueError(f"steps is {spec['steps']!r}, expected 1 or more")
    names = [field.name for field in fields(Moments)]
    moments = [tuple(tensors.pop(f"moments.{name}.{k}") for k in ("mean", "std")) for name in names]
    sizes = (config.covariates, config.static, config.phases)
    if [m.shape for pair in moments for m in pair] != [(n,) for n in sizes for _ in "ms"]:
        raise ValueError("the moments are of other covariates than the network's")
    schema = window_schema(config.covariates, config.phases, config.static, config.channels)
    model = model_of(config, shape, schema, Patterns(**spec["patterns"]))
    if foreign := [k for k in tensors if not k.startswith("model.")]:
        raise ValueError(f"tensors of no model: {foreign[:3]}")
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items()})
    model.eval().requires_grad_(False)
    channels = None if channels is None else tuple(channels)
    temperature = float(spec.get("temperature", 1.0))  # older files have none
    if not LOWEST <= temperature <= HIGHEST:
        raise ValueError(f"temperature is {temperature}, expected {LOWEST} to {HIGHEST}")
    columns = spec.get("columns", {})
    return Trained(model, channels, Moments(*moments), spec["freq"], spec["steps"], card, columns, temperature)
