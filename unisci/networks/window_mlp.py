"""Stacked MLP blocks over a whole window (GPD, Yang et al., arXiv 2406.02212).

    h = W e + b,      h += W_2 gelu(W_1 ((1 + gamma(t)) LN(h) + beta(t)))
    out = W_o LN(h) + (1 + g(t)) S (x, k x, u)

e: all that is read of all entries, see `unisci.networks.window_inputs`; gamma and beta see the static numbers too. S
maps each channel's own values, and is the same for all channels: to copy a known value, or the mean of the last few, is
one linear map. u, the change of an entry's anchor, and g are there where windows are anchored
(`unisci.forecasting.anchors`), and 0 elsewhere. The weights belong to places of the window, so its length is fixed.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.window_inputs import SampleCondition, WindowConfig, normalised, read_window, zero
from unisci.order import Order
from unisci.state import Time


@dataclass(frozen=True)
class WindowMLPConfig(WindowConfig):
    """width of h, hidden inside a block, width of the condition that gamma and beta read, dropout of the hidden."""

    width: int = 256
    hidden: int = 512
    blocks: int = 4
    condition: int = 64
    dropout: float = 0.0


class Block(nn.Module):
    """h (B, width) under c (B, condition)."""

    def __init__(self, config: WindowMLPConfig):
        super().__init__()
        c = config
        self.modulation = zero(nn.Linear(c.condition, 2 * c.width))
        self.up, self.down = nn.Linear(c.width, c.hidden), nn.Linear(c.hidden, c.width)
        self.dropout = nn.Dropout(c.dropout)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        gamma, beta = self.modulation(c).chunk(2, -1)
        inside = F.gelu(self.up(normalised(h) * (1 + gamma) + beta), approximate="tanh")
        return h + self.down(self.dropout(inside))


class WindowMLP(nn.Module):
    """A network (`unisci.denoiser.Network`) of the field "y" (B, C L), channel-major, whose answer is 0 before it is
    trained.
    """

    def __init__(self, config: WindowMLPConfig):
        super().__init__()
        c, self.config = config, config
        n = c.channels * c.length
        self.condition = SampleCondition(c, c.condition)
        self.entries = nn.Linear(n * c.features, c.width)
        self.phase = nn.Linear(c.phases, c.width, bias=False) if c.phases else None
        self.blocks = nn.ModuleList(Block(c) for _ in range(c.blocks))
        self.out, self.skip = zero(nn.Linear(c.width, n)), zero(nn.Linear((2 + c.expects) * c.length, c.length))
        self.gain = zero(nn.Linear(c.condition, n)) if c.expects else None

    def forward(
        self,
        state: dict[str, Tensor],
        t: Time,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """t: (B, N), 0 where known, (B,) or (). Raises ValueError as `read_window` does."""
        window = read_window(self.config, state, t, mask, given, order, cache)
        c, h = self.condition(window), self.entries(window.entries.flatten(1))
        if self.phase is not None:
            h = h + self.phase(window.phase)
        for block in self.blocks:
            h = block(h, c)
        own = window.entries[:, [0, 1, 6] if self.config.expects else [0, 1]]
        copied = self.skip(own.transpose(1, 2).flatten(2)).flatten(1)
        if self.gain is not None:
            copied = (1 + self.gain(c)) * copied
        return {"y": self.out(normalised(h)) + copied}
