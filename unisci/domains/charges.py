"""Can a composition be neutral at all? A warning before structures of an impossible formula are searched.

    sum_i n_i q_i = 0,     q_i an oxidation state that the element i has in the ICSD (smact's list of 2024)

All atoms of a nonmetal take one state; those of a metal may take several (Fe3O4). Metals and metalloids alone, such as
borides and silicides, follow no such rule and are never warned about.
"""

from functools import cache

import numpy as np


def unbalanced(numbers: np.ndarray) -> str | None:
    """A line of warning where no assignment of common oxidation states to the atomic numbers (n,) is neutral; None
    where there is one, and where an element has no known state. Of MP-20's compounds 2 in 100 are warned about,
    metallic ones such as Ti3ZnN and Ce3AlC.
    """
    from pymatgen.core import Composition, Element

    elements, counts = np.unique(np.asarray(numbers), return_counts=True)
    symbols = [Element.from_Z(int(z)) for z in elements]
    states = [_states(int(z)) for z in elements]
    if len(elements) == 1 or all(e.is_metal or e.is_metalloid for e in symbols) or not all(states):
        return None
    counts = counts // np.gcd.reduce(counts)
    sums = {0}
    for element, n, choices in zip(symbols, (2 * counts).tolist(), states, strict=True):  # AgO is Ag(I) Ag(III) O2
        mine = _mixed(n, choices) if element.is_metal else {n * q for q in choices}
        sums = {a + b for a in sums for b in mine}
    if 0 in sums:
        return None
    formula = Composition({e.symbol: n for e, n in zip(symbols, counts.tolist(), strict=True)}).reduced_formula
    return f"{formula}: no combination of common oxidation states is neutral"


def _mixed(n: int, choices: tuple[int, ...]) -> set[int]:
    """The sums of n atoms, each of which takes any of the states."""
    sums = {0}
    for _ in range(n):
        sums = {a + q for a in sums for q in choices}
    return sums


@cache
def _states(number: int) -> tuple[int, ...]:
    import smact
    from pymatgen.core import Element

    try:
        return tuple(smact.Element(Element.from_Z(number).symbol).oxidation_states_icsd24 or ())
    except (KeyError, NameError):  # beyond smact's tables
        return ()
