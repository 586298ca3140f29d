"""Randomness that belongs to the sample: counter-based draws by Philox-4x32-10 (Salmon et al., SC 2011).

`Rng(seed, ids)` draws for sample ids[i] numbers that depend on (seed, ids[i], stream, field, step, site) and on
nothing else: not on the batch size, the padding, the device, the worker or a restart. A pair field is undirected, so
the draw of (i, j) is the draw of (j, i).
"""

import math
import zlib
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
TRIES = 8  # of a rejection sampler, always all of them: a loop until success would wait for the device


def philox(counter: tuple[Tensor, ...], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox-4x32-10: four int64 tensors holding 32-bit words, and a key of two words, to four words.

    Integer products wrap modulo 2^64, so int64 arithmetic gives the unsigned result on CPU and GPU alike.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = ((p1 >> 32) & MASK) ^ c1 ^ k0, p1 & MASK, ((p0 >> 32) & MASK) ^ c3 ^ k1, p0 & MASK
        k0, k1 = (k0 + WEYL[0]) & MASK, (k1 + WEYL[1]) & MASK
    return c0, c1, c2, c3


def mix(a: int, b: int) -> int:
    """Hash two integers to 64 bits (the finaliser of SplitMix64): the key of stream `b` below key `a`."""
    z = (a + (b + 1) * 0x9E3779B97F4A7C15) & (2**64 - 1)
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & (2**64 - 1)
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & (2**64 - 1)
    return z ^ (z >> 31)


def _site_index(shape: tuple[int, ...], axes: int, device: torch.device) -> tuple[Tensor, int]:
    """Where each element of shape[1:] finds its draw, and how many draws a sample needs, in an order free of
    padding.
    """
    inner = math.prod(shape[1 + axes :])
    if axes < 2:
        n = math.prod(shape[1:])
        return torch.arange(n, device=device), n
    i = torch.arange(shape[1], device=device)
    low, high = torch.minimum(i[:, None], i), torch.maximum(i[:, None], i)
    pair = high * (high + 1) // 2 + low
    index = pair[..., None] * inner + torch.arange(inner, device=device)
    return index.flatten(), shape[1] * (shape[1] + 1) // 2 * inner


def _inside(words: Tensor) -> Tensor:
    """32-bit words to float64 in (0, 1), centred so that neither end is ever reached."""
    return (words.to(torch.float64) + 0.5) * 2.0**-32


@dataclass(frozen=True)
class Rng:
    """Draws for the samples `ids` (B,) int64 in [0, 2^32).

    `at(k)` opens the stream of block or step k below this one; streams nest. The methods take the field's name, a step
    within the stream, and the full shape (B, ...). `axes` says how many axes after the first count sites:
    0 whole, 1 site, 2 pair (symmetric).
    """

    seed: int
    ids: Tensor
    key: int | None = None

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be a non-negative integer, got {self.seed}")
        if self.key is None:
            object.__setattr__(self, "key", mix(0, self.seed))

    def at(self, stream: int) -> "Rng":
        """The independent stream number `stream` below this one (a block, a solver step, a training step)."""
        return replace(self, key=mix(self.key, stream))

    def __getitem__(self, rows: Tensor) -> "Rng":
        """The same stream for the samples ids[rows]."""
        return replace(self, ids=self.ids[rows])

    def words(self, field: str, step: int, shape: tuple[int, ...], axes: int = 1) -> Tensor:
        """Independent 32-bit words as int64, of the given shape (B, ...)."""
        if shape[0] != len(self.ids):
            raise ValueError(f"shape {tuple(shape)} does not start with the number of samples, {len(self.ids)}")
        device = self.ids.device
        index, n = _site_index(shape, axes, device)
        blocks = -(-n // 4)
        c0 = torch.arange(blocks, device=device).expand(shape[0], -1)
        c2 = (self.ids & MASK)[:, None].expand(-1, blocks)
        c1 = torch.full_like(c0, step & MASK)
        c3 = torch.full_like(c0, zlib.crc32(field.encode()))
        words = torch.stack(philox((c0, c1, c2, c3), (self.key & MASK, self.key >> 32)), -1)
        return words.reshape(shape[0], -1)[:, index].reshape(shape)

    def uniform(self, field: str, step: int, shape: tuple[int, ...], axes: int = 1) -> Tensor:
        """Uniform float32 in (0, 1): 23 random bits, centred so that neither end is ever drawn (24 would round up to
        1).
        """
        return ((self.words(field, step, shape, axes) >> 9).to(torch.float32) + 0.5) * 2.0**-23

    def normal(self, field: str, step: int, shape: tuple[int, ...], axes: int = 1) -> Tensor:
        """Standard normal float32, by inverting the distribution function at a 32-bit uniform in float64.

        Box-Muller would tie two neighbouring sites to one pair of words; inversion keeps one word to one number.
        """
        return torch.special.ndtri(_inside(self.words(field, step, shape, axes))).to(torch.float32)

    def gamma(self, field: str, step: int, shape: tuple[int, ...], concentration: float, axes: int = 1) -> Tensor:
        """Gamma variates of unit scale, float64, as small ones leave the range of float32; chi2_D is 2 Gamma(D / 2).

        Marsaglia & Tsang (2000): with d = a - 1/3 and v = (1 + n / sqrt(9 d))^3, n normal, d v is Gamma(a), a >= 1, if
        log u < n^2 / 2 + d (1 - v + log v). That holds 95 times in 100 or more; the first of 8 tries that it accepts
        counts, and all fail once in 3e10 draws, which then give d. Below a = 1, Gamma(a) = Gamma(a + 1) u^(1 / a).
        Raises ValueError where the concentration a is not positive and finite.
        """
        if not 0 < concentration < math.inf:
            raise ValueError(f"the concentration of a gamma law must be positive and finite, got {concentration}")
        d = concentration + (concentration < 1) - 1 / 3
        u = _inside(self.words(field, step, (*shape, 2 * TRIES + 1), axes))
        n, u, boost = torch.special.ndtri(u[..., :TRIES]), u[..., TRIES:-1], u[..., -1]
        v = ((1 + n / math.sqrt(9 * d)) ** 3).clamp(min=0)  # at 0 the logarithm is -inf, which no u is below
        accepted = u.log() < n**2 / 2 + d * (1 - v + v.log())
        first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
        out = d * torch.where(accepted, v, 1.0).gather(-1, first)[..., 0]
        return out if concentration >= 1 else out * boost ** (1 / concentration)

    def categorical(self, field: str, step: int, probs: Tensor, axes: int = 1) -> Tensor:
        """Class indices (B, ...) drawn from unnormalised `probs` (B, ..., K), by inversion of the cumulated sum."""
        cumulative = probs.float().cumsum(-1) if probs.dtype in (torch.bfloat16, torch.float16) else probs.cumsum(-1)
        u = self.uniform(field, step, tuple(probs.shape[:-1]), axes).to(cumulative.dtype)
        return (cumulative < (u * cumulative[..., -1])[..., None]).sum(-1).clamp(max=probs.shape[-1] - 1)
