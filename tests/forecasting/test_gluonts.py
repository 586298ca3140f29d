"""A predictor that GluonTS's tools can use, of any forecaster."""

import numpy as np
import pandas as pd
import pytest

from unisci.domains.series_frames import read_frame
from unisci.forecasting.forecast import Forecast
from unisci.forecasting.gluonts import BATCH, Predictor, SampleForecast, timestamps


class Drift:
    """Path j of a series: its last value + j, as its last time tells; channels in turn."""

    def __init__(self, targets=None):
        self.calls, self.targets = [], targets

    def predict(self, h, df=None, freq=None, n_paths=100, levels=(80, 95), quantiles=None, X=None, seed=0):
        self.calls.append((h, df, freq, n_paths, seed))
        panel = read_frame(df, freq, targets=self.targets)
        last = lambda s: np.where(np.isnan(s.y[-1]), -1.0, s.y[-1])
        path = np.arange(n_paths)[:, None, None] + np.zeros((1, h, 1))
        return Forecast(panel, tuple(path + last(s) for s in panel))


def entries(n=3, freq="h", steps=10):
    start = pd.Period("2024-01-03 05:00", freq)
    return [{"start": start, "target": np.arange(steps) + 100.0 * k, "item_id": f"i{k}"} for k in range(n)]


def test_a_forecast_for_each_entry_in_order():
    drift = Drift()
    found = list(Predictor(drift, 4, seed=7).predict(entries(12), num_samples=5))
    assert [f.item_id for f in found] == [f"i{k}" for k in range(12)]
    for k, f in enumerate(found):  # the 11th is named "10", which comes before "2"
        assert f.samples.shape == (5, 4) and (f.samples[:, 0] == 9 + 100 * k + np.arange(5)).all()
        assert f.start_date == pd.Period("2024-01-03 15:00", "h") and f.prediction_length == 4 and f.num_samples == 5
        assert f.info is None and f.dim() == 1
    ((h, _, freq, n_paths, seed),) = drift.calls
    assert (h, freq, n_paths, seed) == (4, "h", 5, 7)


def test_samples_as_gluonts_reads_them():
    samples = np.random.default_rng(0).permuted(np.arange(11.0)[:, None] * [1, 10], axis=0)
    one = SampleForecast(samples, pd.Period("2024-02", "M"))
    assert one.quantile(0.1).tolist() == one.quantile("0.1").tolist() == one["p10"].tolist() == [1, 10]
    assert one.quantile(0.06).tolist() == [1, 10] and one.quantile(0).tolist() == [0, 0]
    assert one.mean.tolist() == one["mean"].tolist() == [5, 50] and one["median"].tolist() == one.median.tolist()
    assert one["0.5"].tolist() == [5, 50] and one.freq == one.start_date.freq
    assert one.index.equals(pd.PeriodIndex(["2024-02", "2024-03"], freq="M"))
    with pytest.raises(ValueError, match=r"1\.5"):
        one.quantile(1.5)


def test_channels():
    start = pd.Period("2024-01-01", "D")
    data = [{"start": start, "target": np.array([[1.0, 2, 3], [7, 8, 9]])}]
    (found,) = Predictor(Drift(["u", "v"]), 2, ("u", "v")).predict(data, 3)
    assert found.start_date == pd.Period("2024-01-04", "D")
    assert found.samples.shape == (3, 2, 2) and found.dim() == 2 and found.item_id is None
    assert found.samples[0, 0].tolist() == [3, 9] and found.mean.shape == (2, 2)
    with pytest.raises(ValueError, match=r"item 'i0'.*2 channels"):
        list(Predictor(Drift(), 2, ("u", "v")).predict(entries(1)))


def test_the_same_item_cut_at_several_points():
    data = [e | {"item_id": "one", "target": e["target"][: 5 + k]} for k, e in enumerate(entries(3))]
    found = list(Predictor(Drift(), 1).predict(iter(data), 2))
    assert [f.start_date.hour for f in found] == [10, 11, 12]
    assert [f.samples[0, 0] for f in found] == [4, 105, 206]


def test_large_sets_go_in_parts():
    drift = Drift()
    found = list(Predictor(drift, 1).predict(entries(BATCH + 2, steps=3), 1))
    assert len(found) == BATCH + 2 and found[-1].samples[0, 0] == 2 + 100 * (BATCH + 1)
    assert [call[1]["unique_id"].nunique() for call in drift.calls] == [BATCH, 2]
    assert drift.calls[1][1]["unique_id"].unique().tolist() == [str(BATCH), str(BATCH + 1)]


def test_what_is_missing():
    data = entries(3)
    data[0]["target"][-2:] = np.nan
    data[1]["target"] = np.full(10, np.nan)
    found = list(Predictor(Drift(), 2).predict(data, 2))
    assert found[0].samples[0, 0] == -1 and found[0].start_date.hour == 15  # gaps at the end are steps too
    assert np.isnan(found[1].samples).all() and found[1].samples.shape == (2, 2)
    assert found[1].info == {"reason": "has no value: all are missing"} and found[2].samples[0, 0] == 209


@pytest.mark.parametrize(
    ("freq", "second"),
    [
        ("h", "2024-01-03 06:00"),
        ("15min", "2024-01-03 05:15"),
        ("D", "2024-01-04"),
        ("2D", "2024-01-05"),
        ("W-SUN", "2024-01-14"),
        ("M", "2024-02-29"),
        ("3M", "2024-04-30"),
        ("Q-DEC", "2024-06-30"),
        ("Y-DEC", "2025-12-31"),
    ],
)
def test_periods_are_times_on_the_grid(freq, second):
    assert timestamps(pd.Period("2024-01-03 05:00", freq), 3)[1] == pd.Timestamp(second)
    drift = Drift()
    (found,) = Predictor(drift, 2).predict(entries(1, freq), 1)
    assert found.start_date == entries(1, freq)[0]["start"] + 10
    panel = read_frame(drift.calls[0][1], drift.calls[0][2])
    assert len(panel.series[0]) == 10 and not len(panel.rejects)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="prediction_length must be at least 1, got 0"):
        Predictor(Drift(), 0)
    with pytest.raises(ValueError, match="'h' and 'D'"):
        list(Predictor(Drift(), 1).predict(entries(1) + entries(1, "D")))
    assert list(Predictor(Drift(), 1).predict([])) == []
