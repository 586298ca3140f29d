"""Retrieval: the known crystals whose chemistry is nearest to a formula, with their sites taken over by its elements.

    distance(q, T) = min over assignments p of n_i-equal species: (1 / n) sum_i n_i d(q_i, T_p(i)),    n = sum_i n_i

Candidates have the same stoichiometric counts as the formula, so that every site finds its element. d is the chemical
distance of two elements (`elements.distances`). The cell keeps its shape and is scaled to the volume that the formula
would fill by the library's own mean volumes per element (non-negative least squares of relative errors).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby, permutations, product
from math import factorial

import numpy as np

from unisci.domains.crystal import Crystal
from unisci.domains.elements import distances
from unisci.domains.symmetry import SYMPREC, spacegroup

MOST_ASSIGNMENTS = 5040  # of equally frequent species that are all tried, 7!; beyond, the best is found one by one
SMALLEST_ATOM = 1.0  # cubic angstrom; an element that the fit gives less has too few examples and takes the mean


@dataclass(frozen=True, eq=False)
class Candidate:
    """row: of the library; species (S,): its atomic numbers, in the order of those of the formula (`species`) that
    replace them; distance: chemical, >= 0."""

    row: int
    species: np.ndarray
    distance: float


@dataclass(frozen=True)
class Template:
    """crystal: with the formula's elements and volume; row: of the library; distance: chemical, >= 0."""

    crystal: Crystal
    row: int
    distance: float


@dataclass(frozen=True, eq=False)
class TemplateLibrary:
    """Known crystals as arrays: numbers (A,), fractional (A, 3) float32, offsets (M + 1,), lattice (M, 3, 3).

    groups (M,): their space groups within SYMPREC where they are known already, see `spacegroups`."""

    numbers: np.ndarray
    fractional: np.ndarray
    offsets: np.ndarray
    lattice: np.ndarray
    groups: np.ndarray | None = None

    @classmethod
    def from_crystals(cls, crystals: Iterable[Crystal]) -> "TemplateLibrary":
        """Of reduced crystals (`Crystal.reduced`). Raises ValueError where there are none."""
        crystals = list(crystals)
        if not crystals:
            raise ValueError("the library has no crystals")
        return cls(
            np.concatenate([c.numbers for c in crystals]).astype(np.uint8),
            np.concatenate([c.fractional for c in crystals]).astype(np.float32),
            np.cumsum([0, *(len(c) for c in crystals)]),
            np.stack([c.lattice for c in crystals]),
        )

    def __len__(self) -> int:
        return len(self.lattice)

    def __getitem__(self, row: int) -> Crystal:
        part = slice(self.offsets[row], self.offsets[row + 1])
        return Crystal(self.numbers[part].astype(np.int64), self.fractional[part].astype(np.float64), self.lattice[row])

    def select(self, rows: np.ndarray) -> "TemplateLibrary":
        """The library of these rows (indices or a mask). It keeps the volumes per element, for it has fewer examples.

        Raises ValueError where there are none."""
        rows = np.arange(len(self))[rows]
        if not len(rows):
            raise ValueError("the selection has no crystals")
        sites = np.concatenate([np.arange(self.offsets[r], self.offsets[r + 1]) for r in rows])
        offsets = np.cumsum([0, *np.diff(self.offsets)[rows]])
        groups = None if self.groups is None else self.groups[rows]
        chosen = TemplateLibrary(self.numbers[sites], self.fractional[sites], offsets, self.lattice[rows], groups)
        vars(chosen)["atomic_volumes"] = self.atomic_volumes
        return chosen

    def spacegroups(self, symprec: float = SYMPREC) -> np.ndarray:
        """(M,) int: numbers of the space groups within symprec (angstrom), 0 where none is found; found once."""
        if symprec not in self._spacegroups:
            self._spacegroups[symprec] = np.array([spacegroup(self[row], symprec) for row in range(len(self))])
        return self._spacegroups[symprec]

    @cached_property
    def _spacegroups(self) -> dict[float, np.ndarray]:
        return {} if self.groups is None else {SYMPREC: self.groups}

    @cached_property
    def volumes(self) -> np.ndarray:
        """(M,): of the cells, cubic angstrom."""
        return np.abs(np.linalg.det(self.lattice))

    @cached_property
    def atomic_volumes(self) -> np.ndarray:
        """(101,): mean volume that an atom of each element fills, cubic angstrom, row = atomic number."""
        from scipy.optimize import nnls

        counts = np.zeros((len(self), 101))
        np.add.at(counts, (np.repeat(np.arange(len(self)), np.diff(self.offsets)), self.numbers), 1)
        known = counts.any(0)
        fitted = np.zeros(101)
        fitted[known] = nnls(counts[:, known] / self.volumes[:, None], np.ones(len(self)))[0]
        good = fitted > SMALLEST_ATOM
        fitted[~good] = fitted[good].mean() if good.any() else (self.volumes / np.diff(self.offsets)).mean()
        return fitted

    @cached_property
    def _species(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """(atomic numbers, counts) of each crystal, sorted by count, then by number."""
        return [species(self.numbers[a:b]) for a, b in zip(self.offsets, self.offsets[1:], strict=False)]

    @cached_property
    def _by_counts(self) -> dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
        """Sorted counts -> rows of the library that have them, and their species (rows, species)."""
        found: dict[tuple[int, ...], list[int]] = {}
        for row, (_, counts) in enumerate(self._species):
            found.setdefault(tuple(counts.tolist()), []).append(row)
        return {k: (np.array(v), np.stack([self._species[r][0] for r in v])) for k, v in found.items()}

    def nearest(self, numbers: np.ndarray, k: int, without: Sequence[int] = (), slack: float = 0.0) -> list[Candidate]:
        """The k candidates nearest to the sites' atomic numbers (n,), nearest first, ties in the library's order; fewer
        or none where the library holds fewer. without: rows to leave out; slack: a row comes once for each assignment
        of its species that is at most this much further than its best."""
        elements, counts = species(np.asarray(numbers))
        nothing = (np.empty(0, int), np.empty((0, len(elements)), int))
        rows, theirs = self._by_counts.get(tuple(counts.tolist()), nothing)
        keep = ~np.isin(rows, without)
        rows, theirs = rows[keep], theirs[keep]
        if not len(rows):
            return []
        costs, assigned = _assign(elements, counts, theirs)
        best = costs.argmin(1)
        out = costs > costs.min(1, keepdims=True) + slack
        out[np.arange(len(rows)), best] = False
        if slack == 0:  # of equal assignments one is enough
            out = np.arange(costs.shape[1]) != best[:, None]
        costs = np.where(out, np.inf, costs)
        order = np.argsort(costs, axis=None, kind="stable")[:k]
        found = [(m, o, costs[m, o]) for m, o in zip(*np.unravel_index(order, costs.shape), strict=True)]
        return [Candidate(int(rows[m]), assigned[m, o], float(cost)) for m, o, cost in found if np.isfinite(cost)]

    def retrieve(self, numbers: np.ndarray, k: int, without: Sequence[int] = ()) -> list[Template]:
        """The k nearest as crystals of these elements; see `nearest`."""
        return [self.substitute(c, numbers) for c in self.nearest(numbers, k, without)]

    def substitute(self, candidate: Candidate, numbers: np.ndarray) -> Template:
        """The candidate's crystal with its species replaced by those of `numbers`, scaled to their expected volume."""
        elements, counts = species(np.asarray(numbers))
        crystal = self[candidate.row]
        swap = np.zeros(101, np.int64)
        swap[candidate.species] = elements
        scale = (self.atomic_volumes[elements] @ counts / self.atomic_volumes[crystal.numbers].sum()) ** (1 / 3)
        made = Crystal(swap[crystal.numbers], crystal.fractional, crystal.lattice * scale)
        return Template(made, candidate.row, candidate.distance)


def species(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The elements of sites (n,) and their counts, sorted by count, then by atomic number."""
    elements, counts = np.unique(numbers, return_counts=True)
    order = np.lexsort((elements, counts))
    return elements[order], counts[order]


def _assign(elements: np.ndarray, counts: np.ndarray, theirs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of species `theirs` (M, S) and each of O assignments to `elements` (S,): distances (M, O) and
    assigned species (M, O, S)."""
    groups = [list(g) for _, g in groupby(range(len(counts)), key=lambda s: counts[s])]
    d = distances()
    if np.prod([float(factorial(len(g))) for g in groups]) > MOST_ASSIGNMENTS:
        cost, assigned = _assign_each(elements, counts, theirs, groups, d)
        return cost[:, None], assigned[:, None]
    orders = np.array([list(chain(*p)) for p in product(*(permutations(g) for g in groups))])
    assigned = theirs[:, orders]
    return (d[elements, assigned] * counts).sum(-1) / counts.sum(), assigned


def _assign_each(
    elements: np.ndarray, counts: np.ndarray, theirs: np.ndarray, groups: list[list[int]], d: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`_assign` by the Hungarian method, where there are too many assignments to try."""
    from scipy.optimize import linear_sum_assignment

    cost, assigned = np.zeros(len(theirs)), theirs.copy()
    for m, row in enumerate(theirs):
        for g in groups:
            pairs = d[elements[g][:, None], row[g]]
            mine, their = linear_sum_assignment(pairs)
            assigned[m, np.array(g)[mine]] = row[g][their]
            cost[m] += pairs[mine, their].sum() * counts[g[0]]
    return cost / counts.sum(), assigned
