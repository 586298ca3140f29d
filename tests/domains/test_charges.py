"""Neutral compounds pass, impossible formulas are named, and the time is bounded."""

import time
from itertools import combinations_with_replacement, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import unisci.domains.charges as charges
from unisci.domains.charges import _states, unbalanced
from unisci.domains.crystal import parse_formula, sites_of


@pytest.mark.parametrize(
    "formula",
    # ordinary; mixed valence of a metal; one alone; metals alone; borides and silicides; no states known
    ["NaCl", "SrTiO3", "Na2Cl2", "LiFePO4", "Na2O2", "Fe3O4", "Si", "Cl2", "Cu3Au", "MgB4", "HeNa2"],
)
def test_no_warning(formula):
    assert unbalanced(sites_of(parse_formula(formula))) is None


@pytest.mark.parametrize("formula", ["NaCl2", "NaCl3", "CaF", "AlO", "Na3O", "SrTi5O3", "LiNaF"])
def test_warning(formula):
    text = unbalanced(sites_of(parse_formula(formula)))
    assert text.endswith(": no combination of common oxidation states is neutral")
    assert parse_formula(text.partition(":")[0]) == parse_formula(formula)


def test_the_order_and_the_multiple_do_not_count():
    assert unbalanced(np.array([17, 11, 17])) == unbalanced(np.array([11, 17, 17, 17, 17, 11]))
    assert unbalanced(np.array([17, 11, 17])).startswith("NaCl2:")


def test_an_element_may_be_of_two_states_in_two_formula_units(monkeypatch):
    monkeypatch.setattr(charges, "_states", {47: (1, 3), 8: (-2,)}.get)
    assert unbalanced(np.array([47, 8])) is None and unbalanced(np.array([47, 8, 8])) is not None


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_against_all_choices(seed):
    rng = np.random.default_rng(seed)
    metals = rng.choice([11, 20, 26, 29, 22, 58], 2, replace=False).tolist()
    nonmetal = int(rng.choice([8, 9, 17, 16, 7]))
    counts = rng.integers(1, 4, 3).tolist()
    mixed = [
        {sum(q) for q in combinations_with_replacement(_states(z), 2 * n)}
        for z, n in zip(metals, counts[:2], strict=True)
    ]
    totals = {a + b + 2 * counts[2] * q for a, b, q in product(*mixed, _states(nonmetal))}
    divided = np.gcd.reduce(counts)
    if divided == 1:
        assert (unbalanced(np.repeat([*metals, nonmetal], counts)) is None) == (0 in totals)


def test_time():
    unbalanced(np.array([11, 17]))
    worst = sites_of({25: 16, 42: 16, 74: 16, 44: 5, 7: 4, 6: 4, 16: 3})
    rng = np.random.default_rng(0)
    some = [np.repeat(rng.choice(100, 7, replace=False) + 1, rng.integers(1, 10, 7)) for _ in range(20)]
    for numbers in [worst, *some]:
        began = time.process_time()
        unbalanced(numbers)
        assert time.process_time() - began < 0.2
