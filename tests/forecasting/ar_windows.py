"""The AR(.9) windows of S06 and S20: 24 steps, 16 of them known, the exact model, and the closed form of the others."""

from typing import Any

import torch
from torch import Tensor

from tests.oracles import AROracle
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver

F64 = torch.float64
L, H = 24, 16
DDPM = VP(0.01, 10.0)  # T = 100 steps of beta from 1e-4 to .1 are b(t) = T beta over t = k / T
PAST = torch.arange(L) < H
# The window of the figures in S06.
TRUTH = [1.2524, 1.3182, 0.4363, 0.8504, 0.3460, 0.0766, -0.0450, 0.4478, 0.8701, 0.3235, 0.2519, -0.1513]
TRUTH += [-1.3880, -1.0591, -1.1395, -0.7196, -0.5775, -1.1018, -1.3519, -1.9805, -1.4629, -1.5618, -0.7492, -0.9672]


class Windows(AROracle):
    """AR(.9); where all samples share their times by one matrix for all, far sooner."""

    def __init__(self, process=DDPM, length=L):
        super().__init__(process, 0.9, length)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        if t.ndim == 1 or (t.ndim and not bool((t == t[0]).all())):
            return super().__call__(x, t)
        alpha, sigma = (v.expand(x.shape[1]) for v in self.process.level(t[0].double() if t.ndim else t.double()))
        cross = self.covariance * alpha
        return x @ torch.linalg.solve(alpha[:, None] * cross + torch.diag(sigma**2), cross.T).to(x)


def program(steps=100, name="ancestral", process=DDPM, end=0.0, kind="time"):
    return compile_solver(process, grid(process, steps, kind, end=end), name)


def prompt(n: int, window: Any = TRUTH) -> tuple[Tensor, Tensor]:
    """One history, n times: y (n, L), nan in the future, and where (n, L)."""
    y = torch.where(PAST, torch.as_tensor(window, dtype=F64), torch.nan)
    return y.expand(n, L), PAST.expand(n, L)


def future(y: Tensor, where: Tensor = PAST) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the unknown entries of one window (L,), given the known ones."""
    s = Windows(length=len(y)).covariance
    gain = s[~where][:, where] @ torch.linalg.inv(s[where][:, where])
    return gain @ y[where], (s[~where][:, ~where] - gain @ s[where][:, ~where]).diag().sqrt()


def ids(n: int, seed: int = 0) -> Rng:
    return Rng(seed, torch.arange(n))


def errors(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Error of the mean at each future step, and the ratio of the spreads."""
    mean, std = future(y[0])
    return x[:, H:].mean(0) - mean, x[:, H:].std(0) / std
