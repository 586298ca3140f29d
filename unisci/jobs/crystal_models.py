"""Generators of crystals from sizes to weights files and back: three kinds of network, each under its own prefix."""

import json
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor, nn

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystals import CrystalModel, crystal_product
from unisci.autoregression.orbits import OrbitModel
from unisci.autoregression.retrieval import untrained_ranker
from unisci.denoiser import Denoiser
from unisci.domains.crystal import CRYSTAL_FIELDS, MAX_SITES
from unisci.domains.orbit_batches import WyckoffTable
from unisci.jobs import weights_file
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.networks.orbit_transformer import ELEMENTS, OrbitTransformerConfig
from unisci.networks.template_ranker import TemplateRanker
from unisci.processes.torus import UNIFORM_DEVIATION

FORMAT = "unisci-crystals-2"


def build_refiner(
    config: AtomTransformerConfig, sizes: Tensor, without: float, volumes: Tensor, parts: float = 0.0
) -> CrystalModel:
    """An untrained one. sizes (N + 1,): crystals by number of sites; without: the share of examples that see no
    template; volumes (101,): of the elements' atoms, cubic angstrom, row = atomic number; parts: see CrystalModel."""
    network = AtomTransformer(config, volumes[1 : config.classes + 1])
    product = crystal_product(CRYSTAL_FIELDS, config.classes)
    return CrystalModel(Denoiser(network, product, {"position": UNIFORM_DEVIATION}), sizes, without, parts)


def save(path: Path, generator: CrystalGenerator, card: dict, half: bool = True) -> None:
    """Write a generator as one safetensors file; sizes, table and card in its header.

    half: weights in half precision. Facts (buffers) and weights that it cannot hold are kept as they are.
    """
    orbits, refiner, g = generator.orbits, generator.refiner, generator
    spec = {
        "orbits": asdict(_orbit_sizes(orbits)),
        "refiner": asdict(refiner.denoiser.network.config) | {"without": refiner.without, "parts": refiner.parts},
        "rankers": [{"embedding": r.element.embedding_dim, "width": r.own.out_features} for r in g.rankers],
        "table": g.table.text,
        "elements": list(g.elements),
        "most_sites": g.most_sites,
    }
    tensors = {}
    for prefix, model in _parts(orbits, refiner, g.rankers).items():
        weights = {k for k, _ in model.named_parameters()}
        for k, v in model.state_dict().items():
            low = half and k in weights and bool(v.half().isfinite().all())
            tensors[prefix + k] = v.detach().cpu().to(torch.half if low else v.dtype, copy=True).contiguous()
    metadata = {"format": FORMAT, "spec": json.dumps(spec), "card": json.dumps(card)}
    weights_file.write(path, tensors, metadata)


def load_generator(path: Path, device: torch.device | str = "cpu") -> tuple[CrystalGenerator, dict, str]:
    """The generator of a weights file, its card, and the file's hash. No network is used.

    Raises ValueError where the file is damaged, foreign, of another format version, or does not hold what its header
    promises, or there is no such device.
    """
    metadata, tensors = weights_file.read(path, FORMAT)
    try:
        generator, card = _generator(json.loads(metadata["spec"]), tensors), json.loads(metadata["card"])
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold what its header promises: {error!r}") from error
    try:
        return generator.to(device), card, weights_file.digest(path)
    except (AssertionError, RuntimeError) as error:  # a torch without CUDA fails by assertion
        raise ValueError(f"device {str(device)!r} cannot be used: {error}") from error


def _generator(spec: dict, tensors: dict[str, Tensor]) -> CrystalGenerator:
    """The models of a header, filled with tensors. Raises one of many errors where the two differ."""
    elements, most = tuple(spec["elements"]), spec["most_sites"]
    if not elements or not all(isinstance(z, int) and 0 < z < ELEMENTS for z in elements):
        raise ValueError(f"the elements {elements} are not atomic numbers from 1 to {ELEMENTS - 1}")
    if not (isinstance(most, int) and 0 < most <= MAX_SITES):
        raise ValueError(f"most_sites is {most!r}, expected 1 to {MAX_SITES}")
    table = WyckoffTable.from_text(spec["table"])
    volumes = torch.ones(ELEMENTS)  # a first guess, which the tensors replace
    facts = tensors["orbits.words.element.features"]
    orbits = OrbitModel(OrbitTransformerConfig(**spec["orbits"]), table, facts, volumes)
    sizes = dict(spec["refiner"])
    without, parts = float(sizes.pop("without")), float(sizes.pop("parts", 0.0))  # older files have no parts
    refiner = build_refiner(AtomTransformerConfig(**sizes), tensors["refiner.sizes"], without, volumes, parts)
    rankers = tuple(untrained_ranker(tensors[f"rankers.{i}.features"], **s) for i, s in enumerate(spec["rankers"]))
    parts = _parts(orbits, refiner, rankers)
    if foreign := [k for k in tensors if not k.startswith(tuple(parts))]:
        raise ValueError(f"tensors of no model: {foreign[:3]}")
    for prefix, model in parts.items():
        own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
        model.load_state_dict(own)
        model.eval().requires_grad_(False)
    return CrystalGenerator(orbits, table, refiner, rankers, elements, most)


def _parts(orbits: OrbitModel, refiner: CrystalModel, rankers: tuple[TemplateRanker, ...]) -> dict[str, nn.Module]:
    """The models by the prefix of their tensors."""
    return {"orbits.": orbits, "refiner.": refiner} | {f"rankers.{i}.": r for i, r in enumerate(rankers)}


def _orbit_sizes(model: OrbitModel) -> OrbitTransformerConfig:
    words = model.words
    layers = words.body.layers
    return OrbitTransformerConfig(words.special.shape[1], len(layers), layers[0].self_attn.num_heads, words.dropout.p)
