"""Distances between conformers of a molecule, up to rotations and symmetries of its graph, and COV and MAT of them.

d = min over rotations R, translations t and automorphisms pi of sqrt(mean_i |R x_i + t - y_pi(i)|^2)
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from rdkit import Chem
from rdkit.Chem import rdMolAlign

MATCHES = 10_000  # automorphisms tried for a pair; with more of them a distance is an upper bound


def prepare() -> None:
    """For a new worker process: to call it imports this module, and that is all."""


class Coverage(NamedTuple):
    """COV_R, MAT_R, COV_P, MAT_P of one molecule: shares and angstrom."""

    cov_recall: float
    mat_recall: float
    cov_precision: float
    mat_precision: float


def coverage(distances: np.ndarray, threshold: float) -> Coverage:
    """Of distances (K, L), made by reference; a row of inf is a conformer that was not made: it covers nothing and is
    left out of MAT_P. MATs are NaN where there is no finite row."""
    made = distances[np.isfinite(distances).all(1)]
    if not len(made):
        return Coverage(0.0, float("nan"), 0.0, float("nan"))
    recall, precision = made.min(0), made.min(1)
    covered = int((precision <= threshold).sum())
    return Coverage(float((recall <= threshold).mean()), recall.mean(), covered / len(distances), precision.mean())


def distances(made: Sequence[Chem.Mol | str], reference: Chem.Mol) -> tuple[np.ndarray, dict[str, int]]:
    """(K, L) angstrom from all conformers made to those of the reference, all without hydrogens; and, by reason, how
    many rows are inf: a text in `made` is a failure, and a molecule may not be that of the reference."""
    rows, faults = [], Counter()
    ids = [c.GetId() for c in reference.GetConformers()]
    for mol in made:
        reason = mol if isinstance(mol, str) else None if _same(mol, reference) else "another molecule"
        if reason is not None:
            rows.append([np.inf] * len(ids))
            faults[reason] += 1
            continue
        mol = Chem.Mol(mol)  # GetBestRMS moves it
        rows += [[best_rmsd(mol, reference, c.GetId(), i) for i in ids] for c in mol.GetConformers()]
    return np.array(rows, float).reshape(len(rows), len(ids)), dict(faults)


def best_rmsd(made: Chem.Mol, reference: Chem.Mol, i: int = -1, j: int = -1) -> float:
    """Angstrom between conformers i and j of two equal molecules, at the best of rotations and symmetries; `made` is
    left there. A mirror image is another conformer."""
    return rdMolAlign.GetBestRMS(made, reference, i, j, maxMatches=MATCHES)


def _same(a: Chem.Mol, b: Chem.Mol) -> bool:
    sizes = [(m.GetNumAtoms(), m.GetNumBonds()) for m in (a, b)]
    return sizes[0] == sizes[1] and a.HasSubstructMatch(b)
