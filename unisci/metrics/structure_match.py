"""Is a predicted crystal the true one? Match, RMSE, METRe and cRMSE with pymatgen's StructureMatcher.

Two crystals match where the matcher (ltol 0.3, stol 0.5, angle_tol 10, volumes scaled to be equal) finds a mapping
of cells and sites whose root mean square displacement d, in units of (V / N)^(1/3), is below stol. Over n compounds:
match rate = matched / n;  RMSE = mean of d over the matched;  cRMSE = mean over all, stol standing for a miss.
METRe ("All that structure matches does not glitter", arXiv 2509.12178): each true crystal is matched with its best
among the predictions for all compounds, so that polymorphs in another order are not misses.

The matcher cannot tell a crystal from its mirror image. It is given both ways beside each other: primitive_cell=True
reduces both cells first and is what papers publish; but a prediction whose sites are 0.1 angstrom off may no longer
reduce as its truth does, and is then missed although each site is right. primitive_cell=False matches cells as given,
so that a supercell never matches its primitive cell.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unisci.metrics.cells import Cell, cell, cells
from unisci.metrics.workers import DIED, TIME_OUT, Workers

if TYPE_CHECKING:
    from pymatgen.analysis.structure_matcher import StructureMatcher


class Tolerances(NamedTuple):
    """Of StructureMatcher: fractional length, site (in units of (V / N)^(1/3)), angle (degrees)."""

    ltol: float = 0.3
    stol: float = 0.5
    angle_tol: float = 10.0


TOLERANCES = Tolerances()


@cache
def matcher(primitive_cell: bool, tolerances: Tolerances) -> StructureMatcher:
    from pymatgen.analysis.structure_matcher import StructureMatcher

    return StructureMatcher(*tolerances, primitive_cell=primitive_cell)


def prepare() -> None:
    """Import in a new worker what its tasks need."""
    matcher(True, TOLERANCES)


def displacement(one: Cell, two: Cell, tolerances: Tolerances) -> tuple[float | None, float | None]:
    """RMS displacement with primitive_cell=True and with False; None where there is no match."""
    a, b = one.structure, two.structure
    sizes = len(a.get_primitive_structure()), len(b.get_primitive_structure())
    given = matcher(False, tolerances).get_rms_dist(a, b) if len(a) == len(b) else None
    if sizes == (len(a), len(b)):
        primitive = given  # nothing to reduce: the two settings are one
    elif sizes[0] == sizes[1]:
        primitive = matcher(True, tolerances).get_rms_dist(a, b)
    else:
        primitive = None  # the matcher never maps a cell onto one with another number of sites
    return tuple(None if d is None else float(d[0]) for d in (primitive, given))


@dataclass(frozen=True, eq=False)
class Matching:
    """Of n targets: rms (n,), displacements in units of (V / N)^(1/3), NaN where missed; reasons: n, None where not."""

    rms: np.ndarray
    reasons: tuple[str | None, ...]

    def best(self, groups: Sequence[Sequence[int]]) -> Matching:
        """One target a group of indices: its least rms; where all are missed, what broke, else the commonest reason."""
        picks = [self._best(g) for g in groups]
        return Matching(np.array([d for d, _ in picks], float), tuple(reason for _, reason in picks))

    def _best(self, group: Sequence[int]) -> tuple[float, str | None]:
        rms = self.rms[list(group)]
        if not np.isnan(rms).all():
            return float(np.nanmin(rms)), None
        reasons = Counter(self.reasons[i] for i in group)
        broken = [reason for reason in (TIME_OUT, DIED) if reasons[reason]]
        return np.nan, broken[0] if broken else reasons.most_common(1)[0][0]


class Matches(NamedTuple):
    """The same pairs under both settings: cells reduced first (primitive_cell=True), cells as given (False)."""

    primitive: Matching
    given: Matching

    def best(self, groups: Sequence[Sequence[int]]) -> Matches:
        return Matches(*(m.best(groups) for m in self))

    def __add__(self, other: Matches) -> Matches:
        """The pairs of both, one after the other."""
        both = zip(self, other, strict=True)
        return Matches(*(Matching(np.concatenate([a.rms, b.rms]), a.reasons + b.reasons) for a, b in both))


def match(
    generated: Sequence[Any],
    truth: Sequence[Any],
    tolerances: Tolerances = TOLERANCES,
    workers: Workers | None = None,
) -> Matches:
    """generated[i] against truth[i], for all i; an entry of generated may be None.

    workers: two, with 10 seconds a pair, where not given. Reasons of a miss: "no match"; "time out", "worker died" or
    an exception; "composition", and for cells as given "number of sites", which cost nothing; those of `cell`.
    Raises ValueError where the lengths differ, or a truth is no crystal.
    """
    if len(generated) != len(truth):
        raise ValueError(f"{len(generated)} generated crystals but {len(truth)} true ones; give one for each")
    if workers is None:
        with Workers(prepare=prepare) as workers:
            return match(generated, truth, tolerances, workers)
    pairs = list(zip(map(cell, generated), cells(truth, "truth"), strict=True))
    reasons = [g if isinstance(g, str) else None if g.formula == t.formula else "composition" for g, t in pairs]
    todo = [i for i, reason in enumerate(reasons) if reason is None]
    answers = dict(zip(todo, workers.map(displacement, [(*pairs[i], tolerances) for i in todo]), strict=True))
    columns = []
    for setting in range(2):
        rms, why = np.full(len(pairs), np.nan), list(reasons)
        for i, (value, reason) in answers.items():
            if value is not None and value[setting] is not None:
                rms[i] = value[setting]
            else:
                sites = setting == 1 and len(pairs[i][0].numbers) != len(pairs[i][1].numbers)
                why[i] = reason or ("number of sites" if sites else "no match")
        columns.append(Matching(rms, tuple(why)))
    return Matches(*columns)


def everyone(generated: Sequence[Any], truth: Sequence[Cell]) -> tuple[list[tuple[int, int]], list[list[int]]]:
    """METRe: the pairs (i, j) of generated i and truth j != i with equal formula, and a group of places for each truth.

    Places count the n pairs (j, j) first, then the returned ones: the groups are for `best` of both joined.
    """
    found = defaultdict(list)
    for i, c in enumerate(map(cell, generated)):
        if not isinstance(c, str):
            found[c.formula].append(i)
    pairs = [(i, j) for j, t in enumerate(truth) for i in found[t.formula] if i != j]
    groups = [[j] for j in range(len(truth))]
    for place, (_, j) in enumerate(pairs, len(truth)):
        groups[j].append(place)
    return pairs, groups
