"""Forecasts of a set that the model never saw: python -m benchmarks.zero_shot DATA [--sets ETTh1 ...] [--steps 3000]

For each set one model is trained on the others and on made-up series, as configs/series_base.yaml, and judged on the
windows of benchmarks.forecasts. ETTh1 and ETTm1 are one transformer's loads at two steps, so both are left out for
either. --anchored: unknown entries count from their anchors (`unisci.forecasting.anchors`). --steps 0 trains nothing:
an anchored model then draws each entry alone from N(anchor, spread^2). Prints CRPS (the mean weighted quantile loss)
and the share of the truth within the 80 % interval, beside seasonal naive."""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.forecast_sets import SETS, task
from benchmarks.forecasts import baselines, crps, row
from unisci.domains.synthetic_series import mixtures
from unisci.forecasting.forecaster import Forecaster
from unisci.forecasting.mixed import Mixed, slots
from unisci.forecasting.moments import Moments
from unisci.forecasting.temperature import WINDOWS, temperature
from unisci.forecasting.trained import MLP, TRAINING, Trained, build
from unisci.forecasting.window_model import Patterns
from unisci.forecasting.windows import Source, WindowShape
from unisci.metrics.forecasts import coverage
from unisci.rng import Rng
from unisci.training.data import GROUP
from unisci.training.fit import fit

SHAPE = WindowShape(336, 48)
PATTERNS = Patterns(gaps=0.1, nothing=0.1, shorter=0.3)
CALLS = 10
MADE_UP = 3.0  # weight of the made-up series beside 1 for each set
KIN = {"ETTh1": {"ETTm1"}, "ETTm1": {"ETTh1"}}


def pretrain(folder: Path, without: str, steps: int, anchored: bool) -> Forecaster:
    """A model of all sets but one, and its kin."""
    names = [name for name in SETS if name != without and name not in KIN.get(without, ())]
    panels = [task(folder, name).train for name in names] + [mixtures()]
    moments = [Moments.of(p) for p in panels]
    # No phases: which they are is decided by one calendar alone, and half of the sets have none.
    none = replace(moments[-1], phases=(moments[-1].phases[0], torch.full_like(moments[-1].phases[1], torch.inf)))
    sources = [Source.of(p, 0, none) for p in panels]
    mixed = Mixed.of(sources, SHAPE, [1.0] * len(names) + [MADE_UP])
    training = replace(TRAINING, steps=max(steps, 1))
    torch.manual_seed(training.seed)
    model = build(replace(MLP, anchored=anchored), SHAPE, mixed.source, PATTERNS)
    rows = slots(GROUP * training.batch_size)
    model = fit(model, rows, training, None, mixed, progress=False) if steps else model.eval()
    some = mixed(slots(WINDOWS), Rng(training.seed, torch.arange(WINDOWS)))
    c = temperature(model, some, CALLS, training.seed) if steps else 1.0
    return Forecaster.of(Trained(model, None, none, None, CALLS, {}, temperature=c), "unisci")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/forecast_sets.py")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--anchored", action="store_true")
    args = parser.parse_args()
    for name in args.sets:
        spec, data = SETS[name], task(args.data, name)
        began = time.process_time()
        forecaster = pretrain(args.data, name, args.steps, args.anchored)
        seconds = time.process_time() - began
        paths = np.stack(forecaster.predict(spec.horizon, data.judged).draws)[..., 0]
        found = {"CRPS": crps(paths, data.truth), "80 %": coverage(paths, data.truth, 0.8).value}
        about = f"{name}, unseen ({seconds:.0f} CPU s, n = {len(paths)})"
        print(f"{about}: {row(found)}; {row(baselines(data, spec, False))}", flush=True)


if __name__ == "__main__":
    main()
