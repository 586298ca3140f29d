"""Which crystals are the same, among themselves and as those of a reference set: uniqueness and novelty.

Two are the same where StructureMatcher fits one on the other (cells reduced first, largest displacement below stol).
The relation is not transitive: a set is grouped as pymatgen does, by comparing with the first of each group.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from unisci.metrics.cells import Cell
from unisci.metrics.structure_match import TOLERANCES, Tolerances, matcher
from unisci.metrics.workers import Workers


def same(one: Cell, two: Cell, tolerances: Tolerances) -> bool:
    """Whether the matcher takes the two for one structure."""
    return bool(matcher(True, tolerances).fit(one.structure, two.structure))


def group(
    cells: Sequence[Cell], workers: Workers, tolerances: Tolerances = TOLERANCES
) -> tuple[np.ndarray, dict[str, int]]:
    """(n,) the index of the first crystal that each is the same as (its own where there is none), and failures.

    A comparison that fails (time out, say) counts as different, and in the failures. Only equal formulas are compared.
    """
    first, failures = np.arange(len(cells)), Counter()
    open_groups = defaultdict(list)
    for i, c in enumerate(cells):
        open_groups[c.formula].append(i)
    rest = [g for g in open_groups.values() if len(g) > 1]
    while rest:  # in each round all formulas compare their first open crystal with the others
        pairs = [(g[0], i) for g in rest for i in g[1:]]
        answers = workers.map(same, [(cells[a], cells[b], tolerances) for a, b in pairs])
        failures.update(a.reason for a in answers if a.reason)
        first[[b for (_, b), a in zip(pairs, answers, strict=True) if a.value]] = [
            a for (a, _), answer in zip(pairs, answers, strict=True) if answer.value
        ]
        rest = [[i for i in g[1:] if first[i] == i] for g in rest]
        rest = [g for g in rest if len(g) > 1]
    return first, dict(failures)


def known(
    cells: Sequence[Cell], reference: Sequence[Cell], workers: Workers, tolerances: Tolerances = TOLERANCES
) -> tuple[np.ndarray, dict[str, int]]:
    """(n,) whether each is the same as one of the reference, and failures as in `group`."""
    by_formula = defaultdict(list)
    for c in reference:
        by_formula[c.formula].append(c)
    tasks = [(i, c, r) for i, c in enumerate(cells) for r in by_formula[c.formula]]
    answers = workers.map(same, [(c, r, tolerances) for _, c, r in tasks])
    found = np.zeros(len(cells), bool)
    found[[i for (i, _, _), a in zip(tasks, answers, strict=True) if a.value]] = True
    return found, dict(Counter(a.reason for a in answers if a.reason))
