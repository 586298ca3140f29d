import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit.Chem import Crippen

from tests.design.by_hand import BENZENE, ETHANOL, METHANE, PHENOL, TWO_PIECES, gaps, size
from unisci.design.targets import Above, Below, Between, Interval, Maximize, Target


def test_the_gap_of_an_interval_is_the_distance_to_it():
    molecules = (METHANE, ETHANOL, BENZENE, PHENOL, TWO_PIECES)  # of 1, 3, 6 and 7 atoms
    assert gaps(Between(size, 3, 6), *molecules) == [2, 0, 0, 1, None]
    assert gaps(Below(size, 3), *molecules) == [0, 0, 3, 4, None]
    assert gaps(Above(size, 6.5), *molecules) == [5.5, 3.5, 0.5, 0, None]
    assert gaps(Target(size, 5, 1), *molecules) == [3, 1, 0, 1, None]
    assert gaps(Target(size, 6, 0), *molecules) == [5, 3, 0, 1, None]
    logp = Crippen.MolLogP(ETHANOL.rdkit)
    assert Above("logP", 1).gap([ETHANOL])[0] == pytest.approx(1 - logp)
    assert Below("LOGP", -1).gap([ETHANOL])[0] == pytest.approx(logp + 1)


def test_maximize_is_met_wherever_it_has_a_value():
    assert gaps(Maximize(size, 1), METHANE, TWO_PIECES) == [0, None]
    assert Maximize(size, 1).values([METHANE, PHENOL]).tolist() == [1, 7]


@pytest.mark.parametrize("want", [Between("qed", 0, 1), Maximize("qed", 1)])
def test_no_molecules_have_no_gaps(want):
    assert want.gap([]).shape == (0,)


@given(st.floats(-3, 9), st.floats(0, 5))
def test_a_gap_is_zero_exactly_where_the_value_lies_inside(low, width):
    want = Between(size, low, low + width)
    for molecule, value in ((METHANE, 1), (ETHANOL, 3), (PHENOL, 7)):
        gap = want.gap([molecule])[0]
        assert gap >= 0 and (gap == 0) == (low <= value <= low + width)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Above(3, 1), "a property is a name or a function"),
        (lambda: Between("qed", 2, 1), r"no value of qed lies in 2\.\.1"),
        (lambda: Above("qed", math.nan), "no value of qed"),
        (lambda: Below("QED", math.nan), "no value of qed"),
        (lambda: Between("qed", 0, math.nan), "no value of qed"),
        (lambda: Above("qed", math.inf), "no value of qed"),
        (lambda: Below("qed", -math.inf), "no value of qed"),
        (lambda: Interval("qed", math.nan), "no value of qed"),
        (lambda: Target("qed", math.nan, 1), "no value of qed"),
        (lambda: Target("qed", 1, -1), "a tolerance is 0 or more, got -1"),
        (lambda: Target("qed", 1, math.nan), "a tolerance is 0 or more"),
        (lambda: Maximize("qed", 0), "a temperature is positive, got 0"),
        (lambda: Maximize("qed", -1), "a temperature is positive"),
        (lambda: Maximize("qed", math.nan), "a temperature is positive"),
    ],
)
def test_a_want_that_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
