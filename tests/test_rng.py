import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisci.rng import MASK, TRIES, Rng, mix, philox

ONES = (MASK,) * 4


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (ONES, (MASK, MASK), "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    words = philox(tuple(torch.tensor([c]) for c in counter), key)
    assert " ".join(f"{int(w):08x}" for w in words) == expected


def test_mix_is_the_finaliser_of_splitmix64():
    # The first outputs of SplitMix64 seeded with 1234567, as published with the generator.
    assert [mix(1234567, k) for k in range(3)] == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def kolmogorov(x: Tensor, cdf: Tensor) -> float:
    """Largest distance of the empirical distribution function of sorted x from cdf, times sqrt(n)."""
    n = len(x)
    step = torch.arange(n + 1, dtype=torch.float64) / n
    return float(torch.maximum((cdf - step[:-1]).abs(), (cdf - step[1:]).abs()).max()) * math.sqrt(n)


def test_uniform_has_the_uniform_distribution():
    u = Rng(3, torch.arange(50)).uniform("x", 0, (50, 4000)).flatten().double().sort().values
    assert abs(float(u.mean()) - 0.5) < 4 / math.sqrt(12 * len(u))
    assert abs(float(u.var()) - 1 / 12) < 4 * math.sqrt(1 / 180 / len(u))
    assert kolmogorov(u, u) < 1.95  # 0.1 % level


def test_normal_has_the_normal_distribution():
    z = Rng(4, torch.arange(50)).normal("x", 0, (50, 4000)).flatten().double().sort().values
    n = len(z)
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
    assert abs(float((z**3).mean())) < 4 * math.sqrt(15 / n)
    assert abs(float((z**4).mean()) - 3) < 4 * math.sqrt(96 / n)
    assert kolmogorov(z, torch.special.ndtr(z)) < 1.95


@pytest.mark.parametrize("a", [0.05, 0.5, 0.99, 1.0, 1.5, 8.0, 5e5])
def test_gamma_has_the_gamma_distribution(a):
    """Also that of -log u at a = 1; a mean and a variance of a, and at a = .05 draws down to 1e-90."""
    g = Rng(9, torch.arange(50)).gamma("x", 0, (50, 4000), a).flatten().sort().values
    n, at = len(g), torch.full((), a, dtype=torch.float64)
    assert g.dtype == torch.float64 and g[0] > 0
    assert abs(float(g.mean()) - a) < 4 * math.sqrt(a / n)
    assert abs(float(g.var()) - a) < 4 * math.sqrt((2 * a**2 + 6 * a) / n)
    assert kolmogorov(g, torch.special.gammainc(at, g)) < 1.95


@given(st.floats(0.03, 1e6), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_gamma_at_any_concentration(a, seed):
    g = Rng(seed, torch.arange(4000)).gamma("x", 0, (4000,), a, 0).sort().values
    assert bool(((g >= 0) & g.isfinite()).all())
    assert kolmogorov(g, torch.special.gammainc(torch.full((), a, dtype=torch.float64), g)) < 2.5  # 7 in 1e6 exceed it


@pytest.mark.parametrize("rejected", range(TRIES + 1))
def test_gamma_takes_the_first_try_that_is_accepted(rejected):
    """Word k is the normal of try k, TRIES + k its uniform. The normal of word 0, -6.3, is below every v; none left
    gives d."""
    normals = torch.tensor([0 if k < rejected else 2**30 + 2**27 * k for k in range(TRIES)])
    words = torch.cat([normals, torch.full((TRIES,), 2**20), torch.zeros(1, dtype=torch.int64)])
    with patch.object(Rng, "words", lambda self, field, step, shape, axes=1: words.expand(shape)):
        g = Rng(0, torch.arange(3)).gamma("x", 0, (3,), 2.0, 0)
    d = 2 - 1 / 3
    n = torch.special.ndtri((normals[min(rejected, TRIES - 1)].double() + 0.5) / 2**32)
    expected = d * (1 + n / math.sqrt(9 * d)) ** 3 if rejected < TRIES else torch.full_like(n, d)
    torch.testing.assert_close(g, expected.expand(3), rtol=1e-12, atol=0)


@pytest.mark.parametrize("word", [0, MASK, MASK - 127, 1])
def test_neither_end_is_ever_drawn(word):
    rng = Rng(0, torch.arange(2))
    with patch.object(Rng, "words", lambda self, field, step, shape, axes=1: torch.full(shape, word)):
        u, z = rng.uniform("x", 0, (2, 3)), rng.normal("x", 0, (2, 3))
        probs = torch.tensor([0.0, 0.5, 0.5, 0.0]).expand(2, 3, 4)
        k = rng.categorical("x", 0, probs)
        g = torch.cat([rng.gamma("x", 0, (2, 3), a) for a in (0.2, 1.0, 50.0)])
    assert bool((g.isfinite() & (g > 0)).all())
    assert float(u.min()) > 0 and float(u.max()) < 1
    assert bool(z.isfinite().all())
    assert set(k.flatten().tolist()) <= {1, 2}


@given(st.lists(st.floats(0, 5), min_size=2, max_size=6).filter(lambda w: sum(w) > 0.5), st.integers(0, 99))
@settings(max_examples=15, deadline=None)
def test_categorical_frequencies(weights, seed):
    p = torch.tensor(weights)
    n = 20000
    k = Rng(seed, torch.arange(n)).categorical("x", 0, p.expand(n, -1), 0)
    counts, expected = torch.bincount(k, minlength=len(p)).double(), n * p.double() / p.double().sum()
    assert bool((counts[expected == 0] == 0).all()), "a class of probability 0 was drawn"
    there = expected > 5
    chi2 = float(((counts - expected)[there] ** 2 / expected[there]).sum())
    df = max(1, int(there.sum()) - 1)
    assert chi2 < df + 6 * math.sqrt(2 * df) + 10


def test_draws_of_different_names_steps_ids_and_streams_are_independent():
    n = 40000
    rng = Rng(7, torch.arange(2))
    draw = lambda r, field="x", step=0: r.normal(field, step, (2, n))[0].double()
    base = draw(rng)
    others = {
        "field": draw(rng, "y"),
        "step": draw(rng, step=1),
        "id": rng.normal("x", 0, (2, n))[1].double(),
        "stream": draw(rng.at(0)),
        "other stream": draw(rng.at(1)),
        "nested": draw(rng.at(0).at(0)),
        "seed": draw(Rng(8, torch.arange(2))),
        "neighbouring site": base.roll(1),
    }
    for name, other in others.items():
        assert not torch.equal(base, other), name
        for f in (lambda z: z, torch.square):
            r = float(torch.corrcoef(torch.stack([f(base), f(other)]))[0, 1])
            assert abs(r) < 4.5 / math.sqrt(n), name
    assert len({rng.at(a).at(b).key for a in range(30) for b in range(30)}) == 900


def test_a_stream_is_a_function_of_its_arguments_alone():
    a, b = Rng(5, torch.tensor([3, 9])), Rng(5, torch.tensor([9]))
    assert torch.equal(a.at(2).uniform("x", 1, (2, 6))[1:], b.at(2).uniform("x", 1, (1, 6)))


@given(
    ids=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6, unique=True),
    n=st.integers(1, 6),
    inner=st.sampled_from([(), (3,), (2, 2)]),
    axes=st.integers(0, 2),
    data=st.data(),
)
@settings(max_examples=40, deadline=None)
def test_batch_mates_and_padding_change_no_draw(ids, n, inner, axes, data):
    rows = torch.tensor(data.draw(st.lists(st.integers(0, len(ids) - 1), min_size=1, max_size=4)))
    rng, room = Rng(1, torch.tensor(ids)), n + data.draw(st.integers(0, 3))
    shape = lambda b, sites: (b, *(sites,) * axes, *inner)
    small, large = shape(len(rows), n), shape(len(ids), room)
    cut = (rows, *(slice(n),) * axes)
    gamma = lambda rng, field, step, shape, axes: rng.gamma(field, step, shape, 0.5, axes)
    for draw in (Rng.uniform, Rng.normal, gamma):
        assert torch.equal(draw(rng[rows], "x", 0, small, axes), draw(rng, "x", 0, large, axes)[cut])
    probs = torch.rand(*large, 5)
    cut_probs = probs[cut]
    assert torch.equal(rng[rows].categorical("x", 0, cut_probs, axes), rng.categorical("x", 0, probs, axes)[cut])


def test_pair_draws_are_symmetric_and_otherwise_distinct():
    w = Rng(2, torch.arange(3)).words("bond", 0, (3, 7, 7, 2), 2)
    assert torch.equal(w, w.transpose(1, 2))
    lower = torch.ones(7, 7).tril().bool()
    assert len(w[:, lower].unique()) == 3 * 28 * 2


def test_words_use_all_32_bits():
    w = Rng(0, torch.arange(8)).words("x", 0, (8, 5000))
    bits = torch.stack([(w >> k) & 1 for k in range(32)]).double().mean((1, 2))
    assert float((bits - 0.5).abs().max()) < 4.5 * 0.5 / math.sqrt(w.numel())
    assert int(w.min()) >= 0 and int(w.max()) <= MASK


def test_errors_name_the_fault():
    with pytest.raises(ValueError, match="seed must be a non-negative integer, got -1"):
        Rng(-1, torch.arange(2))
    with pytest.raises(ValueError, match=r"\(3, 4\).*number of samples, 2"):
        Rng(0, torch.arange(2)).uniform("x", 0, (3, 4))
    for bad in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"concentration .* must be positive and finite, got {bad}"):
            Rng(0, torch.arange(2)).gamma("x", 0, (2, 4), bad)
