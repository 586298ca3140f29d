"""Weak networks: the small g of CoRe^2 (arXiv 2503.09662), which learns from the conditional prediction alone what
classifier-free guidance makes of it, so that guided sampling costs one call of the big network a step:

    g = D_c + r([D_c, x_t, c], t)

with r = 0 at first. For a discrete field D_c are logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Schema
from unisci.networks.embedding import TimeEmbedding
from unisci.processes.gaussian import Gaussian, level_for
from unisci.solvers.sample import Denoise
from unisci.state import State, Time, fieldwise, pad, pick

NARROW = 10.0  # log probabilities below -10 look alike to a weak network


def seen(x: State, process: Any, t: Time) -> State:
    """x_t as a weak network sees it: over sqrt(alpha^2 + sigma^2) where its noise is Gaussian."""

    def scaled(x: Tensor, process: Any, t: Tensor) -> Tensor:
        if not isinstance(process, Gaussian):
            return x
        alpha, sigma = level_for(process, t, x)
        return x / (alpha**2 + sigma**2).sqrt()

    return fieldwise(scaled, x, process, t)


class Residual(nn.Module):
    """r: a small network on the last axis, with the time as scale and shift of its layers (FiLM, arXiv 1709.07871); 0
    at first."""

    def __init__(self, inputs: int, outputs: int, condition: int, width: int, layers: int):
        super().__init__()
        self.condition = condition
        self.enter = nn.Linear(inputs + condition, width)
        self.time = TimeEmbedding(width)
        self.film = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.leave = nn.Linear(width, outputs)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)

    def forward(self, parts: list[Tensor], t: Tensor, condition: Tensor | None) -> Tensor:
        if (0 if condition is None else condition.shape[-1]) != self.condition:
            shape = None if condition is None else tuple(condition.shape)
            raise ValueError(f"this weak network takes conditions (B, {self.condition}), got {shape}")
        if condition is not None:
            parts = [*parts, _inserted(condition, parts[0]).expand(*parts[0].shape[:-1], -1)]
        like = self.enter.weight
        h = F.silu(self.enter(torch.cat([p.to(like) for p in parts], -1)))
        now = _inserted(self.time(t.to(like)), h)
        for film, hidden in zip(self.film, self.hidden, strict=True):
            scale, shift = film(now).chunk(2, -1)
            h = h + F.silu(hidden(h) * (1 + scale) + shift)
        return self.leave(h)


class WeakNet(nn.Module):
    """g = clean + r([clean, x, condition], t) for one field, site by site, so that it permutes with sites.

    features: size of the last axis of clean. condition: number C of conditions. states: of a discrete field the number
    of its states; x is then of indices, one axis fewer than the logits `clean`, and features its classes.
    """

    def __init__(self, features: int, condition: int = 0, states: int | None = None, width: int = 64, layers: int = 2):
        super().__init__()
        self.states = states
        self.residual = Residual(features + (states or features), features, condition, width, layers)

    def forward(self, clean: Tensor, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """clean (B, ..., F); x as `seen`; t (), (B,) or leading axes; condition (B, C). Raises ValueError where the
        condition is not of the size that was named."""
        parts = [clean, x]
        if self.states is not None:
            parts = [clean.log_softmax(-1).clamp(min=-NARROW), F.one_hot(x, self.states)]
        return clean + self.residual(parts, t, condition).to(clean)


class WeakVectors(nn.Module):
    """g = (1 + a) clean + b x for a field of vectors, a and b functions of their lengths and angle alone: it turns with
    the frame and permutes with sites. Positions must be centred."""

    def __init__(self, condition: int = 0, width: int = 64, layers: int = 2):
        super().__init__()
        self.residual = Residual(3, 2, condition, width, layers)

    def forward(self, clean: Tensor, x: Tensor, t: Tensor, condition: Tensor | None = None) -> Tensor:
        """clean and x (B, ..., D), else as `WeakNet`."""
        products = torch.stack([(clean * clean).sum(-1), (clean * x).sum(-1), (x * x).sum(-1)], -1)
        a, b = self.residual([products], t, condition).to(clean).split(1, -1)
        return clean + a * clean + b * x


def _inserted(v: Tensor, like: Tensor) -> Tensor:
    """v (..., C) with axes of length 1 before its last, to broadcast against `like` from the left."""
    return v.reshape(*v.shape[:-1], *(1,) * (like.ndim - v.ndim), v.shape[-1])


class WeakNets(nn.ModuleDict):
    """A weak network for each field of a state that it names; other fields stay as D_c has them."""

    def forward(
        self, clean: dict[str, Tensor], x: dict[str, Tensor], t: Time, condition: Tensor | None = None
    ) -> dict[str, Tensor]:
        return clean | {k: net(clean[k], x[k], pick(t, k), condition) for k, net in self.items()}


@dataclass(frozen=True)
class Fast:
    """A Denoise of one call of the big network: g on the conditional model's prediction.

    weak: weak(clean, x, t, condition) -> g, as `WeakNet`, or `WeakNets` for a state of fields; condition (B, C), or
    several by name: what it is told beside; where: bool on the leading axes of each field, the entries that exist, None
    for all; the others stay as the conditional model has them.
    """

    conditional: Denoise
    weak: Callable[[State, State, Time, State | None], State]
    condition: State | None = None
    where: State | None = None

    @property
    def process(self) -> Any:
        return self.conditional.process

    @property
    def schema(self) -> Schema | None:
        return self.conditional.schema

    @torch.no_grad()
    def __call__(self, x: State, t: Time) -> State:
        return self.lift(self.conditional(x, t), x, t)

    def lift(self, clean: State, x: State, t: Time) -> State:
        """g where D_c = clean is known already."""
        weak = self.weak(clean, seen(x, self.process, t), t, self.condition)
        return weak if self.where is None else fieldwise(_only, self.where, weak, clean)


def _only(where: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(pad(where, a), a, b)
