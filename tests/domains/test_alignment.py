"""Alignment: undoes any relabelling, shift and equivalent setting, and is refused where there is nothing to match."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domains.test_crystal import PEROVSKITE, some_crystal
from unisci.domains.alignment import align
from unisci.domains.crystal import Crystal


def gap(a: Crystal, b: Crystal) -> float:
    """The largest wrapped difference of a coordinate."""
    difference = a.fractional - b.fractional
    return float(np.abs(difference - difference.round()).max())


def disturbed(crystal: Crystal, rng: np.random.Generator, noise: float = 0.0) -> Crystal:
    order = rng.permutation(len(crystal))
    moved = crystal.fractional[order] + rng.random(3) + noise * rng.standard_normal((len(crystal), 3))
    return Crystal(crystal.numbers[order], moved, crystal.lattice)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000))
def test_order_and_shift_are_undone(seed):
    crystal = some_crystal(seed).niggli()
    aligned = align(disturbed(crystal, np.random.default_rng(seed)), crystal)
    assert np.array_equal(aligned.numbers, crystal.numbers) and gap(aligned, crystal) < 1e-9
    np.testing.assert_allclose(aligned.lattice, crystal.lattice, atol=1e-9)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000))
def test_noise_is_left_with_its_mean_taken_off(seed):
    crystal = Crystal.from_structure(PEROVSKITE).niggli()
    aligned = align(disturbed(crystal, np.random.default_rng(seed), 0.02), crystal)
    difference = aligned.fractional - crystal.fractional
    difference -= difference.round()
    assert np.abs(difference).max() < 0.12 and np.abs(difference.mean(0)).max() < 1e-9


@pytest.mark.parametrize(
    "setting", [[[0, 1, 0], [1, 0, 0], [0, 0, 1]], [[-1, 0, 0], [0, 1, 0], [0, 0, -1]], -np.eye(3)]
)
def test_an_equivalent_setting_of_the_cell_is_found(setting):
    rng = np.random.default_rng(3)
    crystal = Crystal([38, 22, 8, 8, 8], rng.random((5, 3)), np.diag([4.0, 4.05, 4.02]))
    setting = np.array(setting, float)
    lattice = setting @ crystal.lattice
    turned = Crystal(
        crystal.numbers, crystal.fractional @ np.linalg.inv(setting), np.linalg.cholesky(lattice @ lattice.T)
    )
    aligned = align(disturbed(turned, rng), crystal)
    assert gap(aligned, crystal) < 1e-9
    np.testing.assert_allclose(aligned.lattice @ aligned.lattice.T, crystal.lattice @ crystal.lattice.T, atol=1e-9)


def test_another_composition_is_refused():
    with pytest.raises(ValueError, match="compositions differ"):
        align(Crystal([11], [[0, 0, 0]], np.eye(3) * 4), Crystal([12], [[0, 0, 0]], np.eye(3) * 4))
