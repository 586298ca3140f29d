"""Resampling: counts in the mean, an unbiased normalising constant, groups that do not see each other."""

import math
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, normal
from unisci.batch import Field
from unisci.guidance.particles import (
    Weights,
    choose,
    effective_size,
    group_rng,
    log_mean,
    particle_rng,
    prior,
    reindex,
    resample,
    sample_particles,
    spread,
)
from unisci.guidance.twisted import Twisted
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VP
from unisci.rng import Rng

F64 = torch.float64
INF = math.inf


def ids(n, first=0):
    return Rng(0, torch.arange(first, first + n))


def test_a_particle_gets_its_share_of_successors():
    """P w / sum w in the mean over groups, and in every group that rounded down or up."""
    w = torch.tensor([0.05, 0.4, 0.0, 0.25, 0.3], dtype=F64)
    rows, log_weights = resample(w.log().expand(4000, 5), ids(4000), 1.0)
    parents = rows.reshape(4000, 5) - 5 * torch.arange(4000)[:, None]
    counts = torch.nn.functional.one_hot(parents, 5).sum(1).double()
    torch.testing.assert_close(counts.mean(0), 5 * w, atol=0.03, rtol=0)
    assert bool(((counts >= (5 * w - 1e-9).floor()) & (counts <= (5 * w + 1e-9).ceil())).all())
    torch.testing.assert_close(log_weights, torch.full_like(log_weights, math.log(0.2)))


def test_the_mean_of_any_function_survives_in_the_mean():
    """sum of w f over the particles, before and after, weights not normalised."""
    log_w, f = 2 * normal(1, 8), normal(8, seed=1)
    rows, after = resample(log_w.expand(20000, 8), ids(20000), 1.0)
    taken = f[(rows % 8).reshape(20000, 8)]
    want = (log_w.exp() * f).mean()
    assert (after.exp() * taken).mean().item() == pytest.approx(want.item(), abs=0.02)
    torch.testing.assert_close(log_mean(after), log_mean(log_w).expand(20000))


def test_threshold_and_identity_elsewhere():
    """Only groups below it are drawn anew: effective sizes 4, 2 and 1 of 4."""
    log_w = torch.tensor([[0.0, 0, 0, 0], [0, 0, -INF, -INF], [-INF, -INF, 3, -INF]], dtype=F64)
    torch.testing.assert_close(effective_size(log_w), torch.tensor([4.0, 2.0, 1.0], dtype=F64))
    for threshold, changed in ((0.0, []), (0.25, []), (0.3, [2]), (0.51, [1, 2]), (1.0, [1, 2])):
        rows, after = resample(log_w, ids(3), threshold)
        rows = rows.reshape(3, 4)
        for i in range(3):
            if i not in changed:
                assert torch.equal(rows[i], 4 * i + torch.arange(4)) and torch.equal(after[i], log_w[i])
        if 2 in changed:
            assert torch.equal(rows[2], torch.full((4,), 10))
            torch.testing.assert_close(after[2], torch.full((4,), 3 - math.log(4), dtype=F64))
        if 1 in changed:
            assert rows[1].tolist() == [4, 4, 5, 5]


def test_without_any_weight_a_group_stays():
    dead = torch.full((2, 3), -INF)
    rows, after = resample(dead, ids(2), 1.0)
    assert torch.equal(rows, torch.arange(6)) and torch.equal(after, dead)
    assert bool((log_mean(dead) == -INF).all())
    torch.testing.assert_close(effective_size(dead), torch.tensor([3.0, 3.0]))
    assert (choose(dead, ids(2)) // 3).tolist() == [0, 1]


def test_choose_draws_by_weight():
    w = torch.tensor([0.1, 0.0, 0.6, 0.3], dtype=F64)
    rows = choose((5 * w).log().expand(8000, 4), ids(8000))
    assert torch.equal(rows // 4, torch.arange(8000))
    share = torch.bincount(rows % 4, minlength=4) / 8000
    torch.testing.assert_close(share.double(), w, atol=0.02, rtol=0)
    assert share[1] == 0


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 99))
def test_a_group_does_not_depend_on_its_batch(n, p, seed):
    log_w = 2 * normal(n, p, seed=seed)
    rows, after = resample(log_w, ids(n), 0.7)
    kept = choose(log_w, ids(n))
    for i in range(n):
        alone, weights = resample(log_w[i : i + 1], ids(1, i), 0.7)
        assert torch.equal(alone + i * p, rows[i * p : (i + 1) * p]) and torch.equal(weights[0], after[i])
        assert choose(log_w[i : i + 1], ids(1, i)) + i * p == kept[i]


def test_draws_of_particles_and_of_groups():
    own = particle_rng(Rng(3, torch.tensor([5, 0, 7])), 4)
    assert own.ids.tolist() == [20, 21, 22, 23, 0, 1, 2, 3, 28, 29, 30, 31]
    assert group_rng(own, 4).ids.tolist() == [5, 0, 7] and group_rng(own.at(2), 4).key == own.at(2).key
    last = 2**32 // 4 - 1
    assert particle_rng(Rng(0, torch.tensor([last])), 4).ids[-1] == 2**32 - 1
    with pytest.raises(ValueError, match=f"sample {last + 1} with 4 particles leaves the ids .* below {2**30}"):
        particle_rng(Rng(0, torch.tensor([last + 1])), 4)
    with pytest.raises(ValueError, match="at least one particle, got 0"):
        particle_rng(ids(2), 0)
    with pytest.raises(ValueError, match="12 rows are no groups of 5"):
        group_rng(own, 5)


class Memo(NamedTuple):
    x: torch.Tensor
    rest: object


def test_memories_of_any_nesting_follow_their_particles():
    rows, x = torch.tensor([1, 1, 0, 3]), torch.arange(4.0)
    memory = {"a": Memo(x[:, None], [x, (x, None)]), "step": 3, "scalar": torch.tensor(2.0), "table": torch.arange(7)}
    got = reindex(memory, rows)
    assert isinstance(got["a"], Memo) and isinstance(got["a"].rest, list) and isinstance(got["a"].rest[1], tuple)
    assert torch.equal(got["a"].x, x[rows][:, None]) and torch.equal(got["a"].rest[0], x[rows])
    assert torch.equal(got["a"].rest[1][0], x[rows]) and got["a"].rest[1][1] is None
    assert got["step"] == 3 and got["scalar"] == 2 and torch.equal(got["table"], torch.arange(7))
    assert reindex(None, rows) is None


def test_starts():
    """Every particle its own noise, in the law of the prior; group-major; the same in any batch."""
    schema = {"k": Field("site", (), ("a", "b")), "x": Field("site", (2,))}

    both = GaussianOracle({"k": absorbing(2), "x": VP()}, schema=schema)
    like = {"k": torch.zeros(3, 4, dtype=torch.long), "x": torch.zeros(3, 4, 2)}
    x = prior(both, like, ids(3), 5)
    assert x["k"].shape == (15, 4) and bool((x["k"] == 2).all()) and x["x"].shape == (15, 4, 2)
    assert len(x["x"].flatten(1).unique(dim=0)) == 15
    alone = prior(both, {k: v[2:] for k, v in like.items()}, ids(1, 2), 5)
    assert torch.equal(alone["x"], x["x"][10:])
    assert spread({"x": torch.tensor([[1], [2]])}, 2)["x"].flatten().tolist() == [1, 1, 2, 2]


def test_the_twist_guides_and_is_undone():
    """After resampling, path + twist is even, and the mean of w f under path alone is what it was."""
    n, p = 20000, 4
    path, twist = normal(1, p).expand(n, p), normal(1, p, seed=1).expand(n, p)
    memory = Weights(path, twist, torch.ones(n))
    rows, after = memory.resample(particle_rng(ids(n), p), 1.0)
    even = after.path + after.twist
    torch.testing.assert_close(even, log_mean(path + twist)[:, None].expand(n, p))
    f = torch.tensor([1.0, -2.0, 0.5, 3.0], dtype=F64)
    got = (after.path.exp() * f[(rows % p).reshape(n, p)]).mean()
    assert got.item() == pytest.approx((path[0].exp() * f).mean().item(), rel=0.02)
    torch.testing.assert_close(after.ess, effective_size(path + twist))


def test_particles_without_weight_stay_without():
    memory = Weights.even(2, 2, torch.device("cpu")).gain(torch.tensor([-INF, 1.0]))
    for later in (INF, math.nan, 5.0):
        assert memory.gain(torch.tensor([later, 1.0])).path.tolist() == [[-INF, 2.0]]
    barred = Weights.even(2, 2, torch.device("cpu"))._replace(twist=torch.full((1, 2), -INF, dtype=F64))
    rows, after = barred.resample(ids(2), 1.0)
    assert rows.tolist() == [0, 1] and after.path.tolist() == [[0.0, 0.0]]  # h = 0 for now is no end


def test_what_is_refused():
    law, times = GaussianOracle(VP()), torch.tensor([1.0, 0.5, 0.0], dtype=F64)
    solver = Twisted(log_h0=lambda x: x[:, 0], twist=lambda at: None, particles=3)
    with pytest.raises(ValueError, match="2 samples of 3 particles are not 5 rows"):
        sample_particles(law, normal(5, 1), times, solver, ids(2))
    bad = Twisted(log_h0=lambda x: torch.full((6,), math.nan), twist=lambda at: None, particles=3)
    with pytest.raises(ValueError, match=r"weights of samples \[0, 1\] are nan"):
        sample_particles(law, normal(6, 1), times, bad, ids(2))
    for particles in (0, 4):
        with pytest.raises(ValueError, match="6 rows is no groups"):
            Weights.even(6, particles, torch.device("cpu"))
