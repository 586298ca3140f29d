"""Generators of molecules in space from sizes to weights files and back: what draws heavy-atom graphs, under "graphs.",
and what makes all atoms and their positions, under "structures.", with the solver programs searched for it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.autoregression.pard import Pard
from unisci.autoregression.structure_fields import Profiles, structure_product
from unisci.autoregression.structures import StructureModel
from unisci.batch import Schema
from unisci.denoiser import Denoiser
from unisci.jobs import weights_file
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.solvers.program import Program
from unisci.solvers.saved import of_json, to_json

FORMAT = "unisci-structures-1"
GRAPHS, STRUCTURES = "graphs.", "structures."
SCALE = 1.4  # angstrom, standard deviation of the positions of atoms about their mean in small organic molecules


class Parts(NamedTuple):
    """What a weights file holds: the model of graphs and its calls a block, the model of structures and its calls, the
    card, the hash of the file, and the name of the weights that the graphs were copied from."""

    graphs: Pard
    graph_steps: int
    structures: StructureModel
    steps: int
    card: dict
    hash: str
    source: str


def build(
    config: AtomTransformerConfig,
    schema: Schema,
    sizes: Tensor,
    profiles: Profiles,
    parts: float = 0.3,
    scale: float = SCALE,
) -> StructureModel:
    """An untrained one. schema: of "atom", "bond" and "position"; sizes (N + 1,): molecules by number of sites; scale:
    angstrom, standard deviation of positions. Raises ValueError where config has other classes than the schema."""
    classes = tuple(len(schema[k].classes) for k in ("atom", "bond"))
    if (config.classes, config.bonds) != classes:
        raise ValueError(f"the network has {config.classes, config.bonds} classes of atoms and bonds, data {classes}")
    denoiser = Denoiser(AtomTransformer(config), structure_product(schema), {"position": scale})
    return StructureModel(denoiser, sizes, profiles, parts)


def with_programs(source: Path, target: Path, programs: Sequence[Program]) -> None:
    """Copy a weights file, with programs for conformers that were searched for it. Raises ValueError where the file is
    damaged or foreign."""
    metadata, tensors = weights_file.read(source, FORMAT)
    spec = json.loads(metadata["spec"]) | {"programs": [to_json(p) for p in programs]}
    weights_file.write(target, tensors, metadata | {"spec": json.dumps(spec)})


def save(path: Path, structures: StructureModel, graphs: Path, steps: int, card: dict, half: bool = True) -> None:
    """Write a model of structures beside a copy of the generator of graphs in the weights file `graphs`, as one
    safetensors file; sizes, classes and card in its header.

    steps: network calls of a conformer that the card's numbers were measured at. half: weights in half precision.
    Facts (buffers) and weights that it cannot hold are kept as they are; the graphs' tensors stay as their file has
    them. Raises ValueError where `graphs` is damaged or no generator of molecular graphs.
    """
    metadata, drawn = weights_file.read(graphs, weights_file.MOLECULES)
    schema, network = structures.denoiser.product.schema, structures.denoiser.network
    spec = {
        "graphs": json.loads(metadata["spec"]),
        "source": graphs.stem,
        "classes": list(schema["atom"].classes),
        "network": asdict(network.config),
        "scale": structures.denoiser.scale["position"],
        "parts": structures.parts,
        "steps": steps,
        "programs": [to_json(p) for p in structures.programs],
    }
    tensors, weights = {GRAPHS + k: v for k, v in drawn.items()}, {k for k, _ in structures.named_parameters()}
    for k, v in structures.state_dict().items():
        low = half and k in weights and bool(v.half().isfinite().all())
        tensors[STRUCTURES + k] = v.detach().cpu().to(torch.half if low else v.dtype, copy=True).contiguous()
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    weights_file.write(path, tensors, metadata)


def load_parts(path: Path, device: torch.device | str = "cpu") -> Parts:
    """What a weights file holds. No network is used.

    Raises ValueError where the file is damaged, foreign, of another format version, or does not hold what its header
    promises, or there is no such device.
    """
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        spec, card = json.loads(metadata["spec"]), json.loads(metadata["card"])
        parts = _parts(spec, tensors, card, weights_file.digest(path))
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    try:
        return parts._replace(graphs=parts.graphs.to(device), structures=parts.structures.to(device))
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA fails by assertion
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error


def _parts(spec: dict, tensors: dict[str, Tensor], card: dict, digest: str) -> Parts:
    """The models of a header, filled with tensors. Raises one of many errors where the two differ."""
    # Both know RDKit, without which models are trained and saved.
    from unisci.domains.molecule import POSITION, schema
    from unisci.jobs.pard_models import of_header

    if foreign := [k for k in tensors if not k.startswith((GRAPHS, STRUCTURES))]:
        raise ValueError(f"tensors of no model: {foreign[:3]}")
    own = {k.removeprefix(STRUCTURES): v for k, v in tensors.items() if k.startswith(STRUCTURES)}
    graphs = of_header(spec["graphs"], {k.removeprefix(GRAPHS): v for k, v in tensors.items() if k.startswith(GRAPHS)})
    fields = schema(tuple(spec["classes"])) | {"position": POSITION}
    profiles = Profiles(own["profile_sizes"], own["profile_counts"])
    config = AtomTransformerConfig(**spec["network"])
    structures = build(config, fields, own["sizes"], profiles, float(spec["parts"]), float(spec["scale"]))
    structures.load_state_dict(own)
    process = structures.denoiser.product.processes["position"]
    structures.programs = tuple(of_json(p, process) for p in spec.get("programs", ()))  # older files have none
    structures.eval().requires_grad_(False)
    graph_steps, steps = int(spec["graphs"]["steps"]), int(spec["steps"])
    return Parts(graphs, graph_steps, structures, steps, card, digest, str(spec["source"]))
