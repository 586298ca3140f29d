"""Diagonal state spaces, S4D (Gu et al., arXiv 2206.11893; S4: 2111.00396), and TSDiff's network of them (2307.11494).

Each feature u drives n modes, dx_n / ds = A_n x_n + u, and is answered by y = 2 Re sum_n C_n x_n + D u. With u constant
over a step dt, exactly,

    x[k] = exp(dt A_n) x[k - 1] + (exp(dt A_n) - 1) / A_n u[k],                     A_n = -1/2 + i pi n at the start
    y = K * u + D u,      K[l] = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l)

B_n = 1 is part of C_n. The convolution is done by FFT; a second C makes a kernel for what lies ahead.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.window_inputs import Places, SampleCondition, WindowConfig, normalised, read_window, zero
from unisci.order import Order
from unisci.state import Time

STEPS = (1e-3, 1e-1)  # first steps dt lie between: memories 2 / dt of 20 to 2000 steps


@dataclass(frozen=True)
class WindowStateSpaceConfig(WindowConfig):
    """width of h, residual blocks, modes of each feature's state space (a state of 2 modes real numbers)."""

    width: int = 64
    blocks: int = 3
    modes: int = 64


class StateSpace(nn.Module):
    """S4D: u (B, L, features) -> y (B, L, features), each feature by itself, of any length.

    causal: y[k] sees u[0], ..., u[k] alone; else a second kernel, from lag -1 on, sees u[k + 1], u[k + 2], ....
    """

    def __init__(self, features: int, modes: int, causal: bool = False):
        super().__init__()
        low, high = (math.log(v) for v in STEPS)
        self.log_dt = nn.Parameter(low + (high - low) * torch.rand(features))
        self.log_decay = nn.Parameter(torch.full((features, modes), math.log(0.5)))
        self.frequency = nn.Parameter(math.pi * torch.arange(modes).float().repeat(features, 1))
        # Real and imaginary parts: optimisers and changes of precision then need no complex numbers.
        self.c = nn.Parameter(math.sqrt(0.5) * torch.randn(1 if causal else 2, features, modes, 2))
        self.d = nn.Parameter(torch.ones(features))

    def discrete(self) -> tuple[Tensor, Tensor]:
        """dt A_n and (exp(dt A_n) - 1) / A_n, complex (features, modes)."""
        a = torch.complex(-self.log_decay.exp(), self.frequency)
        z = self.log_dt.exp()[:, None] * a
        return z, torch.expm1(z) / a

    def kernel(self, length: int) -> Tensor:
        """K (1 or 2, features, length)."""
        z, b = self.discrete()
        # exp(z (r + w q)) = exp(z r) exp(z w q): some sqrt(length) powers of each kind are enough.
        w = math.isqrt(length - 1) + 1
        near = torch.arange(w, dtype=z.real.dtype, device=z.device)
        far = torch.arange(0, length, w, dtype=z.real.dtype, device=z.device)
        left = (torch.view_as_complex(self.c) * b)[..., None] * _exp(z[..., None] * far)
        k = left.transpose(-1, -2) @ _exp(z[..., None] * near)
        return 2 * k.real.flatten(2)[..., :length]

    def forward(self, u: Tensor) -> Tensor:
        length, k = u.shape[1], self.kernel(u.shape[1])
        # Twice the length, so that nothing wraps around: the second half holds the negative lags, the last of them -1.
        taps = F.pad(k[0], (0, length)) + F.pad(self.d[:, None], (0, 2 * length - 1))
        if len(k) == 2:
            taps = taps + F.pad(k[1].flip(-1), (length, 0))
        u = u.transpose(1, 2).to(k.dtype)
        y = torch.fft.irfft(torch.fft.rfft(u, 2 * length) * torch.fft.rfft(taps), 2 * length)
        return y[..., :length].transpose(1, 2)


class Block(nn.Module):
    """h (B, L, width) under c (B, width) -> the next h, and what the block adds to the sum of skips."""

    def __init__(self, width: int, modes: int):
        super().__init__()
        self.condition, self.space = nn.Linear(width, width), StateSpace(width, modes)
        self.gate, self.out = nn.Linear(width, 2 * width), nn.Linear(width, 2 * width)

    def forward(self, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
        u = h + self.condition(c)[:, None]
        u = u + self.space(normalised(u))
        value, gate = self.gate(u).chunk(2, -1)
        residual, skip = self.out(torch.tanh(value) * torch.sigmoid(gate)).chunk(2, -1)
        return h + residual, skip


class WindowStateSpace(nn.Module):
    """A network (`unisci.denoiser.Network`) of the field "y" (B, C L), channel-major, whose answer is 0 before it is
    trained.

    A step's channels are read together. Lagged copies of the series are no channels here, as they are in TSDiff: the
    lag of an unknown entry is a later site's input, so each would need a mask and noise of its own, or the future leaks
    through it. A long window and the memory of the modes take their place.
    """

    def __init__(self, config: WindowStateSpaceConfig):
        super().__init__()
        c, self.config = config, config
        self.condition = SampleCondition(c, c.width)
        self.entries = nn.Linear(c.channels * c.features, c.width)
        self.places = Places(c.length, c.phases, c.width)
        self.blocks = nn.ModuleList(Block(c.width, c.modes) for _ in range(c.blocks))
        self.head = nn.Sequential(nn.Linear(c.width, c.width), nn.ReLU(), zero(nn.Linear(c.width, c.channels)))

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
        c = self.condition(window)
        h = self.entries(window.entries.flatten(1, 2).transpose(1, 2)) + self.places(window.phase)
        skips = 0.0
        for block in self.blocks:
            h, skip = block(h, c)
            skips = skips + skip
        return {"y": self.head(skips).transpose(1, 2).flatten(1)}


def _exp(z: Tensor) -> Tensor:
    """exp(z) of complex z, by functions of real numbers, which are several times faster."""
    size = z.real.exp()
    return torch.complex(size * z.imag.cos(), size * z.imag.sin())
