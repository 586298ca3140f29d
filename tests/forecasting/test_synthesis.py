"""Windows of the unconditional model, in units of real histories."""

import numpy as np
import pytest
import torch

from tests.forecasting.exact_windows import F64, GaussianNetwork, ar, model_of, panel, source_of
from tests.oracles import normal
from unisci.forecasting.moments import Moments
from unisci.forecasting.scales import scaled
from unisci.forecasting.synthesis import synthetic, synthetic_windows
from unisci.forecasting.windows import WindowShape, at_places, places

SHAPE = WindowShape(8, 4)


def made(n, data, network=None, seed=0, shape=SHAPE):
    network = network or GaussianNetwork(torch.zeros(shape.sites, dtype=F64), torch.eye(shape.sites, dtype=F64))
    model = model_of(network, shape, data)
    return synthetic_windows(model, data, Moments.of(data), n, model.program(15, "dpm++2m"), seed)


def test_windows_have_the_covariance_of_the_law():
    """One place only, of known units: AR(.9) there."""
    n, data = 3000, panel(normal(12).numpy() * 3 + 100)
    past = torch.arange(12) < 4
    y = torch.from_numpy(data.series[0].y[:, 0])
    _, loc, scale, _ = scaled(y[None], past[None], source_of(data).spread)
    mean = torch.full((12,), 50.0, dtype=F64)
    network = GaussianNetwork((mean - loc[0, 0]) / scale[0, 0], ar(12) / scale[0, 0] ** 2)
    drawn = made(n, data, network, shape=WindowShape(4, 8))
    assert drawn.shape == (n, 1, 12) and drawn.dtype == F64
    assert (drawn[:, 0].mean(0) - 50).abs().max() < 0.08
    assert (torch.cov(drawn[:, 0].T) - ar(12)).abs().max() < 0.12


def test_window_i_depends_on_the_seed_and_i():
    data = panel(normal(40).numpy(), normal(30, seed=1).numpy())
    whole = made(40, data)
    assert torch.equal(made(7, data), whole[:7])
    assert not torch.isclose(made(7, data, seed=1), whole[:7]).any()
    assert len(whole[:, 0, 0].unique()) == 40


def test_units_are_of_histories_at_random():
    """Of a series around 0 and one a thousand times as large around 1e6, as often as they have places."""
    data = panel(normal(60).numpy(), 1e6 + 1e3 * normal(160, seed=1).numpy())
    drawn = made(400, data)[:, 0].mean(1)
    large = drawn > 5e5
    share = sum(source_of(data).origins(SHAPE, 1).shape) / len(places(source_of(data), SHAPE))
    assert abs(float(large.double().mean()) - share) < 0.08
    assert drawn[~large].abs().max() < 20 and (drawn[large] - 1e6).abs().max() < 2e4


def test_histories_without_a_value_are_passed_over():
    y = normal(80, 2).numpy()
    y[10:60, 1] = np.nan
    data, shape = panel(y), WindowShape(8, 4, 2)
    drawn = made(60, data, shape=shape)
    assert drawn.shape == (60, 2, 12) and bool(drawn.isfinite().all())
    y[:, 1] = np.nan
    with pytest.raises(ValueError, match="no 8 steps of a series have a value of each channel"):
        made(3, panel(y), shape=shape)


def test_windows_as_a_table():
    data = panel(normal(40, 2).numpy())
    shape = WindowShape(8, 4, 2)
    model = model_of(GaussianNetwork(torch.zeros(24, dtype=F64), torch.eye(24, dtype=F64)), shape, data)
    table = synthetic(model, data, Moments.of(data), 3, model.program(5), 2)
    values = synthetic_windows(model, data, Moments.of(data), 3, model.program(5), 2).numpy()
    assert list(table) == ["unique_id", "ds", "a", "b"] and len(table) == 36
    assert table["unique_id"].unique().tolist() == ["synthetic-0", "synthetic-1", "synthetic-2"]
    assert table["ds"].tolist() == [*range(12)] * 3
    assert (table["b"].to_numpy().reshape(3, 12) == values[:, 1]).all()
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        synthetic(model, data, Moments.of(data), 0, model.program(5), 2)


def test_covariates_and_calendar_are_those_of_the_real_window(monkeypatch):
    monkeypatch.setattr("unisci.forecasting.moments.TIMES", 0)  # a short series, whose phases would be left out
    data = panel(normal(40).numpy())
    batch = at_places(source_of(data), SHAPE, places(source_of(data), SHAPE))
    seen = []

    class Spying(GaussianNetwork):
        def forward(self, state, t, mask, given, order=None, cache=None):
            seen.append(given["phase"])
            return super().forward(state, t, mask, given)

    made(5, data, Spying(torch.zeros(12, dtype=F64), torch.eye(12, dtype=F64)))
    real = {tuple(row) for row in batch.given["phase"].tolist()}
    rows = [tuple(row) for row in seen[0].tolist()]
    assert set(rows) <= real and len(set(rows)) > 1
