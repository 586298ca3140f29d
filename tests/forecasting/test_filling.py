"""Gaps filled by draws: their law, and that nothing else changes."""

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch

from tests.forecasting.ar_windows import TRUTH
from tests.forecasting.exact_windows import F64, GaussianNetwork, Spy, ar, conditional, model_of, panel, source_of
from tests.forecasting.test_drawing import mlp
from tests.oracles import normal
from unisci.domains.series import Panel
from unisci.domains.series_frames import read_frame
from unisci.forecasting.filling import Filled, fill_paths
from unisci.forecasting.moments import Moments
from unisci.forecasting.scales import scaled
from unisci.forecasting.windows import WindowShape

SHAPE = WindowShape(8, 4)  # windows of 12 steps, 6 apart
nan = np.nan


def fill(data, paths=3, shape=SHAPE, network=None, seed=0):
    model = model_of(network or Spy(), shape, data)
    return fill_paths(model, data, Moments.of(data), paths, model.program(3), seed)


def holed(y, *gaps):
    y = np.array(y, float)
    for begin, end in gaps:
        y[begin:end] = nan
    return y


def walk(n, seed=0, channels=1):
    return normal(n, channels, seed=seed).cumsum(0).numpy()


def test_a_gap_has_the_law_of_the_bridge():
    n, step = 1500, torch.arange(24)
    known = (step < 9) | (step > 14)
    data = panel(holed(TRUTH, (9, 15)))
    y = torch.tensor(TRUTH, dtype=F64)
    _, loc, scale, _ = scaled(y[None], known[None], source_of(data).spread)
    shape = WindowShape(16, 8)
    network = GaussianNetwork(-loc[0, 0] / scale[0, 0], ar(24) / scale[0, 0] ** 2)
    model = model_of(network, shape, data)
    (found,) = fill_paths(model, data, Moments.of(data), n, model.program(20, "dpm++2m"), 0)
    assert found.shape == (n, 24, 1)
    x, (mean, std) = torch.from_numpy(found[:, 9:15, 0]), conditional(ar(24), y, known)
    assert (x.mean(0) - mean).square().mean().sqrt() < 0.05
    assert (x.std(0) / std - 1).abs().max() < 0.08


@pytest.mark.parametrize(
    ("steps", "gaps"),
    [
        (12, [(5, 7)]),
        (40, [(0, 3), (10, 13), (37, 40)]),
        (60, [(10, 50)]),  # over many windows
        (60, [(0, 41)]),  # before the first value, beyond a window
        (60, [(20, 60)]),
        (47, [(0, 46)]),
        (5, [(1, 2)]),  # shorter than a window
        (2, [(0, 1)]),
        (13, [(11, 13)]),
    ],
)
def test_only_what_is_missing_changes(steps, gaps):
    whole = walk(steps, 1)
    data = panel(holed(whole, *gaps), walk(30, 2))
    found, other = fill(data)
    missing = np.isnan(data.series[0].y)
    assert np.isfinite(found).all() and (other == data.series[1].y).all()
    assert (found[:, ~missing] == whole[~missing]).all()
    assert (np.ptp(found[:, missing], 0) > 0).all()


def test_channels_have_gaps_of_their_own():
    y = walk(40, 3, 2)
    y[5:9, 0], y[20:30, 1], y[7, 1] = nan, nan, nan
    (found,) = fill(panel(y), shape=WindowShape(8, 4, 2))
    missing = np.isnan(y)
    assert np.isfinite(found).all() and (found[:, ~missing] == y[~missing]).all()
    assert (np.ptp(found[:, missing], 0) > 0).all()


def test_windows_see_what_was_filled_path_by_path():
    """Of a gap from 9 to 40: what the next window is told of it is each path's own."""
    data, spy = panel(holed(walk(50), (9, 40))), Spy()
    (found,) = fill(data, network=spy)
    calls = spy.seen[::3]  # 3 calls a window
    x, t, mask, _ = calls[1]  # steps 12 to 24, of which the window before has drawn those up to 15
    assert ((t == 0) & mask)[:3].tolist() == [[True] * 3 + [False] * 9] * 3
    assert len(x[:, :3].unique(dim=0)) == 3
    assert np.ptp(found[:, 9:40], 0).min() > 0


def test_a_gap_at_the_right_end_of_a_window_waits_for_what_follows():
    """Steps 9 to 12 of the first window do not exist in it."""
    data, spy = panel(holed(walk(30), (5, 7), (10, 12))), Spy()
    fill(data, network=spy)
    _, t, mask, _ = spy.seen[0]
    assert mask[0].tolist() == [True] * 10 + [False] * 2
    assert ((t[0] > 0) & mask[0]).tolist() == [k in (5, 6) for k in range(12)]
    _, t, mask, _ = spy.seen[3]
    assert bool(mask.all()) and (t[0] > 0).tolist() == [k in (4, 5) for k in range(12)]


MANY = panel(*(holed(walk(20 + 7 * k, k, 2), (4, 9), (12, 15)) for k in range(4)), holed(walk(50, 9, 2), (0, 30)))
TWO = WindowShape(10, 4, 2)


def filled(data, paths, seed=0):
    model = mlp(TWO, MANY)
    return fill_paths(model, data, Moments.of(data), paths, model.program(3), seed)


def test_a_path_is_the_same_whatever_else_is_filled():
    whole = filled(MANY, 5)
    for names, paths in ((["s3"], 5), (["s4", "s0"], 2), (["s4"], 1), (["s2", "s1"], 5)):
        for name, found in zip(names, filled(MANY.select(names), paths), strict=True):
            assert np.array_equal(found, whole[int(name[1])][:paths])
    missing = np.isnan(MANY.series[0].y)
    assert not np.isclose(filled(MANY, 2, seed=1)[0][:, missing], whole[0][:2, missing]).any()


def frame(names="ab", steps=30):
    parts = []
    for k, name in enumerate(names):
        y = walk(steps, k)[:, 0]
        parts.append(pd.DataFrame({"unique_id": name, "ds": pd.date_range("2024", periods=steps, freq="h"), "y": y}))
    return pd.concat(parts, ignore_index=True)


def test_the_tables_of_what_is_filled():
    table = frame()
    table.loc[5:7, "y"] = nan
    data = read_frame(table.drop(index=[40, 41]))
    found = Filled(data, tuple(fill(data, 99)), (80, 95))
    assert repr(found) == "Filled(series=2, paths=99, missing=5)"
    ends = ["-lo-95", "-lo-80", "-hi-80", "-hi-95"]
    assert list(found.frame) == ["unique_id", "ds", "y", *(f"y{e}" for e in ends), "filled"]
    one = found.frame
    assert len(one) == 60 and one["filled"].to_numpy().nonzero()[0].tolist() == [5, 6, 7, 40, 41]
    kept = one[~one["filled"]]
    assert (kept["y"] == table["y"][~one["filled"]]).all()
    for end in ends:
        assert (kept[f"y{end}"] == kept["y"]).all()
    draws = np.sort(found.values[0][:, 5, 0])
    row = one.loc[5]
    assert (
        row["y"] == draws[49]
        and row["y-lo-80"] == pytest.approx(draws[9])
        and row["y-hi-80"] == pytest.approx(draws[89])
    )
    paths = found.paths
    assert list(paths) == ["unique_id", "ds", "sample_id", "y"] and len(paths) == 99 * 60
    own = paths[paths["unique_id"] == "b"].pivot(index="sample_id", columns="ds", values="y")
    assert (own.to_numpy() == found.values[1][..., 0]).all()
    assert not len(found.rejects)


def test_the_tables_come_in_the_users_terms():
    table = pl.from_pandas(frame().rename(columns={"unique_id": "shop", "ds": "day", "y": "sold"}))
    table = table.with_columns(pl.when(pl.int_range(pl.len()) == 9).then(None).otherwise(pl.col("sold")).alias("sold"))
    data = read_frame(table, id="shop", time="day", targets="sold")
    found = Filled(data, tuple(fill(data)))
    assert isinstance(found.frame, pl.DataFrame)
    assert found.frame.columns == ["shop", "day", "sold", "sold-lo-80", "sold-hi-80", "filled"]
    assert found.frame["filled"].sum() == 1 and found.frame["sold"].null_count() == 0
    assert found.paths.columns == ["shop", "day", "sample_id", "sold"] and isinstance(found.rejects, pl.DataFrame)


def test_a_channel_without_values_stays_empty_and_is_told():
    """The other channel, and the other series, are filled all the same; so with values beyond reason."""
    y, huge, good = walk(30, 3, 2), walk(30, 4, 2), walk(30, 5, 2)
    y[:, 1], y[4:6, 0], good[3], huge[5], huge[8], huge[9] = nan, nan, nan, nan, 1e300, -1e300
    data = panel(y, good, huge)
    found = Filled(data, tuple(fill(data, shape=WindowShape(8, 4, 2))))
    assert np.isnan(found.values[0][..., 1]).all() and np.isfinite(found.values[0][..., 0]).all()
    assert np.isfinite(found.values[1]).all() and np.isnan(found.values[2]).sum() == 6
    assert found.rejects["unique_id"].tolist() == ["s0", "s2"]
    assert found.rejects["reason"][0] == "keeps gaps: it has a channel without any value, or values beyond 1e150"
    assert found.frame["b"].isna().sum() == 31


def test_bad_numbers_are_refused():
    data = panel(walk(20))
    with pytest.raises(ValueError, match="n_paths must be at least 1, got 0"):
        fill(data, 0)
    with pytest.raises(ValueError, match="levels are percents"):
        Filled(data, tuple(fill(data)), (0.8, 120))


def test_a_table_without_gaps_costs_nothing():
    spy = Spy()
    data = Panel(panel(walk(30)).series)
    (found,) = fill(data, network=spy)
    assert not spy.seen and (found == data.series[0].y).all()
