"""Cutoffs, and the tables and metrics of backtests of a forecaster that knows the answer."""

import numpy as np
import pandas as pd
import polars as pl
import pytest

from tests.forecasting.exact_windows import panel
from unisci.domains.series_frames import read_frame
from unisci.forecasting.backtesting import cutoffs, run_backtest
from unisci.forecasting.forecast import Forecast

H = 3


def frame(names=("a", "b"), steps=40):
    t = np.arange(steps)
    parts = [
        pd.DataFrame({"unique_id": n, "ds": pd.date_range("2024", periods=steps, freq="h"), "y": t**1.5 + 100 * k})
        for k, n in enumerate(names)
    ]
    return pd.concat(parts, ignore_index=True)


def knowing(truth, paths=5, noise=0.0):
    """Forecasts what comes, give or take noise."""

    def forecast(part):
        draws = []
        for s in part:
            future = truth[s.name].y[len(s) : len(s) + H]
            offsets = np.linspace(-noise, noise, paths)[:, None, None]
            draws.append(future + offsets)
        return Forecast(part, tuple(draws), levels=(80,))

    return forecast


def test_each_window_leaves_out_a_step_more():
    data = panel(np.arange(30.0), np.arange(5.0))
    assert cutoffs(data, 3, 1, 9) == (3,)
    assert cutoffs(data, 3, 4, 2) == (9, 7, 5, 3)
    assert cutoffs(data, 3, 14, 2)[0] == 29
    with pytest.raises(ValueError, match="15 windows leave out 31 steps, and the longest series has 30: take fewer"):
        cutoffs(data, 3, 15, 2)
    for bad in ((0, 1, 1), (1, 0, 1), (1, 1, 0)):
        with pytest.raises(ValueError, match="h, windows and step must be at least 1"):
            cutoffs(data, *bad)


def test_a_forecaster_that_knows_has_no_error():
    data = read_frame(frame())
    found = run_backtest(knowing(data), data, (6, 3))
    assert [len(f.panel.series[0]) for f in found.forecasts] == [34, 37] and found.cutoffs == (6, 3)
    metrics = {name: {m.name: m.value for m in rows} for name, rows in found.metrics().items()}
    assert metrics.keys() == {"unisci", "seasonal naive"}
    for name in ("wql", "crps", "mase", "nd", "energy_score", "variogram_score"):
        assert metrics["unisci"][name] == pytest.approx(0) and metrics["seasonal naive"][name] > 0
    assert metrics["unisci"]["coverage_50"] == 1
    draws, truth, histories = found.arrays()
    assert draws.shape == (4, 5, H, 1) and (truth == draws[:, 0]).all()
    assert [len(h) for h in histories] == [34, 34, 37, 37]
    assert "seasonal naive\n\n| metric" in found.report() and "unisci\n\n| metric" in found.report()


def test_the_table_of_a_backtest():
    data = read_frame(frame())
    found = run_backtest(knowing(data, noise=1.0), data, (6, 3)).frame
    assert list(found) == ["unique_id", "ds", "cutoff", "y", "unisci", "unisci-lo-80", "unisci-hi-80"]
    assert len(found) == 2 * 2 * H and found["unique_id"].tolist() == (["a"] * H + ["b"] * H) * 2
    assert found["cutoff"].dtype == found["ds"].dtype
    assert found["cutoff"].iloc[[0, 6]].tolist() == [pd.Timestamp("2024-01-02 09:00"), pd.Timestamp("2024-01-02 12:00")]
    joined = found.merge(frame(), on=["unique_id", "ds"])
    assert len(joined) == 12 and (joined["y_x"] == joined["y_y"]).all()
    np.testing.assert_allclose(found["unisci"], found["y"])
    assert (found["ds"] > found["cutoff"]).all()


def test_the_users_terms_and_several_channels():
    users = pl.from_pandas(frame().rename(columns={"unique_id": "shop", "ds": "day"}).assign(v=lambda f: -f["y"]))
    data = read_frame(users, id="shop", time="day", targets=["y", "v"])
    found = run_backtest(knowing(data), data, (3,)).frame
    assert isinstance(found, pl.DataFrame)
    assert found.columns[:5] == ["shop", "day", "cutoff", "y", "v"] and found["day"].dtype == users["day"].dtype
    assert found["unisci-v"].to_list() == pytest.approx(found["v"].to_list())
    alone = read_frame(frame("a").drop(columns="unique_id"))
    assert list(run_backtest(knowing(alone), alone, (3,)).frame)[:3] == ["ds", "cutoff", "y"]


def test_series_too_short_for_a_window_are_in_the_others():
    data = read_frame(pd.concat([frame("a"), frame("b", 5)]))
    found = run_backtest(knowing(data), data, (6, 3))
    assert [len(f.panel) for f in found.forecasts] == [1, 2]
    assert found.forecasts[0].rejects["unique_id"].tolist() == ["b"]
    assert len(found.frame) == 3 * H and len(found.arrays()[0]) == 3


def test_counted_times():
    data = panel(np.arange(20.0), freq="1")
    found = run_backtest(knowing(data), data, (6, 3)).frame
    assert found["cutoff"].tolist() == [13] * 3 + [16] * 3 and found["ds"].tolist() == [14, 15, 16, 17, 18, 19]
