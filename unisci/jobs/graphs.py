"""What generators and models of properties of molecular graphs share: their noise, and the sizes of their networks."""

import torch
from torch import Tensor

from unisci.batch import Batch, pair_mask
from unisci.domains.molecule import BONDS, schema
from unisci.jobs.config import ConfigError, NetworkConfig
from unisci.networks.graph_transformer import GraphTransformerConfig
from unisci.processes.categorical import Categorical, absorbing, marginal, uniform
from unisci.processes.product import Product


def frequencies(data: Batch) -> tuple[Tensor, Tensor]:
    """How often each class of atoms (K,) and of bonds (4,) occurs in graphs."""
    atom = torch.bincount(data.state["atom"][data.mask].long(), minlength=len(data.schema["atom"].classes)).float()
    bond = torch.bincount(data.state["bond"][pair_mask(data.mask)].long(), minlength=len(BONDS)).float()
    return atom / atom.sum(), bond / bond.sum()


def build_product(noise: str, classes: tuple[str, ...], atom: Tensor, bond: Tensor) -> Product:
    """The forward noise of molecular graphs. Raises ValueError where there is not one frequency for each class."""
    if len(atom) != len(classes) or len(bond) != len(BONDS):
        raise ValueError(f"{len(atom)} and {len(bond)} frequencies for {len(classes)} atoms and {len(BONDS)} bonds")
    return Product({"atom": _process(noise, atom), "bond": _process(noise, bond)}, schema(classes))


def _process(noise: str, frequencies: Tensor) -> Categorical:
    match noise:
        case "marginal":
            return marginal(frequencies)
        case "absorbing":
            return absorbing(len(frequencies))
        case "uniform":
            return uniform(len(frequencies))
    raise ConfigError(f"unknown noise {noise!r}: marginal, absorbing or uniform")


def sizes(config: NetworkConfig, product: Product, causal: bool = False, conditions: int = 0) -> GraphTransformerConfig:
    """The sizes of a network for graphs with this noise, told so many numbers."""
    atom, bond = product.processes["atom"], product.processes["bond"]
    states = (atom.states, bond.states, atom.classes, bond.classes)
    return GraphTransformerConfig(*states, **config.model_dump(), causal=causal, conditions=conditions)
