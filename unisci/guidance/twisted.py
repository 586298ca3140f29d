"""The twisted diffusion sampler (Wu et al., arXiv 2306.17775): draws from p(x_0) h_0(x_0) / Z for any weight h_0, by
guidance that need not be exact. With D the prediction of the model and D' that with terms added, a step is

    x_s ~ p(x_s | x_t; D'),     log w += log p(x_s | x_t; D) - log p(x_s | x_t; D')

with h_0(x_0) at the end. On the way the particles are resampled by w h_t(x_t): the twist h_t says which are worth
following. Terms and twist decide how many particles it takes, not where they tend to; for that they may be wrong.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unisci.guidance.observation import estimate
from unisci.guidance.particles import Weights, check_threshold
from unisci.guidance.potential import LogPotential
from unisci.guidance.terms import Evaluation, Term, guided
from unisci.processes.categorical import Categorical
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.reverse_kernel import ancestral
from unisci.solvers.sample import Denoise, draw_keys
from unisci.solvers.score import check_gaussian, counted, site_axes, time_for, total
from unisci.state import State, Time, beside, fieldwise

Twist = Callable[[Evaluation], Tensor | None]


def at_estimate(log_h0: Callable[[State], Tensor]) -> Twist:
    """The twist h_0(E[x_0 | x_t]), the clean state taken for known; discrete fields as probabilities (B, ..., K)."""
    return lambda at: log_h0(estimate(at) if isinstance(at.x, dict) else estimate(at)["x"])


def at_state(log_h: LogPotential) -> Twist:
    """The twist log_h(x, t) of the noised state."""
    return lambda at: log_h(at.x, at.t)


@dataclass(frozen=True, kw_only=True)
class Twisted:
    """A ParticleSolver of ancestral steps, for Gaussian and discrete fields side by side; see `sample_particles`.

    log_h0(x_0) -> (n P,): the log weight of final states, with indices in discrete fields: any function, asked once, at
    the end. twist(at) -> (n P,): log h_t of an `Evaluation`, or None at a step where it is too dear: its last value
    then stands. terms: the proposal's guidance; () proposes by the model alone. particles: P. variance: of the data,
    which makes steps exact where they are Gaussian with it; 0 gives the ancestral step. threshold: see `resample`; mask
    (n P, N): the sites that count.

    The model is evaluated once a step. A Gaussian field's step to sigma = 0 has no noise and no ratio: it goes to D, so
    that what is weighed is the law of the unguided chain, to the last step. Raises ValueError for a threshold outside
    [0, 1], a negative variance, other noise, and a weight of another shape.
    """

    log_h0: Callable[[State], Tensor]
    twist: Twist
    particles: int
    terms: tuple[Term, ...] = ()
    variance: float = 0.0
    threshold: float = 0.5
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if not 0 <= self.variance < math.inf:
            raise ValueError(f"the variance of the data must be finite and >= 0, got {self.variance}")

    def step(
        self, denoise: Denoise, x: State, t: Time, s: Time, memory: Weights | None, rng: Rng
    ) -> tuple[State, Weights]:
        """Resample at t, then go to s."""
        if memory is None:
            check_gaussian(denoise, "Twisted", (Categorical,))
            memory = Weights.even(len(rng.ids), self.particles, rng.ids.device)
        heard, now, t, s = _Heard(denoise), time_for(t, x), beside(t, x), beside(s, x)
        ahead = guided(heard, *self.terms)(x, now)
        log_h = self.twist(Evaluation(denoise, x, now, heard.clean))
        if log_h is not None:
            memory = memory._replace(twist=self._fit(log_h, memory.path))
        rows, memory = memory.resample(rng, self.threshold)
        take = lambda v: v[rows]
        x, clean, ahead = fieldwise(take, x), fieldwise(take, heard.clean), fieldwise(take, ahead)
        count = counted(x, site_axes(denoise, x), self.mask)
        keys = draw_keys(x, denoise.schema)
        moved = fieldwise(_move, x, clean, ahead, denoise.process, t, s, keys, rng, self.variance)
        x, log_ratio = unzip(moved)
        return x, memory.gain(total(fieldwise(weighted, log_ratio, count)))

    def weigh(self, denoise: Denoise, x: State, memory: Weights) -> Tensor:
        """The log weights (n, P) of final particles x (n P, ...), h_0 included."""
        return memory.path + self._fit(self.log_h0(x), memory.path)

    def _fit(self, log_h: Tensor, like: Tensor) -> Tensor:
        if log_h.shape != (like.numel(),):
            raise ValueError(
                f"log h must have shape ({like.numel()},), one for each particle, got {tuple(log_h.shape)}"
            )
        return log_h.detach().to(like).reshape(like.shape)


class _Heard:
    """A denoiser that remembers its first answer."""

    def __init__(self, denoise: Denoise):
        self.process, self.schema, self.denoise, self.clean = denoise.process, denoise.schema, denoise, None

    def __call__(self, x: State, t: Time) -> State:
        out = self.denoise(x, t)
        if self.clean is None:
            self.clean = fieldwise(Tensor.detach, out)
        return out


def weighted(value: Tensor, count: Tensor) -> Tensor:
    """value where it counts, else 0, whatever it is there."""
    return torch.where(count > 0, value, 0.0)


def unzip(moved: Any) -> tuple[State, State]:
    """Two states from one whose fields are pairs."""
    if not isinstance(moved, dict):
        return moved
    return {k: v[0] for k, v in moved.items()}, {k: v[1] for k, v in moved.items()}


def _move(
    x: Tensor,
    clean: Tensor,
    ahead: Tensor,
    process: Process,
    t: Tensor,
    s: Tensor,
    key: tuple[str, int],
    rng: Rng,
    variance: float,
) -> tuple[Tensor, Tensor]:
    """x_s of one field, and log p(x_s | x_t) - log p'(x_s | x_t) of its entries. Both are over the same noise."""
    name, axes = key
    if isinstance(process, Categorical):
        target, proposal = (process.posterior(x, process.logits(v, x).softmax(-1), t, s) for v in (clean, ahead))
        end = rng.categorical(name, 0, proposal, axes)
        log_p, log_q = (p.gather(-1, end[..., None])[..., 0].log() for p in (target, proposal))
        return end, log_p - log_q
    keep, gain, deviation = ancestral(process, t, s, variance).on(x)
    xi = rng.normal(name, 0, tuple(x.shape), axes).to(x.dtype)
    noisy = deviation > 0
    away = torch.where(noisy, gain * (ahead - clean) / torch.where(noisy, deviation, 1.0), 0.0)  # in deviations
    end = keep * x + gain * torch.where(noisy, ahead, clean) + deviation * xi
    return end, -away * (xi + away / 2)
