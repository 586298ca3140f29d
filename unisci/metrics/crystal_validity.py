"""Is a generated crystal possible at all? The two rules of CDVAE (arXiv 2110.06197), which later papers kept.

Structure: the shortest distance between two sites is at least 0.5 angstrom, the volume above 0.1 cubic angstrom. A
site's own periodic images count here, which CDVAE leaves out: a cell 0.3 angstrom thin is not valid.
Composition (SMACT, DOI 10.1039/c5sc04030a): an element alone and metals alone are valid; else some choice of one
oxidation state for each element must be neutral and give every cation a lower electronegativity than every anion.

This is CDVAE's own test over smact's tables (its oxidation_states_smact14), not smact.screening.smact_validity: since
smact 2.6 that refuses an element without a Pauling electronegativity (Pm), which CDVAE accepts, and since smact 3 it
takes other states by default. A valid composition need not be stable, and a stable one may fail: Fe3O4 does.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations, product

import numpy as np

from unisci.metrics.cells import MIN_VOLUME, Cell
from unisci.metrics.workers import Workers

MIN_DISTANCE = 0.5  # angstrom


def structure_fault(cell: Cell) -> str | None:
    """None for a valid structure, else "volume" or "distance"."""
    from pymatgen.core import Structure

    if not abs(np.linalg.det(cell.lattice)) > MIN_VOLUME:
        return "volume"
    structure = Structure(cell.lattice, cell.numbers, cell.fractional).get_reduced_structure("LLL")
    # The reduced cell shows a short period at once; a search for images would be endless in a cell of no height.
    if min(structure.lattice.abc) < MIN_DISTANCE:
        return "distance"
    # exclude_self drops every pair at distance 0 of one index only: two sites on one place are still found.
    distances = structure.get_neighbor_list(MIN_DISTANCE)[3]
    return "distance" if (distances < MIN_DISTANCE).any() else None


@lru_cache(maxsize=100_000)
def composition_valid(formula: tuple[tuple[int, int], ...]) -> bool:
    """formula: (atomic number, count in lowest terms) of each element, by atomic number.

    The time grows with the product of the numbers of states: more than eight elements may take minutes.
    """
    import smact
    from pymatgen.core import Element

    symbols = [Element.from_Z(z).symbol for z, _ in formula]
    if len(symbols) == 1 or all(s in smact.metals for s in symbols):
        return True
    try:
        elements = [smact.Element(s) for s in symbols]
    except (KeyError, NameError):  # beyond smact's tables: no known state, no neutral choice
        return False
    states = [e.oxidation_states_smact14 or [] for e in elements]
    counts, electronegativities = [c for _, c in formula], [e.pauling_eneg for e in elements]
    return any(
        sum(c * q for c, q in zip(counts, choice, strict=True)) == 0 and _pauling(choice, electronegativities)
        for choice in product(*states)
    )


def _pauling(states: Sequence[int], electronegativities: Sequence[float | None]) -> bool:
    """smact 2.2's test, its ways with an unknown electronegativity (None) too: published rates rest on them."""
    for (q1, x1), (q2, x2) in combinations(list(zip(states, electronegativities, strict=True)), 2):
        if q1 * q2 < 0:
            if x1 is None or x2 is None:
                return True  # the comparison raised TypeError there, which CDVAE takes as passed
            if x1 >= x2 if q1 > 0 else x1 <= x2:
                return False
        elif x1 is None or x2 is None:
            return False
    return True


def faults(items: Sequence[Cell | str], workers: Workers) -> tuple[list[str | None], list[str | None]]:
    """For each cell why its structure is not valid, and why its composition is not; None where it is.

    What is no cell (see unisci.metrics.cells.cell) comes with its reason, which is then its fault in both.
    """
    places = [i for i, item in enumerate(items) if not isinstance(item, str)]
    structure: list[str | None] = [item if isinstance(item, str) else None for item in items]
    composition = list(structure)
    for i, answer in zip(places, workers.map(structure_fault, [(items[i],) for i in places]), strict=True):
        structure[i] = answer.reason or answer.value
    formulas = list(dict.fromkeys(items[i].formula for i in places))
    answers = dict(zip(formulas, workers.map(composition_valid, [(f,) for f in formulas]), strict=True))
    for i in places:
        valid, reason = answers[items[i].formula]
        composition[i] = reason or (None if valid else "no neutral choice of states")
    return structure, composition
