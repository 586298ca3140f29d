"""Space groups, 1 to 230, in the setting that moyopy calls its default: operations, translations, cells.

    x -> R_k x + t_k,   k = 1, ..., K         (International Tables for Crystallography, A; fractional coordinates)

A metric is made the group's own by averaging it over the group's rotations:

    G = mean_k R_k^T L L^T R_k
"""

from functools import cache

import numpy as np

from unisci.domains.crystal import CrystalError


@cache
def operations(group: int) -> tuple[np.ndarray, np.ndarray]:
    """Rotations (K, 3, 3) and translations (K, 3) of the conventional cell."""
    from moyopy import operations_from_number

    found = operations_from_number(group)
    return np.array(found.rotations, float), np.array(found.translations)


@cache
def centrings(group: int) -> np.ndarray:
    """(C, 3) in [0, 1): the group's translations within the conventional cell, 0 among them."""
    rotations, translations = operations(group)
    return translations[(rotations == np.eye(3)).all((1, 2))]


@cache
def primitive(group: int) -> np.ndarray:
    """(3, 3): rows are a right-handed basis of the group's translations, in the axes of the conventional cell."""
    shifts = np.array(np.meshgrid(*[[-1, 0, 1]] * 3)).reshape(3, -1).T
    vectors = (centrings(group)[:, None] + shifts).reshape(-1, 3)
    vectors = vectors[np.argsort(np.linalg.norm(vectors, axis=1), kind="stable")]
    for i, a in enumerate(vectors):
        for b in vectors[:i]:
            volumes = vectors[:i] @ np.cross(b, a)
            for k in np.flatnonzero(np.isclose(volumes, 1 / len(centrings(group)), atol=1e-6)):
                return np.stack([vectors[k], b, a])
    raise CrystalError(f"space group {group} has no basis of its translations")


def symmetric(lattice: np.ndarray, group: int) -> np.ndarray:
    """The lower-triangular lattice (3, 3) whose metric is that of `lattice`, averaged over the group's rotations."""
    rotations = operations(group)[0]
    metric = (rotations.transpose(0, 2, 1) @ (lattice @ lattice.T) @ rotations).mean(0)
    return np.linalg.cholesky(metric)
