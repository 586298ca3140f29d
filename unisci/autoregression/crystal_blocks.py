"""Blocks of the sites of a crystal: orbits of equivalent sites, and what training shows of them.

p(crystal | atoms) = p(cell, x_1 | atoms) prod_k p(x_k | x_<k, cell, atoms)         x_k: the sites of rank k
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unisci.autoregression.site_blocks import part_times, parts
from unisci.domains.crystal import CRYSTAL_FIELDS, Crystal
from unisci.domains.symmetry import SYMPREC, dataset
from unisci.order import Order
from unisci.rng import Rng


def by_orbits(crystals: Sequence[Crystal], symprec: float = SYMPREC) -> Order:
    """Sites that a crystal's symmetry makes equivalent within symprec (angstrom) are a block, in the crystal's order.

    Raises ValueError where moyopy finds no symmetry."""
    rank = torch.full((len(crystals), max(map(len, crystals), default=0)), -1)
    for i, crystal in enumerate(crystals):
        orbits = dataset(crystal, symprec).orbits
        places = {orbit: k for k, orbit in enumerate(dict.fromkeys(orbits))}
        rank[i, : len(crystal)] = torch.tensor([places[orbit] for orbit in orbits])
    return Order(rank)


def of_parts(mask: Tensor, t: dict[str, Tensor], share: float, told: Tensor, rng: Rng) -> tuple[dict, Tensor]:
    """Training times in which a share of the samples that predict or make everything, and are told (B,) no template,
    learn a random part of their sites (B, N); and which samples (B,). t (B,) by field, see `CrystalModel.times`."""
    chosen = rng.uniform("parts", 0, (len(mask),), 0) < share
    one_task = (t["atom"] == 0) | (t["atom"] == t["position"])
    chosen = chosen & ~told & one_task & (t["position"] > 0) & (t["position"] < 1)
    known, moving = parts(mask, rng)
    known, moving = known & chosen[:, None], torch.where(chosen[:, None], moving, mask)
    first = {k: torch.where(v > 0, 1.0, 0.0) for k, v in t.items()}
    return part_times({k: CRYSTAL_FIELDS[k] for k in t}, known, moving, t, first), chosen
