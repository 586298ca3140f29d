"""Made-up series to pretrain on: seasons, trends, random walks and noise, mixed at random.

    y_t = level + a trend + sum_k seasons_k(t mod m_k) + AR noise,     AR: e_t = phi e_t-1 + w_t

Real sets are few and their seasons fewer: what a model knows of other seasons it has from these (as KernelSynth of
Chronos, arXiv 2403.07815, whose mixtures are of Gaussian processes)."""

import numpy as np
import pandas as pd
from scipy.signal import lfilter

from unisci.domains.series import Panel, Series

SEASONS = (4, 5, 7, 12, 24, 48, 52, 60, 96, 144, 168, 288, 365)
HARMONICS = 4


def mixtures(n: int = 256, steps: int = 2048, seed: int = 0) -> Panel:
    """n series of integer times, "mixture-0" and on; series i depends on (seed, i) alone. Raises ValueError where n or
    steps is less than 1."""
    if min(n, steps) < 1:
        raise ValueError(f"n and steps must be at least 1, got {n} and {steps}")
    times = pd.RangeIndex(steps)
    made = (mixture(np.random.default_rng([seed, i]), steps) for i in range(n))
    return Panel(tuple(Series(f"mixture-{i}", times, y[:, None], ("y",), "1") for i, y in enumerate(made)))


def mixture(rng: np.random.Generator, steps: int) -> np.ndarray:
    """One series (steps,). The shares of its parts are drawn, so that some are all season and some all noise."""
    parts = [_season(rng, steps, m) for m in rng.choice(SEASONS, rng.integers(0, 3), replace=False)]
    parts.append(_noise(rng, steps))
    if rng.random() < 0.3:
        parts.append(np.linspace(-1, 1, steps) * rng.normal())
    weights = rng.exponential(size=len(parts))
    y = sum(w * p / max(p.std(), 1e-9) for w, p in zip(weights, parts, strict=True))
    if rng.random() < 0.3:  # seasons that grow with the level, values that are positive
        y = np.exp(0.5 * y / max(y.std(), 1e-9))
    return 10 ** rng.uniform(-1, 3) * (y + rng.normal(scale=3.0))


def _season(rng: np.random.Generator, steps: int, m: int) -> np.ndarray:
    """A pattern of period m: smooth, or with corners and quiet hours."""
    k = np.arange(1, HARMONICS + 1)
    amplitude, shift = rng.normal(size=HARMONICS) / k, rng.uniform(0, 2 * np.pi, HARMONICS)
    pattern = (amplitude * np.sin(2 * np.pi * k * np.arange(m)[:, None] / m + shift)).sum(1)
    if rng.random() < 0.3:
        pattern = np.maximum(pattern, np.quantile(pattern, rng.uniform(0, 0.7)))
    return np.resize(pattern, steps)


def _noise(rng: np.random.Generator, steps: int) -> np.ndarray:
    """AR(1) noise, a random walk in one of four, now and then with heavy tails."""
    phi = 1.0 if rng.random() < 0.25 else rng.uniform(0, 0.99)
    shocks = rng.standard_t(3, steps) if rng.random() < 0.2 else rng.standard_normal(steps)
    return lfilter([1.0], [1.0, -phi], shocks)
