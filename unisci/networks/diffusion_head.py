"""The diffusion head of one vector in a sequence (MAR, Li et al., arXiv 2406.11838): an MLP that denoises it, told what
a transformer knows of the vectors before it.

    y = T(t) + W z,        x += gate(y) MLP((1 + scale(y)) LN(x) + shift(y)),        out = V((1 + scale) LN(x) + shift)

z is the hidden state before the vector, computed once and used for every time and every step of a solver. Coordinates
on a circle are read as sines and cosines, and out_d = V_d + sum_k A_dk sin(2 pi k x_d) + B_dk cos(2 pi k x_d), where V,
A, B are maps of the last state: a pull sin(2 pi (m - x)) to a point m is then linear in what is known of m.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.edges import fourier
from unisci.networks.embedding import TimeEmbedding
from unisci.order import Order


@dataclass(frozen=True)
class DiffusionHeadConfig:
    """context: size of z; numbers: of the vector. frequencies: 0 reads the numbers as they are; k > 0 reads their sines
    and cosines of periods 1, 1/2, ..., 1/k, and nothing else, for coordinates on a circle of length 1."""

    context: int = 128
    numbers: int = 3
    width: int = 128
    depth: int = 3
    frequencies: int = 0


class Block(nn.Module):
    """x (..., width) under y (..., width)."""

    def __init__(self, width: int):
        super().__init__()
        self.modulation = nn.Linear(width, 3 * width)
        self.map = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(y).chunk(3, -1)
        return x + gate * self.map(_norm(x) * (1 + scale) + shift)


class DiffusionHead(nn.Module):
    """A network (`unisci.denoiser.Network`) of the field "value" (..., numbers), given "context" (..., context).

    The leading axes are free and broadcast: M vectors with K noised copies each are (M, K, numbers), their times (M, K)
    and their context (M, 1, context).
    """

    def __init__(self, config: DiffusionHeadConfig):
        super().__init__()
        c, self.config = config, config
        inputs = c.numbers * (2 * c.frequencies or 1)
        self.value, self.context, self.time = (
            nn.Linear(inputs, c.width),
            nn.Linear(c.context, c.width),
            TimeEmbedding(c.width),
        )
        self.blocks = nn.ModuleList(Block(c.width) for _ in range(c.depth))
        self.modulation = nn.Linear(c.width, 2 * c.width)
        self.out = nn.Linear(c.width, c.numbers * (1 + 2 * c.frequencies))
        for last in (self.modulation, self.out):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor | None,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """mask, order and cache are not looked at: each vector is by itself."""
        value, c = state["value"], self.config
        value = fourier(value, c.frequencies) if c.frequencies else value
        y = F.silu(self.time(t["value"].to(value.dtype)) + self.context(given["context"]))
        x = self.value(value)
        for block in self.blocks:
            x = block(x, y)
        scale, shift = self.modulation(y).chunk(2, -1)
        out = self.out(_norm(x) * (1 + scale) + shift)
        if c.frequencies:
            waves = (out[..., c.numbers :] * value).unflatten(-1, (2, c.numbers, c.frequencies))
            out = out[..., : c.numbers] + waves.sum((-3, -1))
        return {"value": out}


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
