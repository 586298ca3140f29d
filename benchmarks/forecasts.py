"""Forecasts beside seasonal naive, ETS and ARIMA: python -m benchmarks.forecasts DATA [--sets ETTh1 ...]

Trains a Forecaster on each set of benchmarks.forecast_sets for each seed, draws 100 paths of each judged window, and
prints: CRPS as the mean weighted quantile loss of 9 quantiles; the share of the truth within the 80 % interval; the
variogram score of the paths and of the same paths shuffled at each step; CRPS of the seasonal naive forecast refined;
and the linear predictive score of synthetic windows over that of real ones. --statistical adds automatic ETS and ARIMA
of statsforecast, on the last 336 steps, of season 24 or less (a longer one takes them minutes a window).
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks.forecast_sets import SETS, Set, Task, task
from unisci.domains.series import values_frame
from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.refining import Langevin, Restart
from unisci.forecasting.scales import scaled
from unisci.forecasting.synthesis import synthetic_windows
from unisci.forecasting.trained import MLP, TRAINING
from unisci.forecasting.window_model import PATTERNS
from unisci.forecasting.windows import Source, at_places, places
from unisci.metrics.forecast_baselines import (
    auto_arima,
    auto_ets,
    seasonal_naive,
    seasonal_naive_quantiles,
    statistical,
)
from unisci.metrics.forecasts import (
    LEVELS,
    coverage,
    linear_predictive_score,
    path_quantiles,
    shuffled,
    variogram_score,
    weighted_quantile_loss,
)
from unisci.networks.window_mlp import WindowMLPConfig

RECENT = 336  # steps that ETS and ARIMA are fitted to
SLOW = {"ETS": auto_ets, "ARIMA": auto_arima}
WINDOWS = 4000  # real and synthetic windows that the linear forecaster is trained on


def crps(paths: np.ndarray, truth: np.ndarray) -> float:
    return weighted_quantile_loss(path_quantiles(paths), truth).value


def train(data: Task, spec: Set, seed: int, steps: int, network: WindowMLPConfig = MLP) -> Forecaster:
    training = replace(TRAINING, steps=steps, seed=seed)
    patterns = replace(PATTERNS, by_window=network.regressed)
    return Forecaster(spec.horizon, spec.context, network, training, patterns).fit(data.train, progress=False)


def judge(forecaster: Forecaster, data: Task, spec: Set, seed: int, brief: bool = False) -> dict[str, float]:
    """The figures of one trained forecaster; brief: of its paths alone."""
    began = time.process_time()
    paths = np.stack(forecaster.predict(spec.horizon, data.judged, n_paths=100, seed=seed).draws)[..., 0]
    seconds = time.process_time() - began
    unit = np.nanstd(data.truth, 1).mean()
    mixed = shuffled(paths, np.random.default_rng(seed))
    found = {
        "CRPS": crps(paths, data.truth),
        "CRPS of few": crps(paths[data.few], data.truth[data.few]),
        "80 %": coverage(paths, data.truth, 0.8).value,
        "50 %": coverage(paths, data.truth, 0.5).value,
    }
    found |= {"VS": variogram_score(paths / unit, data.truth / unit).value}
    found |= {"VS shuffled": variogram_score(mixed / unit, data.truth / unit).value}
    found |= {"series/CPU s": len(paths) / seconds}
    if brief:
        return found
    base = naive_frame(data, seasonal_naive(data.histories, spec.horizon, spec.season))
    for name, refiner in (("refined, restart", Restart()), ("refined, Langevin", Langevin())):
        better = forecaster.refine(base, data.judged, refiner=refiner, seed=seed)
        found[name] = crps(np.stack(better.draws)[..., 0], data.truth)
    return found | predictive(forecaster, data, spec, seed)


def naive_frame(data: Task, naive: np.ndarray) -> pd.DataFrame:
    """A forecast (n, h) as a table, as a user would give it."""
    times = [s.ahead(naive.shape[1]) for s in data.judged]
    return values_frame(data.judged, {"naive": list(naive)}, times)


def predictive(forecaster: Forecaster, data: Task, spec: Set, seed: int) -> dict[str, float]:
    """Linear predictive scores on real windows of the judged series: trained on synthetic windows, and on real ones."""
    trained = forecaster.trained
    model, shape = trained.model, trained.model.shape
    source = Source.of(data.train, 0, trained.moments)
    where = places(source, shape)
    rows = torch.from_numpy(np.random.default_rng(seed).permutation(len(where))[:WINDOWS])
    real = windows(at_places(source, shape, where[rows]), shape)
    program = model.program(trained.steps)
    drawn = synthetic_windows(model, data.train, trained.moments, len(rows), program, seed).flatten(1)
    made = in_own_units(drawn, torch.ones_like(drawn, dtype=torch.bool), torch.zeros(len(drawn), 1), shape)
    ends = [np.concatenate([y[-shape.context :], t]) for y, t in zip(data.histories, data.truth, strict=True)]
    test = torch.from_numpy(np.stack(ends))
    test = in_own_units(test, torch.ones_like(test, dtype=torch.bool), torch.zeros(len(test), 1), shape)
    score = lambda w: linear_predictive_score(w, test, shape.context, ridge=1e-3).value
    return {"LPS real": score(real), "LPS synthetic": score(made)}


def windows(batch, shape) -> np.ndarray:
    return in_own_units(batch.state["y"], batch.given["observed"], torch.zeros(len(batch), 1), shape)


def in_own_units(y: torch.Tensor, observed: torch.Tensor, spread: torch.Tensor, shape) -> np.ndarray:
    """Windows (n, L) in units of their histories, nan where nothing is observed."""
    x = scaled(y, observed & (shape.steps() < shape.context), spread.double()).x
    return torch.where(observed, x, torch.nan).numpy()


def baselines(data: Task, spec: Set, slow: Sequence[str]) -> dict[str, float]:
    """CRPS of the forecasts to beat: on all windows, and on few; slow: those of SLOW that are run."""
    h, season, few = spec.horizon, spec.season, data.truth[data.few]
    point = seasonal_naive(data.histories, h, season)[:, None].repeat(len(LEVELS), 1)
    spread = seasonal_naive_quantiles(data.histories, h, season)
    loss = lambda quantiles, truth: weighted_quantile_loss(quantiles, truth).value
    found = {"seasonal naive, point": loss(point, data.truth), "Gaussian": loss(spread, data.truth)}
    found |= {"of few, point": loss(point[data.few], few), "of few, Gaussian": loss(spread[data.few], few)}
    if slow:
        recent = [data.histories[i][-RECENT:] for i in data.few]
        for name in slow:
            made = statistical(recent, h, season if season <= 24 else 1, SLOW[name])
            found[f"of few, {name}"] = loss(made.quantiles, few)
            if made.failures:
                print(f"{name}: {made.failures}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/forecast_sets.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=TRAINING.steps, help="of training")
    parser.add_argument("--anchored", action="store_true", help="see unisci.forecasting.anchors")
    parser.add_argument("--regressed", action="store_true", help="see unisci.forecasting.regression")
    parser.add_argument("--earlier", action="store_true", help="judge by windows before those of validation, to choose")
    parser.add_argument("--brief", action="store_true", help="paths alone: nothing refined, nothing synthetic")
    parser.add_argument("--statistical", nargs="*", choices=SLOW, help="ETS and ARIMA too, or one of them")
    args = parser.parse_args()
    network = replace(MLP, anchored=args.anchored, regressed=args.regressed)
    slow = () if args.statistical is None else args.statistical or tuple(SLOW)
    for name in args.sets:
        spec, data = SETS[name], task(args.data, name, args.earlier)
        counts = f"{len(data.judged)} windows judged, {len(data.few)} of them by slow models too"
        print(f"\n{name}: {len(data.train)} series to train on, {counts}", flush=True)
        print("baselines: " + row(baselines(data, spec, slow)), flush=True)
        for seed in args.seeds:
            began = time.process_time()
            forecaster = train(data, spec, seed, args.steps, network)
            seconds = time.process_time() - began
            about = f"seed {seed} ({seconds:.0f} CPU s, temperature {forecaster.trained.temperature:.2f})"
            print(f"{about}: {row(judge(forecaster, data, spec, seed, args.brief))}", flush=True)


def row(numbers: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())


if __name__ == "__main__":
    main()
