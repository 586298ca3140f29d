"""Small untrained models of molecules in space, and molecules with geometries: what designs and jobs are tested on."""

from pathlib import Path

import torch

from tests.jobs.small import write_weights
from unisci.autoregression.structure_fields import Profiles
from unisci.autoregression.structures import StructureModel
from unisci.design.structure_designer import StructureDesigner
from unisci.domains.molecule import POSITION, Molecule, schema
from unisci.jobs.models import load
from unisci.jobs.structure_models import build, save
from unisci.metrics.conformers import etkdg
from unisci.networks.atom_transformer import AtomTransformerConfig

ATOMS = ("H", "C", "O", "N", "F")  # the small generator of graphs also draws N+1, which this model does not know
MOST = 20


def small_config(**changes) -> AtomTransformerConfig:
    sizes = {"classes": len(ATOMS), "bonds": 4, "width": 16, "layers": 1, "heads": 2, "edge": 8, "radial": 4}
    return AtomTransformerConfig(**sizes | changes)


def small_model(parts: float = 0.3, seed: int = 3) -> StructureModel:
    """A model of random weights whose molecules have 4 to 20 atoms."""
    torch.manual_seed(seed)
    profiles = Profiles(torch.tensor([[2, 3], [4, 0], [1, 6]]), torch.tensor([3.0, 1.0, 2049.0]))
    sizes = torch.ones(MOST + 1)
    sizes[:4], sizes[6] = 0, 70_001
    fields = schema(ATOMS) | {"position": POSITION}
    model = build(small_config(), fields, sizes, profiles, parts, scale=1.3).eval()
    for p in model.parameters():  # heads that begin at zero would hide what is behind them
        p.data.add_(0.05 * torch.randn_like(p))
    return model


def write_structures(folder: Path, name: str = "small3d", **card) -> str:
    """Write small models; returns the path as the text that `load` takes. The graphs' own file lies beside it."""
    graphs = Path(write_weights(folder / "small-graphs.safetensors"))
    save(folder / f"{name}.safetensors", small_model(), graphs, 4, {"summary": "untrained"} | card)
    return str(folder / f"{name}.safetensors")


def small_designer(folder: Path) -> StructureDesigner:
    return load(write_structures(folder))


def embedded(smiles: str, seed: int = 0) -> Molecule:
    """With all hydrogens and one conformer by ETKDG."""
    return etkdg(Molecule.from_smiles(smiles, hydrogens=True), 1, seed)
