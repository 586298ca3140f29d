"""Anchors of windows against loops, and what they are where the answer is known."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import normal
from unisci.forecasting.anchors import FAR, LAGS, LEAST, POOL, SMALLEST, anchors, series_structure, structure

L = 24


def window(*known_ranges: tuple[int, int], length: int = L):
    known = torch.zeros(1, length, dtype=torch.bool)
    for a, b in known_ranges:
        known[:, a:b] = True
    return known


def slow_structure(x, known, lag):
    pairs = [(t - lag, t) for t in range(lag, len(x)) if known[t] and known[t - lag]]
    return (sum((x[b] - x[a]) ** 2 for a, b in pairs) / len(pairs) if pairs else 0.0), len(pairs)


@given(length=st.integers(1, 12), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_the_structure_is_the_mean_square_change_of_known_pairs(length, seed):
    x = normal(2, length, seed=seed)
    known = torch.from_numpy(np.random.default_rng(seed).random((2, length)) < 0.7)
    d, pairs = structure(torch.where(known, x, torch.nan), known)
    for row in range(2):
        want = [slow_structure(x[row].tolist(), known[row].tolist(), lag) for lag in range(length)]
        np.testing.assert_allclose(d[row], [w[0] for w in want], atol=1e-10)
        assert pairs[row].tolist() == [w[1] for w in want]


def test_that_of_a_series_is_larger_the_fewer_its_pairs_are():
    y = normal(30, 2).numpy() + np.array([0.0, 1e6])
    y[4, 0] = np.nan
    found = series_structure(y)
    assert found.shape == (2, LAGS) and bool(found[:, 30 - LEAST + 1 :].isinf().all())
    for c in range(2):
        for lag in (1, 7, 26 - c):
            want, pairs = slow_structure(y[:, c], ~np.isnan(y[:, c]), lag)
            np.testing.assert_allclose(found[c, lag], want * (1 + POOL / pairs), rtol=1e-6)


def slow_anchor(x, known, whole, i):
    """(value, cost, lag, last) of the side before i."""
    before = [k for k in range(i) if known[k]]
    if not before:
        return None
    lag = min(range(i - before[-1], len(x)), key=lambda k: (whole[k], -k))
    lag = lag if i - lag >= 0 and known[i - lag] else i - before[-1]
    return x[i - lag], whole[lag], lag, before[-1]


@given(seed=st.integers(0, 999), share=st.floats(0.1, 0.9))
@settings(max_examples=30, deadline=None)
def test_anchors_are_those_of_a_loop(seed, share):
    draw = np.random.default_rng(seed)
    x, known = normal(1, 13, seed=seed), torch.from_numpy(draw.random((1, 13)) < share)
    whole = torch.from_numpy(draw.uniform(0.1, 1.5, (1, 13)))
    found = anchors(torch.where(known, x, 1e9), known, whole)
    d, pairs = structure(x - x[known].mean() if known.any() else x, known)
    square = ((pairs * d + POOL * whole) / (pairs + POOL))[0].tolist()
    seen = x[known]
    about = (float((seen - seen.mean()).square().sum()) + POOL) / (len(seen) + POOL) if len(seen) else 1.0
    for i in range(13):
        got = [float(v[0, i]) for v in found]
        if known[0, i] or not len(seen):
            assert got == [0, 1, 0]
            continue
        sides = []
        for values, marks, place in ((x[0], known[0], i), (x[0].flip(0), known[0].flip(0), 12 - i)):
            one = slow_anchor(values.tolist(), marks.tolist(), whole[0].tolist(), place)
            if one:
                value, cost, lag, last = one
                told = last - lag >= 0 and bool(marks[last - lag])
                newest = float(values[last])
                sides.append((cost, value, square[lag], newest, float(values[last - lag]) if told else newest))
        _, value, square_, newest, said = min(sides, key=lambda s: s[0])
        if square_ >= about:
            value, square_, said = float(seen.mean()), about, float(seen.mean())
        r = min(max(square_**0.5, SMALLEST), 2.0)
        np.testing.assert_allclose(got, [value, r, min(max((newest - said) / r, -FAR), FAR)], rtol=1e-6, atol=1e-9)


def test_a_random_walk_is_anchored_at_its_last_value():
    """Or at its nearest one in a gap; the spread grows as the root of the distance."""
    x, whole = normal(1, L).cumsum(1), torch.arange(L, dtype=torch.float64)[None] * 0.01
    known = window((0, 8), (14, 20))
    value, spread, _ = anchors(x, known, whole)
    assert torch.equal(value[0, 8:11], x[0, 7].expand(3)) and torch.equal(value[0, 11:14], x[0, 14].expand(3))
    assert torch.equal(value[0, 20:], x[0, 19].expand(4))
    assert bool((spread[0, 20:].diff() > 0).all()) and torch.allclose(spread[0, 8:11], spread[0, 11:14].flip(0))


def test_a_season_is_anchored_one_season_ago():
    """Of any lead up to many seasons ahead, with the error of the season before as its change."""
    season = torch.arange(L).double() % 6
    whole = structure(season[None] - 2.5, torch.ones(1, L, dtype=torch.bool))[0] + 0.01
    whole[:, 18:] = torch.inf
    x = season[None].clone()
    x[0, 11] += 0.5
    value, spread, change = anchors(x, window((0, 12)), whole)
    assert torch.equal(value[0, 12:17] % 6, season[12:17])
    assert torch.allclose(change[0, 12:17] * spread[0, 12:17], torch.full((5,), 0.5, dtype=torch.float64))


def test_noise_is_anchored_at_its_mean():
    x, whole = normal(1, 400), torch.full((1, 400), 2.0, dtype=torch.float64)
    known = window((0, 380), length=400)
    value, spread, _ = anchors(x, known, whole)
    assert torch.allclose(value[0, 380:], x[0, :380].mean()) and bool(((spread[0, 380:] - 1).abs() < 0.1).all())


@pytest.mark.parametrize("y", [np.zeros(30), np.full(30, np.nan), np.r_[np.full(29, np.nan), 1.0]])
def test_what_has_no_spread_is_finite(y):
    whole = series_structure(y[:, None])[None, 0, :30]
    known = torch.from_numpy(~np.isnan(y))[None] & (torch.arange(30) < 25)
    found = anchors(torch.from_numpy(y)[None], known, whole)
    assert all(bool(v.isfinite().all()) for v in found) and bool((found.spread > 0).all())
