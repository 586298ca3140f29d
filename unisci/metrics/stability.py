"""Atom and molecule stability, by distances (EDM, arXiv 2203.17003) and by bonds: two rules that are never comparable.

By distances: the bonds are read from the positions; two atoms a, b at the distance d have the bond order
    #{k in 1, 2, 3: 100 d < L_k(a, b) + m_k},  m = (10, 5, 3) pm,
L_k being the typical length of a single, double, triple bond. An atom is stable where its orders sum to the valence of
its element, whatever its charge. The margins were tuned on QM9, of whose true molecules 95 % are stable.
By bonds: those of the molecule are taken, and an atom is stable where its orders sum to a valence that RDKit allows for
its element and charge. A molecule is stable where all its atoms are. Hydrogens must be sites.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rdkit import Chem

from unisci.domains.molecule_rdkit import parse_class
from unisci.metrics.intervals import NAN, clustered_proportion, proportion
from unisci.metrics.metric import Metric

if TYPE_CHECKING:
    from unisci.domains.molecule import Molecule

# Typical lengths in pm (the tables of wiredchemist.com and chemistry-reference.com that EDM uses); no entry, no bond.
SINGLE = """
H-H 74, H-B 119, H-C 109, H-N 101, H-O 96, H-F 92, H-Si 148, H-P 144, H-S 134, H-Cl 127, H-As 152, H-Br 141, H-I 161,
B-Cl 175, C-C 154, C-N 147, C-O 143, C-F 135, C-Si 185, C-P 184, C-S 182, C-Cl 177, C-Br 194, C-I 214,
N-N 145, N-O 140, N-F 136, N-P 177, N-S 168, N-Cl 175, N-Br 214, N-I 222,
O-O 148, O-F 142, O-Si 163, O-P 163, O-S 151, O-Cl 164, O-Br 172, O-I 194,
F-F 142, F-Si 160, F-P 156, F-S 158, F-Cl 166, F-Br 178, F-I 187,
Si-Si 233, Si-S 200, Si-Cl 202, Si-Br 215, Si-I 243, P-P 221, P-S 210, P-Cl 203, P-Br 222,
S-S 204, S-Cl 207, S-Br 225, S-I 234, Cl-Cl 199, Cl-Br 214, Br-Br 228, I-I 266"""
DOUBLE = "C-C 134, C-N 129, C-O 120, C-S 160, N-N 125, N-O 121, O-O 121, O-P 150, P-S 186"
TRIPLE = "C-C 120, C-N 116, C-O 113, N-N 110"
MARGINS = (10, 5, 3)  # pm
VALENCES = {"H": (1,), "B": (3,), "C": (4,), "N": (3,), "O": (2,), "F": (1,), "Al": (3,), "Si": (4,), "P": (3, 5)}
VALENCES |= {"S": (4,), "Cl": (1,), "As": (3,), "Br": (1,), "I": (1,)}
ELEMENTS = tuple(VALENCES)


class Stability(NamedTuple):
    """valence (n,): the sum of the bond orders of each atom; stable (n,): whether it is an allowed one."""

    valence: np.ndarray
    stable: np.ndarray


def stability_by_distances(molecules: Sequence[Molecule]) -> list[Metric]:
    """atoms_stable_by_distances, of all atoms, and molecules_stable_by_distances, of all molecules; both of the first
    conformer.

    Bonds and charges of the molecules are not looked at, so their validity does not matter. Without (finite) positions
    no atom is stable. `failures` of the second: the first unstable atom of each molecule, such as "C with 3".
    """
    return _metrics("by_distances", molecules, _by_distances)


def stability_by_bonds(molecules: Sequence[Molecule]) -> list[Metric]:
    """atoms_stable_by_bonds and molecules_stable_by_bonds, as `stability_by_distances`; positions are not looked at.

    A stable molecule may still be several fragments. Implicit hydrogens do not count: add_hydrogens() first.
    """
    return _metrics("by_bonds", molecules, lambda m: by_bonds(m.atoms, m.bonds))


def by_distances(elements: Sequence[str], positions: np.ndarray) -> Stability:
    """The rule for n atoms: their elements, and positions (n, 3) in angstrom. An element without a valence in the table
    is never stable."""
    valence = bond_orders(elements, positions).sum(1)
    return Stability(valence, _allowed(elements, valence, lambda e: VALENCES.get(e, ())))


def by_bonds(atoms: Sequence[str], bonds: np.ndarray) -> Stability:
    """The rule for n atoms of classes such as "N+1", and bond orders (n, n), kekulised."""
    valence = np.asarray(bonds, int).sum(1)
    return Stability(valence, _allowed(atoms, valence, valences))


def bond_orders(elements: Sequence[str], positions: np.ndarray) -> np.ndarray:
    """(n, n) int, 0 to 3: the orders read from the distances between positions (n, 3) in angstrom."""
    index = np.array([ELEMENTS.index(e) if e in ELEMENTS else len(ELEMENTS) for e in elements], int)
    limits = _limits()[:, index[:, None], index]
    distances = 100 * np.linalg.norm(positions[:, None] - positions, axis=-1)
    np.fill_diagonal(distances, np.inf)
    return (distances < limits).sum(0)


@cache
def valences(name: str) -> tuple[int, ...]:
    """The sums of bond orders that RDKit allows an atom of this class without a radical electron, () where it knows no
    such element. An ion has those of the neutral atom with as many electrons: "N+1" those of C."""
    symbol, charge = parse_class(name)
    table = Chem.GetPeriodicTable()
    try:
        electrons = table.GetAtomicNumber(symbol) - charge
    except RuntimeError:
        return ()
    return tuple(v for v in table.GetValenceList(electrons) if v >= 0) if electrons > 0 else (0,)


@cache
def _limits() -> np.ndarray:
    """(3, E + 1, E + 1): the distance in pm below which there is a bond of order 1, 2, 3 or more; the last element is
    any other, which has no bond."""
    limits = np.full((3, len(ELEMENTS) + 1, len(ELEMENTS) + 1), -np.inf)
    for order, (text, margin) in enumerate(zip((SINGLE, DOUBLE, TRIPLE), MARGINS, strict=True)):
        for entry in text.split(","):
            pair, length = entry.split()
            i, j = (ELEMENTS.index(e) for e in pair.split("-"))
            limits[order, i, j] = limits[order, j, i] = float(length) + margin
    return limits


def _allowed(names: Sequence[str], valence: np.ndarray, table: Callable[[str], tuple[int, ...]]) -> np.ndarray:
    return np.array([v in table(name) for name, v in zip(names, valence.tolist(), strict=True)], bool)


def _by_distances(molecule: Molecule) -> Stability | str:
    if molecule.positions is None:
        return "no positions"
    positions = molecule.positions[0]
    if not np.isfinite(positions).all():
        return "positions that are not finite"
    return by_distances([parse_class(name)[0] for name in molecule.atoms], positions)


def _metrics(suffix: str, molecules: Sequence[Molecule], rule: Callable[[Molecule], Stability | str]) -> list[Metric]:
    hits, sizes, failures = [], [], Counter()
    for molecule in molecules:
        hit, reason = _count(molecule, rule(molecule))
        hits.append(hit)
        sizes.append(len(molecule.atoms))
        if reason is not None:
            failures[reason] += 1
    n, k, total, whole = len(sizes), sum(hits), sum(sizes), len(sizes) - failures.total()
    some = np.array(sizes, int) > 0
    bounds = clustered_proportion(np.array(hits, int)[some], np.array(sizes, int)[some]) if total else NAN
    share, why = whole / n if n else float("nan"), dict(sorted(failures.items()))
    return [
        Metric(f"atoms_stable_{suffix}", k / total if total else float("nan"), *bounds, total),
        Metric(f"molecules_stable_{suffix}", share, *proportion(whole, n), n, why),
    ]


def _count(molecule: Molecule, result: Stability | str) -> tuple[int, str | None]:
    """How many atoms are stable, and why the molecule is not, None where it is."""
    if isinstance(result, str):
        return 0, result
    if result.stable.all():
        return len(result.stable), None if molecule.atoms else "no atoms"
    first = int(result.stable.argmin())
    return int(result.stable.sum()), f"{molecule.atoms[first]} with {result.valence[first]}"
