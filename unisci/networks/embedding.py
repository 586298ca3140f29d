"""Embeddings of time."""

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
