"""Bounds of series, and paths within them."""

import numpy as np
import pytest
import torch

from tests.forecasting.exact_windows import F64, Spy, model_of, panel, source_of
from unisci.forecasting.bounds import bounds
from unisci.forecasting.drawing import draw_paths
from unisci.forecasting.filling import fill_paths
from unisci.forecasting.moments import Moments
from unisci.forecasting.refining import Langevin, Restart, refine_paths
from unisci.forecasting.scales import Scaled
from unisci.forecasting.windows import WindowShape

NIGHTS = np.maximum(np.sin(np.arange(240) / 24 * 2 * np.pi), 0.0)  # as radiation: 0 half of the time


def of(y):
    return bounds(np.asarray(y, float)[:, None])[0].tolist()


def test_what_is_reached_again_and_again_is_a_bound():
    noise = np.random.default_rng(0).normal(size=2000)
    assert of(noise) == [-np.inf, np.inf]
    assert of(np.maximum(noise, 0.0)) == [0.0, np.inf]
    assert of(noise.clip(-1, 1.5)) == [-1.0, 1.5]
    assert of(NIGHTS)[0] == 0.0
    gaps = np.where(np.arange(2000) % 7 == 0, np.nan, np.minimum(noise, 2.0))
    assert of(gaps) == [-np.inf, 2.0]
    two = bounds(np.stack([noise, np.minimum(noise, 0.5)], 1))
    assert two.tolist() == [[-np.inf, np.inf], [-np.inf, 0.5]]


def test_one_stretch_and_rare_or_rarer_values_are_none():
    assert of([1.0] * 100 + [2.0] * 50) == [-np.inf, np.inf]  # a step to a new level
    assert of([2.0, 1.0, 2.0, 0.0, 2.0]) == [-np.inf, 2.0] and of([2.0, 1.0, 2.0, 0.0]) == [-np.inf, np.inf]
    assert of([5.0] * 50) == of([np.nan] * 4) == of([]) == [-np.inf, np.inf]
    noise = np.random.default_rng(0).normal(size=2000)
    rare = np.where(np.isin(np.arange(2000), (3, 90, 700)), 9.0, noise)
    assert of(rare)[1] == np.inf
    counts = np.random.default_rng(1).poisson(0.5, 2000).clip(max=3)
    assert of(counts) == [0.0, np.inf]  # three is rarer than two: the tail of a law, no bound


@pytest.fixture
def night():
    """A model that answers noise, in the middle of a night."""
    shape, data = WindowShape(48, 12), panel(NIGHTS[:-6], 5.0 + NIGHTS[:-6], np.sin(np.arange(234) / 24 * 2 * np.pi))
    return model_of(Spy(), shape, data), data


def test_paths_stay_within(night):
    model, data = night
    names = [s.name for s in data]
    paths = draw_paths(model, source_of(data, 24), names, 24, 50, model.program(4), 0)
    assert paths[0].min() == 0.0 and paths[1].min() == 5.0 and paths[2].min() < -0.5
    assert 0.1 < (paths[0] == 0.0).mean() < 0.9
    base = np.zeros((3, 20, 12, 1))
    for refiner in (Restart(), Langevin(steps=2)):
        better = refine_paths(model, source_of(data, 12), names, base, 0, refiner)
        assert better[0].min() == 0.0 and better[1].min() >= 5.0 and better[2].min() < 0.0


def test_gaps_are_filled_within(night):
    model, data = night
    y = NIGHTS[:-6].copy()
    y[130:140] = np.nan
    data = panel(y)
    filled = fill_paths(model, data, Moments.of(data), 30, model.program(4), 0)[0][:, 130:140]
    assert filled.min() == 0.0 and filled.max() > 0.0


def test_gradients_go_through_bounds():
    limits = torch.tensor([[[0.0, 2.0]]], dtype=F64)
    units = Scaled(torch.zeros(1, 3), torch.ones(1, 1, 1, dtype=F64), 2 * torch.ones(1, 1, 1, dtype=F64), limits)
    x = torch.tensor([[-4.0, 0.1, 3.0]], requires_grad=True)
    y = units.back(x)
    assert y[0].tolist() == pytest.approx([0.0, 1.2, 2.0])
    assert torch.autograd.grad(y.sum(), x)[0].tolist() == [[2.0, 2.0, 2.0]]
