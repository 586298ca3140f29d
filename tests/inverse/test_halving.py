"""Successive halving on distances that are known."""

import pytest
import torch

from tests.oracles import normal
from unisci.inverse.halving import distances, race, split_half

F64 = torch.float64


def lookup(table):
    """Starts and conditions that are row and column numbers, and a metric that looks the distance up."""
    starts, conditions = (torch.arange(n, dtype=F64)[:, None] for n in table.shape)
    solve = lambda x, y: torch.cat([x, y], 1)
    metric = lambda h, z: table[h[:, 0].long(), z[:, 0].long()]
    return solve, metric, starts, conditions, conditions


def test_distances():
    table = normal(5, 7).float()
    found = distances(*lookup(table))
    assert torch.equal(found, table.double())


def test_race():
    """After each round the worse half leaves, by all that was seen of it; nothing is asked twice."""
    table = normal(16, 32).abs()
    asked = torch.zeros(16, 32)
    solve, metric, starts, conditions, references = lookup(table)

    def counting(h, z):
        asked[h[:, 0].long(), h[:, 1].long()] += 1
        return metric(h, z)

    left, scores, first, solutions = race(solve, counting, starts, conditions, references, (8, 4, 2, 1))
    kept = torch.arange(16)
    for n in (4, 8, 16):
        kept = kept[table[kept, :n].mean(1).argsort()[: len(kept) // 2]]
    kept = kept[table[kept].mean(1).argsort()]
    assert torch.equal(left, kept)
    torch.testing.assert_close(scores, table[kept], rtol=0, atol=0)
    torch.testing.assert_close(first, table[:, :4], rtol=0, atol=0)
    assert asked.max() == 1 and asked.sum() == solutions == 160


def test_a_race_leaves_one_or_more():
    left, *_ = race(*lookup(normal(3, 32).abs()), (8, 4, 2, 1))
    assert len(left) == 1


def test_split_half():
    """Columns that share a part: the correlation of half means is that of the whole, foretold from few columns."""
    shared, own = normal(4000, 1), normal(4000, 64, seed=1)
    whole = split_half(shared + 3 * own, 64)
    assert whole == pytest.approx(1 / (1 + 9 / 32), abs=0.03)
    assert split_half((shared + 3 * own)[:, :8], 64) == pytest.approx(whole, abs=0.05)
    assert split_half(torch.stack([normal(50), -normal(50)], 1), 64) == pytest.approx(-1, abs=1e-12)
