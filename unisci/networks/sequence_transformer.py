"""A causal transformer of a sequence of vectors (Llama, Touvron et al., arXiv 2302.13971), with a cache.

    h += W_o softmax(q_i k_j / sqrt(d) over j <= i) v_j,        h += W_d (silu(W_g n) * W_u n),        n = g h / rms(h)

where q, k, v are maps of n, and q, k are turned by angles i / 10000^(2 m / d) (RoPE, arXiv 2104.09864), so that a score
depends on i - j. It knows no words: embeddings go in, hidden states come out, and what reads them is another's matter.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

THETA = 1e4


@dataclass(frozen=True)
class SequenceTransformerConfig:
    """Sizes. hidden: of the feed-forward, a multiple of the width. Raises ValueError where heads do not divide it."""

    width: int = 128
    layers: int = 4
    heads: int = 4
    hidden: float = 8 / 3

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise ValueError(f"width {self.width} is not an even multiple of heads {self.heads}")


@dataclass(frozen=True)
class Cache:
    """Keys and values (layers, B, heads, S, d) of the positions read so far, written in place as more are read."""

    keys: Tensor
    values: Tensor

    def first(self, rows: int) -> "Cache":
        """That of the first rows, sharing their memory."""
        return Cache(self.keys[:, :rows], self.values[:, :rows])


class Layer(nn.Module):
    """One step of h (B, T, width); turn: cosines and sines (B, 1, T, d / 2) of its positions' angles; sight
    (B, 1, T, S), or None where every position sees those up to itself."""

    def __init__(self, width: int, heads: int, hidden: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm_feed = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.gate_up, self.down = nn.Linear(width, 2 * hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(
        self,
        h: Tensor,
        turn: tuple[Tensor, Tensor],
        at: Tensor | None = None,
        sight: Tensor | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
    ) -> Tensor:
        qkv = self.qkv(self.norm(h)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        (q, k), v = rotated(qkv[:2], *turn), qkv[2]
        if memory is not None:
            rows = torch.arange(len(h), device=h.device)[:, None]
            for held, new in zip(memory, (k, v), strict=True):
                held[rows, :, at] = new.transpose(1, 2).to(held.dtype)
            k, v = memory
        a = F.scaled_dot_product_attention(q, k, v, sight, is_causal=sight is None)
        h = h + self.out(a.transpose(1, 2).flatten(2))
        gate, up = self.gate_up(self.norm_feed(h)).chunk(2, -1)
        return h + self.down(F.silu(gate) * up)


class SequenceTransformer(nn.Module):
    """x (B, T, width) -> hidden states (B, T, width), the one at i of the inputs up to i."""

    def __init__(self, config: SequenceTransformerConfig):
        super().__init__()
        c, self.config = config, config
        hidden = round(c.hidden * c.width / 8) * 8
        self.layers = nn.ModuleList(Layer(c.width, c.heads, hidden) for _ in range(c.layers))
        self.norm = nn.RMSNorm(c.width, eps=1e-6)
        for layer in self.layers:  # the sum over layers starts with the variance of one
            for last in (layer.out, layer.down):
                nn.init.normal_(last.weight, std=(2 * c.layers * last.in_features) ** -0.5)

    def forward(self, x: Tensor, at: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """at (B, T) int64: the positions of x, 0, 1, ... where None, and then x must be all there is, or the first.

        cache: of `empty`; x is written to it, and sees all positions up to its own, which must have been written. What
        lies beyond a position is never seen, so rows of unlike lengths may be padded at their ends, and the padding
        overwritten.
        """
        here = torch.arange(x.shape[1], device=x.device).expand(len(x), -1) if at is None else at
        turn, sight = self._turn(here), None
        if cache is not None:
            sight = torch.arange(cache.keys.shape[3], device=x.device) <= here[..., None]
            sight = sight[:, None]
        elif at is not None:
            raise ValueError("positions other than 0, 1, ... read what came before from a cache: pass cache=")
        for i, layer in enumerate(self.layers):
            memory = None if cache is None else (cache.keys[i], cache.values[i])
            x = layer(x, turn, here, sight, memory)
        return self.norm(x)

    def empty(self, rows: int, length: int) -> Cache:
        """A cache of nothing yet, for `rows` sequences of at most `length` positions."""
        c, like = self.config, self.norm.weight
        shape = (c.layers, rows, c.heads, length, c.width // c.heads)
        return Cache(like.new_zeros(shape), like.new_zeros(shape))

    def _turn(self, at: Tensor) -> tuple[Tensor, Tensor]:
        d = self.config.width // self.config.heads
        rate = THETA ** (-torch.arange(0, d, 2, device=at.device, dtype=self.norm.weight.dtype) / d)
        angle = at[:, None, :, None] * rate
        return angle.cos(), angle.sin()


def rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (..., B, heads, T, d), the plane of its numbers m and m + d / 2 turned by the angle (B, 1, T, m)."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
