"""Groups of equal crystals and what is known of them, counted by hand."""

from tests.metrics.crystals import caesium_chloride, delafossite, moved, perovskite, rattled, rock_salt, triclinic
from unisci.metrics.cells import cells
from unisci.metrics.structure_groups import group, known, same
from unisci.metrics.structure_match import TOLERANCES
from unisci.metrics.workers import Answer


class Here:
    """Workers in this process that count; a pair with `stuck` first times out."""

    def __init__(self, stuck=None):
        self.stuck, self.calls = stuck, 0

    def map(self, function, tasks):
        answers = []
        for task in tasks:
            self.calls += 1
            late = task[0] is self.stuck
            answers.append(Answer(None, "time out") if late else Answer(function(*task), None))
        return answers


def test_same_in_any_cell():
    a, b, c = cells([rock_salt(), moved(rock_salt().get_primitive_structure()), caesium_chloride()], "x")
    assert same(a, b, TOLERANCES) and not same(a, c, TOLERANCES)


def test_same_looks_at_the_largest_displacement_not_the_mean():
    """As pymatgen's grouping does: one site of twelve far off is another structure although the mean is small."""
    base = triclinic() * (2, 1, 1)
    off = base.copy()
    off.translate_sites([0], [0, 0, 1.4], frac_coords=False)
    assert not same(*cells([off, base], "x"), TOLERANCES)


def test_groups_by_hand():
    small = rock_salt().get_primitive_structure()
    crystals = cells(
        [small, perovskite(), caesium_chloride(), moved(small), moved(caesium_chloride()), triclinic()], "x"
    )
    workers = Here()
    first, failures = group(crystals, workers)
    assert first.tolist() == [0, 1, 2, 0, 2, 5] and failures == {}
    assert workers.calls == 4  # three with the first NaCl, then the two left; other formulas are not compared


def test_a_comparison_that_fails_counts_as_different():
    crystals = cells([caesium_chloride(), caesium_chloride(), moved(caesium_chloride())], "x")
    first, failures = group(crystals, Here(stuck=crystals[0]))
    assert first.tolist() == [0, 1, 1] and failures == {"time out": 2}
    found, failures = known(crystals, crystals[1:2], Here(stuck=crystals[0]))
    assert found.tolist() == [False, True, True] and failures == {"time out": 1}


def test_known_by_hand():
    small = rock_salt().get_primitive_structure()
    ours = cells([moved(caesium_chloride()), small, triclinic(), rattled(triclinic(), 0.05)], "x")
    found, failures = known(ours, cells([delafossite(), small, moved(triclinic())], "y"), Here())
    assert found.tolist() == [False, True, True, True] and failures == {}
    assert [f.tolist() for f, _ in (known([], ours, Here()), known(ours[:1], [], Here()))] == [[], [False]]


def test_nothing_to_group():
    assert group([], Here())[0].tolist() == []
