"""Steps of discrete fields. Both draw every site on its own, so their error falls with the number of steps."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unisci.processes.categorical import Categorical
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, draw_keys
from unisci.state import State, Time, beside, fieldwise, pad


def token_grid(n: int, power: float = 3.5, device: torch.device | str | None = None) -> Tensor:
    """n + 1 times t_k = (1 - k / n)^power from 1 to 0.

    The last step draws every site on its own from its predicted distribution, and so tears apart what sites have not
    yet settled between them. A power above 1 puts that step, and most others, where little is open; docs/molecules.md
    measures it. Raises ValueError where n < 1 or power <= 0.
    """
    if n < 1 or power <= 0:
        raise ValueError(f"a grid needs n >= 1 steps and a power > 0, got n = {n}, power = {power}")
    return torch.linspace(1, 0, n + 1, device=device) ** power


@dataclass(frozen=True)
class Ancestral:
    """x_s ~ sum_{x_0} f(x_0) q(x_s | x_t, x_0) with f the predicted clean distribution (arXiv 2107.03006; the Tweedie
    tau-leaping of arXiv 2406.03736). One call a step; exact in the limit of small steps, and at s = 0 a draw from f.
    """

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng) -> tuple[State, None]:
        def draw(x: Tensor, logits: Tensor, process: Categorical, t: Tensor, s: Tensor, key: tuple[str, int]) -> Tensor:
            probs = process.logits(logits, x).softmax(-1)
            name, axes = key
            return rng.categorical(name, 0, process.posterior(x, probs, t, s), axes)

        t, s = beside(t, x), beside(s, x)
        return fieldwise(draw, x, denoise(x, t), denoise.process, t, s, draw_keys(x, denoise.schema)), None


@dataclass(frozen=True)
class TauLeaping:
    """Jumps at the rates of time t, held over the step (Campbell et al., arXiv 2205.14987); at most one jump a site.

    The rate of x_t -> k is sum_{x_0} f(x_0) q_t(k | x_0) / q_t(x_t | x_0) times the forward rate of k -> x_t, whose
    integral from s to t is taken exactly. One call a step, first order; at s = 0 a draw from f, so that no noise is
    left.
    """

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng) -> tuple[State, None]:
        def draw(x: Tensor, logits: Tensor, process: Categorical, t: Tensor, s: Tensor, key: tuple[str, int]) -> Tensor:
            probs = process.logits(logits, x).softmax(-1)
            hazard = jump_hazard(process, x, probs, t, s)
            total = hazard.sum(-1, keepdim=True)
            onehot = torch.nn.functional.one_hot(x, process.states).to(hazard.dtype)
            jumped = torch.exp(-total) * onehot - torch.expm1(-total) * hazard / total.clamp(min=1e-30)
            last = pad((s <= 0) & (t > 0), x)[..., None]
            name, axes = key
            return rng.categorical(name, 0, torch.where(last, process.posterior(x, probs, t, s), jumped), axes)

        t, s = beside(t, x), beside(s, x)
        return fieldwise(draw, x, denoise(x, t), denoise.process, t, s, draw_keys(x, denoise.schema)), None


def jump_hazard(process: Categorical, x_t: Tensor, probs: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """Integrated rates (..., states) of leaving x_t for each other class between t and s < t."""
    a_t, b_t, g_t = (pad(v, x_t)[..., None] for v in process.level(t))
    a_s, _, g_s = (pad(v, x_t)[..., None] for v in process.level(s))
    tiny = 1e-30
    masked_rate = torch.log((1 - g_s).clamp(min=tiny)) - torch.log((1 - g_t).clamp(min=tiny))
    redrawn_rate = torch.log(a_s.clamp(min=tiny)) - torch.log(a_t.clamp(min=tiny)) - masked_rate
    onehot = torch.nn.functional.one_hot(x_t, process.states).to(probs.dtype)
    m = torch.nn.functional.pad(process.m.to(probs.dtype), (0, process.states - process.classes))
    f_over_z = probs / process.likelihood(x_t, t).to(probs.dtype).clamp(min=1e-20)
    pad_mask = (0, process.states - process.classes)
    at_k = torch.nn.functional.pad(a_t * f_over_z, pad_mask) + b_t * m * f_over_z.sum(-1, keepdim=True)
    forward = redrawn_rate.clamp(min=0) * (onehot * m).sum(-1, keepdim=True)
    if process.masked:
        forward = torch.where(onehot[..., -1:] > 0, masked_rate, forward)
    return at_k * forward * (1 - onehot)
