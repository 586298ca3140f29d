"""A transformer of patches of a window (PatchTST, Nie et al., arXiv 2211.14730), its layers modulated as in DiT
(2212.09748).

A token is a patch of p steps of one channel. All tokens of all channels see each other, but for the patches of which no
entry exists, so that channels are modelled jointly:

    h_cj = W e_c,pj..pj+p-1 + place_j + channel_c
    h += (1 + g_1) W_o softmax(q k / sqrt(d)) v,      q, k, v = maps of (1 + s_1) LN(h) + b_1
    h += (1 + g_2) feed((1 + s_2) LN(h) + b_2),       out = V ((1 + s) LN(h) + b)

where s, b and g are linear in the condition: the noise time and the static numbers.
A window whose length is no multiple of p begins with entries that do not exist: the last patch, that of the forecast,
is whole.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.window_inputs import Places, SampleCondition, WindowConfig, normalised, read_window, zero
from unisci.order import Order
from unisci.state import Time


@dataclass(frozen=True)
class WindowTransformerConfig(WindowConfig):
    """patch p in steps, width of a token, layers, heads, hidden of the feed-forward. Raises ValueError where heads do
    not divide the width, or the patch is no positive number."""

    patch: int = 8
    width: int = 96
    layers: int = 6
    heads: int = 4
    hidden: int = 288

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 1:
            raise ValueError(f"patch must be 1 or more, got {self.patch}")
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")

    @property
    def patches(self) -> int:
        """Of each channel, the first padded."""
        return -(-self.length // self.patch)


class Layer(nn.Module):
    """One step of the tokens h (B, T, width) under c (B, 1, width); seen (B, 1, 1, T) bool."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.modulation = zero(nn.Linear(width, 6 * width))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))

    def forward(self, h: Tensor, c: Tensor, seen: Tensor) -> Tensor:
        shift, scale, gate, shift_f, scale_f, gate_f = self.modulation(c).chunk(6, -1)
        qkv = self.qkv(normalised(h) * (1 + scale) + shift)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        a = F.scaled_dot_product_attention(q, k, v, seen)
        h = h + (1 + gate) * self.out(a.transpose(1, 2).flatten(2))
        return h + (1 + gate_f) * self.feed(normalised(h) * (1 + scale_f) + shift_f)


class WindowTransformer(nn.Module):
    """A network (`unisci.denoiser.Network`) of the field "y" (B, C L), channel-major, whose answer is 0 before it is
    trained.
    """

    def __init__(self, config: WindowTransformerConfig):
        super().__init__()
        c, self.config = config, config
        self.condition = SampleCondition(c, c.width)
        self.patch = nn.Linear(c.patch * c.features, c.width)
        self.places = Places(c.patches, c.phases, c.width)
        self.channel = nn.Parameter(0.02 * torch.randn(c.channels, 1, c.width))
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.hidden) for _ in range(c.layers))
        self.modulation, self.out = zero(nn.Linear(c.width, 2 * c.width)), zero(nn.Linear(c.width, c.patch))

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
        config = self.config
        window = read_window(config, state, t, mask, given, order, cache)
        c, pad = self.condition(window)[:, None], config.patches * config.patch - config.length
        patches = F.pad(window.entries, (pad, 0)).unflatten(3, (config.patches, config.patch)).movedim(1, 3)
        seen = F.pad(mask.unflatten(1, (config.channels, config.length)), (pad, 0))
        seen = seen.reshape(len(mask), 1, 1, -1, config.patch).any(-1)
        # A softmax over nothing is nan, so a window of which nothing exists sees itself.
        seen = seen | ~seen.any(-1, keepdim=True)
        h = (self.patch(patches.flatten(3)) + self.places(window.phase)[:, None] + self.channel).flatten(1, 2)
        for layer in self.layers:
            h = layer(h, c, seen)
        scale, shift = self.modulation(c).chunk(2, -1)
        y = self.out(normalised(h) * (1 + scale) + shift).unflatten(1, (config.channels, -1))
        return {"y": y.flatten(2)[..., pad:].flatten(1)}
