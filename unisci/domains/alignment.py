"""Which site of one crystal is which of another of the same composition, in what setting of the cell and at what shift.

    min over R, s, p of  sum_i |w(f_p(i) R + s - g_i)|^2,     w(x) = x - round(x)

R runs over the signed permutations of the axes that leave the first cell's lengths and angles nearly as they are, s
over the shifts that put one of its sites on one of the other's, p over the permutations within each element. The best
R and s are chosen by each site's nearest neighbour; p is then the optimal assignment.
"""

from itertools import permutations, product

import numpy as np

from unisci.domains.crystal import Crystal

SETTING_TOLERANCE = 0.1  # of a cell's Gram matrix, relative to V^(2/3)
_SETTINGS = np.array(
    [np.diag(signs)[list(order)] for order in permutations(range(3)) for signs in product((1, -1), repeat=3)]
)


def align(crystal: Crystal, reference: Crystal) -> Crystal:
    """`crystal` with its sites in the order, the setting and the place that best fit `reference`.

    Both are reduced and of one composition; the lattice stays lower triangular. Raises ValueError where they are not of
    one composition.
    """
    if sorted(crystal.numbers) != sorted(reference.numbers):
        raise ValueError(f"cannot align {crystal.formula} with {reference.formula}: their compositions differ")
    settings = _settings(crystal.lattice @ crystal.lattice.T)
    turned = crystal.fractional @ np.linalg.inv(settings)  # (R, n, 3): f L = (f R^-1) (R L)
    same = crystal.numbers[:, None] == reference.numbers
    shifts = _shifts(turned, crystal.numbers, reference)
    gap = turned[:, None, :, None] + shifts[:, :, None, None] - reference.fractional  # (R, S, n, n, 3)
    cost = ((gap - gap.round()) ** 2).sum(-1) + 10.0 * ~same
    r, s = np.unravel_index(cost.min(-2).sum(-1).argmin(), cost.shape[:2])
    order = _assign(cost[r, s])
    placed = turned[r, order] + shifts[r, s]
    off = reference.fractional - placed
    placed += (off - off.round()).mean(0)
    return _oriented(crystal.numbers[order], placed, settings[r] @ crystal.lattice)


def _settings(gram: np.ndarray) -> np.ndarray:
    """The signed permutations of determinant 1 or -1 that nearly keep a Gram matrix: (R, 3, 3), the identity first."""
    moved = _SETTINGS @ gram @ _SETTINGS.transpose(0, 2, 1)
    off = np.abs(moved - gram).max((1, 2)) / np.linalg.det(gram) ** (1 / 3)
    return _SETTINGS[off < SETTING_TOLERANCE]


def _shifts(turned: np.ndarray, numbers: np.ndarray, reference: Crystal) -> np.ndarray:
    """Shifts (R, S, 3) that put the first site of the rarest element on each such site of the reference."""
    elements, counts = np.unique(numbers, return_counts=True)
    rare = elements[counts.argmin()]
    first = np.flatnonzero(numbers == rare)[0]
    return reference.fractional[reference.numbers == rare] - turned[:, None, first]


def _assign(cost: np.ndarray) -> np.ndarray:
    """For each column the row that the cheapest one-to-one assignment gives it."""
    from scipy.optimize import linear_sum_assignment

    rows, columns = linear_sum_assignment(cost)
    return rows[columns.argsort()]


def _oriented(numbers: np.ndarray, fractional: np.ndarray, lattice: np.ndarray) -> Crystal:
    """In the orientation whose lattice is lower triangular; a mirrored cell is turned through its inversion."""
    return Crystal(numbers, fractional, np.linalg.cholesky(lattice @ lattice.T))
