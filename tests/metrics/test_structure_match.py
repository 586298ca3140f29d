"""Matches: exact cases, the two settings side by side, and every reason of a miss."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Structure

from tests.metrics.crystals import caesium_chloride, delafossite, moved, perovskite, rattled, rock_salt, triclinic
from unisci.metrics.cells import cell, cells
from unisci.metrics.structure_match import TOLERANCES, Matching, everyone, match, prepare
from unisci.metrics.workers import TIME_OUT, Workers


@pytest.fixture(scope="module")
def pool():
    with Workers(1, 60, prepare) as workers:
        yield workers


def test_a_crystal_matches_itself_in_any_orientation_origin_basis_and_order(pool):
    truth = [perovskite(), triclinic(), delafossite(), caesium_chloride(), rock_salt().get_primitive_structure()]
    for setting in match([moved(s, i) for i, s in enumerate(truth)], truth, workers=pool):
        assert setting.reasons == (None,) * 5
        assert setting.rms.max() < 1e-4


def test_one_site_off_by_a_tenth_of_an_angstrom(pool):
    """d = 0.1 on one of n = 5 sites; less the mean shift that is sqrt(n - 1) d / n, over (V / n)^(1/3)."""
    truth = perovskite(3.9)
    off = truth.copy()
    off.translate_sites([1], [0.1, 0, 0], frac_coords=False)
    larger = Structure(off.lattice.scale(2 * off.volume), off.species, off.frac_coords)
    expected = np.sqrt(4) * 0.1 / 5 / (3.9**3 / 5) ** (1 / 3)
    for setting in match([off, larger], [truth, truth], workers=pool):
        np.testing.assert_allclose(setting.rms, [expected, expected], rtol=1e-6)  # the volume does not matter


def test_a_supercell_is_found_only_after_reduction(pool):
    cube, small = rock_salt(), rock_salt().get_primitive_structure()
    primitive, given = match([cube, small], [small, cube], workers=pool)
    assert primitive.reasons == (None, None) and primitive.rms.max() < 1e-6
    assert given.reasons == ("number of sites",) * 2 and np.isnan(given.rms).all()


def test_the_reduction_misses_a_good_prediction_of_a_centred_cell(pool):
    """R-3m: the truth reduces to 4 sites, the prediction 0.1 angstrom off stays at 12."""
    truth = [delafossite()] * 2
    primitive, given = match([rattled(truth[0], 0.1, i) for i in range(2)], truth, workers=pool)
    assert primitive.reasons == ("no match",) * 2
    assert given.reasons == (None,) * 2
    assert given.rms.max() < 0.1


def test_both_settings_are_those_of_pymatgen(pool):
    """The shortcuts change nothing, over pairs that match, that do not, and that reduce on one side or both."""
    cube, small = rock_salt(), rock_salt().get_primitive_structure()
    pairs = [(rattled(s, d, i), s) for i, s in enumerate((triclinic(), small)) for d in (0.01, 0.3, 0.9)]
    pairs += [(rattled(delafossite(), d), delafossite()) for d in (0.01, 0.3)]
    pairs += [(cube, caesium_chloride()), (caesium_chloride(), cube), (small, cube), (caesium_chloride(), small)]
    settings = match([a for a, _ in pairs], [b for _, b in pairs], workers=pool)
    for setting, primitive_cell in zip(settings, (True, False), strict=True):
        matcher = StructureMatcher(0.3, 0.5, 10, primitive_cell=primitive_cell)
        expected = [matcher.get_rms_dist(a, b) for a, b in pairs]
        np.testing.assert_allclose(setting.rms, [np.nan if e is None else e[0] for e in expected], atol=1e-9)
    assert {r for r in settings.primitive.reasons} == {None, "no match"}


def test_every_miss_has_its_reason(pool):
    truth = perovskite()
    flat = SimpleNamespace(lattice=np.diag([1.0, 1.0, 0.05]), numbers=np.array([11]), fractional=np.zeros((1, 3)))
    bad = SimpleNamespace(lattice=np.eye(3) * np.nan, numbers=np.array([11]), fractional=np.zeros((1, 3)))
    odd = SimpleNamespace(lattice=np.eye(3), numbers=np.array([0]), fractional=np.zeros((1, 3)))
    none = SimpleNamespace(lattice=np.eye(3), numbers=np.array([], int), fractional=np.zeros((0, 3)))
    mixed = Structure(truth.lattice, [{"Sr": 0.5, "Ca": 0.5}], [[0, 0, 0]])
    wrong = [None, flat, bad, odd, none, mixed, rock_salt(), rattled(triclinic(), 2.0)]
    reasons = ["no structure", "volume", "not finite", "no such element", "no atoms", "partly occupied sites"]
    for setting in match(wrong, [truth] * 7 + [triclinic()], workers=pool):
        assert list(setting.reasons) == [*reasons, "composition", "no match"]
        assert np.isnan(setting.rms).all()


def test_a_pair_over_its_time_is_a_miss_that_is_counted():
    with Workers(1, 1e-4, prepare) as workers:
        for setting in match([perovskite(), None], [perovskite(), perovskite()], workers=workers):
            assert setting.reasons == (TIME_OUT, "no structure")


def test_the_default_workers():
    assert match([rock_salt()], [rock_salt()]).primitive.reasons == (None,)


def test_refuses_unequal_lengths_and_an_unsound_truth():
    with pytest.raises(ValueError, match="1 generated crystals but 0 true"):
        match([perovskite()], [])
    with pytest.raises(ValueError, match=r"truth\[1\] is no crystal: no structure"):
        match([perovskite()] * 2, [perovskite(), None])


def test_tolerances_are_used(pool):
    off = rattled(triclinic(), 0.4)
    assert match([off], [triclinic()], workers=pool).primitive.rms[0] > 0.05
    assert match([off], [triclinic()], TOLERANCES._replace(stol=0.05), pool).primitive.reasons == ("no match",)


def test_best_takes_the_least_and_names_what_broke():
    nan = float("nan")
    m = Matching(np.array([0.3, 0.1, nan, nan, nan]), (None, None, "no match", "no match", TIME_OUT))
    best = m.best([[0, 1, 2], [2, 3, 4], [2, 3], [0]])
    np.testing.assert_array_equal(best.rms, [0.1, nan, nan, 0.3])
    assert best.reasons == (None, TIME_OUT, "no match", None)


def test_everyone_pairs_equal_formulas_once():
    truth = cells([caesium_chloride(), rock_salt(), perovskite()], "truth")
    generated = [rock_salt(), None, caesium_chloride()]
    pairs, groups = everyone(generated, truth)
    assert sorted(pairs) == [(0, 1), (2, 0), (2, 1)]  # `match` has (0, 0) already; nothing has SrTiO3's formula
    assert [[p if p < 3 else pairs[p - 3] for p in g] for g in groups] == [[0, (2, 0)], [1, (0, 1), (2, 1)], [2]]


def test_a_crystal_a_structure_and_a_cell_are_one(pool):
    s = triclinic()
    crystal = SimpleNamespace(numbers=np.array(s.atomic_numbers), fractional=s.frac_coords, lattice=s.lattice.matrix)
    results = match([s, crystal, cell(s)], [crystal, cell(s), s], workers=pool)
    assert Counter(results.primitive.reasons) == {None: 3}
