"""How wide paths should be. A trained model of windows is a little too wide where some series can be foretold better
than others, and few calls are too narrow; one temperature of the noise makes up for both:

    c = argmin_c  sum |truth - F^-1|,    F^-1 the quantiles of m + c (path - m), m the median of the paths

over windows of the training series (the sum: the pinball losses of 9 quantiles, in units of each window's past). Noise
of c times its size then draws such paths, each by itself (`unisci.forecasting.gpd.Clean`).
"""

import numpy as np
import torch

from unisci.batch import Batch
from unisci.forecasting.drawing import draw_windows
from unisci.forecasting.scales import scaled
from unisci.forecasting.window_model import WindowModel
from unisci.rng import Rng

LOWEST, HIGHEST = 0.7, 1.2  # windows that were trained on flatter a model that learnt a short series by heart
WINDOWS, PATHS = 256, 40
QUANTILES = np.linspace(0.1, 0.9, 9)


def temperature(model: WindowModel, batch: Batch, steps: int, seed: int) -> float:
    """c of a trained model, for paths of so many calls, by windows of its training (`Source.cut`), about WINDOWS of
    them. 1 where none has a past and something to come."""
    shape, observed = model.shape, batch.given["observed"]
    known = observed & (shape.steps() < shape.context)
    wanted = observed & ~known
    good = known.unflatten(1, (shape.channels, -1)).any(-1).all(1) & wanted.any(1)
    if not bool(good.any()):
        return 1.0
    batch, known, wanted = batch[good], known[good], wanted[good]
    each = torch.arange(len(batch)).repeat_interleave(PATHS)
    rng = Rng(seed, torch.arange(len(each)))
    paths = draw_windows(model, batch[each], known[each], wanted[each], model.program(steps), rng)
    unit = scaled(batch.state["y"], known, batch.given["spread"]).scale.expand(-1, -1, shape.length).flatten(1)
    paths = (paths.unflatten(0, (len(batch), PATHS)) / unit[:, None]).permute(1, 0, 2)[:, wanted].numpy()
    return best(paths, (batch.state["y"] / unit)[wanted].numpy())


def best(paths: np.ndarray, truth: np.ndarray) -> float:
    """c from LOWEST to HIGHEST for paths (S, n) of numbers whose truth is (n,)."""
    quantiles = np.quantile(paths, QUANTILES, 0)
    middle = quantiles[len(QUANTILES) // 2]
    off, away, level = truth - middle, quantiles - middle, QUANTILES[:, None]
    loss = lambda c: np.maximum(level * (off - c * away), (level - 1) * (off - c * away)).sum()
    candidates = np.linspace(LOWEST, HIGHEST, 51)
    return float(candidates[np.argmin([loss(c) for c in candidates])])
