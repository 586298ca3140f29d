"""A generator of crystals small enough for tests: untrained, but with all its parts."""

from functools import cache

import numpy as np
import torch

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.orbits import OrbitModel
from unisci.autoregression.retrieval import untrained_ranker
from unisci.domains.crystal import Crystal
from unisci.domains.elements import element_features
from unisci.domains.orbit_batches import WyckoffTable
from unisci.domains.wyckoff import Orbits
from unisci.jobs.crystal_models import build_refiner
from unisci.networks.atom_transformer import AtomTransformerConfig
from unisci.networks.orbit_transformer import OrbitTransformerConfig

FCC = np.linalg.cholesky(np.array([[2, 1, 1], [1, 2, 1], [1, 1, 2]]) / 4.0)
SALT = Crystal([11, 17], [[0] * 3, [0.5] * 3], FCC * 5.64)
PEROVSKITE = Crystal(
    [38, 22, 8, 8, 8], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], np.eye(3) * 3.9
)
ANY = Crystal([14, 14, 8], [[0.1, 0.2, 0.3], [0.6, 0.1, 0.9], [0.4, 0.8, 0.2]], np.diag([3.0, 4.0, 5.0]))
KNOWN = (SALT, PEROVSKITE, ANY)


@cache
def small_generator() -> CrystalGenerator:
    """Knows O, Na, Si, Cl, Ti and Sr, at most 10 sites, and the positions of KNOWN: of the groups 1, 221 and 225."""
    torch.manual_seed(0)
    table = WyckoffTable.of([Orbits.of(c) for c in KNOWN])
    features, volumes = torch.from_numpy(element_features()), torch.full((101,), 16.0)
    orbits = OrbitModel(OrbitTransformerConfig(16, 1, 2), table, features, volumes)
    config = AtomTransformerConfig(width=16, layers=1, heads=2, edge=8, radial=4, templates=True)
    refiner = build_refiner(config, torch.tensor([0, 0, 1, 1, 0, 1]), 0.4, volumes)
    rankers = (untrained_ranker(features, 4, 8),)
    for model in (orbits, refiner, *rankers):
        model.eval().requires_grad_(False)
    return CrystalGenerator(orbits, table, refiner, rankers, (8, 11, 14, 17, 22, 38), 10)
