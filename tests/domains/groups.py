"""Crystals of known space groups, as primitive cells."""

from functools import cache

import numpy as np
from pymatgen.core import Lattice, Structure

from unisci.domains.crystal import Crystal

HALF = [0.5, 0.5, 0.5]
MONOCLINIC = Lattice.monoclinic(5.1, 5.3, 7.2, 99)

# name: space group, lattice, elements, one site of each orbit
RECIPES = {
    "rock salt": (225, Lattice.cubic(5.6), ["Na", "Cl"], [[0, 0, 0], HALF]),
    "fluorite": (225, Lattice.cubic(5.5), ["Ca", "F"], [[0, 0, 0], [0.25, 0.25, 0.25]]),
    "diamond": (227, Lattice.cubic(3.57), ["C"], [[0, 0, 0]]),
    "spinel": (227, Lattice.cubic(8.08), ["Mg", "Al", "O"], [[0, 0, 0], [0.625] * 3, [0.3873] * 3]),
    "perovskite": (221, Lattice.cubic(3.9), ["Sr", "Ti", "O"], [[0, 0, 0], HALF, [0.5, 0.5, 0]]),
    "hcp": (194, Lattice.hexagonal(3.2, 5.2), ["Mg"], [[1 / 3, 2 / 3, 0.25]]),
    "MoS2": (194, Lattice.hexagonal(3.16, 12.3), ["Mo", "S"], [[1 / 3, 2 / 3, 0.25], [1 / 3, 2 / 3, 0.621]]),
    "Bi2Te3": (166, Lattice.hexagonal(4.39, 30.5), ["Bi", "Te", "Te"], [[0, 0, 0.4], [0, 0, 0], [0, 0, 0.21]]),
    "quartz": (154, Lattice.hexagonal(4.91, 5.4), ["Si", "O"], [[0.47, 0, 2 / 3], [0.413, 0.267, 0.786]]),
    "anatase": (141, Lattice.tetragonal(3.78, 9.51), ["Ti", "O"], [[0, 0, 0], [0, 0, 0.2081]]),
    "rutile": (136, Lattice.tetragonal(4.59, 2.96), ["Ti", "O"], [[0, 0, 0], [0.305, 0.305, 0]]),
    "CaTiO3": (
        62,
        Lattice.orthorhombic(5.44, 7.64, 5.38),
        ["Ca", "Ti", "O", "O"],
        [[0.036, 0.25, 0.993], [0, 0, 0.5], [0.484, 0.25, 0.071], [0.289, 0.037, 0.711]],
    ),
    "general": (47, Lattice.orthorhombic(6, 7, 8), ["Na", "Cl"], [[0.11, 0.22, 0.33], [0, 0, 0.5]]),
    "ZrO2": (14, MONOCLINIC, ["Zr", "O"], [[0.275, 0.04, 0.208], [0.07, 0.332, 0.345]]),
    "C2/m": (12, MONOCLINIC, ["Ga", "O", "O"], [[0.09, 0, 0.79], [0.16, 0, 0.11], [0.3, 0.27, 0.44]]),
    "P-1": (
        2,
        Lattice.from_parameters(4, 5, 6, 82, 95, 101),
        ["K", "O", "N"],
        [[0.1, 0.2, 0.3], HALF, [0.4, 0.8, 0.1]],
    ),
    "P1": (
        1,
        Lattice.from_parameters(4.2, 5.1, 6.3, 83, 94, 102),
        ["Na", "Cl", "K", "Br"],
        [[0.1, 0.1, 0.1], [0.6, 0.15, 0.2], [0.12, 0.55, 0.25], [0.3, 0.35, 0.7]],
    ),
}


@cache
def primitive_cell(name: str) -> Crystal:
    """The crystal of a recipe, Niggli-reduced."""
    group, lattice, elements, sites = RECIPES[name]
    return Crystal.from_structure(Structure.from_spacegroup(group, lattice, elements, sites)).reduced()


def disguised(crystal: Crystal, seed: int) -> Crystal:
    """The same crystal rotated, shifted, in another basis, its sites in another order."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.linalg.det(q))
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])[:, rng.permutation(3)]
    lattice = basis @ crystal.lattice @ q
    sites = (crystal.fractional + rng.random(3)) @ np.linalg.inv(basis)
    order = rng.permutation(len(crystal))
    return Crystal(crystal.numbers[order], sites[order], lattice)
