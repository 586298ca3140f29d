"""Windows cut from series against a plain loop, and their scaling and its way back."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forecasting.exact_windows import F64, panel, series, source_of
from tests.oracles import normal
from unisci.domains.calendar import phases
from unisci.domains.series import Panel
from unisci.forecasting.moments import Moments
from unisci.forecasting.scales import scaled
from unisci.forecasting.windows import Source, WindowShape, at_places, places, window_schema

LENGTHS, PAST, AHEAD = (9, 3, 14), 2, 4


def rich(channels=2, freq="h"):
    """Series of several lengths with gaps and all kinds of covariates; the future's reach differs by series."""
    rng = np.random.default_rng(0)
    made = []
    for k, n in enumerate(LENGTHS):
        y, past, future = rng.normal(size=(n, channels)), rng.normal(size=(n, PAST)), rng.normal(size=(n + 2 * k, 1))
        y[rng.random(y.shape) < 0.2], past[0] = np.nan, np.nan
        static = np.array([float(k), 7.0, np.nan if k else 1.0])
        made.append(series(f"s{k}", y, freq, f"2024-0{k + 1}-01", past=past, future=future, static=static))
    return Panel(tuple(made))


def told(value, row, column):
    return value[row, column] if 0 <= row < len(value) else np.nan


def slow_cut(data, shape, i, origin):
    """One window, entry by entry: y (N,), covariates (N, 3), phase, each as the table has it."""
    s, y, covariates = data.series[i], [], []
    for c in range(shape.channels):
        for k in range(shape.length):
            row = origin - shape.context + k
            y.append(told(s.y, row, c))
            past = [told(s.past, row, p) if k < shape.context else np.nan for p in range(PAST)]
            covariates.append([*past, told(s.future, row, 0)])
    last = origin + shape.horizon - 1
    times = s.times.append(s.ahead(AHEAD))
    return np.array(y), np.array(covariates), phases(times, s.freq)[last]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 8), st.integers(1, AHEAD), st.data())
def test_windows_are_those_of_a_plain_loop(context, horizon, data):
    """Before the series, across its gaps and beyond its end."""
    table, shape = rich(), WindowShape(context, horizon, 2)
    source = source_of(table, AHEAD)
    who = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=5))
    origin = [data.draw(st.integers(1, LENGTHS[i] + AHEAD - horizon)) for i in who]
    batch = source.cut(shape, torch.tensor(who), torch.tensor(origin), torch.arange(len(who)) + 5)
    assert batch.ids[0] == 5 and bool(batch.mask.all()) and batch.state["y"].dtype == F64
    moments = Moments.of(table)
    for row, (i, at) in enumerate(zip(who, origin, strict=True)):
        y, covariates, phase = slow_cut(table, shape, i, at)
        observed = ~np.isnan(y)
        assert batch.given["observed"][row].tolist() == observed.tolist()
        assert batch.state["y"][row].tolist() == np.where(observed, y, 0.0).tolist()
        want = (covariates - moments.covariates[0].numpy()) / moments.covariates[1].numpy()
        np.testing.assert_allclose(batch.given["covariates"][row], want, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(batch.given["phase"][row], phase / moments.phases[1].numpy(), atol=1e-6)
        static = (table.series[i].static - moments.static[0].numpy()) / moments.static[1].numpy()
        np.testing.assert_allclose(batch.given["static"][row], static, rtol=1e-6)
        np.testing.assert_allclose(batch.given["spread"][row], np.nanstd(table.series[i].y, 0))


def test_a_source_is_laid_out_as_its_schema_says():
    source = source_of(rich(), AHEAD)
    assert source.schema == window_schema(PAST + 1, 6, 3, 2) and source.future == 1
    assert source.first.tolist() == [0, 13, 20] and source.end.tolist() == [9, 16, 34]
    bare = source_of(panel(np.arange(5.0), freq="1"))
    assert set(bare.schema) == {"y", "observed", "spread", "bounds", "structure", "anchor", "phase"}
    assert bare.cut(WindowShape(2, 1), torch.tensor([0]), torch.tensor([4])).state["y"].tolist() == [[2.0, 3.0, 4.0]]


def test_moments_are_of_what_is_told():
    data = rich()
    covariates, static = Moments.of(data).covariates, Moments.of(data).static
    past = np.concatenate([s.past for s in data])
    np.testing.assert_allclose(covariates[0][:PAST], np.nanmean(past, 0))
    np.testing.assert_allclose(covariates[1][:PAST], np.nanstd(past, 0))
    future = np.concatenate([s.future[: len(s)] for s in data])
    np.testing.assert_allclose([covariates[0][2], covariates[1][2]], [future.mean(), future.std()])
    np.testing.assert_allclose(static[0], [1, 7, 1])
    np.testing.assert_allclose(static[1], [(2 / 3) ** 0.5, 1, 1])


def test_a_column_that_hardly_varies_by_rounding_keeps_its_unit():
    one = Panel((series("a", np.zeros(7), past=np.full((7, 1), 0.1)),))
    assert Moments.of(one).covariates[1].tolist() == [1.0]


def test_other_covariates_than_the_models_are_refused():
    data = rich()
    with pytest.raises(ValueError, match="0 covariates and 0 static numbers, the model was trained with 3 and 3"):
        Source.of(panel(np.arange(9.0)), 0, Moments.of(data))


@pytest.mark.parametrize("name", ["context", "horizon", "channels"])
def test_a_shape_has_positive_sizes(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        WindowShape(**({"context": 3, "horizon": 2, "channels": 1} | {name: 0}))


def test_sites_are_channel_major():
    shape = WindowShape(2, 1, 2)
    assert (shape.length, shape.sites) == (3, 6) and shape.steps().tolist() == [0, 1, 2, 0, 1, 2]


def test_places_have_a_whole_horizon_and_enough_of_a_context():
    """context 4, horizon 2. Of 3 steps one place; of 6 a context of 2 will do; of 20 all have a whole one."""
    data = panel(*(np.arange(float(n)) for n in (3, 2, 1, 6, 20)))
    shape, source = WindowShape(4, 2), source_of(data)
    where = places(source, shape)
    found = {i: where.given["origin"][where.given["series"] == i].tolist() for i in range(5)}
    assert found == {0: [1], 1: [], 2: [], 3: [2, 3, 4], 4: list(range(4, 19))}
    assert len(where) == 1 + 3 + 15
    batch = at_places(source, shape, where[torch.tensor([1, -1])])
    assert batch.state["y"].tolist() == [[0, 0, 0, 1, 2, 3], [14, 15, 16, 17, 18, 19]]
    assert batch.given["observed"][0].tolist() == [False, False, True, True, True, True]
    assert batch.ids.tolist() == [1, 18]


def test_too_short_series_have_no_place():
    with pytest.raises(ValueError, match=r"longest series has 2 steps, and a horizon of 2 needs at least 3: take a sh"):
        places(source_of(panel([1.0, 2.0], [1.0])), WindowShape(4, 2))


def test_where_every_channel_has_begun():
    y = np.full((8, 2), np.nan)
    y[2:, 0], y[5, 1] = 1.0, 1.0
    source, shape = source_of(panel(np.ones((4, 2)), y)), WindowShape(2, 1, 2)
    begun = source.begun(shape, torch.tensor([1] * 8 + [0]), torch.tensor([*range(1, 9), 1]))
    assert begun.tolist() == [False] * 5 + [True, True, False, True]


def draw(seed, channels=2, length=9, rows=3):
    y, basis = normal(rows, channels * length, seed=seed), normal(rows, channels * length, seed=seed + 999) > -0.3
    basis[:, ::length] = True
    return y, basis


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-6, 1e6), st.floats(-1e6, 1e6), st.integers(0, 99))
def test_scaling_undoes_units_and_has_a_way_back(a, b, seed):
    y, basis = draw(seed)
    spread = normal(3, 2, seed=seed).abs()
    x, loc, scale, _ = one = scaled(y, basis, spread)
    moved = scaled(a * y + b, basis, a * spread)
    resolved = 1e-6 + 1e-13 * abs(b) / a  # what is left of y in a y + b
    torch.testing.assert_close(moved.x, x, rtol=2e-6, atol=100 * resolved)
    assert x.dtype == torch.float32 and loc.dtype == scale.dtype == F64 and loc.shape == scale.shape == (3, 2, 1)
    exact = ((y.unflatten(1, (2, -1)) - loc) / scale).flatten(1)
    torch.testing.assert_close(one.back(exact), y, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(one.back(x), y, rtol=1e-5, atol=1e-5)


def test_units_are_of_the_basis_of_each_channel():
    y, basis = draw(4)
    spread = torch.tensor([[0.0, 100.0]] * 3, dtype=F64)
    one = scaled(y, basis, spread)
    known = y[1, :9][basis[1, :9]]
    torch.testing.assert_close(one.loc[1, 0, 0], known[-1])
    torch.testing.assert_close(one.scale[1, 0, 0], known.std(correction=0))
    torch.testing.assert_close(one.scale[:, 1, 0], torch.full((3,), 10.0, dtype=F64))  # a tenth of the spread
    other = torch.where(basis, y, y + normal(3, 18, seed=5))
    assert torch.equal(scaled(other, basis, spread).scale, one.scale)


@pytest.mark.parametrize("level", [0.0, 7.1, -3e8])
def test_a_constant_history_stays_finite(level):
    y = torch.full((1, 6), level, dtype=F64)
    one = scaled(y, torch.arange(6)[None] < 4, torch.zeros(1, 1, dtype=F64))
    assert bool(one.x.isfinite().all()) and not one.x.any()
    torch.testing.assert_close(one.back(torch.ones(1, 6)), y, rtol=1e-12, atol=1e-12)
    step = torch.cat([y[:, :4], y[:, 4:] + 1], 1)
    assert scaled(step, torch.arange(6)[None] < 4, torch.zeros(1, 1, dtype=F64)).x[0].tolist() == [0, 0, 0, 0, 1e3, 1e3]


def test_a_channel_without_a_value_is_finite():
    y, basis = draw(1)
    basis[0, :9] = False
    one = scaled(torch.where(basis, y, 0.0), basis, torch.ones(3, 2, dtype=F64))
    assert one.loc[0, 0] == 0 and one.scale[0, 0] == 1 and bool(one.x.isfinite().all())


def test_values_too_large_to_square_have_no_spread():
    source = source_of(panel([1e200, -1e200, 0.0], [1.0, 3.0, 2.0]))
    assert source.spread.isfinite()[:, 0].tolist() == [False, True]


def hourly(*lengths):
    one = lambda n: series(f"s{n}", np.zeros((n, 1)), "h", "2024-01-01")
    return Panel(tuple(one(n) for n in lengths))


def kept(*lengths):
    """Of day, week and year: which phases are used."""
    return Moments.of(hourly(*lengths)).phases[1].isfinite().unflatten(0, (3, 2)).all(-1).tolist()


def test_a_season_that_was_seen_less_than_three_times_has_no_phase():
    assert kept(71) == [False, False, False] and kept(72) == [True, False, False]
    assert kept(71, 21 * 24) == [True, True, False] and kept(3 * 366 * 24) == [True, True, True]
    few, many = Moments.of(hourly(72)), Moments.of(hourly(21 * 24))
    assert few.without(many).phases[1].tolist() == many.without(few).phases[1].tolist() == few.phases[1].tolist()
    source = Source.of(hourly(80), 0, few)
    assert bool((source.phases[:, 2:] == 0).all()) and bool((source.phases[:, :2] != 0).any())
