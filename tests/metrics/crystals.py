"""Small crystals for the tests of the crystal metrics, and what must not change them."""

import numpy as np
from pymatgen.core import Lattice, Structure


def rock_salt(a=5.6, elements=("Na", "Cl")):
    return Structure.from_spacegroup("Fm-3m", Lattice.cubic(a), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])


def caesium_chloride(a=3.5, elements=("Na", "Cl")):
    return Structure(Lattice.cubic(a), elements, [[0, 0, 0], [0.5, 0.5, 0.5]])


def perovskite(a=3.9, elements=("Sr", "Ti", "O")):
    x, y, z = elements
    return Structure(
        Lattice.cubic(a), [x, y, z, z, z], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    )


def delafossite():
    """R-3m, 12 sites in the hexagonal cell, 4 in the primitive one."""
    lattice, sites = Lattice.hexagonal(2.82, 14.05), [[0, 0, 0], [0, 0, 0.5], [0, 0, 0.24]]
    return Structure.from_spacegroup("R-3m", lattice, ["Li", "Co", "O"], sites)


def triclinic(seed=0):
    """Six sites without symmetry, far enough from each other."""
    sites = [[0.1, 0.1, 0.1], [0.6, 0.2, 0.15], [0.15, 0.7, 0.1], [0.1, 0.2, 0.6], [0.6, 0.65, 0.7], [0.65, 0.2, 0.6]]
    jitter = np.random.default_rng(seed).uniform(-0.05, 0.05, (6, 3))
    lattice = Lattice.from_parameters(5.1, 5.9, 6.7, 81, 97, 104)
    return Structure(lattice, ["Na", "Fe", "O", "O", "S", "Cl"], np.array(sites) + jitter)


def moved(structure, seed=0):
    """The same crystal: turned, shifted, in another basis of its lattice, its sites in another order."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    basis = np.array([[1, 1, 0], [0, 1, 0], [0, -1, 1]])
    order = rng.permutation(len(structure))
    lattice = basis @ structure.lattice.matrix @ turn
    fractional = (structure.frac_coords + rng.random(3)) @ np.linalg.inv(basis)
    return Structure(lattice, [structure[int(i)].specie for i in order], fractional[order])


def rattled(structure, distance, seed=0):
    """Every site moved by `distance` angstrom in a random direction."""
    step = np.random.default_rng(seed).normal(size=(len(structure), 3))
    step *= distance / np.linalg.norm(step, axis=1, keepdims=True)
    return Structure(structure.lattice, structure.species, structure.cart_coords + step, coords_are_cartesian=True)
