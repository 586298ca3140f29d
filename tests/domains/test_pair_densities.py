"""Pair densities against a count by hand, and what they must not see."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domains.test_crystal import some_crystal
from unisci.domains.crystal import Crystal
from unisci.domains.pair_densities import RADII, WIDTH, density_distance, pair_densities

SALT = Crystal(
    [11] * 4 + [17] * 4,
    np.array([[0, 0, 0], [0, 1, 1], [1, 0, 1], [1, 1, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) / 2,
    np.eye(3) * 5.64,
)  # fmt: skip


def test_rock_salt_by_hand():
    """In mean spacings each Na has 6 Cl at 1 and 8 at 3^(1/2), and 12 Na at 2^(1/2) and 6 at 2."""
    g = pair_densities(SALT, np.array([11, 17]))
    bump = lambda number, r: number * np.exp(-0.5 * ((RADII - r) / WIDTH) ** 2) / r**2
    np.testing.assert_allclose(g[0, 1], bump(6, 1) + bump(8, 3**0.5) + bump(24, 5**0.5), atol=1e-4)
    np.testing.assert_allclose(g[0, 0], bump(12, 2**0.5) + bump(6, 2) + bump(24, 6**0.5), atol=1e-4)
    np.testing.assert_allclose(g[1, 1], g[0, 0], atol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 5000))
def test_free_of_cell_origin_order_and_size(seed):
    crystal, rng = some_crystal(seed), np.random.default_rng(seed)
    elements = np.unique(crystal.numbers)
    order = rng.permutation(len(crystal))
    other = Crystal(crystal.numbers[order], crystal.fractional[order] + rng.random(3), crystal.lattice * 1.3)
    skew = np.array([[1, 0, 0], [2, 1, 0], [0, -1, 1]])
    other = Crystal(other.numbers, other.fractional @ np.linalg.inv(skew), skew @ other.lattice)
    np.testing.assert_allclose(pair_densities(other, elements), pair_densities(crystal, elements), atol=2e-4, rtol=1e-4)


def test_elements_may_come_in_any_order():
    g, swapped = pair_densities(SALT, np.array([11, 17])), pair_densities(SALT, np.array([17, 11]))
    np.testing.assert_allclose(swapped, g[::-1, ::-1])


def test_distance_weighs_by_the_share_of_each_element():
    g, other = np.zeros((2, 2, 3)), np.zeros((2, 2, 3))
    other[0, 1, 0], other[1, 1, 2] = 2, 3
    assert density_distance(g, other, np.array([1, 3])) == pytest.approx((4 * 1 + 9 * 3) / 4)
    assert density_distance(np.stack([g, other]), other, np.array([1, 3])).shape == (2,)


def test_zincblende_and_rock_salt_are_far_apart():
    moved = Crystal(SALT.numbers, SALT.fractional - np.where(SALT.numbers[:, None] == 17, 0.25, 0), SALT.lattice)
    elements, counts = np.array([11, 17]), np.array([4, 4])
    assert density_distance(pair_densities(SALT, elements), pair_densities(moved, elements), counts) > 70
