"""Known groups come out, of any cell of the crystal, and nothing hangs."""

import multiprocessing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.domains.test_crystal import MATCHER, PEROVSKITE, ROCK_SALT
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.symmetry import spacegroup, standardized, symmetrized_like

SALT, TITANATE = Crystal.from_structure(ROCK_SALT), Crystal.from_structure(PEROVSKITE)
WURTZITE = Crystal(
    [30, 30, 16, 16],
    [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]],
    [[3.82, 0, 0], [-1.91, 1.91 * 3**0.5, 0], [0, 0, 6.26]],
)
OVERLAPPING = Crystal([1, 1], [[0, 0, 0]] * 2, np.eye(3) * 4)


@pytest.mark.parametrize("crystal, number, symbol", [(SALT, 225, "Fm-3m"), (WURTZITE, 186, "P6_3mc")])
def test_known_groups(crystal, number, symbol):
    assert spacegroup(crystal) == spacegroup(crystal.reduced()) == number
    found = standardized(crystal.reduced())
    assert found[1:] == (number, symbol)
    assert len(found[0]) == len(crystal) and MATCHER.fit(found[0].structure, crystal.structure)
    assert found[0].volume == pytest.approx(crystal.volume)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_of_any_orientation_origin_and_order(seed):
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    skew = np.array([[1, 0, 0], [rng.integers(-2, 3), 1, 0], [*rng.integers(-2, 3, 2), 1]])
    order = rng.permutation(len(TITANATE))
    fractional = (TITANATE.fractional + rng.random(3)) @ np.linalg.inv(skew)
    moved = Crystal(TITANATE.numbers[order], fractional[order], skew @ TITANATE.lattice @ turn)
    assert spacegroup(moved) == 221


def test_symprec_is_a_distance():
    off = TITANATE.fractional.copy()
    off[1, 2] += 0.01  # 0.04 angstrom, of titanium along c
    moved = Crystal(TITANATE.numbers, off, TITANATE.lattice)
    assert spacegroup(moved) == 99 and spacegroup(moved, 0.1) == 221
    ideal, number, _ = standardized(moved, 0.1)
    assert number == 221 and spacegroup(ideal, 1e-4) == 221


def test_no_group():
    assert spacegroup(OVERLAPPING) == 0
    with pytest.raises(CrystalError, match="no space group"):
        standardized(OVERLAPPING)
    for function in (spacegroup, standardized):
        with pytest.raises(ValueError, match="symprec"):
            function(SALT, 0.0)


def _flat(queue):
    shapes = [(4, 0.2, 80), (400, 0.01, 4), (4, 0.5, 3000)]
    queue.put([spacegroup(Crystal([1], [[0, 0, 0]], np.diag(s))) for s in shapes])


def test_flat_cells_end():
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_flat, args=(queue,), daemon=True)
    process.start()
    process.join(20)
    assert process.exitcode == 0, process.kill()
    assert queue.get() == [0, 0, 0]
    assert spacegroup(Crystal([1], [[0, 0, 0]], np.diag([3.0, 4, 60]))) == 47


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([SALT, TITANATE, WURTZITE]))
def test_a_displaced_crystal_gets_its_symmetry_back(seed, crystal):
    rng, like = np.random.default_rng(seed), crystal.reduced()
    strained = np.linalg.cholesky(like.lattice @ (np.eye(3) + 0.03 * rng.normal(size=(3, 3))) @ like.lattice.T)
    moved = Crystal(like.numbers, like.fractional + 0.02 * rng.normal(size=like.fractional.shape), like.lattice)
    for other in (moved, Crystal(like.numbers, moved.fractional, np.linalg.cholesky(strained @ strained.T))):
        back = symmetrized_like(other, like)
        assert spacegroup(back) == spacegroup(like)
        again = symmetrized_like(back, like)
        assert np.allclose(again.lattice, back.lattice) and np.allclose(again.fractional, back.fractional, atol=1e-9)


def test_what_the_symmetry_allows_is_kept():
    like = WURTZITE.reduced()  # z of the sulphur is free, and so are the two lengths
    moved = Crystal(like.numbers, like.fractional, like.lattice * np.array([1.02, 1.02, 0.97]))
    shift = np.where((like.numbers == 16)[:, None], np.array([0, 0, 0.01]), 0.0)
    axis = int(np.argmax(np.diag(like.lattice)))
    shift = np.roll(shift, axis - 2, axis=1)
    out = symmetrized_like(Crystal(moved.numbers, moved.fractional + shift, moved.lattice), like)
    gap = out.fractional - like.fractional - shift
    assert np.abs(gap - gap.round()).max() < 1e-9
    flat = Crystal([1, 1], [[0, 0, 0], [0.5, 0.5, 0.5]], np.diag([40.0, 0.2, 40.0]))
    assert symmetrized_like(flat, flat) is flat
    with pytest.raises(ValueError, match="same sites"):
        symmetrized_like(SALT.reduced(), like)
