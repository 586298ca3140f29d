"""The job: one model of all sources, judged on what it never saw; what is done is not done again."""

import csv
import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch

from tests.jobs.small_series import small_job, table
from unisci.domains.series_frames import read_frame
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import series, series_data
from unisci.jobs.config import ConfigError, SourceConfig, TableConfig
from unisci.jobs.models import load
from unisci.jobs.series import identity, report, run
from unisci.jobs.series_data import EMBEDDED, Held, eeg, read_table, synthetic
from unisci.metrics.forecast_baselines import seasonal_naive_paths
from unisci.metrics.forecasts import mase
from unisci.training import fit as fitting


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A long table by the hour, and a wide one whose rows are counted."""
    folder = tmp_path_factory.mktemp("files")
    table().to_csv(folder / "long.csv", index=False)
    wide = {name: part["y"].to_numpy() for name, part in table(90).groupby("unique_id")}
    pd.DataFrame(wide).to_parquet(folder / "wide.parquet")
    return folder


def sources(files) -> tuple[dict, dict]:
    return (
        {"series": str(files / "long.csv"), "freq": "h", "hold_out": 20},
        {"series": str(files / "wide.parquet"), "freq": "1", "wide": True, "hold_out": 12, "season": 24, "weight": 2},
    )


@pytest.fixture(scope="module")
def done(files, tmp_path_factory):
    """The folder of a finished job, to be read only."""
    return run(small_job(tmp_path_factory.mktemp("done") / "out", *sources(files)), progress=False)


def test_one_model_of_two_sources(done, files):
    found = load(str(done / "model.safetensors"))
    assert isinstance(found, Forecaster)
    trained = found.trained
    assert trained.channels == ("y",) and trained.freq is None and trained.steps == 2
    assert (trained.model.shape.context, trained.model.shape.horizon) == (24, 6)
    (state,) = sorted((done / "checkpoints").glob("step-*6.pt"))
    weights = torch.load(state, weights_only=True)["ema"]
    for k, v in trained.model.state_dict().items():
        torch.testing.assert_close(v, weights[k].float(), rtol=1e-3, atol=1e-4)
    for freq in ("h", "D", "1"):  # it forecasts any frequency
        y = table(60, ("a",)).drop(columns=["ds", "unique_id"])
        y = y if freq == "1" else y.assign(ds=pd.date_range("2024-01-01", periods=60, freq=freq))
        assert found.predict(6, y, freq, n_paths=3).stacked.shape == (1, 3, 6, 1)


def test_the_card_says_what_it_saw_and_how_good_it_is(done, files):
    card = load(str(done / "model.safetensors")).trained.card
    first, second = card["data"]
    assert first == {
        "source": str(files / "long.csv"),
        "series": 3,
        "steps": 300,
        "rejected": 0,
        "hold_out": 20,
        "freq": "h",
        "weight": 1.0,
    }
    assert (second["steps"], second["freq"], second["weight"]) == (234, "1", 2.0)
    assert card["parameters"] == sum(
        p.numel() for p in load(str(done / "model.safetensors")).trained.model.parameters()
    )
    for source in (first["source"], second["source"]):
        both = card["held out"][source]
        assert set(both) == {"unisci", "seasonal naive"}
        assert set(both["unisci"]) == {"wql", "mase", "coverage_50", "coverage_80", "coverage_90", "windows"}
        assert both["unisci"]["windows"] == 6 and 0 < both["unisci"]["wql"] < 5
    text = (done / "report.md").read_text()
    assert text.count("seasonal naive") == 2 and f"| {both['unisci']['wql']:.4g} |" in text


def test_the_report_is_of_the_saved_weights_on_held_out_steps(done, files):
    """Windows of the last 20 steps of each series, from 20 and from 6 before the end."""
    forecaster, panel = load(str(done / "model.safetensors")), read_frame(table(), "h")
    draws, truth = [], []
    for k in (20, 6):
        part = forecaster.predict(6, panel.before(k), n_paths=20)
        draws.append(part.stacked)
        truth += [s.y[len(s) - k :][:6] for s in panel]
    draws, truth = np.concatenate(draws), np.stack(truth)
    q = np.sort(draws, 1)[:, [round(19 * k / 10) for k in range(1, 10)]]
    levels = np.arange(1, 10)[:, None, None] / 10
    loss = 2 * np.abs((truth[:, None] - q) * ((truth[:, None] <= q) - levels)).sum() / 9 / np.abs(truth).sum()
    card = forecaster.trained.card["held out"][str(files / "long.csv")]["unisci"]
    assert card["wql"] == pytest.approx(
        loss, abs=1.01e-6
    )  # rounded; the weights are those of the file, in half precision


def test_the_naive_forecast_is_of_the_season_that_was_given(done, files):
    card = load(str(done / "model.safetensors")).trained.card["held out"][str(files / "wide.parquet")]
    y = table(90)["y"].to_numpy().reshape(3, 90)
    histories = [one[:end] for end in (78, 84) for one in y]
    truth = np.concatenate([y[:, 78:84], y[:, 84:]])
    median = np.median(seasonal_naive_paths(histories, 6, 24, 20), axis=1)
    assert card["seasonal naive"]["mase"] == pytest.approx(mase(median, truth, histories, 24).value, abs=1e-6)
    seasons = Held.of(SourceConfig(series="synthetic")).season, Held.of(SourceConfig(series="eeg", season=50)).season
    assert seasons == (24, 50)


def test_windows_are_dealt_by_the_weights_of_the_sources(files, tmp_path, monkeypatch):
    dealt = []

    def spy(model, data, config, folder, prepare, *rest):
        dealt.append((len(data), prepare.weights, prepare.counts))
        raise KeyboardInterrupt

    monkeypatch.setattr(series, "fit", spy)
    with pytest.raises(KeyboardInterrupt):
        run(small_job(tmp_path, *sources(files)), progress=False)
    ((rows, weights, counts),) = dealt
    assert weights == (1.0, 2.0) and counts[0] > counts[1] > 0 and rows == 64


def test_held_out_steps_are_never_trained_on(files, tmp_path):
    frame = table()
    last = frame.groupby("unique_id").cumcount() >= 100
    frame.loc[last, "y"] = 1e4
    frame.to_csv(tmp_path / "other.csv", index=False)
    weights = []
    for k, path in enumerate((files / "long.csv", tmp_path / "other.csv")):
        job = small_job(tmp_path / str(k), {"series": str(path), "freq": "h", "hold_out": 20})
        weights.append(load(str(run(job, False) / "model.safetensors")).trained.model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_training_lowers_the_loss_and_validation_is_logged(tmp_path):
    training = {"steps": 60, "lr": 1e-2, "ema": 0.9, "checkpoint_every": 0, "validate_every": 30}
    job = small_job(tmp_path, {"series": "synthetic", "hold_out": 24}, training=training)
    run(job, progress=False)
    rows = list(csv.DictReader((tmp_path / "checkpoints" / "log.csv").open()))
    told = {int(r["step"]): float(r["value"]) for r in rows if r["name"] == "synthetic wql"}
    assert set(told) == {30, 60}
    assert told[60] == pytest.approx(
        load(str(tmp_path / "model.safetensors")).trained.card["held out"]["synthetic"]["unisci"]["wql"], rel=0.02
    )
    start = run(
        small_job(tmp_path / "s", {"series": "synthetic", "hold_out": 24}, training={"steps": 1, "lr": 1e-9}), 0
    )
    before = load(str(start / "model.safetensors")).trained.card["held out"]["synthetic"]["unisci"]["wql"]
    assert told[60] < before


# ---- what is there is not done again ---------------------------------------------------------------------


def test_a_finished_job_is_not_trained_again(done, files, tmp_path, monkeypatch):
    shutil.copytree(done, tmp_path / "out")
    (tmp_path / "out" / "model.safetensors").unlink()
    moved = tmp_path / "moved.csv"
    shutil.copy(files / "long.csv", moved)
    first, second = sources(files)
    monkeypatch.setattr(fitting, "_step", lambda *a: pytest.fail("a step was taken"))
    run(small_job(tmp_path / "out", first | {"series": str(moved)}, second, sample={"n": 19}), progress=False)
    a, b = (load(str(f / "model.safetensors")).trained.model.state_dict() for f in (done, tmp_path / "out"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_job_that_is_stopped_continues_to_the_same_bytes(done, files, tmp_path, monkeypatch):
    job, begun, step = small_job(tmp_path / "out", *sources(files)), [], fitting._step

    def stop(*a, **k):
        begun.append(1)
        if len(begun) > 3:
            raise KeyboardInterrupt
        return step(*a, **k)

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "_step", stop)
        with pytest.raises(KeyboardInterrupt):
            run(job, progress=False)
    assert not (job.out / "model.safetensors").exists()
    assert (run(job, progress=False) / "model.safetensors").read_bytes() == (done / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    "changes", [{"training": {"steps": 7}}, {"patterns": {"gaps": 0.3}}, {"shape": {"context": 25, "horizon": 6}}]
)
def test_a_folder_of_another_job_is_refused(done, files, changes):
    with pytest.raises(ConfigError, match="another configuration"):
        run(small_job(done, *sources(files), **changes), progress=False)


def test_a_folder_of_other_series_or_weights_is_refused(done, files, tmp_path):
    first, second = sources(files)
    table(121).to_csv(tmp_path / "other.csv", index=False)
    for other in (first | {"series": str(tmp_path / "other.csv")}, first | {"weight": 3}, first | {"hold_out": 21}):
        with pytest.raises(ConfigError, match="or other series"):
            run(small_job(done, other, second), progress=False)
    assert json.loads((done / "job.json").read_text()) == identity(small_job(done, first, second))


# ---- sources -----------------------------------------------------------------------------------------------


def test_embedded_series():
    waves, brain = synthetic(), eeg()
    assert len(waves) == 8 and waves.freq == "h" and len(waves.series[0]) == 1440
    assert all(np.array_equal(a.y, b.y) for a, b in zip(waves, synthetic(), strict=True))
    day = np.corrcoef(waves.series[0].y[:-24, 0], waves.series[0].y[24:, 0])[0, 1]
    assert day > 0.5 and len({float(s.y[0, 0]) for s in waves}) == 8
    assert len(brain) == 4 and brain.freq == "1" and brain.series[0].y.shape == (800, 1)
    assert set(EMBEDDED) == {"synthetic", "mixtures", "eeg"}


def test_tables_are_read_as_they_are_described(files, tmp_path):
    read = lambda **c: read_table(TableConfig(**c))
    assert [s.name for s in read(series=str(files / "long.csv"))] == ["a", "b", "c"]
    wide = read(series=str(files / "wide.parquet"), wide=True, targets=("a", "c"))
    assert [s.name for s in wide] == ["a", "c"] and wide.freq == "1"
    named = table().rename(columns={"unique_id": "shop", "ds": "hour", "y": "sold"})
    named.to_parquet(tmp_path / "named.parquet")
    found = read(series=str(tmp_path / "named.parquet"), id="shop", time="hour", targets=("sold",))
    assert found.channels == ("sold",) and len(found) == 3 and found.freq == "h"
    twice = pd.concat([table(10, ("a",))] * 2).drop(columns="unique_id")
    twice.to_csv(tmp_path / "twice.csv", index=False)
    assert len(read(series=str(tmp_path / "twice.csv"), counted=True, wide=True).series[0]) == 20


def test_numbers_that_stand_for_no_value_are_missing(tmp_path):
    frame = pd.DataFrame({"a": [1.0, -9999.0, 3.0, 4.0], "b": [-9999, 2, 7, 7], "c": [1, 2, 3, 4]})
    frame.to_csv(tmp_path / "x.csv", index=False)
    read = lambda **c: [s.y[:, 0] for s in read_table(TableConfig(series=str(tmp_path / "x.csv"), wide=True, **c))]
    a, b, c = read(missing=[-9999, 7])
    np.testing.assert_equal([a, b, c], [[1, np.nan, 3, 4], [np.nan, 2, np.nan, np.nan], [1, 2, 3, 4]])
    np.testing.assert_equal(read(), frame.to_numpy(float).T)


@pytest.mark.parametrize(
    "words, named",
    [
        ({"series": "absent.csv"}, "absent.csv does not exist"),
        ({"series": "absent"}, "absent: give a .csv or .parquet file, or one of"),
        ({"series": "eeg", "freq": "h"}, "eeg: an embedded set has its own"),
        ({"series": "eeg", "wide": True}, "eeg: an embedded set has its own"),
        ({"series": "LONG", "id": "shop"}, "no column 'shop'"),
        ({"series": "LONG", "freq": "banana"}, "banana"),
    ],
)
def test_a_source_that_cannot_be_used_is_named(files, words, named):
    words = words | {"series": words["series"].replace("LONG", str(files / "long.csv"))}
    with pytest.raises(ConfigError, match=named):
        read_table(TableConfig(**words))


def test_sources_that_do_not_go_together(files, tmp_path):
    first, _ = sources(files)
    two = table().assign(z=1.0)
    two.to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(ConfigError, match="same channels"):
        run(small_job(tmp_path / "o", first, {"series": str(tmp_path / "two.csv"), "targets": ["y", "z"]}), False)
    with pytest.raises(ConfigError, match="hold out less"):
        run(small_job(tmp_path / "o", first | {"hold_out": 120}), False)
    with pytest.raises(ConfigError, match="take a shorter horizon"):
        run(small_job(tmp_path / "o", first | {"hold_out": 117}), False)
    with pytest.raises(ValueError, match="heads"):
        run(small_job(tmp_path / "o", first, network={"kind": "transformer", "width": 10, "heads": 3}), False)
    assert not (tmp_path / "o" / "job.json").exists()


def test_what_cannot_be_judged_is_said_and_stops_nothing(files, tmp_path):
    frame = table()
    frame.loc[frame.groupby("unique_id").cumcount() >= 100, "y"] = np.nan
    frame.to_csv(tmp_path / "blind.csv", index=False)
    blind = {"series": str(tmp_path / "blind.csv"), "freq": "h", "hold_out": 20}
    out = run(small_job(tmp_path / "out", blind, {"series": "eeg"}), progress=False)
    text = (out / "report.md").read_text()
    assert text.startswith("nothing was held out that could be judged\n") and "blind.csv is not judged: " in text
    assert load(str(out / "model.safetensors")).trained.card["held out"] == {}
    assert report({}, {}) == "nothing was held out that could be judged\n"


def test_judged_windows_are_even_over_series_and_time(monkeypatch):
    asked = []
    held = Held.of(SourceConfig(series="synthetic", hold_out=96))
    forecaster = Forecaster(24)

    class Shape:
        horizon = 24

    class Stop(Exception):
        pass

    def spy(forecast, panel, left):
        asked.append(([s.name for s in panel], left))
        raise Stop

    forecaster.trained = type("T", (), {"model": type("M", (), {"shape": Shape})})
    monkeypatch.setattr(series_data, "run_backtest", spy)
    for windows in (1, 3, 16, 1000):
        with pytest.raises(Stop):
            held.judge(forecaster, windows, 19, 0)
    names = [f"synthetic-{k}" for k in range(8)]
    assert asked == [
        (names[:1], [96]),
        (names[::3], [96]),
        (names, [96, 24]),
        (names, [96, 72, 48, 24]),
    ]


def test_networks_of_the_three_kinds(files, tmp_path):
    first, _ = sources(files)
    kinds = {
        "transformer": {"patch": 6, "width": 8, "layers": 1, "heads": 2, "hidden": 8},
        "state_space": {"width": 8, "blocks": 1, "modes": 4},
    }
    for kind, sizes in kinds.items():
        job = small_job(tmp_path / kind, first, network={"kind": kind, **sizes}, training={"steps": 2})
        config = load(str(series.run(job, False) / "model.safetensors")).trained.model.denoiser.network.config
        assert {k: getattr(config, k) for k in sizes} == sizes
