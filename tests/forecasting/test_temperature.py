"""The temperature of paths: exact for a Gaussian law, found for models that are too wide or too narrow."""

import numpy as np
import pytest
import torch

from tests.forecasting.exact_windows import GaussianNetwork, ar, model_of, panel, source_of
from unisci.forecasting.gpd import Clean
from unisci.forecasting.temperature import HIGHEST, LOWEST, best, temperature
from unisci.forecasting.windows import WindowShape
from unisci.rng import Rng

SHAPE = WindowShape(6, 3)


def data(spread: float = 1.0, n: int = 400) -> np.ndarray:
    """(n, 9) AR(1) windows whose last value of the past is 0, what comes after with `spread` times its own."""
    root = torch.linalg.cholesky(ar(SHAPE.length)).numpy()
    y = np.random.default_rng(0).normal(size=(n, SHAPE.length)) @ root.T
    y[:, SHAPE.context :] *= spread
    return y


@pytest.mark.parametrize("scheme", ["ancestral", "dpm++2m", "sde-dpm++2m"])
@pytest.mark.parametrize("c", [0.7, 1.0, 1.2])
def test_a_gaussian_law_is_drawn_at_that_many_times_its_spread(scheme, c):
    """Path by path: the distance from the law's mean is c times that of the same path at 1."""
    network = GaussianNetwork(torch.zeros(9).double(), ar(9))
    model = model_of(network, SHAPE, panel(np.zeros(20)))
    y = torch.randn(1, 9, generator=torch.Generator().manual_seed(1)).double().expand(64, -1)
    where = (SHAPE.steps() < 6).expand(64, -1)
    program, rng = model.program(8, scheme), Rng(0, torch.arange(64))
    batch = source_of(panel(np.zeros(20))).cut(SHAPE, torch.zeros(64).long(), torch.full((64,), 6))
    denoise = model.denoiser.on(batch)
    draw = lambda c: Clean(c)(denoise, {"y": y}, where, program, rng)["y"][:, 6:]
    at_one, at_c = draw(1.0), draw(c)
    mean = draw(1e-9)[:1]
    torch.testing.assert_close(at_c - mean, c * (at_one - mean), rtol=1e-4, atol=1e-5)
    assert float((at_one - mean).std()) > 0.3


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_positive(bad):
    with pytest.raises(ValueError, match="temperature"):
        Clean(bad)


@pytest.mark.parametrize("c", [0.8, 1.0, 1.1])
def test_the_best_is_what_makes_up_for_the_width(c):
    rng = np.random.default_rng(0)
    paths, truth = rng.normal(2, 1, (400, 20_000)), rng.normal(2, c, 20_000)
    assert best(paths, truth) == pytest.approx(c, abs=0.03)
    assert best(paths, 5 * truth - 8) == HIGHEST and best(5 * paths - 8, truth) == LOWEST


def test_what_a_window_counts_in_does_not_matter():
    """One series a thousand times as large as the other has the say of one."""
    rng = np.random.default_rng(0)
    found = []
    for factor in (1.0, 1000.0):
        y = rng.normal(size=(2, 300)).cumsum(1)
        source = source_of(panel(y[0], factor * y[1]))
        model = model_of(GaussianNetwork(torch.zeros(9).double(), ar(9)), SHAPE, panel(y[0]))
        origins = torch.arange(10, 250)
        batch = source.cut(SHAPE, torch.arange(2).repeat_interleave(240), origins.repeat(2))
        found.append(temperature(model, batch, 8, 0))
        rng = np.random.default_rng(0)
    assert found[0] == found[1]


def test_windows_without_a_past_tell_nothing():
    y = np.full(40, np.nan)
    y[30:] = 1.0
    source = source_of(panel(y))
    model = model_of(GaussianNetwork(torch.zeros(9).double(), ar(9)), SHAPE, panel(y))
    batch = source.cut(SHAPE, torch.zeros(3).long(), torch.tensor([8, 12, 20]))
    assert temperature(model, batch, 4, 0) == 1.0
