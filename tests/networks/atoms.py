"""The networks of atoms that the laws are tried on, and what each is tried with."""

import pytest
import torch

from tests.laws import Inputs
from tests.space import BONDS, randomised, structures
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.networks.egnn import EGNN, EGNNConfig
from unisci.networks.equivariant import E3Net, E3NetConfig

SMALL = {"width": 16, "layers": 2, "heads": 4, "edge": 12, "frequencies": 3, "radial": 6}


def transformer() -> AtomTransformer:
    return AtomTransformer(AtomTransformerConfig(**SMALL))


def template_transformer() -> AtomTransformer:
    return AtomTransformer(AtomTransformerConfig(**SMALL, templates=True))


def bond_transformer() -> AtomTransformer:
    return AtomTransformer(AtomTransformerConfig(**SMALL, bonds=BONDS))


def egnn() -> EGNN:
    return EGNN(EGNNConfig(width=16, layers=2, frequencies=3, radial=6))


def bond_egnn() -> EGNN:
    return EGNN(EGNNConfig(width=16, layers=2, frequencies=3, radial=6, bonds=BONDS))


def e3net() -> E3Net:
    return E3Net(E3NetConfig(scalars=8, tensors=3, radial=5, cutoff=3.5))


def bond_e3net() -> E3Net:
    return E3Net(E3NetConfig(scalars=8, tensors=3, radial=5, cutoff=6.0, bonds=BONDS))


BUILT = {}


def built(make) -> torch.nn.Module:
    """Built once: e3nn compiles as it builds."""
    if make not in BUILT:
        torch.manual_seed(0)
        BUILT[make] = randomised(make())
    return BUILT[make]


SLOW, SLOW_BOND = (pytest.param(make, marks=pytest.mark.slow) for make in (e3net, bond_e3net))
LEARN_BONDS = (bond_transformer, bond_egnn, bond_e3net)
# A network, and whether it is tried on crystals or on molecules.
NETWORKS = [
    pytest.param(make, periodic, id=f"{make.__name__}-{'crystal' if periodic else 'molecule'}", marks=marks)
    for make, kinds, marks in (
        (transformer, [True], ()),
        (template_transformer, [True], ()),
        (bond_transformer, [False], ()),
        (egnn, [True, False], ()),
        (bond_egnn, [False], ()),
        (e3net, [True, False], pytest.mark.slow),
        (bond_e3net, [False], pytest.mark.slow),
    )
    for periodic in kinds
]
each = pytest.mark.parametrize(("make", "periodic"), NETWORKS)
each_with_bonds = pytest.mark.parametrize("make", [bond_transformer, bond_egnn, SLOW_BOND])


def inputs_for(make, periodic: bool, sizes: list[int], seed: int = 0, order: str = "") -> Inputs:
    return structures(sizes, seed, periodic, order, make is template_transformer, make in LEARN_BONDS)
