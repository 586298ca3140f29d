import pytest

from tests.design.by_hand import METHANE, rings, size
from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
from unisci.design.targets import Above, Below, Between, Maximize, Target
from unisci.design.wants import Want, Wants, wants


@pytest.mark.parametrize(
    "a, b",
    [
        (Below("qed", 1), Above("qed", 2)),
        (Below("logP", 1), Above("LogP", 2)),  # the same property, however it is written
        (Below(size, 1), Above(size, 2)),
        (Between("qed", 0, 0.2), Target("qed", 0.5, 0.1)),
        (Without("F"), Contains("F", 2)),
        (Without("C"), Keep("CO")),
        (Without("O"), Formula("CH4O")),
        (Without("N"), Composition("CN")),
        (Keep("CO"), Keep("CN")),
        (Keep("CO"), Keep("CO")),
        (Formula("CH4"), Formula("C2H6")),
        (Formula("CH4O"), Contains("O", 2)),
        (Formula("CH4"), Keep("CO")),
        (Formula("C6H6"), Composition("CN")),
    ],
)
def test_contradictions_are_refused_in_either_order_and_across_others(a, b):
    for one, other in ((a, b), (b, a)):
        with pytest.raises(ValueError, match="cannot both be met"):
            one & other
        with pytest.raises(ValueError, match="cannot both be met"):
            one & Above("tpsa", 1) & other
        with pytest.raises(ValueError, match="cannot both be met"):
            wants([Above("tpsa", 1), one]) & Wants((other,))


@pytest.mark.parametrize(
    "a, b",
    [
        (Below("qed", 1), Above("qed", 1)),  # both ends are included
        (Below("qed", 1), Above("logp", 2)),
        (Below(size, 1), Above(rings, 2)),
        (Between("qed", 0, 1), Maximize("qed", 1)),
        (Without("F"), Contains("N")),
        (Without("H"), Formula("CH4")),
        (Without("N"), Keep("CO")),
        (Formula("CH4O"), Contains("O")),
        (Contains("N", 1), Contains("N", 3)),
        (Formula("CH4O"), Formula("OH4C")),
        (Formula("C7H8"), Keep("c1ccccc1")),
    ],
)
def test_what_can_be_met_together_is_joined(a, b):
    assert (a & b).parts == (a, b) == wants([a, b]).parts


def test_two_functions_of_one_name_are_refused_for_their_columns_would_be_one():
    for a, b in ((lambda m: size(m), lambda m: rings(m)), (size, type("size", (), {"__call__": 0})())):
        with pytest.raises(ValueError, match="give your function another"):
            Above(a, 1) & Below(b, 3)

    def logp(molecules):
        return size(molecules)

    with pytest.raises(ValueError, match="two properties have the name 'logp'"):
        Above("LogP", 1) & Maximize(logp, 1)


def test_wants_are_joined_in_their_order_and_say_what_they_are():
    joined = Between("logP", 1, 2) & Above("qed", 0.55) & Without("F") & (Keep("CO") & Contains("N", 2))
    assert isinstance(joined, Wants) and len(joined.parts) == 5
    assert str(joined) == "logp 1..2 & qed >= 0.55 & without F & keep CO & contains 2 N"
    assert wants(joined) is joined and wants(Above("qed", 1)).parts == (Above("qed", 1),)
    assert str(Below(size, 3) & Maximize(rings, 2)) == "size <= 3 & large rings"
    assert str(Formula("CHN") & Composition("CN") & Contains("C")) == "formula CHN & composition CN & contains C"
    assert Above(type("Scorer", (), {"__call__": lambda self, m: m})(), 1).name == "Scorer"


@pytest.mark.parametrize("bad", [["qed"], [Above("qed", 1), None]])
def test_what_is_no_want_is_refused(bad):
    with pytest.raises(ValueError, match="is not a want, such as"):
        wants(bad)


def test_a_want_without_a_gap_says_so():
    with pytest.raises(NotImplementedError, match="does not define gap"):
        Want().gap([METHANE])
