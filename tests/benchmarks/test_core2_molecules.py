"""The molecular part of the CoRe^2 benchmark: what a hit is, which targets are wanted, and how calls are counted."""

import pytest
import torch
from torch import nn

from benchmarks.core2_molecules import MEAN, Tally, Watched, held_out
from unisci.domains.molecule import Molecule


def test_hits_are_of_valid_molecules_near_the_target():
    """Of benzene (logP 1.69, QED .443), cyclopropane (1.17, .356), and a carbon with five bonds."""
    bad = Molecule(("C", "F", "F", "F", "F", "F"), torch.zeros(6, 6, dtype=torch.int8).numpy())
    bad.bonds[0, 1:] = bad.bonds[1:, 0] = 1
    batch = Molecule.batch([Molecule.from_smiles("c1ccccc1"), Molecule.from_smiles("C1CC1"), bad, bad])
    tally = Tally()
    tally.add(batch, torch.tensor([[2.1, 0.44], [1.0, 0.5], [0.0, 0.4], [0.0, 0.4]]), 12, 0.5)
    assert tally.hits.tolist() == [2, 1, 1]  # cyclopropane lies farther from the mean than wanted, benzene nearer
    assert (tally.n, tally.valid, len(tally.smiles), tally.by_seed) == (4, 2, 2, [0.5])
    tally.add(batch, torch.tensor([[-1.0, 0.0], [-2.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), 24, 0.5)
    assert tally.hits.tolist() == [2, 1, 1] and MEAN > 0  # from below: neither reaches it
    row = tally.row("way").split()
    assert row[1:5] == ["18.0", "0.250", "+-", "0.153"] and row[12:15] == ["0.500", "0.500", "125"]


def test_calls_rows_and_seconds_are_counted():
    network = nn.Linear(3, 2)
    watched = Watched().watch(network, lambda inputs: len(inputs[0]))
    network(torch.zeros(5, 3)), network(torch.zeros(2, 3))
    assert (watched.calls, watched.rows) == (2, 7) and watched.cost == watched.seconds / 7 >= 0


@pytest.mark.slow
def test_targets_spread_over_the_held_out_molecules():
    one, two = held_out(50), held_out(50, 1)
    assert one.shape == (50, 2) and bool((one[:, 0].diff() >= -0.05).all())
    assert -2.5 < one[0, 0] < -1.3 and 1.9 < one[-1, 0] < 3
    assert (one[:, 0].diff() - one[:, 0].diff().mean()).abs().max() < 0.1
    assert not torch.equal(one[:, 1], two[:, 1])
