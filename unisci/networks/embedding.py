"""Embeddings of times, and of numbers about a whole sample that may be missing."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Sines and cosines of t at frequencies from 1 to 100, then a two-layer map: (...) -> (..., width)."""

    def __init__(self, width: int, frequencies: int = 8):
        super().__init__()
        self.register_buffer("frequency", torch.exp(torch.linspace(0, math.log(100.0), frequencies)), persistent=False)
        self.map = nn.Sequential(nn.Linear(2 * frequencies, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        phase = t[..., None] * self.frequency
        return self.map(torch.cat([phase.sin(), phase.cos()], -1))


class NumberEmbedding(nn.Module):
    """C numbers a sample, nan where one is not told: (B, C) -> (B, outputs). 0 for whatever it is told before it is
    trained."""

    def __init__(self, numbers: int, outputs: int, hidden: int = 64):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(2 * numbers, hidden), nn.SiLU(), nn.Linear(hidden, outputs))
        nn.init.zeros_(self.map[-1].weight)
        nn.init.zeros_(self.map[-1].bias)

    def forward(self, values: Tensor) -> Tensor:
        told = ~values.isnan()
        return self.map(torch.cat([torch.where(told, values, 0.0), told.to(values)], -1))
