"""The toy of the CoRe^2 benchmark: what its points and its distance are, and that its table holds every way."""

import math

import pytest
import torch

from benchmarks.core2 import MEANS, Outcome, energy_distance, hits, table
from tests.oracles import normal


def test_points_of_the_classes_hit_as_stated():
    kind = torch.arange(40000) % 4
    share = hits(MEANS[kind] + normal(40000, 2), kind).double().mean().item()
    assert share == pytest.approx((0.5 + 0.5 * math.erf(0.5**0.5)) ** 2, abs=0.01) == pytest.approx(0.708, abs=0.011)


@pytest.mark.parametrize("m", [0.0, 0.5, 2.0])
def test_the_energy_distance_of_two_normal_laws(m):
    """2 E|N(m, 2)| - 2 E|N(0, 2)|; without bias, so that many small pairs have it as their mean."""
    mean = lambda m: 2 / math.pi**0.5 * math.exp(-(m**2) / 4) + m * math.erf(m / 2)
    found = energy_distance(normal(3000, 10, 1), m + normal(3000, 10, 1, seed=1))
    assert found.shape == (3000,)
    assert found.mean().item() == pytest.approx(2 * mean(m) - 2 * mean(0.0), abs=4 * found.std().item() / 3000**0.5)


def test_the_table_pools_seeds():
    lines = table([{"a": Outcome(12, 30, 0.1)}, {"a": Outcome(12, 40, 0.3)}], 50).splitlines()
    assert len(lines) == 2 and lines[1].split() == ["a", "12", "0.7000", "(0.6042-0.7811)", "0.600", "0.800", "0.2000"]
