"""From configurations to models, to weights files and back: the one place where names become classes."""

import hashlib
import json
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save
from torch import Tensor

from unisci.autoregression.pard import Pard, first_blocks
from unisci.batch import Batch, pair_mask
from unisci.denoiser import Denoiser
from unisci.design.designer import Designer
from unisci.domains.molecule import BONDS, schema
from unisci.jobs.config import ConfigError, ModelConfig, NetworkConfig
from unisci.networks.graph_transformer import GraphHead, GraphTransformer, GraphTransformerConfig
from unisci.processes.categorical import Categorical, absorbing, marginal, uniform
from unisci.processes.product import Product

FORMAT = "unisci-weights-1"


def build(config: ModelConfig, classes: tuple[str, ...], room: int, atom: Tensor, bond: Tensor, first: Tensor) -> Pard:
    """An untrained Pard. atom (K,), bond (4,): class frequencies; first: table of first blocks; room: most atoms."""
    processes = {"atom": _process(config.noise, atom), "bond": _process(config.noise, bond)}
    states = processes["atom"].states, processes["bond"].states
    denoiser = GraphTransformer(_sizes(config.denoiser, states, len(classes), config.causal))
    head = GraphHead(_sizes(config.head, states, len(classes), config.causal), first.numel() + first.shape[0])
    product = Product(processes, schema(classes))
    return Pard(Denoiser(denoiser, product), head, first, config.hops, room, config.parallel)


def build_for(config: ModelConfig, data: Batch) -> Pard:
    """An untrained Pard for ordered training graphs."""
    classes = data.schema["atom"].classes
    atom = torch.bincount(data.state["atom"][data.mask].long(), minlength=len(classes)).float()
    bond = torch.bincount(data.state["bond"][pair_mask(data.mask)].long(), minlength=len(BONDS)).float()
    return build(config, classes, data.mask.shape[1], atom / atom.sum(), bond / bond.sum(), first_blocks(data))


def _process(noise: str, frequencies: Tensor) -> Categorical:
    match noise:
        case "marginal":
            return marginal(frequencies)
        case "absorbing":
            return absorbing(len(frequencies))
        case "uniform":
            return uniform(len(frequencies))
    raise ConfigError(f"unknown noise {noise!r}: marginal, absorbing or uniform")


def _sizes(config: NetworkConfig, states: tuple[int, int], classes: int, causal: bool) -> GraphTransformerConfig:
    return GraphTransformerConfig(*states, classes, len(BONDS), **config.model_dump(), causal=causal)


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
    tensors |= {"first": model.first} | {f"frequency.{k}": p.m for k, p in product.processes.items()}
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    _write(path, {k: v.detach().cpu().contiguous() for k, v in tensors.items()}, metadata)


def with_card(source: Path, target: Path, card: dict) -> None:
    """Copy a weights file with another card."""
    metadata, tensors = _read(source)
    _write(target, tensors, metadata | {"card": json.dumps(card)})


def _write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write atomically, the header's keys in order and with the hash of what follows it.

    The library writes keys as they come, so that the same weights would have another file hash each time.
    """
    data = save(tensors, metadata)
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"]["sha256"] = hashlib.sha256(data[end:]).hexdigest()
    text = json.dumps(header, sort_keys=True, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])
    temporary.rename(path)


def _read(path: Path) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and tensors of a weights file. Raises ValueError where it is damaged, foreign or of another version."""
    try:
        data = path.read_bytes()
        tensors = load_tensors(data)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged or not a weights file: {error}") from error
    end = 8 + int.from_bytes(data[:8], "little")
    metadata = json.loads(data[8:end]).get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        found = metadata.get("format", "no format mark")
        raise ValueError(f"{path} has {found}, this version reads {FORMAT}: use weights written by `unisci train`")
    if metadata.get("sha256") != hashlib.sha256(data[end:]).hexdigest():
        raise ValueError(f"{path} is damaged: its numbers are not those that were written; get the file again")
    return metadata, tensors


def load(name: str, device: torch.device | str = "cpu") -> Designer:
    """The designer of shipped weights (see `shipped()`) or of a weights file. No network is used.

    Raises ValueError where there are no such weights or no such device, or the file is damaged, foreign or of another
    format version.
    """
    path = find_weights(name)
    metadata, tensors = _read(path)
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
    return Designer(model, steps, file_hash(path), card)


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


def file_hash(path: Path) -> str:
    """The first 16 hexadecimal digits of a file's SHA-256."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def network_sizes(model: Pard) -> dict:
    """Parameters and sizes, for cards and logs."""
    parameters = sum(p.numel() for p in model.parameters())
    return {"parameters": parameters, "denoiser": asdict(model.denoiser.network.trunk.config)}
