"""Forecasts and backtests of a table into a folder, by the API and by the command line."""

import json
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from tests.jobs.small import write_weights
from tests.jobs.small_series import small_trained, table
from unisci.domains.series_frames import read_file, read_frame
from unisci.forecasting.forecaster import Forecaster
from unisci.jobs import cli
from unisci.jobs.config import ConfigError, TableConfig
from unisci.jobs.forecasts import WEIGHTS, Ask, backtest, forecast
from unisci.jobs.models import load
from unisci.jobs.series_models import save
from unisci.training import fit as fitting


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """small.safetensors, data.csv, and broken.csv with one series that has no grid and one that ends in a gap."""
    folder = tmp_path_factory.mktemp("shelf")
    save(folder / "small.safetensors", small_trained(), {}, half=False)
    frame = table()
    frame.to_csv(folder / "data.csv", index=False)
    frame.loc[(frame["unique_id"] == "b") & (frame.groupby("unique_id").cumcount() > 60), "y"] = np.nan
    twice = pd.DataFrame({"unique_id": "twice", "ds": pd.to_datetime(["2024-01-01"] * 2), "y": [1.0, 2.0]})
    pd.concat([frame, twice]).to_csv(folder / "broken.csv", index=False)
    return folder


@pytest.fixture
def asked(shelf) -> Ask:
    return Ask(TableConfig(series=str(shelf / "data.csv"), freq="h"), 6, str(shelf / "small.safetensors"), n_paths=25)


@pytest.fixture
def call(monkeypatch, capsys, shelf):
    """Run the program's entry point as the shell would, in the shelf: (exit code, standard output, standard error)."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.chdir(shelf)
        monkeypatch.setattr(sys, "argv", ["unisci", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
            raise SystemExit(0)
        written = capsys.readouterr()
        return stop.value.code or 0, written.out, written.err

    return run


def expected(shelf, **rest):
    panel = read_frame(read_file(shelf / "data.csv"), "h")
    return load(str(shelf / "small.safetensors")).predict(6, panel, n_paths=25, **rest)


# ---- forecast ------------------------------------------------------------------------------------------


def test_the_files_of_a_forecast(asked, shelf, tmp_path):
    found, out = forecast(asked, tmp_path / "out"), tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"forecast.csv", "paths.parquet", "forecast.png", "manifest.json"}
    same = expected(shelf)
    assert np.array_equal(found.stacked, same.stacked)
    pd.testing.assert_frame_equal(read_file(out / "forecast.csv"), same.frame, check_dtype=False)
    assert list(pd.read_csv(out / "forecast.csv")) == [
        "unique_id",
        "ds",
        "unisci",
        "unisci-lo-95",
        "unisci-lo-80",
        "unisci-hi-80",
        "unisci-hi-95",
    ]
    pd.testing.assert_frame_equal(pd.read_parquet(out / "paths.parquet"), same.paths)
    assert len(pd.read_parquet(out / "paths.parquet")) == 3 * 25 * 6
    assert (out / "forecast.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads((out / "manifest.json").read_text())
    assert told["complete"] and told["done"] == 3 and told["run"]["h"] == 6 and told["run"]["command"] == "forecast"


def test_the_same_call_again_writes_the_same_and_another_is_refused(asked, shelf, tmp_path):
    forecast(asked, tmp_path / "out")
    before = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix in (".csv", ".parquet")}
    forecast(asked, tmp_path / "out")
    assert before == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir() if p.suffix in (".csv", ".parquet")}
    other = TableConfig(series=str(shelf / "broken.csv"), freq="h")
    for change in ({"seed": 1}, {"h": 5}, {"n_paths": 26}, {"levels": (50.0,)}, {"table": other}):
        with pytest.raises(ConfigError, match="holds another run"):
            forecast(replace(asked, **change), tmp_path / "out")
    save(tmp_path / "w.safetensors", small_trained(), {"other": "hash"})
    with pytest.raises(ConfigError, match="hash, weights differ"):
        forecast(replace(asked, weights=str(tmp_path / "w.safetensors")), tmp_path / "out")
    moved = tmp_path / "moved.csv"
    own = replace(asked, table=TableConfig(series=str(moved), freq="h"))
    table().to_csv(moved, index=False)
    forecast(own, tmp_path / "moved")
    table(119).to_csv(moved, index=False)
    with pytest.raises(ConfigError, match="data_hash differ"):
        forecast(own, tmp_path / "moved")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="new or empty folder"):
        forecast(asked, tmp_path / "mine")


def test_bad_series_are_rows_and_change_no_other(asked, shelf, tmp_path):
    broken = replace(asked, table=TableConfig(series=str(shelf / "broken.csv"), freq="h"))
    found = forecast(broken, tmp_path / "out")
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv").set_index("unique_id")["reason"]
    assert set(rejects.index) == {"b", "twice"} and "two rows" in rejects["twice"] and "no value" in rejects["b"]
    assert np.array_equal(found.stacked, expected(shelf).stacked[[0, 2]])
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["done"] == 4


def test_levels_seeds_and_rolling(asked, shelf, tmp_path):
    ask = replace(asked, levels=(50.0,), seed=4, roll=True, h=14)
    forecast(ask, tmp_path / "out")
    frame = pd.read_csv(tmp_path / "out" / "forecast.csv")
    assert list(frame)[3:] == ["unisci-lo-50", "unisci-hi-50"] and len(frame) == 3 * 14
    first = expected(shelf, seed=4).frame["unisci"].to_numpy().reshape(3, 6)
    np.testing.assert_array_equal(frame["unisci"].to_numpy().reshape(3, 14)[:, :6], first)


def test_a_model_trained_on_the_table_first(asked, tmp_path, monkeypatch):
    ask = replace(asked, weights=None, fit_steps=3, n_paths=20)
    found = forecast(ask, tmp_path / "out", progress=False)
    weights = load(str(tmp_path / "out" / "model.safetensors"))
    assert weights.trained.model.shape.horizon == 6 and weights.trained.freq == "h"
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["run"]["fit_steps"] == 3
    monkeypatch.setattr(fitting, "_step", lambda *a: pytest.fail("a step was taken"))
    again = forecast(ask, tmp_path / "out", progress=False)
    assert np.array_equal(found.stacked, again.stacked)


# ---- backtest ------------------------------------------------------------------------------------------


def test_the_files_of_a_backtest(asked, shelf, tmp_path):
    found, out = backtest(asked, 3, None, tmp_path / "out"), tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {"backtest.csv", "report.md", "manifest.json"}
    panel = read_frame(read_file(shelf / "data.csv"), "h")
    same = load(str(shelf / "small.safetensors")).backtest(panel, 6, 3, n_paths=25)
    frame = pd.read_csv(out / "backtest.csv")
    assert len(frame) == 3 * 3 * 6 and frame["cutoff"].nunique() == 3
    np.testing.assert_allclose(frame["unisci"], same.frame["unisci"])
    joined = frame.merge(pd.read_csv(shelf / "data.csv"), on=["unique_id", "ds"])
    assert len(joined) == len(frame) and np.allclose(joined["y_x"], joined["y_y"])
    assert (out / "report.md").read_text() == found.report() == same.report()
    assert "seasonal naive" in found.report()
    assert found.cutoffs == (18, 12, 6)
    assert backtest(asked, 2, 24, tmp_path / "two").cutoffs == (30, 6)


def test_a_backtested_model_never_sees_what_judges_it(asked, shelf, tmp_path):
    frame, weights = table(), []
    frame.loc[frame.groupby("unique_id").cumcount() >= 108, "y"] = 1e5
    frame.to_csv(tmp_path / "other.csv", index=False)
    for k, path in enumerate((shelf / "data.csv", tmp_path / "other.csv")):
        ask = replace(asked, table=TableConfig(series=str(path), freq="h"), weights=None, fit_steps=2, n_paths=20)
        backtest(ask, 2, None, tmp_path / str(k), progress=False)
        weights.append(load(str(tmp_path / str(k) / "model.safetensors")).trained.model.state_dict())
    assert all((weights[0][k] == weights[1][k]).all() for k in weights[0])


def test_a_backtest_names_bad_series_once(asked, shelf, tmp_path):
    broken = replace(asked, table=TableConfig(series=str(shelf / "broken.csv"), freq="h"))
    found = backtest(broken, 2, None, tmp_path / "out")
    rejects = pd.read_csv(tmp_path / "out" / "rejects.csv")
    assert sorted(rejects["unique_id"]) == ["b", "twice"] and [len(f.panel) for f in found.forecasts] == [2, 2]
    with pytest.raises(ConfigError, match="windows differ"):
        backtest(broken, 3, None, tmp_path / "out")
    with pytest.raises(ConfigError, match="command"):
        forecast(broken, tmp_path / "out")


# ---- the command line ----------------------------------------------------------------------------------


def test_the_command_of_a_forecast(call, shelf, tmp_path):
    words = ("forecast", "data.csv", "-h", 6, "--freq", "h", "--weights", "small.safetensors", "--paths", 25)
    code, out, err = call(*words, "-o", tmp_path / "out")
    assert code == 0, err
    assert out.startswith(f"3 series, 25 paths of 6 steps in {tmp_path / 'out'}: forecast.csv, paths.parquet, ")
    assert err == ""
    frame = pd.read_csv(tmp_path / "out" / "forecast.csv")
    np.testing.assert_allclose(frame["unisci"], expected(shelf).frame["unisci"])
    for levels in (("--levels", "50,90"), ("--levels", "50 90"), ("--levels", "50", "--levels", "90")):
        assert call(*words, *levels, "-o", tmp_path / "levels")[0] == 0  # one run in three spellings
    assert "unisci-lo-90" in pd.read_csv(tmp_path / "levels" / "forecast.csv")


def test_the_commands_tell_of_rejects(call, tmp_path):
    words = ("broken.csv", "-h", 6, "--freq", "h", "--weights", "small.safetensors", "--paths", 20)
    code, out, err = call("forecast", *words, "-o", tmp_path / "f")
    assert code == 0 and "rejects.csv" in out and err == "2 series could not be forecast: rejects.csv says why\n"
    code, out, err = call("backtest", *words, "--windows", 2, "-o", tmp_path / "b")
    assert code == 0 and err == "2 series could not be forecast: rejects.csv says why\n"
    assert "4 forecasts of 6 steps in" in out and "| wql |" in out and "seasonal naive" in out


def test_names_of_columns_and_wide_tables(call, shelf, tmp_path):
    named = table().rename(columns={"unique_id": "shop", "ds": "hour", "y": "sold"})
    named.to_parquet(tmp_path / "named.parquet")
    words = ("-h", 6, "--weights", "small.safetensors", "--paths", 25, "-o")
    code, _, err = call(
        "forecast",
        tmp_path / "named.parquet",
        "--id",
        "shop",
        "--time",
        "hour",
        "--target",
        "sold",
        *words,
        tmp_path / "n",
    )
    assert code == 0, err
    frame = pd.read_csv(tmp_path / "n" / "forecast.csv")
    assert list(frame)[:2] == ["shop", "hour"]
    np.testing.assert_allclose(frame["unisci"], expected(shelf).frame["unisci"])
    wide = table().pivot(index="ds", columns="unique_id", values="y").reset_index()
    wide.to_csv(tmp_path / "wide.csv", index=False)
    assert call("forecast", tmp_path / "wide.csv", "--wide", *words, tmp_path / "w")[0] == 0
    np.testing.assert_allclose(pd.read_csv(tmp_path / "w" / "forecast.csv")["unisci"], frame["unisci"])


def test_fit_by_the_command_line(call, tmp_path):
    code, out, _ = call("forecast", "data.csv", "-h", 6, "-o", tmp_path / "out", "--steps", 2, "--paths", 20)
    assert code == 0 and "model.safetensors" in out


@pytest.mark.parametrize(
    "words, named",
    [
        (("forecast", "absent.csv", "-h", 6), "absent.csv does not exist"),
        (("forecast", "data.txt", "-h", 6), "data.txt: give a .csv or .parquet file"),
        (("forecast", "data.csv", "-h", 0), "h must be at least 1, got 0"),
        (("forecast", "data.csv", "-h", 7), "--roll"),
        (("forecast", "data.csv", "-h", 6, "--paths", 0), "n_paths must be at least 1"),
        (("forecast", "data.csv", "-h", 6, "--seed", -1), "seed"),
        (("forecast", "data.csv", "-h", 6, "--levels", "80,x"), "'x'"),
        (("forecast", "data.csv", "-h", 6, "--levels", "180"), "between 0 and 100"),
        (("forecast", "data.csv", "-h", 6, "--freq", "banana"), "banana"),
        (("forecast", "data.csv", "-h", 6, "--freq", "30min"), "30min"),
        (("forecast", "data.csv", "-h", 6, "--target", "z"), "no column 'z'"),
        (("forecast", "data.csv", "-h", 6, "--wide", "--id", "unique_id"), "wide"),
        (("forecast", "data.csv", "-h", 6, "--fit"), "leave out --weights"),
        (("forecast", "data.csv", "-h", 6, "--weights", "absent"), "no weights 'absent'"),
        (("forecast", "data.csv", "-h", 6, "--weights", "molecules.safetensors"), "forecasts no series"),
        (("forecast", "gone.csv", "-h", 6, "--freq", "h"), "no series can be forecast"),
        (("backtest", "data.csv", "-h", 6, "--windows", 0), "windows"),
        (("backtest", "data.csv", "-h", 6, "--windows", 30), "take fewer"),
        (("backtest", "data.csv", "-h", 6, "--step", 0), "step"),
    ],
    ids=lambda v: "_".join(map(str, v)).replace(".", "") if isinstance(v, tuple) else "",
)
def test_bad_input_is_one_line_and_exit_code_2(call, shelf, tmp_path, words, named):
    write_weights(shelf / "molecules.safetensors")
    gone = table()
    gone.loc[gone.groupby("unique_id").cumcount() > 60, "y"] = np.nan
    gone.to_csv(shelf / "gone.csv", index=False)
    weights = () if "--weights" in words else ("--weights", "small.safetensors")
    code, out, err = call(*words, *weights, "-o", tmp_path / "out")
    assert code == 2 and out == "", err
    assert err.startswith("unisci: ") and err.count("\n") == 1 and named in err
    assert not (tmp_path / "out").exists()


def test_too_long_a_horizon_to_train_for_is_refused_before_a_folder_is_made(call, tmp_path):
    code, _, err = call("forecast", "data.csv", "-h", 200, "--fit", "-o", tmp_path / "out")
    assert code == 2 and "take a shorter horizon" in err and not (tmp_path / "out").exists()


def test_without_weights_the_shipped_ones_are_named(call, tmp_path, monkeypatch):
    monkeypatch.setattr("unisci.jobs.shipped.shipped", dict)
    code, _, err = call("forecast", "data.csv", "-h", 6, "-o", tmp_path / "out")
    assert code == 2 and f"no weights {WEIGHTS!r}" in err and err.count("\n") == 1


def test_other_commands_send_forecasters_where_they_belong(call, tmp_path):
    code, _, err = call("generate", "small.safetensors", "-o", tmp_path / "out")
    assert code == 2 and "unisci forecast DATA --weights small.safetensors" in err
    code, _, err = call("verify", "small.safetensors")
    assert code == 2 and "unisci backtest DATA --weights small.safetensors" in err


def test_train_prints_its_report(call, tmp_path):
    (tmp_path / "tiny.yaml").write_text(
        "job: series\nout: x\ndata: [{series: eeg, hold_out: 12}]\nshape: {context: 24, horizon: 6}\n"
        "network: {kind: mlp, width: 16, hidden: 16, blocks: 1}\nsample: {n: 20, steps: 2}\n"
    )
    code, out, _ = call("train", tmp_path / "tiny.yaml", "--training.steps", 2, "--out", tmp_path / "out")
    assert code == 0 and out.startswith("| source | model | wql |") and "| eeg | seasonal naive |" in out
    assert out.endswith(f"weights in {tmp_path / 'out' / 'model.safetensors'}\n")
    assert isinstance(load(str(tmp_path / "out" / "model.safetensors")), Forecaster)
