"""The commands `unisci forecast` and `unisci backtest`, each one function of `unisci.jobs.forecasts`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unisci.jobs.config import ConfigError, TableConfig

if TYPE_CHECKING:
    from unisci.jobs.forecasts import Ask

Data = Annotated[str, typer.Argument(help='A .csv or .parquet of series, or an embedded set, "synthetic" or "eeg".')]
Horizon = Annotated[int, typer.Option("--horizon", "-h", help="Steps to forecast.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="Folder for the results, new or of the same run.")]
Weights = Annotated[
    str | None, typer.Option(help="Shipped weights or a .safetensors file; default: series-base, or --fit.")
]
Fit = Annotated[bool, typer.Option("--fit", help="Train a model on the table first, in place of weights.")]
Steps = Annotated[int | None, typer.Option(help="Training steps, implies --fit; default: 2500.")]
Freq = Annotated[str | None, typer.Option(help="h, 15min, D, W, ME, ... or 1 for integer times; default: inferred.")]
Id = Annotated[str | None, typer.Option(help="Column that tells series apart; default: unique_id or item_id.")]
Time = Annotated[str | None, typer.Option(help="Column of times; default: ds, timestamp, date, ...")]
Target = Annotated[
    list[str] | None, typer.Option(help="Column of values, again for another channel; default: y or target.")
]
Wide = Annotated[bool, typer.Option("--wide", help="Each column of numbers is a series of its own.")]
Paths = Annotated[int, typer.Option(help="Joint sample paths of each series.")]
Levels = Annotated[list[str] | None, typer.Option(help='Intervals in percent, as 80,95 or "80 95".')]
Seed = Annotated[int, typer.Option(help="Path j of a series and a seed is always the same.")]
Roll = Annotated[bool, typer.Option("--roll", help="Beyond the weights' horizon: horizon after horizon.")]


def forecast(
    data: Data,
    h: Horizon,
    out: Out,
    freq: Freq = None,
    weights: Weights = None,
    fit: Fit = False,
    steps: Steps = None,
    paths: Paths = 100,
    levels: Levels = None,
    seed: Seed = 0,
    roll: Roll = False,
    id: Id = None,
    time: Time = None,
    target: Target = None,
    wide: Wide = False,
) -> None:
    """Forecast every series of a table into a folder: forecast.csv, paths.parquet, forecast.png, manifest.json, and
    rejects.csv for series that could not be.

    Zero-shot, or by a model that is trained on the table first.
    """
    from unisci.jobs.forecasts import forecast as run

    table = {"series": data, "freq": freq, "id": id, "time": time, "targets": target or (), "wide": wide}
    ask = _ask(table, h, weights, fit, steps, paths, levels, seed, roll)
    found = run(ask, out)
    typer.echo(f"{len(found.panel)} series, {ask.n_paths} paths of {h} steps in {_told(out)}")
    _say_rejects(len(found.rejects))


def backtest(
    data: Data,
    h: Horizon,
    out: Out,
    windows: Annotated[int, typer.Option(help="Forecasts of each series, from as many earlier points.")] = 5,
    step: Annotated[int | None, typer.Option(help="Steps from one point to the next; default: the horizon.")] = None,
    freq: Freq = None,
    weights: Weights = None,
    fit: Fit = False,
    steps: Steps = None,
    paths: Paths = 100,
    levels: Levels = None,
    seed: Seed = 0,
    roll: Roll = False,
    id: Id = None,
    time: Time = None,
    target: Target = None,
    wide: Wide = False,
) -> None:
    """Forecast from earlier points of the table and compare with what came, into a folder: backtest.csv, report.md,
    manifest.json, and rejects.csv for series that could not be.

    With --fit the model is trained on what comes before all that judges it.
    """
    from unisci.jobs.forecasts import backtest as run

    table = {"series": data, "freq": freq, "id": id, "time": time, "targets": target or (), "wide": wide}
    ask = _ask(table, h, weights, fit, steps, paths, levels, seed, roll)
    found = run(ask, windows, step, out)
    typer.echo((out / "report.md").read_text())
    typer.echo(f"{sum(len(f.panel) for f in found.forecasts)} forecasts of {h} steps in {_told(out)}")
    _say_rejects(len({name for f in found.forecasts for name in f.panel.rejects["unique_id"]}))


def _ask(
    table: dict,
    h: int,
    weights: str | None,
    fit: bool,
    steps: int | None,
    paths: int,
    levels: list[str] | None,
    seed: int,
    roll: bool,
) -> "Ask":
    from pydantic import ValidationError

    from unisci.jobs.forecasts import WEIGHTS, Ask

    fits = fit or steps is not None
    if fits and (weights is not None or roll):
        raise ConfigError("--fit trains a model of its own, of this horizon: leave out --weights and --roll")
    try:
        table = TableConfig.model_validate(table)
    except ValidationError as error:
        raise ConfigError("; ".join(e["msg"] for e in error.errors())) from error
    told = {} if steps is None else {"fit_steps": steps}
    if levels:
        told["levels"] = tuple(_number(word) for text in levels for word in text.replace(",", " ").split())
    return Ask(table, h, None if fits else weights or WEIGHTS, n_paths=paths, seed=seed, roll=roll, **told)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ConfigError(f"--levels are percents, such as 80,95, got {word!r}") from None


def _told(out: Path) -> str:
    from unisci.jobs.forecasts import FILES

    return f"{out}: {', '.join(name for name in FILES if (out / name).is_file())}"


def _say_rejects(count: int) -> None:
    if count:
        typer.echo(f"{count} series could not be forecast: rejects.csv says why", err=True)
