"""Sizes chosen from the data, training that repeats, and series that cannot be used."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.forecasting.exact_windows import F64, panel, series, source_of
from tests.oracles import normal
from unisci.domains.series import Panel
from unisci.forecasting.moments import Moments
from unisci.forecasting.trained import NETWORKS, build, shape_for, train, usable
from unisci.forecasting.window_model import PATTERNS, Patterns
from unisci.forecasting.windows import WindowShape, at_places, places
from unisci.networks.state_space import WindowStateSpaceConfig
from unisci.networks.window_mlp import WindowMLPConfig
from unisci.networks.window_transformer import WindowTransformerConfig
from unisci.rng import Rng
from unisci.training.fit import FitConfig

NET = WindowMLPConfig(1, width=16, hidden=16, blocks=1, condition=8, dropout=0.1)
FIT = FitConfig(steps=4, batch_size=8, warmup=1, ema=0.5, checkpoint_every=0)


@pytest.mark.parametrize(
    ("freq", "steps", "given", "want"),
    [
        ("h", 2000, (None, None), (168, 24)),
        ("D", 2000, (None, None), (64, 7)),
        ("15min", 9000, (None, None), (512, 96)),
        ("1", 2000, (None, None), (64, 24)),
        ("h", 100, (None, None), (76, 24)),
        ("h", 10, (None, None), (1, 24)),
        ("h", 100, (12, 9), (9, 12)),
        ("h", 100, (12, None), (88, 12)),
    ],
)
def test_sizes_are_of_the_season_and_the_data(freq, steps, given, want):
    shape = shape_for(panel(np.zeros((steps, 2)), np.zeros((3, 2)), freq=freq), *given)
    assert (shape.context, shape.horizon, shape.channels) == (*want, 2)


def rich(n=2, steps=40):
    made = []
    for k in range(n):
        y, past, future = (normal(steps, c, seed=10 * k + c).numpy() for c in (1, 2, 3))
        made.append(series(f"s{k}", y, past=past, future=future, static=np.array([float(k)])))
    return Panel(tuple(made))


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_same_arguments_give_the_same_weights():
    """Dropout included, and whatever was drawn before."""
    shape, data = WindowShape(8, 4), rich()
    first, moments = (made := train(data, shape, NET, PATTERNS, FIT, progress=False)).model, made.moments
    torch.manual_seed(99)
    again = train(data, shape, NET, PATTERNS, FIT, progress=False)
    assert torch.equal(weights(first), weights(again.model)) and made.temperature == again.temperature
    assert moments.covariates[0].shape == (5,) and moments.static[0].tolist() == [0.5]
    config = first.denoiser.network.config
    assert (config.length, config.channels, config.phases, config.covariates, config.static) == (12, 1, 6, 5, 1)
    for other in (replace(FIT, seed=1), replace(FIT, steps=5)):
        assert not torch.equal(weights(first), weights(train(data, shape, NET, PATTERNS, other, progress=False).model))
    gaps = train(data, shape, NET, Patterns(1, 0, 0), FIT, progress=False).model
    assert not torch.equal(weights(first), weights(gaps))


def test_a_resumed_run_has_the_weights_of_one_that_was_not(tmp_path):
    """Without dropout, whose draws are torch's own."""
    shape, data, net = WindowShape(8, 4), rich(), replace(NET, dropout=0.0)
    whole = train(data, shape, net, PATTERNS, FIT, progress=False).model
    half = replace(FIT, checkpoint_every=2)
    train(data, shape, net, PATTERNS, half, folder=tmp_path, progress=False)
    for file in tmp_path.rglob("*"):
        if file.is_file() and "4" in file.stem:
            file.unlink()
    resumed = train(data, shape, net, PATTERNS, half, folder=tmp_path, progress=False).model
    assert torch.equal(weights(whole), weights(resumed))


def test_training_lowers_the_loss():
    """Of data without noise, to half that of the untrained model, which answers 0."""
    data, shape = panel(np.sin(np.arange(120) / 3)), WindowShape(12, 4)
    net, longer = replace(NET, width=32, hidden=32, dropout=0.0), replace(FIT, steps=150, lr=1e-2, batch_size=32)
    model = train(data, shape, net, Patterns(0, 0, 0), longer, progress=False).model
    source = source_of(data)
    batch = at_places(source, shape, places(source, shape))
    fresh, rng = build(NET, shape, source, Patterns(0, 0, 0)).eval(), Rng(5, batch.ids)
    with torch.no_grad():
        assert model.eval().loss(batch, rng) < 0.5 * fresh.loss(batch, rng)


@pytest.mark.parametrize(
    "config", [NET, WindowStateSpaceConfig(1), WindowTransformerConfig(1)], ids=lambda c: str(c)[:9]
)
def test_every_network_reads_what_the_source_gives(config):
    data, shape = rich(1), WindowShape(8, 4)
    model = build(config, shape, source_of(data), PATTERNS)
    assert type(model.denoiser.network) is NETWORKS[type(config)]
    batch = source_of(data).cut(shape, torch.tensor([0, 0]), torch.tensor([8, 20]))
    known = (shape.steps() < 8).expand(2, -1)
    out = model.eval().complete(batch, known, ~known, model.program(2), Rng(0, torch.arange(2)))
    assert out.shape == (2, 12) and out.dtype == F64 and bool(out.isfinite().all())


def test_series_that_cannot_be_forecast_become_rejects():
    good, bad = normal(20).numpy(), normal(20).numpy()
    bad[10:] = np.nan
    data, shape = panel(good, bad, good[:2]), WindowShape(8, 4)
    left, source = usable(data, shape, Moments.of(data), 4)
    assert [s.name for s in left] == ["s0", "s2"] and len(source.first) == 2 and source.ahead == 4
    assert left.rejects.to_dict("records") == [
        {"unique_id": "s1", "reason": "has no value among its last 8 steps, from which it would be forecast"}
    ]
    same, _ = usable(left, shape, Moments.of(data), 4)
    assert same is left
    with pytest.raises(ValueError, match="no series can be forecast: 's0' has no value among its last 8 steps"):
        usable(panel(bad), shape, Moments.of(data), 4)


def test_no_series_long_enough_is_told():
    with pytest.raises(ValueError, match="longest series has 4 steps, and a horizon of 24 needs at least 25"):
        data = panel(np.zeros(4))
        train(data, shape_for(data, None, None), NET, PATTERNS, FIT, progress=False)


def test_short_series_are_no_harm_to_the_others():
    data = panel(normal(30).numpy(), [1.0], [np.nan, 2.0, np.nan], normal(3, seed=1).numpy())
    model = train(data, WindowShape(8, 4), NET, PATTERNS, FIT, progress=False).model
    assert bool(weights(model).isfinite().all())
