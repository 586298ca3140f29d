"""Coverage: fingerprints known in closed form, what must not change them, and small sets by hand."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from tests.metrics.crystals import delafossite, moved, perovskite, rock_salt, triclinic
from unisci.metrics.cells import cell
from unisci.metrics.coverage import Cutoffs, average_minimum_distances, covered, cumulative


def test_distances_of_a_simple_cube():
    """6 neighbours at a, 12 at sqrt(2) a, 8 at sqrt(3) a, 6 at 2 a."""
    a = 3.0
    amd = average_minimum_distances(cell(Structure(Lattice.cubic(a), ["Po"], [[0, 0, 0]])), 32)
    np.testing.assert_allclose(amd, a * np.sqrt(np.repeat([1, 2, 3, 4], [6, 12, 8, 6])), atol=1e-9)


def test_distances_are_means_over_sites():
    """A chain along x of period 10 with sites at 0 and 1 and 4: nearest at 1, 1 and 3; then 4, 3 and 4."""
    chain = Structure(Lattice.orthorhombic(10, 40, 40), ["Fe"] * 3, [[0, 0, 0], [0.1, 0, 0], [0.4, 0, 0]])
    np.testing.assert_allclose(average_minimum_distances(cell(chain), 2), [5 / 3, 11 / 3], atol=1e-9)


@pytest.mark.parametrize("make", [rock_salt, perovskite, delafossite, triclinic])
def test_distances_belong_to_the_crystal_not_to_its_cell(make):
    amd = average_minimum_distances(cell(make()))
    assert amd.shape == (100,) and (np.diff(amd) >= 0).all()
    np.testing.assert_allclose(average_minimum_distances(cell(moved(make()))), amd, atol=1e-6)
    np.testing.assert_allclose(average_minimum_distances(cell(make() * (2, 1, 1))), amd, atol=1e-6)


def test_a_flat_cell_has_neighbours_enough():
    flat = Structure(Lattice.orthorhombic(2, 30, 30), ["Fe"], [[0, 0, 0]])
    np.testing.assert_allclose(average_minimum_distances(cell(flat), 4), [2, 2, 4, 4], atol=1e-9)


def test_the_composition_is_an_earth_movers_distance():
    """Neighbours in the order of Mendeleev numbers are one place apart; Na to K is 1, half of the atoms moving 0.5."""

    def distance(a, b):
        return np.abs(cumulative(a) - cumulative(b)).sum()

    salts = [cell(rock_salt(elements=e)) for e in (("Na", "Cl"), ("K", "Cl"), ("Na", "Br"), ("Cl", "Na"))]
    assert distance(salts[0], salts[1]) == pytest.approx(0.5)
    assert distance(salts[0], salts[2]) == pytest.approx(0.5)
    assert distance(salts[0], salts[3]) == pytest.approx(0)
    assert distance(salts[0], cell(perovskite())) > 5
    assert cumulative(salts[0])[-1] == pytest.approx(1)


def test_covered_needs_both_at_once():
    """The first generated one is near the first reference in structure and near the second in composition only."""
    structures, compositions = np.array([[0.0], [5.0], [9.0]]), np.array([[9.0], [3.0], [0.0]])
    others, their = np.array([[0.1], [4.0], [9.2], [9.9]]), np.array([[0.0], [9.0], [0.5], [0.0]])
    near, found = covered(structures, compositions, others, their, Cutoffs(0.5, 1.0))
    assert near.tolist() == [False, False, True]
    assert found.tolist() == [False, False, True, False]


def test_covered_in_blocks_and_of_nothing():
    x = np.arange(700.0)[:, None]
    near, found = covered(x, 0 * x, x[5:10] + 0.2, 0 * x[5:10], Cutoffs(0.3, 0.0))
    assert near.nonzero()[0].tolist() == [5, 6, 7, 8, 9] and found.all()
    near, found = covered(x[690:], 0 * x[690:], x, 0 * x, Cutoffs(0.0, 0.0))
    assert near.all() and found.nonzero()[0].tolist() == list(range(690, 700))
    assert [v.tolist() for v in covered(np.array([]), np.array([]), x[:2], x[:2])] == [[], [False, False]]
    assert [v.tolist() for v in covered(x[:2], x[:2], np.array([]), np.array([]))] == [[False, False], []]
