"""Plain arrays of crystals, and sets of them."""

import numpy as np
import pytest

from tests.metrics.crystals import delafossite, perovskite, rock_salt, triclinic
from unisci.domains.crystal import Crystal
from unisci.metrics.cells import Reference, cell


def test_counts_and_formula():
    c = cell(delafossite())
    assert c.counts == ((3, 3), (8, 6), (27, 3))
    assert c.formula == ((3, 1), (8, 2), (27, 1))


def test_a_crystal_a_structure_and_a_cell_give_the_same():
    s = triclinic()
    for c in (cell(Crystal.from_structure(s)), cell(cell(s))):
        np.testing.assert_array_equal(c.numbers, s.atomic_numbers)
        np.testing.assert_allclose(c.lattice, s.lattice.matrix)
        np.testing.assert_allclose(c.fractional % 1, s.frac_coords % 1)
    assert cell(s).structure == s


def test_the_reference_is_hashed_by_its_content_in_order():
    a, b = (Reference.from_crystals(name, [rock_salt(), perovskite()]) for name in "ab")
    assert a.sha256 == b.sha256 != Reference.from_crystals("a", [perovskite(), rock_salt()]).sha256
    assert a.sha256 != Reference.from_crystals("a", [rock_salt(5.7), perovskite()]).sha256


def test_the_drawn_are_distinct_and_at_most_limit():
    r = Reference.from_crystals("a", [rock_salt(a) for a in (5.0, 5.2, 5.4, 5.6)], limit=3)
    assert len({c.lattice[0, 0] for c in r.drawn}) == 3 and len(r.cells) == 4


def test_refuses_nothing_and_what_is_unsound():
    with pytest.raises(ValueError, match="'a' has no crystal"):
        Reference.from_crystals("a", [])
    with pytest.raises(ValueError, match=r"a\[0\] is no crystal: no structure"):
        Reference.from_crystals("a", [None])
