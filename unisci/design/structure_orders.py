"""Orders in which a model of structures may draw molecules block by block, as functions (model, rng) -> Order."""

from collections.abc import Callable

import torch

from unisci.autoregression.site_blocks import one_by_one
from unisci.autoregression.structures import StructureModel
from unisci.order import Order
from unisci.rng import Rng

Draw = Callable[[StructureModel, Rng], Order]


def structural(model: StructureModel, rng: Rng) -> Order:
    """The core first, as the graph's own structural order has it; the model is told the ranks."""
    return model.profiles.order(rng)


def atom_by_atom(model: StructureModel, rng: Rng) -> Order:
    """One site a block in a random order, as many sites as a molecule of the training data has."""
    sites = rng.categorical("sites", 0, model.sizes.expand(len(rng.ids), -1), 0)
    mask = torch.arange(int(sites.max()), device=sites.device) < sites[:, None]
    return one_by_one(mask, rng)
