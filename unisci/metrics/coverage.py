"""Do generated crystals cover a reference set, and stay near it? With fingerprints of this package's own choice.

CDVAE's COV-R and COV-P (arXiv 2110.06197) rest on matminer's CrystalNN and Magpie fingerprints, and let the nearest
structure and the nearest composition be two different crystals. Here a crystal covers another only if it is near in
both ways at once, under other distances, so these numbers are NOT comparable with published COV:
structure: average minimum distances (AMD, Widdowson et al., arXiv 2009.02488), AMD_k = the mean over sites of the
    distance to the k-th nearest site, k = 1..100 in angstrom; the distance of two crystals is max_k |AMD_k - AMD'_k|;
composition: earth mover's distance of the element fractions along the Mendeleev numbers (as ElMD, DOI
    10.1021/acs.chemmater.0c03381): how many places along the table an average atom has to move.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import NamedTuple

import numpy as np

from unisci.metrics.cells import Cell

NEIGHBOURS = 100
BLOCK = 256  # generated crystals compared at once


class Cutoffs(NamedTuple):
    """Two crystals are near where their structures are (angstrom) and their compositions are (places)."""

    structure: float = 0.5
    composition: float = 5.0


CUTOFFS = Cutoffs()


def average_minimum_distances(cell: Cell, neighbours: int = NEIGHBOURS) -> np.ndarray:
    """(neighbours,) ascending, in angstrom; the same for every cell and setting of one crystal."""
    structure = cell.structure.get_reduced_structure("LLL")
    n = len(structure)
    # A ball that holds 1.3 times as many sites on average, widened until every site has enough.
    radius = (1.3 * neighbours * structure.volume / n * 3 / (4 * np.pi)) ** (1 / 3)
    while True:
        centres, _, _, distances = structure.get_neighbor_list(radius)
        if (np.bincount(centres, minlength=n) >= neighbours).all():
            order = np.lexsort((distances, centres))
            starts = np.searchsorted(centres[order], np.arange(n))
            return distances[order][starts[:, None] + np.arange(neighbours)].mean(0)
        radius *= 1.25


@cache
def _places() -> np.ndarray:
    """(119,) the place of each atomic number among the elements in the order of their Mendeleev numbers."""
    from pymatgen.core import Element

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the heaviest elements have none, and stand at the end
        numbers = [Element.from_Z(z).mendeleev_no for z in range(1, 119)]
    order = np.argsort([m if m else np.inf for m in numbers], kind="stable")
    places = np.zeros(119, int)
    places[order + 1] = np.arange(118)
    return places


def cumulative(cell: Cell) -> np.ndarray:
    """(118,) element fractions summed along the Mendeleev numbers: L1 between two is their earth mover's distance."""
    return np.bincount(_places()[cell.numbers], minlength=118).cumsum() / len(cell.numbers)


def covered(
    structures: np.ndarray,
    compositions: np.ndarray,
    other_structures: np.ndarray,
    other_compositions: np.ndarray,
    cutoffs: Cutoffs = CUTOFFS,
) -> tuple[np.ndarray, np.ndarray]:
    """(n,) whether each has a near one among the m others, and (m,) whether each of the others has one."""
    from scipy.spatial.distance import cdist

    n, m = len(structures), len(other_structures)
    one, other = np.zeros(n, bool), np.zeros(m, bool)
    if not m:
        return one, other
    for start in range(0, n, BLOCK):
        rows = slice(start, start + BLOCK)
        near = cdist(structures[rows], other_structures, "chebyshev") <= cutoffs.structure
        near &= cdist(compositions[rows], other_compositions, "cityblock") <= cutoffs.composition
        one[rows] = near.any(1)
        other |= near.any(0)
    return one, other
