"""A model of windows with what its inputs were like, and its training on the series of a panel."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd
import torch

from unisci.batch import Batch, Schema
from unisci.domains.calendar import season_length
from unisci.domains.series import Panel
from unisci.forecasting.drawing import unusable
from unisci.forecasting.moments import Moments
from unisci.forecasting.regression import Regression
from unisci.forecasting.temperature import WINDOWS, temperature
from unisci.forecasting.window_model import Patterns, WindowModel
from unisci.forecasting.windows import Source, WindowShape, at_places, places
from unisci.networks.state_space import WindowStateSpace, WindowStateSpaceConfig
from unisci.networks.window_inputs import WindowConfig
from unisci.networks.window_mlp import WindowMLP, WindowMLPConfig
from unisci.networks.window_transformer import WindowTransformer, WindowTransformerConfig
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

NETWORKS = {WindowMLPConfig: WindowMLP, WindowStateSpaceConfig: WindowStateSpace}
NETWORKS |= {WindowTransformerConfig: WindowTransformer}
MLP = WindowMLPConfig(length=1, dropout=0.1)
TRAINING = FitConfig(steps=2500, batch_size=128, lr=1e-3, warmup=100, ema=0.998, weight_decay=0.05, checkpoint_every=0)
SEASONS, LEAST, MOST = 7, 64, 512  # a context is so many seasons, within these steps


@dataclass(frozen=True, eq=False)
class Trained:
    """channels and freq: those of the data, None for a model of many kinds; moments: of the covariates; steps: network
    calls a path, as the card's figures were measured; columns: the names that the table of training gave its id, time,
    targets, past and future, of those that were told; temperature: at which forecasts are drawn, see
    `unisci.forecasting.temperature`."""

    model: WindowModel
    channels: tuple[str, ...] | None
    moments: Moments
    freq: str | None
    steps: int
    card: dict
    columns: dict = field(default_factory=dict)
    temperature: float = 1.0


def shape_for(panel: Panel, horizon: int | None, context: int | None) -> WindowShape:
    """The sizes given, or of the data: a horizon is a season (24 steps where there is none), a context seven of
    them."""
    season = season_length(panel.freq)
    horizon = horizon or (season if season > 1 else 24)
    longest = max(len(s) for s in panel) - horizon
    context = context or max(min(max(SEASONS * season, LEAST), MOST, longest), 1)
    return WindowShape(context, horizon, len(panel.channels))


def train(
    panel: Panel,
    shape: WindowShape,
    network: WindowConfig,
    patterns: Patterns,
    training: FitConfig,
    steps: int = 10,
    folder: Path | None = None,
    progress: bool = True,
    device: str = "cpu",
) -> Trained:
    """A model of the panel's windows, to draw paths of so many calls; same arguments, same weights. Raises ValueError
    where no series is long enough."""
    moments = Moments.of(panel)
    source = Source.of(panel, 0, moments)
    where = places(source, shape)
    torch.manual_seed(training.seed)
    model = build(network, shape, source, patterns)
    if model.regression is not None:
        model.regression.fit(source, training.seed)
    model = model.to(device)
    model = fit(model, where, training, folder, _Cut(source, shape), progress=progress).cpu()
    some = torch.randperm(len(where), generator=torch.Generator().manual_seed(training.seed))[:WINDOWS]
    c = temperature(model, at_places(source, shape, where[some]), steps, training.seed)
    return Trained(model, panel.channels, moments, panel.freq, steps, {}, temperature=c)


@dataclass(frozen=True, eq=False)
class _Cut:
    """`prepare` of the training loop; not copied with a model."""

    source: Source
    shape: WindowShape

    def __call__(self, batch: Batch, rng: Rng) -> Batch:
        return at_places(self.source, self.shape, batch.to("cpu")).to(batch.mask.device)


def build(network: WindowConfig, shape: WindowShape, source: Source, patterns: Patterns) -> WindowModel:
    """An untrained model whose network reads what the source gives."""
    sizes = {"phases": source.phases, "covariates": source.covariates, "static": source.static}
    config = replace(network, length=shape.length, channels=shape.channels, **{k: v.shape[1] for k, v in sizes.items()})
    return model_of(config, shape, source.schema, patterns)


def model_of(config: WindowConfig, shape: WindowShape, schema: Schema, patterns: Patterns) -> WindowModel:
    """An untrained model of these sizes."""
    regression = Regression(shape, config.phases) if config.regressed else None
    return WindowModel(NETWORKS[type(config)](config), shape, schema, patterns, config.anchored, regression)


def usable(panel: Panel, shape: WindowShape, moments: Moments, ahead: int) -> tuple[Panel, Source]:
    """The panel without the series that cannot be forecast, which become rejects, and its source. Raises ValueError
    where none is left."""
    source = Source.of(panel, ahead, moments)
    bad = unusable(source, shape, [s.name for s in panel])
    if not bad:
        return panel, source
    good = tuple(s for s in panel if s.name not in bad)
    rejects = pd.DataFrame({"unique_id": list(bad), "reason": list(bad.values())}, dtype=str)
    if not good:
        name, reason = next(iter(bad.items()))
        raise ValueError(f"no series can be forecast: {name!r} {reason}")
    panel = replace(panel, series=good, rejects=pd.concat([panel.rejects, rejects], ignore_index=True))
    return panel, Source.of(panel, ahead, moments)
