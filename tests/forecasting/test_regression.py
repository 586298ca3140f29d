"""Regression on the past: where the law is known, and that the model counts from it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.forecasting.exact_windows import F64, panel, source_of
from tests.oracles import normal
from unisci.forecasting.drawing import draw_paths
from unisci.forecasting.regression import Regression, inputs, ridge
from unisci.forecasting.scales import scaled
from unisci.forecasting.trained import MLP, build, train
from unisci.forecasting.window_model import PATTERNS
from unisci.forecasting.windows import WindowShape
from unisci.networks.window_inputs import WindowConfig
from unisci.training.fit import FitConfig

SHAPE = WindowShape(16, 4)
SMALL = replace(MLP, regressed=True, width=8, hidden=8, blocks=1)


def walks(n=3000, rho=0.9, copies=1):
    """AR(1) series of variance 1."""
    noise = normal(n * copies, 1, seed=4).numpy().reshape(copies, n)
    y = np.zeros((copies, n))
    for t in range(1, n):
        y[:, t] = rho * y[:, t - 1] + (1 - rho**2) ** 0.5 * noise[:, t]
    return panel(*y)


def test_ridge_is_least_squares_with_a_penalty():
    u, w = normal(500, 3, seed=1), normal(3, 2, seed=2)
    assert torch.allclose(ridge(u, u @ w, 1e-12), w, atol=1e-8)
    augmented = torch.cat([u, (500 * 0.3) ** 0.5 * torch.eye(3, dtype=F64)])
    target = torch.cat([u @ w, torch.zeros(3, 2, dtype=F64)])
    assert torch.allclose(ridge(u, u @ w, 0.3), torch.linalg.lstsq(augmented, target).solution, atol=1e-8)


def test_increments_of_an_ar_law_are_forecast_as_by_it():
    """d_t = rho d_t-1 + e: x_j = (rho + ... + rho^j) (x_last - x_before), whatever the units and the level."""
    rho, j = 0.7, torch.arange(1, 5)
    data = panel(*(s.y[:, 0].cumsum() for s in walks(4000, rho)), freq="1")
    source = source_of(data)
    found = Regression(SHAPE, 6).fit(source, 0)
    batch = source.cut(SHAPE, torch.zeros(3000, dtype=torch.long), torch.arange(990, 3990))
    units = scaled(batch.state["y"], (torch.arange(20) < 16).expand(3000, 20), source.spread.expand(3000, 1))
    known = (torch.arange(20) < 16).expand(3000, 1, 20)
    value, spread, change = found(units.x[:, None], known, torch.zeros(3000, 6))
    want = (rho**j).cumsum(0) * -units.x[:, 14:15]
    assert float((value[:, 0, 16:] - want).square().mean() / want.square().mean()) < 0.05
    off = (units.x[:, 16:] - value[:, 0, 16:]) / spread[:, 0, 16:]
    assert bool(((off.abs() < 1.2816).double().mean(0) - 0.8).abs().max() < 0.06)
    assert not value[..., :16].any() and bool((spread[..., :16] == 1).all()) and not change.any()


def test_quiet_pasts_have_narrow_forecasts():
    """Spells of 40 steps of noise, of .1 and of 1 by turns: 30 steps into each, r is that of the spell."""
    level = np.where(np.arange(6000) // 40 % 2 == 0, 0.1, 1.0)
    source = source_of(panel(level * normal(6000, 1, seed=8).numpy()[:, 0], freq="1"))
    found = Regression(SHAPE, 6).fit(source, 0)
    for first, deviation in ((110, 0.1), (150, 1.0)):
        origin = torch.arange(first, 5900, 80)
        n = len(origin)
        batch = source.cut(SHAPE, torch.zeros(n, dtype=torch.long), origin)
        known = (torch.arange(20) < 16).expand(n, 20)
        units = scaled(batch.state["y"], known, source.spread.expand(n, 1))
        r = units.scale * found(units.x[:, None], known[:, None], torch.zeros(n, 6)).spread
        assert 0.5 < float(r[..., 16:].median()) / deviation < 2


def test_only_forecasts_count_from_it():
    """Horizons of which nothing is known after a past of which something is. What is not known tells nothing."""
    found = Regression(SHAPE, 2)
    found.weight.copy_(normal(19, 4, seed=3))
    found.noise[-1] = 2 * math.log(0.5)
    x, phase = normal(4, 1, 20, seed=5), normal(4, 2, seed=6)
    known = torch.zeros(4, 1, 20, dtype=torch.bool)
    known[0, :, :16] = known[1, :, 10:16] = known[2, :, :17] = True  # forecast, short, a gap; and nothing at all
    anchor = found(x, known, phase)
    want = inputs(torch.where(known, x, 0.0)[..., :16], phase)[:2] @ found.weight.double()
    assert torch.allclose(anchor.value[:2, :, 16:], want) and not anchor.value[2:].any()
    assert anchor.spread[:, 0, 16:].flatten().tolist() == pytest.approx([0.5] * 8 + [1.0] * 8)
    again = found(torch.where(known, x, torch.nan), known, phase)
    assert torch.equal(again.value, anchor.value)


def test_an_untrained_model_draws_the_regression():
    data = walks(2000, copies=2)
    source = source_of(data, 4)
    model = build(SMALL, SHAPE, source, PATTERNS).eval()
    model.regression.fit(source_of(data), 0)
    paths = draw_paths(model, source, ["a", "b"], 4, 800, model.program(20, "dpm++2m"), 0)[..., 0]
    past = source.cut(SHAPE, torch.arange(2), source.end - source.first)
    units = past.state["y"][:, :16]
    loc, scale = units[:, -1:], units.std(1, correction=0, keepdim=True)
    x = ((past.state["y"] - loc) / scale)[:, None].float()
    known = (torch.arange(20) < 16).expand(2, 1, -1)
    value, spread, _ = model.regression(x, known, past.given["phase"])
    want, wide = loc + scale * value[:, 0, 16:], scale * spread[:, 0, 16:]
    assert float(((torch.from_numpy(paths.mean(1)) - want) / wide).abs().max()) < 0.15
    assert torch.allclose(torch.from_numpy(paths.std(1)) / wide, torch.ones(2, 4, dtype=F64), atol=0.1)


def test_training_keeps_it_and_too_few_windows_leave_it_out():
    training = FitConfig(steps=2, batch_size=4, checkpoint_every=0)
    model = train(walks(400), SHAPE, SMALL, PATTERNS, training, progress=False).model
    assert bool(model.regression.weight.any())
    fresh = Regression(SHAPE, 6).fit(source_of(walks(400)), 0)
    assert torch.equal(model.regression.weight, fresh.weight)
    few = Regression(SHAPE, 6).fit(source_of(walks(6)), 0)
    assert not few.weight.any() and not few.noise.any()
    y = walks(400).series[0].y[:, 0].copy()
    y[::3] = np.nan  # no horizon is whole
    assert not Regression(SHAPE, 6).fit(source_of(panel(y)), 0).weight.any()


def test_each_channel_has_the_same_weights():
    one, two = walks(600, copies=1), walks(600, copies=1).series[0].y
    both = panel(np.concatenate([two, two], 1))
    shape = WindowShape(16, 4, 2)
    a = Regression(SHAPE, 6).fit(source_of(one), 0)
    b = Regression(shape, 6).fit(source_of(both), 0)
    assert torch.allclose(a.weight, b.weight, atol=1e-4) and torch.allclose(a.noise, b.noise, atol=1e-3)


def test_a_network_is_anchored_or_regressed():
    with pytest.raises(ValueError, match="not both"):
        WindowConfig(4, anchored=True, regressed=True)
