"""Paths of many series: their law, that each is its own, and blocks that follow each other."""

import zlib

import numpy as np
import pytest
import torch

from tests.forecasting.ar_windows import TRUTH
from tests.forecasting.exact_windows import F64, GaussianNetwork, Spy, ar, conditional, model_of, panel, source_of
from tests.oracles import normal
from unisci.domains.series import Panel
from unisci.forecasting import drawing
from unisci.forecasting.drawing import draw_paths, path_ids, unusable
from unisci.forecasting.scales import scaled
from unisci.forecasting.trained import build
from unisci.forecasting.window_model import PATTERNS
from unisci.forecasting.windows import WindowShape
from unisci.networks.window_mlp import WindowMLPConfig
from unisci.rng import Rng

SHAPE = WindowShape(16, 8)
Y = torch.tensor(TRUTH, dtype=F64)


def test_the_paths_have_the_law_of_the_series():
    n, data = 1500, panel(Y[:16].numpy())
    source, past = source_of(data, 8), torch.arange(24) < 16
    _, loc, scale, _ = scaled(Y[None], past[None], source.spread)
    model = model_of(GaussianNetwork(-loc[0, 0] / scale[0, 0], ar(24) / scale[0, 0] ** 2), SHAPE, data)
    paths = draw_paths(model, source, ["s0"], 8, n, model.program(20, "dpm++2m"), 0)
    assert paths.shape == (1, n, 8, 1) and paths.dtype == np.float64
    x, (mean, std) = torch.from_numpy(paths[0, ..., 0]), conditional(ar(24), Y, past)
    assert (x.mean(0) - mean).square().mean().sqrt() < 0.05
    assert (x.std(0) / std - 1).abs().max() < 0.08
    near = conditional(ar(24), Y, past | (torch.arange(24) == 16))[1][0]  # of a step, given the one before it
    slope = torch.cov(x[:, :2].T)
    assert abs(slope[0, 1] / slope[0, 0] - 0.9) < 0.05 and abs(near - (1 - 0.81) ** 0.5) < 1e-9


def mlp(shape, data, blocks=2):
    """A network whose sums might round by the batch."""
    torch.manual_seed(0)
    model = build(WindowMLPConfig(1, width=48, hidden=64, blocks=blocks), shape, source_of(data), PATTERNS).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model


MANY = panel(*(normal(20 + 3 * k, 2, seed=k).cumsum(0).numpy() for k in range(5)))
TWO = WindowShape(10, 4, 2)


def paths_of(data, paths, h=4, seed=0, model=None):
    model = model or mlp(TWO, MANY)
    source = source_of(data, 12)
    return draw_paths(model, source, [s.name for s in data], h, paths, model.program(4), seed)


@pytest.fixture(scope="module")
def many():
    return paths_of(MANY, 9, 9)


@pytest.mark.parametrize("names", [["s3"], ["s4", "s0"], ["s1", "s2", "s0", "s4", "s3"]])
@pytest.mark.parametrize("paths", [1, 3, 9])
def test_a_path_is_the_same_whatever_else_is_drawn(names, paths, many):
    """To the last bit: alone, beside others in any order, and among more or fewer paths, beyond one horizon too."""
    found = paths_of(MANY.select(names), paths, 9)
    for k, name in enumerate(names):
        assert np.array_equal(found[k], many[int(name[1]), :paths])


@pytest.mark.parametrize("rows", [1, 7, 44])
def test_a_path_does_not_depend_on_its_chunk(rows, many, monkeypatch):
    monkeypatch.setattr(drawing, "ROWS", rows)
    assert np.array_equal(paths_of(MANY, 9, 9), many)


def test_seeds_paths_and_series_differ(many):
    assert not np.isclose(paths_of(MANY, 9, seed=1), many[:, :, :4]).any()
    assert len(np.unique(many[0, :, 0, 0])) == 9
    twins = Panel((MANY.series[0], MANY.series[0].__class__("twin", *vars_of(MANY.series[0]))))
    assert not np.isclose(*paths_of(twins, 3)).any()
    assert path_ids(["a"], 3).tolist() == [[3904355907, 3904355908, 3904355909]]
    last = zlib.crc32(b"n138901")
    assert (
        path_ids(["n138901", "b"], 30000)[0, [0, -1]].tolist() == [last, (last + 29999) % 2**32]
        and last > 2**32 - 30000
    )


def vars_of(s):
    return s.times, s.y, s.channels, s.freq


def test_the_first_horizon_is_the_same_when_rolled(many):
    assert np.array_equal(paths_of(MANY, 9, 4), many[:, :, :4])
    assert np.array_equal(paths_of(MANY, 9, 3), many[:, :, :3])
    assert many.shape == (5, 9, 9, 2)


@pytest.mark.parametrize("context", [10, 3])
def test_a_rolled_path_follows_its_own_past(context):
    """The second horizon is one that is drawn after series that hold the first, to the last bit; so with the third,
    where the context holds nothing else."""
    shape = WindowShape(context, 4, 2)
    model, one, names = mlp(shape, MANY), MANY.select(["s2"]), ["s2"]
    n, program = 20, mlp(shape, MANY).program(3)
    rolled = draw_paths(model, source_of(one, 12), names, 12, n, program, 0)[0]
    ids, past = path_ids(names, n).flatten(), shape.steps() < context
    for block in (1, 2):
        longer = panel(*(np.concatenate([one.series[0].y, path[: 4 * block]]) for path in rolled))
        source = source_of(longer, 4)
        batch = source.cut(shape, torch.arange(n), source.end - source.first)
        batch.given["spread"] = source_of(one).spread.expand(n, 2)
        batch.given["phase"] = source_of(one, 12).phases[len(one.series[0]) + 4 * block + 3].expand(n, -1)
        known = past.expand(n, -1)
        out = model.complete(batch, known, ~known, program, Rng(0, ids).at(block))
        want = out.unflatten(1, (2, -1))[..., context:].transpose(1, 2).numpy()
        assert np.array_equal(rolled[:, 4 * block : 4 * block + 4], want)


def test_covariates_of_the_horizon_are_seen_in_every_block():
    known = np.arange(40.0)[:, None]
    one = MANY.series[0].__class__("s0", *vars_of(MANY.series[0]), future=known)
    data = Panel((one,))
    model = model_of(Spy(), TWO, data)
    draw_paths(model, source_of(data, 12), ["s0"], 10, 1, model.program(1), 0)
    standard = (known - np.arange(20).mean()) / np.arange(20).std()
    for block, (_, _, _, given) in enumerate(model.denoiser.network.seen):
        rows = np.arange(10 + 4 * block, 24 + 4 * block)
        np.testing.assert_allclose(given["covariates"][0, :14], standard[rows], rtol=1e-5)
    assert len(model.denoiser.network.seen) == 3


def test_what_is_told_of_the_horizon_is_kept_and_sets_no_scale():
    """Only the first block is told."""

    def told(y, known):
        y, known = y.clone(), known.clone()
        y[:, 11], known[:, 11] = 1e6, True
        return y, known

    model, source = mlp(TWO, MANY), source_of(MANY, 8)
    names = [s.name for s in MANY]
    found = draw_paths(model, source, names, 8, 3, model.program(3), 0, told=told)
    free = draw_paths(model, source, names, 8, 3, model.program(3), 0)
    assert (found[:, :, 1, 0] == 1e6).all() and not (found[:, :, 5, 0] == 1e6).any()
    assert (found[:, :, [0, 2, 3], 0] < 1e5).all() and not np.array_equal(found[:, :, 0], free[:, :, 0])


def test_series_that_cannot_be_forecast():
    nan = np.nan
    y = np.ones((20, 2))
    gone, short, half, huge = y.copy(), y[:2].copy(), y.copy(), y.copy()
    gone[10:], half[10:, 1], huge[3, 0], huge[2, 0] = nan, nan, 1e300, -1e300
    data = panel(y, gone, short, half, huge)
    found = unusable(source_of(data, 4), TWO, [s.name for s in data])
    assert found.keys() == {"s1", "s3", "s4"}
    assert found["s1"] == found["s3"] == "has no value among its last 10 steps, from which it would be forecast"
    assert found["s4"] == "has values beyond 1e150: take other units"
