"""Synthetic windows of the unconditional model, to train other forecasters on (TSDiff, arXiv 2307.11494, section 4)."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unisci.domains.series import Panel
from unisci.forecasting.drawing import draw_windows
from unisci.forecasting.moments import Moments
from unisci.forecasting.window_model import WindowModel
from unisci.forecasting.windows import Source, at_places, places
from unisci.rng import Rng
from unisci.solvers.program import Program


def synthetic_windows(
    model: WindowModel, panel: Panel, moments: Moments, n: int, program: Program, seed: int
) -> Tensor:
    """(n, C, L) float64: window i has the units, the calendar and the covariates of a real one, drawn at random by
    (seed, i), and values of its own. Raises ValueError where n < 1, and where no history of the series has a value of
    each channel."""
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    source, rng = Source.of(panel, 0, moments), Rng(seed, torch.arange(n))
    where = places(source, model.shape)
    where = where[source.begun(model.shape, where.given["series"], where.given["origin"])]
    if not len(where):
        raise ValueError(f"no {model.shape.context} steps of a series have a value of each channel, to set the units")
    chosen = (rng.uniform("place", 0, (n,), 0) * len(where)).long().clamp(max=len(where) - 1)
    batch = at_places(source, model.shape, where[chosen])
    past = batch.given["observed"] & (model.shape.steps() < model.shape.context)
    nothing = torch.zeros_like(past)
    out = draw_windows(model, batch, nothing, ~nothing, program, rng.at(0), basis=past)
    return out.unflatten(1, (model.shape.channels, model.shape.length))


def synthetic(model: WindowModel, panel: Panel, moments: Moments, n: int, program: Program, seed: int) -> pd.DataFrame:
    """The same as a long table."""
    values = synthetic_windows(model, panel, moments, n, program, seed).numpy()
    length = model.shape.length
    frame = {"unique_id": np.repeat([f"synthetic-{i}" for i in range(n)], length), "ds": np.tile(np.arange(length), n)}
    return pd.DataFrame(frame | {name: values[:, k].ravel() for k, name in enumerate(panel.channels)})
