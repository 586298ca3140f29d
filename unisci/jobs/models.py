"""From configurations to models, to weights files and back: the one place where names become classes."""

import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from unisci.autoregression.conditions import VALUES, Conditions
from unisci.autoregression.pard import Pard, first_blocks
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.design.crystal_designer import CrystalDesigner
from unisci.design.designer import Designer
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import crystal_models, property_models, series_models, weights_file
from unisci.jobs.config import ModelConfig
from unisci.jobs.graphs import build_product, frequencies, sizes
from unisci.networks.graph_transformer import GraphHead, GraphTransformer

FORMAT = "unisci-weights-1"


def build(config: ModelConfig, classes: tuple[str, ...], room: int, atom: Tensor, bond: Tensor, first: Tensor) -> Pard:
    """An untrained Pard. atom (K,), bond (4,): class frequencies; first: table of first blocks; room: most atoms."""
    product, told = build_product(config.noise, classes, atom, bond), len(config.condition)
    denoiser = GraphTransformer(sizes(config.denoiser, product, config.causal, told))
    head = GraphHead(sizes(config.head, product, config.causal, told), first.numel() + first.shape[0])
    conditions = Conditions(config.condition, first.shape) if told else None
    return Pard(Denoiser(denoiser, product), head, first, config.hops, room, config.parallel, conditions)


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
) -> Designer | CrystalDesigner | Forecaster:
    """Shipped weights (see `shipped()`) or those of a file, as what the file says: the designer of molecules or of
    crystals, or a forecaster of series. No network is used.

    properties: of molecules alone: the file of a model of properties to steer by; by default that of the same name in
    the folder "properties" beside the weights, where there is one. Raises ValueError where there are no such weights or
    no such device, or a file is damaged, foreign, of another format version or of other atoms.
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
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        spec, card = json.loads(metadata["spec"]), json.loads(metadata["card"])
        config = ModelConfig.model_validate(spec["model"])
        tensors = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
        frequency = [tensors.pop(f"frequency.{k}") for k in ("atom", "bond")]
        frequency = [f / f.sum() for f in frequency]
        model = build(config, tuple(spec["classes"]), spec["room"], *frequency, tensors["first"])
        model.load_state_dict(tensors)
        steps = int(spec["steps"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    try:
        model = model.eval().to(device)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA fails by assertion
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error
    beside = path.parent / "properties" / path.name
    found = Path(properties) if properties is not None else beside if beside.is_file() else None
    steers = None if found is None else property_models.load(found, device)
    if steers is not None and steers.classes != tuple(spec["classes"]):
        raise ValueError(f"{found} knows the atoms {steers.classes}, the generator draws {tuple(spec['classes'])}")
    return Designer(model, steps, weights_file.digest(path), card, steers)


def save(forecaster: Forecaster, path: str | Path, half: bool = True) -> None:
    """Write a trained forecaster for `load`, as .safetensors, in half precision by default. The series of `fit` and the
    names of their columns are not kept: give `predict` the table. Raises ValueError where it is not trained."""
    if forecaster.trained is None:
        raise ValueError("this forecaster is not trained: call fit(df) before it is saved")
    if Path(path).suffix != ".safetensors":
        raise ValueError(f"{path} must end in .safetensors")
    series_models.save(Path(path), forecaster.trained, forecaster.trained.card, half)


def card_of(path: Path) -> dict:
    """The card in the header of a weights file. Raises ValueError where the file is damaged or foreign."""
    return json.loads(weights_file.read(path, weights_file.form(path) or FORMAT)[0].get("card", "{}"))


def shipped() -> dict[str, Path]:
    """The weights that come with the package, by name."""
    folder = Path(str(files("unisci") / "weights"))
    return {p.stem: p for p in sorted(folder.glob("*.safetensors"))}


def find_weights(name: str) -> Path:
    """The file of shipped weights or of a path. Raises ValueError where there is none, naming what there is."""
    known = shipped()
    if name in known:
        return known[name]
    path = Path(name)
    if path.suffix == ".safetensors" and path.is_file():
        return path
    raise ValueError(f"no weights {name!r}: give a .safetensors file or one of {sorted(known)}")


def network_sizes(model: Pard) -> dict:
    """Parameters and sizes, for cards and logs."""
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "denoiser": asdict(model.denoiser.network.trunk.config)}
