"""Small forecasters, a table of series, and a job that trains in seconds: what the tests of series jobs run on."""

from pathlib import Path

import numpy as np
import pandas as pd
import torch

from unisci.domains.series_frames import read_frame
from unisci.forecasting.moments import Moments
from unisci.forecasting.trained import Trained, build
from unisci.forecasting.window_model import Patterns
from unisci.forecasting.windows import Source, WindowShape
from unisci.jobs.config import SeriesJob
from unisci.networks.window_inputs import WindowConfig
from unisci.networks.window_mlp import WindowMLPConfig

# Widths of whole vector lanes, as those of shipped networks: else a path may round with its place in the batch.
SMALL = WindowMLPConfig(length=1, width=32, hidden=32, blocks=1, condition=32, dropout=0.1)
NAMES = ("a", "b", "c")


def table(steps: int = 120, names: tuple[str, ...] = NAMES) -> pd.DataFrame:
    """Hourly series with a season of 24, each of its own level."""
    rng, times = np.random.default_rng(1), pd.date_range("2024-01-01", periods=steps, freq="h")
    wave = np.sin(np.arange(steps) * 2 * np.pi / 24)
    each = lambda k: 10 * k + 20 + 5 * wave + rng.normal(size=steps)
    parts = [pd.DataFrame({"unique_id": name, "ds": times, "y": each(k)}) for k, name in enumerate(names)]
    return pd.concat(parts, ignore_index=True)


def small_trained(
    horizon: int = 6, network: WindowConfig = SMALL, frame: pd.DataFrame | None = None, **columns
) -> Trained:
    """An untrained model of random weights, for series like those of the frame."""
    panel = read_frame(table() if frame is None else frame, "h", **columns)
    moments = Moments.of(panel)
    torch.manual_seed(3)
    shape = WindowShape(24, horizon, len(panel.channels))
    model = build(network, shape, Source.of(panel, 0, moments), Patterns(gaps=0.2, splits=True)).eval()
    for p in model.parameters():  # heads that begin at zero would hide what is behind them
        p.data.add_(0.05 * torch.randn_like(p))
    return Trained(model.requires_grad_(False), panel.channels, moments, panel.freq, 3, {"summary": "untrained"})


def small_job(out: Path, *sources: dict, **changes) -> SeriesJob:
    """A job of 6 steps without dropout; changes: whole groups, such as training={"steps": 3}."""
    training = {"steps": 6, "batch_size": 8, "ema": 0.5, "warmup": 2, "checkpoint_every": 2, "validate_samples": 6}
    values = {
        "job": "series",
        "out": out,
        "data": sources,
        "shape": {"context": 24, "horizon": 6},
        "network": {"kind": "mlp", "width": 16, "hidden": 24, "blocks": 1, "condition": 8, "dropout": 0},
        "training": training | changes.pop("training", {}),
        "sample": {"n": 20, "steps": 2} | changes.pop("sample", {}),
    }
    return SeriesJob.model_validate(values | changes)
