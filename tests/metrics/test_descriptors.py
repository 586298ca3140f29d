"""Descriptors and the distances between their distributions."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import Chem

from unisci.metrics.descriptors import atoms, bonds, profile, rings, sa, total_variation, wasserstein

numbers = st.lists(st.integers(-50, 50), min_size=1, max_size=30).map(lambda x: np.array(x, float))
ASPIRIN = Chem.MolFromSmiles("CC(=O)Oc1ccccc1C(=O)O")


def test_sa_of_aspirin_with_and_without_explicit_hydrogens():
    assert sa(ASPIRIN) == pytest.approx(1.58, abs=0.005)
    assert sa(Chem.AddHs(ASPIRIN)) == sa(ASPIRIN)


def test_parts_of_aspirin():
    for mol in (ASPIRIN, Chem.AddHs(ASPIRIN)):
        assert atoms(mol) == Counter(C=9, O=4)
        assert bonds(mol) == Counter(aromatic=6, single=5, double=2)
        assert rings(mol) == {"6": 1}
    assert rings(Chem.MolFromSmiles("C1CC2CC12")) == {"3": 1, "4": 1}


def test_profile_counts_repeats():
    p = profile(["C", "CCO", "C"])
    assert [len(v) for v in p.values.values()] == [3, 3, 3]
    assert p.values["logp"][0] == p.values["logp"][2] != p.values["logp"][1]
    assert sum(p.parts["atoms"], Counter()) == Counter(C=4, O=1)
    assert not any(p.failures.values())


@settings(deadline=None)  # the first call imports scipy
@given(numbers, numbers)
def test_wasserstein_equals_scipy(a, b):
    from scipy.stats import wasserstein_distance

    assert wasserstein(a, b) == pytest.approx(wasserstein_distance(a, b))
    assert wasserstein(a, a) == 0
    assert wasserstein(a, a + 3) == pytest.approx(3)


def test_total_variation():
    a, b = np.array([1.0, 3, 0]), np.array([2.0, 2, 4])
    assert total_variation(a, b) == pytest.approx(0.5)
    assert total_variation(a, 7 * a) == 0
    assert total_variation(a, 0 * a) == 1 and total_variation(0 * a, 0 * a) == 0
