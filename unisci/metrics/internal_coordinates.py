"""Bond lengths, angles and torsions of molecules, and how far their distributions are from a reference's.

As in MiDi (arXiv 2302.09048) the distance is an average over types y, those of the reference weighing by frequency,
    D = sum_y p(y) W1(made | y, reference | y),   p(y) = #reference of y / #reference,
so that C-H bonds do not hide wrong C=O ones. A length has the type (elements, bond order), an angle (elements a-b-c), a
torsion about a bond the type of that bond; aromatic is an order of its own. Torsions are compared on the circle.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from rdkit import Chem

from unisci.metrics.descriptors import wasserstein
from unisci.metrics.intervals import jackknife
from unisci.metrics.metric import Metric

STRAIGHT = 175.0  # degrees; next to a wider angle there is no torsion

Distance = Callable[[np.ndarray, np.ndarray], float]


@dataclass(frozen=True, eq=False)
class Coordinates:
    """M coordinates of n molecules: values (M,), angstrom or degrees; types (M,) int; owner (M,) index of the molecule.

    Sorted by type and value. straight: how many torsions do not exist, as an angle beside them is straight.
    """

    n: int
    values: np.ndarray
    types: np.ndarray
    owner: np.ndarray
    straight: int = 0

    def by_type(self, keep: np.ndarray | None = None) -> dict[int, np.ndarray]:
        """Type -> sorted values, of the molecules where keep (n,) is True."""
        chosen = slice(None) if keep is None else keep[self.owner]
        values, types = self.values[chosen], self.types[chosen]
        names, first = np.unique(types, return_index=True)
        return dict(zip(names.tolist(), np.split(values, first)[1:], strict=True))


def lengths(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """(values (M,) in angstrom, types (M,)) of all bonds of the first conformer."""
    elements, orders, x = _arrays(mol)
    i, j = np.nonzero(np.triu(orders))
    return np.linalg.norm(x[i] - x[j], axis=-1), _bond_type(elements, orders, i, j)


def angles(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """(values (M,) in degrees, 0 to 180, types (M,)) of all pairs of bonds at one atom."""
    elements, orders, x = _arrays(mol)
    centre, end = np.nonzero(orders)
    p, q = np.nonzero((centre[:, None] == centre) & (end[:, None] < end))
    a, b, c = end[p], centre[p], end[q]
    low, high = np.sort([elements[a], elements[c]], axis=0)
    return angle(x[a] - x[b], x[c] - x[b]), (low * 128 + elements[b]) * 128 + high


def torsions(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray]:
    """(values (M,) in degrees, -180 to 180, NaN beside a straight angle; types (M,)) of all chains of four atoms."""
    elements, orders, x = _arrays(mol)
    centre, end = np.nonzero(orders)
    here, there = centre[:, None], centre
    chain = (orders[here, there] > 0) & (here < there) & (end[:, None] != there) & (end != here) & (end[:, None] != end)
    p, q = np.nonzero(chain)
    a, b, c, d = end[p], centre[p], centre[q], end[q]
    values = torsion(x[a], x[b], x[c], x[d])
    widest = np.maximum(angle(x[a] - x[b], x[c] - x[b]), angle(x[b] - x[c], x[d] - x[c]))
    return np.where(widest > STRAIGHT, np.nan, values), _bond_type(elements, orders, b, c)


def angle(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Degrees between vectors u, v (..., 3); exact near 0 and 180 too."""
    return np.degrees(np.arctan2(np.linalg.norm(np.cross(u, v), axis=-1), (u * v).sum(-1)))


def torsion(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The torsion a-b-c-d of positions (..., 3) in degrees, 0 where cis, positive where clockwise along b to c."""
    u, v, w = b - a, c - b, d - c
    left, right = np.cross(u, v), np.cross(v, w)
    sine = (np.cross(left, right) * v).sum(-1) / np.linalg.norm(v, axis=-1)
    return np.degrees(np.arctan2(sine, (left * right).sum(-1)))


def gather(mols: Sequence[Chem.Mol], measure: Callable[[Chem.Mol], tuple[np.ndarray, np.ndarray]]) -> Coordinates:
    """What `measure` (lengths, angles, torsions) gives for each molecule, each with a conformer."""
    parts = [measure(mol) for mol in mols]
    values = np.concatenate([np.zeros(0), *(v for v, _ in parts)])
    types = np.concatenate([np.zeros(0, int), *(t for _, t in parts)])
    owner = np.repeat(np.arange(len(parts)), [len(v) for v, _ in parts])
    order = np.lexsort((values, types))
    order = order[np.isfinite(values[order])]
    return Coordinates(len(parts), values[order], types[order], owner[order], len(values) - len(order))


def circular_wasserstein(a: np.ndarray, b: np.ndarray, period: float = 360.0) -> float:
    """W1 on a circle between values a (n,) and b (m,), in their unit: int |F - G - c|, c the median of F - G.

    F, G: distribution functions from any cut (Rabin et al., arXiv 0906.5499). NaN where one is empty.
    """
    if len(a) == 0 or len(b) == 0:
        return float("nan")
    a, b = np.sort(a % period), np.sort(b % period)
    grid = np.sort(np.concatenate([a, b]))
    gap = np.searchsorted(a, grid, "right") / len(a) - np.searchsorted(b, grid, "right") / len(b)
    width = np.diff(grid, append=grid[0] + period)
    order = np.argsort(gap)
    middle = np.searchsorted(np.cumsum(width[order]), period / 2)
    return float(np.abs(gap - gap[order[min(middle, len(gap) - 1)]]) @ width)


def average(made: dict[int, np.ndarray], reference: dict[int, np.ndarray], distance: Distance) -> float:
    """D over the types that both have, their weights scaled to sum to 1; NaN where there is none."""
    both = sorted(made.keys() & reference.keys())
    weights = np.array([len(reference[y]) for y in both], float)
    if not both:
        return float("nan")
    return float(weights @ [distance(made[y], reference[y]) for y in both] / weights.sum())


def compare(name: str, made: Coordinates, reference: Coordinates, distance: Distance, seed: int = 0) -> Metric:
    """D with a jackknife interval over the molecules; n counts molecules.

    failures, in coordinates, not molecules: of types that the other side does not have; beside a straight angle.
    """
    known = reference.by_type()

    def statistic(kept: np.ndarray) -> float:
        keep = np.zeros(made.n, bool)
        keep[kept] = True
        return average(made.by_type(keep), known, distance)

    seen = made.by_type()
    failures = {
        "of a type that the reference lacks": sum(len(v) for y, v in seen.items() if y not in known),
        "of the reference, of a type never made": sum(len(v) for y, v in known.items() if y not in seen),
        "beside a straight angle": made.straight,
    }
    return Metric(name, *jackknife(statistic, made.n, seed), made.n, {k: v for k, v in failures.items() if v})


def _arrays(mol: Chem.Mol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Atomic numbers (n,); twice the bond orders (n, n), 3 being aromatic; positions (n, 3)."""
    elements = np.array([a.GetAtomicNum() for a in mol.GetAtoms()], int)
    orders = (2 * Chem.GetAdjacencyMatrix(mol, useBO=True)).astype(int)
    return elements, orders, mol.GetConformer().GetPositions()


def _bond_type(elements: np.ndarray, orders: np.ndarray, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    low, high = np.sort([elements[i], elements[j]], axis=0)
    return (low * 128 + high) * 8 + orders[i, j]


MEASURES: dict[str, tuple[Callable[[Chem.Mol], tuple[np.ndarray, np.ndarray]], Distance]] = {
    "lengths": (lengths, wasserstein),
    "angles": (angles, wasserstein),
    "torsions": (torsions, circular_wasserstein),
}
