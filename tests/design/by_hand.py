"""Molecules by hand, properties of them, and what stands for a model, shared by the tests of designs."""

import math
from dataclasses import replace

import torch
from torch import Tensor

from tests.jobs.small import CLASSES
from unisci.autoregression.pard import ordered
from unisci.batch import Batch
from unisci.design.wants import Want
from unisci.domains.molecule import Molecule
from unisci.guidance.particles import particle_rng
from unisci.order import Order
from unisci.rng import Rng


def mol(smiles: str) -> Molecule:
    return Molecule.from_smiles(smiles)


ETHANOL, BENZENE, PHENOL, GLYCINE = mol("CCO"), mol("c1ccccc1"), mol("Oc1ccccc1"), mol("[NH3+]CC(=O)[O-]")
METHANE, DIFLUOROMETHANE, PYRIDINE = mol("C"), mol("FCF"), mol("c1ccncc1")
TWO_PIECES = Molecule.from_text("C F", "")  # invalid, of one C and one F
EMPTY = Molecule.from_text("", "")


def size(molecules):
    return [len(m.atoms) for m in molecules]


def rings(molecules):
    return [m.rdkit.GetRingInfo().NumRings() for m in molecules]


def gaps(want: Want, *molecules: Molecule) -> list[float | None]:
    """None for NaN, which equals nothing."""
    return [None if math.isnan(g) else g for g in want.gap(molecules).tolist()]


class Carbons:
    """Stands for a model of properties: "logp" is the number of carbons so far, +- 1, in data that spread by 2."""

    names, std = ("logp",), torch.tensor([2.0])

    def __call__(self, state, t, mask, given, order):
        atom = state["atom"]
        carbon = atom[..., 0] if atom.is_floating_point() else (atom == 0).float()
        mean = (carbon * mask).sum(1, keepdim=True) + 0 * state["bond"].flatten(1).sum(1, keepdim=True)
        return mean, torch.ones_like(mean)


def finished(smiles: list[str], particles: int, ids: Tensor | None = None) -> tuple[Batch, Order]:
    """Finished molecules as the particles of samples."""
    batch = ordered(Molecule.batch([Molecule.from_smiles(s) for s in smiles], CLASSES, 6), 1)
    n = len(smiles) // particles
    ids = torch.arange(n) if ids is None else ids
    batch = replace(batch, ids=particle_rng(Rng(0, ids), particles).ids)
    return batch, Order(torch.where(batch.mask, batch.given["rank"], -1))
