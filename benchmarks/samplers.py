"""Which solver draws forecasts: python -m benchmarks.samplers DATA [--set ETTh1]

Trains one Forecaster and prints, for schemes and grids of times, CRPS (the mean weighted quantile loss), the share of
the truth within the 80 % interval, the mean spread of the paths, and series a CPU second."""

import argparse
import time
from pathlib import Path

import numpy as np

from benchmarks.forecast_sets import SETS, task
from benchmarks.forecasts import crps, row, train
from unisci.forecasting.drawing import draw_paths
from unisci.forecasting.trained import TRAINING, usable
from unisci.forecasting.window_model import START
from unisci.metrics.forecasts import coverage
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver

SCHEMES = ("ddim", "dpm++2m", "ancestral", "sde-dpm++2m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/forecast_sets.py")
    parser.add_argument("--set", choices=SETS, default="ETTh1")
    parser.add_argument("--steps", type=int, default=TRAINING.steps, help="of training")
    parser.add_argument("--calls", type=int, nargs="+", default=[10, 20])
    args = parser.parse_args()
    spec, data = SETS[args.set], task(args.data, args.set)
    trained = train(data, spec, 0, args.steps).trained
    model, process = trained.model, trained.model.denoiser.product.processes["y"]
    panel, source = usable(data.judged, model.shape, trained.moments, spec.horizon)
    names = [s.name for s in panel]
    for kind in ("time", "lambda"):
        for calls in args.calls:
            for scheme in SCHEMES:
                program = compile_solver(process, grid(process, calls, kind, START), scheme)
                began = time.process_time()
                paths = draw_paths(model, source, names, spec.horizon, 100, program, 0)[..., 0]
                speed = len(paths) / (time.process_time() - began)
                found = {"CRPS": crps(paths, data.truth), "80 %": coverage(paths, data.truth, 0.8).value}
                found |= {"spread": float(np.mean(paths.std(1))), "series/CPU s": speed}
                print(f"{calls} calls of {scheme}, even in {kind}: {row(found)}", flush=True)


if __name__ == "__main__":
    main()
