"""Windows of several sources: each has its share of them, and is what its own source cuts."""

import numpy as np
import pandas as pd
import pytest
import torch

from unisci.domains.series import Panel, Series
from unisci.forecasting.mixed import Mixed, joined, slots
from unisci.forecasting.moments import Moments
from unisci.forecasting.windows import Source, WindowShape, places
from unisci.rng import Rng

SHAPE = WindowShape(6, 2)


def source(first: float, steps: tuple[int, ...], freq: str = "h", channels: int = 1) -> Source:
    """Series whose values count on from `first`."""
    made, value = [], first
    for k, n in enumerate(steps):
        times = pd.RangeIndex(n) if freq == "1" else pd.date_range("2024-01-01", periods=n, freq=freq)
        y = np.repeat(np.arange(value, value + n)[:, None], channels, 1).astype(float)
        made.append(Series(f"s{k}", times, y, tuple("abc"[:channels]), freq))
        value += n
    panel = Panel(tuple(made))
    return Source.of(panel, 0, Moments.of(panel))


SMALL, LARGE = source(0, (9, 12)), source(1000, (300, 40, 500), "D")


def drawn(mixed: Mixed, rows: int = 4000, seed: int = 0):
    return mixed(slots(rows), Rng(seed, torch.arange(rows)))


def test_each_source_has_its_weight_whatever_its_size():
    for weights, share in (((1, 1), 0.5), ((3, 1), 0.75), ((0.1, 0.9), 0.1)):
        batch = drawn(Mixed.of([SMALL, LARGE], SHAPE, weights))
        found = float((batch.state["y"].amax(1) < 500).float().mean())
        assert abs(found - share) < 4 * (share * (1 - share) / 4000) ** 0.5


def test_all_windows_of_a_source_are_equally_likely():
    mixed = Mixed.of([SMALL, LARGE], SHAPE, (1, 1))
    batch = drawn(mixed, 8000)
    few = batch.state["y"][batch.state["y"].amax(1) < 500]
    _, counts = few[:, -2].unique(return_counts=True)
    assert len(counts) == mixed.counts[0] == len(places(SMALL, SHAPE))
    expected = len(few) / mixed.counts[0]
    assert ((counts - expected).abs() < 4.5 * expected**0.5).all()


@pytest.mark.parametrize("k", [0, 1])
def test_a_window_is_what_its_own_source_cuts(k):
    """With a weight of nearly all, rows are of one source: windows of `places` of it, with its phases and spread."""
    own = (SMALL, LARGE)[k]
    mixed = Mixed.of([SMALL, LARGE], SHAPE, (1, 1e-12) if k == 0 else (1e-12, 1))
    batch, at = drawn(mixed, 200), places(own, SHAPE)
    every = own.cut(SHAPE, at.given["series"], at.given["origin"])
    row = (batch.state["y"][:, None] == every.state["y"]).all(2).float().argmax(1)
    for name in ("y", "observed", "phase", "spread"):
        a, b = ({**part.state, **part.given}[name] for part in (batch, every))
        assert torch.equal(a, b[row]), name
    assert torch.equal(batch.ids, torch.arange(200))


def test_draws_are_of_the_seed_and_the_row_alone():
    mixed = Mixed.of([SMALL, LARGE], SHAPE, (1, 2))
    a, b = drawn(mixed, 64), drawn(mixed, 64, seed=1)
    assert not torch.equal(a.state["y"], b.state["y"])
    rows = torch.tensor([40, 3, 17])
    part = mixed(slots(64)[rows], Rng(0, rows))
    assert torch.equal(part.state["y"], a.state["y"][rows])


def test_joined_series_stay_where_they_were():
    both = joined([SMALL, LARGE])
    assert len(both.values) == len(SMALL.values) + len(LARGE.values)
    starts = [float(both.values[i, 0]) for i in both.first]
    ends = [float(both.values[i - 1, 0]) for i in both.end]
    assert starts == [0, 9, 1000, 1300, 1340] and ends == [8, 20, 1299, 1339, 1839]


def test_what_does_not_go_together_is_refused():
    with pytest.raises(ValueError, match="same channels"):
        joined([SMALL, source(0, (30,), channels=2)])
    with pytest.raises(ValueError, match="longest series has 2 steps"):
        Mixed.of([SMALL, source(0, (2,))], SHAPE, (1, 1))
    for weights in ((1,), (1, 0), (1, -1)):
        with pytest.raises(ValueError, match="2 positive numbers"):
            Mixed.of([SMALL, LARGE], SHAPE, weights)
