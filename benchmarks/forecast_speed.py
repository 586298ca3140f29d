"""Series a second: python -m benchmarks.forecast_speed [--threads 2]

100 paths of 24 steps after 168 for each of 200 series, by the default network (training does not change its speed), at
10 and 20 calls a path, and at the 100 steps of a plain DDPM.
"""

import argparse
import time

import numpy as np
import torch

from unisci.domains.synthetic_series import mixtures
from unisci.forecasting.drawing import draw_paths
from unisci.forecasting.moments import Moments
from unisci.forecasting.trained import MLP, build
from unisci.forecasting.window_model import PATTERNS
from unisci.forecasting.windows import Source, WindowShape

SERIES, PATHS = 200, 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    shape, panel = WindowShape(168, 24), mixtures(SERIES, 400)
    source = Source.of(panel, shape.horizon, Moments.of(panel))
    model = build(MLP, shape, source, PATTERNS).eval()
    count = sum(p.numel() for p in model.parameters())
    print(f"{count} parameters, {args.threads} threads, {SERIES} series, {PATHS} paths")
    for calls in (10, 20, 100):
        few = panel.select([s.name for s in panel.series[: SERIES if calls < 100 else SERIES // 5]])
        part = Source.of(few, shape.horizon, Moments.of(few))
        began = time.perf_counter()
        paths = draw_paths(model, part, [s.name for s in few], shape.horizon, PATHS, model.program(calls), 0)
        speed = len(few) / (time.perf_counter() - began)
        print(f"{calls} calls: {speed:.1f} series a second (finite: {bool(np.isfinite(paths).all())})", flush=True)


if __name__ == "__main__":
    main()
