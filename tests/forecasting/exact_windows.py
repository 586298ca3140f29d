"""Exact networks of windows, small panels, and the closed form of a Gaussian law given some entries."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from unisci.domains.series import Panel, Series
from unisci.forecasting.moments import Moments
from unisci.forecasting.window_model import PATTERNS, WindowModel
from unisci.forecasting.windows import Source, WindowShape
from unisci.processes.gaussian import Cosine

F64 = torch.float64


class GaussianNetwork(nn.Module):
    """What a perfect network answers where x_0 ~ N(mean (N,), covariance (N, N)): of a denoiser with Cosine noise and
    data of scale 1, D = alpha x + sigma F. Each entry has a time of its own; one that does not exist tells nothing."""

    def __init__(self, mean: Tensor, covariance: Tensor):
        super().__init__()
        self.mean, self.covariance = mean, covariance

    def forward(self, state, t, mask, given, order=None, cache=None):
        x, t = state["y"].double(), (t["y"] if isinstance(t, dict) else t).double()
        t = t if t.ndim == 2 else t.reshape(-1, 1)
        alpha, sigma = (v.expand(x.shape) for v in Cosine().level(t))
        a, s = torch.where(mask, alpha, 0.0), torch.where(mask, sigma, 1.0)
        cross = self.covariance * a[:, None]
        noised = a[:, :, None] * cross + torch.diag_embed(s**2)
        away = torch.where(mask, x - a * self.mean, 0.0)
        clean = self.mean + (cross @ torch.linalg.solve(noised, away[..., None]))[..., 0]
        return {"y": torch.where(sigma > 0, (clean - alpha * x) / sigma.clamp(min=1e-9), 0.0).to(state["y"])}


class Spy(nn.Module):
    """Remembers what it is called with, and answers entry by entry, of its neighbours too."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.3))
        self.seen = []

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.seen.append((state["y"].detach().clone(), t["y"].clone(), mask, given))
        x = torch.where(mask, state["y"], 0.0)
        return {"y": self.a * x + 0.2 * x.roll(1, 1)}


def ar(length: int, rho: float = 0.9) -> Tensor:
    """Covariance of a stationary AR(1) series of variance 1."""
    i = torch.arange(length, dtype=F64)
    return rho ** (i[:, None] - i).abs()


def conditional(covariance: Tensor, y: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the other entries of N(0, covariance), given those of y (N,) that are known."""
    gain = covariance[~known][:, known] @ torch.linalg.inv(covariance[known][:, known])
    rest = covariance[~known][:, ~known] - gain @ covariance[known][:, ~known]
    return gain @ y[known], rest.diag().sqrt()


def series(name: str, y, freq: str = "h", start: str = "2024-03-01", **covariates) -> Series:
    y = np.asarray(y, float)
    y = y[:, None] if y.ndim == 1 else y
    times = pd.RangeIndex(len(y)) if freq == "1" else pd.date_range(start, periods=len(y), freq=freq)
    names = ("y",) if y.shape[1] == 1 else tuple("abcdef"[: y.shape[1]])
    return Series(name, times, y, names, freq, **covariates)


def panel(*ys, freq: str = "h", **options) -> Panel:
    """Series "s0", "s1" and so on."""
    return Panel(tuple(series(f"s{k}", y, freq) for k, y in enumerate(ys)), **options)


def source_of(data: Panel, ahead: int = 0) -> Source:
    return Source.of(data, ahead, Moments.of(data))


def model_of(network: nn.Module, shape: WindowShape, data: Panel, patterns=PATTERNS) -> WindowModel:
    return WindowModel(network, shape, source_of(data).schema, patterns).eval()
