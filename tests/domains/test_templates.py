"""Retrieval: the nearest chemistry by enumeration, every site its element, the volume as fitted."""

from itertools import permutations

import numpy as np
import pytest

from unisci.domains.crystal import Crystal
from unisci.domains.elements import distances
from unisci.domains.templates import TemplateLibrary, _assign, _assign_each, species


def rock_salt(a: int, b: int, length: float = 4.0) -> Crystal:
    lattice = np.array([[0, 0.5, 0.5], [0.5, 0, 0.5], [0.5, 0.5, 0]]) * length * 2**0.5
    return Crystal([a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], lattice).niggli()


def perovskite(a: int, b: int, x: int, length: float = 4.0) -> Crystal:
    return Crystal(
        [a, b, x, x, x], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]], np.eye(3) * length
    )


LIBRARY = TemplateLibrary.from_crystals(
    [rock_salt(11, 17), rock_salt(12, 8), rock_salt(55, 35, 5.0), perovskite(38, 22, 8), perovskite(20, 14, 8, 3.6)]
)


def test_the_library_gives_back_its_crystals():
    assert (
        len(LIBRARY) == 5
        and LIBRARY[3].formula == "SrTiO3"
        and LIBRARY[2].volume == pytest.approx(rock_salt(55, 35, 5.0).volume)
    )


def test_chemically_nearest_first():
    found = LIBRARY.retrieve(np.array([19, 17]), 5)  # KCl
    assert [LIBRARY[t.row].formula for t in found] == ["NaCl", "CsBr", "MgO"]
    assert [t.distance for t in found] == sorted(t.distance for t in found)
    d = distances()
    assert found[0].distance == pytest.approx((d[19, 11] + d[17, 17]) / 2)


def test_each_site_takes_the_element_of_its_kind():
    template = LIBRARY.retrieve(np.array([22, 56, 8, 8, 8]), 1)[0]
    assert template.crystal.formula == "BaTiO3" and template.row == 3
    assert template.crystal.fractional[template.crystal.numbers == 22].tolist() == [[0.5, 0.5, 0.5]]


def test_itself_is_at_distance_zero_with_its_own_volume_and_can_be_left_out():
    found = LIBRARY.retrieve(np.array([38, 22, 8, 8, 8]), 2)
    assert found[0].row == 3 and found[0].distance == 0
    np.testing.assert_allclose(found[0].crystal.lattice, LIBRARY[3].lattice)
    assert [t.row for t in LIBRARY.retrieve(np.array([38, 22, 8, 8, 8]), 2, without=[3])] == [4]


def test_the_volume_is_that_of_the_elements():
    pairs = [(a, b) for a in (3, 9, 11, 17) for b in (3, 9, 11, 17) if a <= b]
    crystals = [rock_salt(a, b, (20.0 + 2 * a + 2 * b) ** (1 / 3)) for a, b in pairs]  # a sum over elements
    library = TemplateLibrary.from_crystals(crystals)
    for c in crystals:
        assert library.atomic_volumes[c.numbers].sum() == pytest.approx(c.volume, rel=1e-6)
    template = library.retrieve(np.array([3, 17]), 2, without=[pairs.index((3, 17))])[0]
    assert template.distance > 0
    assert template.crystal.volume == pytest.approx(library.atomic_volumes[[3, 17]].sum(), rel=1e-6)


def test_an_element_without_examples_takes_the_mean_volume():
    volumes = LIBRARY.atomic_volumes
    assert volumes[92] == volumes[10] and 5 < volumes[92] < 60


def test_slack_lets_further_assignments_of_a_row_in():
    library = TemplateLibrary.from_crystals([rock_salt(11, 19), rock_salt(12, 8)])
    numbers = np.array([37, 55])  # Rb and Cs on the sites of Na and K, or of K and Na
    assert [c.species.tolist() for c in library.nearest(numbers, 5)] == [[11, 19], [8, 12]]
    found = library.nearest(numbers, 5, slack=10.0)
    assert [c.species.tolist() for c in found] == [[11, 19], [19, 11], [8, 12], [12, 8]]
    assert library.substitute(found[1], numbers).crystal.numbers.tolist() == [55, 37]


def test_nothing_of_the_same_counts():
    assert LIBRARY.retrieve(np.array([1, 1, 1, 8]), 3) == []


def test_assignments_are_the_best_of_all():
    rng = np.random.default_rng(0)
    d = distances()
    for _ in range(20):
        counts = np.sort(rng.integers(1, 3, 4))
        elements, theirs = rng.choice(94, 4, replace=False) + 1, rng.choice(94, (3, 4)) + 1
        cost, assigned = _assign(elements, counts, theirs)
        groups = [[s for s in range(4) if counts[s] == c] for c in sorted(set(counts.tolist()))]
        other, _ = _assign_each(elements, counts, theirs, groups, d)
        for m in range(3):
            allowed = (p for p in permutations(range(4)) if all(counts[i] == counts[j] for i, j in enumerate(p)))
            best = min(sum(counts[i] * d[elements[i], theirs[m, j]] for i, j in enumerate(p)) for p in allowed)
            assert cost[m].min() == pytest.approx(best / counts.sum()) == pytest.approx(other[m])
            assert (d[elements, assigned[m, cost[m].argmin()]] * counts).sum() == pytest.approx(best)


def test_species():
    elements, counts = species(np.array([8, 38, 8, 22, 8]))
    assert elements.tolist() == [22, 38, 8] and counts.tolist() == [1, 1, 3]


def test_an_empty_library_is_refused():
    with pytest.raises(ValueError, match="no crystals"):
        TemplateLibrary.from_crystals([])
