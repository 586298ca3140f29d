"""From configurations to models, to weights files and back: the one place where names become classes."""

import json
from dataclasses import asdict
from pathlib import Path

import torch

from unisci.autoregression.conditions import VALUES
from unisci.autoregression.pard import Pard, first_blocks
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.design.crystal_designer import CrystalDesigner
from unisci.design.designer import Designer
from unisci.design.structure_designer import StructureDesigner
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import crystal_models, property_models, series_models, structure_models, weights_file
from unisci.jobs.config import ModelConfig
from unisci.jobs.graphs import frequencies
from unisci.jobs.pard_models import build, of_header
from unisci.jobs.shipped import find_weights, shipped
from unisci.jobs.weights_file import MOLECULES as FORMAT

__all__ = ["begin_from", "build", "build_for", "card_of", "find_weights", "load", "network_sizes", "save"]
__all__ += ["save_weights", "shipped", "with_card"]


def build_for(config: ModelConfig, data: Batch) -> Pard:
    """An untrained Pard for ordered training graphs, with the values of what it is told."""
    room = data.mask.shape[1]
    model = build(config, data.schema["atom"].classes, room, *frequencies(data), first_blocks(data))
    if model.conditions is not None:
        model.conditions.measure(data.given[VALUES])
    return model


def begin_from(model: Pard, name: str) -> None:
    """Copy the weights of a model of the same sizes and atoms; what only `model` has stays. Raises ValueError where the
    two differ otherwise."""
    source = load(name).model
    drawn = [m.denoiser.product.schema["atom"].classes for m in (source, model)]
    own = model.state_dict()
    weights = {k: v for k, v in source.state_dict().items() if k != "first" and not k.startswith("conditions.")}
    shapes = lambda tensors: {k: v.shape for k, v in tensors.items() if k in weights}
    new = [k for k in own.keys() - weights.keys() if k != "first" and "condition" not in k]
    if drawn[0] != drawn[1] or new or shapes(own) != shapes(weights):
        raise ValueError(f"the weights {name} are of a model of other sizes or atoms than this one: cannot start there")
    model.load_state_dict(weights, strict=False)


def save_weights(path: Path, model: Pard, config: ModelConfig, steps: int, card: dict, half: bool = True) -> None:
    """Write a model as one safetensors file, in half precision by default; sizes, classes and card in its header."""
    product = model.denoiser.product
    spec = {
        "model": config.model_dump(),
        "classes": list(product.schema["atom"].classes),
        "room": model.room,
        "steps": steps,
    }
    tensors = {k: v.half() if half and v.is_floating_point() else v for k, v in model.state_dict().items()}
    if model.conditions is not None:  # moments of any unit, which half precision may not hold
        tensors |= {"conditions.mean": model.conditions.mean, "conditions.std": model.conditions.std}
    tensors |= {"first": model.first} | {f"frequency.{k}": p.m for k, p in product.processes.items()}
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    weights_file.write(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def with_card(source: Path, target: Path, card: dict) -> None:
    """Copy a weights file, of any format, with another card."""
    metadata, tensors = weights_file.read(source, weights_file.form(source) or FORMAT)
    weights_file.write(target, tensors, metadata | {"card": json.dumps(card)})


def load(
    name: str, device: torch.device | str = "cpu", properties: str | Path | None = None
) -> Designer | StructureDesigner | CrystalDesigner | Forecaster:
    """Shipped weights (see `shipped()`) or those of a file, as what the file says: the designer of molecules, flat or
    in space, or of crystals, or a forecaster of series. No network is used.

    properties: of molecules alone: the file of a model of properties to steer by; by default that of the same name in
    the folder "properties" beside the weights, where there is one, or of the name of the weights that draw the graphs.
    Raises ValueError where there are no such weights or no such device, or a file is damaged, foreign, of another
    format version or of other atoms.
    """
    path = find_weights(name)
    form = weights_file.form(path)
    draws = {crystal_models.FORMAT: "crystals", series_models.FORMAT: "series"}.get(form)
    if draws and properties is not None:
        raise ValueError(f"properties: {path} draws {draws}, which no model of molecules' properties can steer")
    if form == series_models.FORMAT:
        return series_models.load(path, device)
    if form == crystal_models.FORMAT:
        generator, card, digest = crystal_models.load_generator(path, device)
        return CrystalDesigner(generator, digest, card)
    if form == structure_models.FORMAT:
        parts = structure_models.load_parts(path, device)
        classes = parts.graphs.denoiser.product.schema["atom"].classes
        steers = _properties(path, properties, classes, device, f"{parts.source}.safetensors")
        graphs = Designer(parts.graphs, parts.graph_steps, parts.hash, parts.card, steers)
        return StructureDesigner(graphs, parts.structures, parts.steps, parts.hash, parts.card)
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        spec, card = json.loads(metadata["spec"]), json.loads(metadata["card"])
        model, steps = of_header(spec, tensors), int(spec["steps"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    try:
        model = model.to(device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA fails by assertion
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error
    steers = _properties(path, properties, tuple(spec["classes"]), device)
    return Designer(model, steps, weights_file.digest(path), card, steers)


def _properties(
    path: Path, given: str | Path | None, classes: tuple[str, ...], device: torch.device | str, *others: str
) -> PropertyModel | None:
    """The model of properties that is given, or lies beside the weights under their file's name or another one. Raises
    ValueError where it knows other atoms than `classes`."""
    beside = [path.parent / "properties" / name for name in (path.name, *others)]
    found = Path(given) if given is not None else next((p for p in beside if p.is_file()), None)
    steers = None if found is None else property_models.load(found, device)
    if steers is not None and steers.classes != classes:
        raise ValueError(f"{found} knows the atoms {steers.classes}, the generator draws {classes}")
    return steers


def save(forecaster: Forecaster, path: str | Path, half: bool = True) -> None:
    """Write a trained forecaster for `load`, as .safetensors, in half precision by default. The series of `fit` and
    their static numbers are not kept, the names of the columns are: give `predict` such a table. Raises ValueError
    where it is not trained."""
    if forecaster.trained is None:
        raise ValueError("this forecaster is not trained: call fit(df) before it is saved")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    series_models.save(Path(path), forecaster.trained, forecaster.trained.card, half)


def card_of(path: Path) -> dict:
    """The card in the header of a weights file. Raises ValueError where the file is damaged or foreign."""
    return json.loads(weights_file.read(path, weights_file.form(path) or FORMAT)[0].get("card", "{}"))


def network_sizes(model: Pard) -> dict:
    """Parameters and sizes, for cards and logs."""
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "denoiser": asdict(model.denoiser.network.trunk.config)}
