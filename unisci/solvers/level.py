"""A Gaussian process at one time, in Python floats: what the formulas of solvers are written in."""

from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, drift_diffusion, lam


class Level(NamedTuple):
    """x_t = alpha x_0 + sigma noise, lam = log(alpha / sigma), and the forward SDE dx = f x dt + sqrt(g2) dw."""

    time: float
    alpha: float
    sigma: float
    lam: float
    f: float
    g2: float


def levels(process: Gaussian, times: Tensor) -> list[Level]:
    """The levels of a process at float64 times (n,)."""
    alpha, sigma = process.level(times)
    columns = times, alpha, sigma, lam(process, times), *drift_diffusion(process, times)
    return [Level(*row) for row in torch.stack(columns, 1).tolist()]
