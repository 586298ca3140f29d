"""GPD: zero-shot forecasts by one unconditional diffusion model of windows, the history as its prompt (arXiv
2406.02212), with the ways to condition side by side:

    Clean       D(y at known entries, t = 0 there)                        exact; for models with a time for each entry
    Replace     x_s <- alpha_s y + sigma_s eps at known entries           RePaint (arXiv 2201.09865); biased at the seam
    Moment      score += grad log N(y; D, C + sigma_y^2)                  exact where data are Gaussian
    Particles   known entries as Replace, log w += log p(x_s | x_t)       exact as the number of particles grows

For models with one time for each sample, take one of the last three. `roll` goes beyond one window, and `normalise` of
`unisci.forecasting.prompts` makes forecasts equivariant to units.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from unisci.denoiser import Bound
from unisci.forecasting.particle_filter import Filter
from unisci.forecasting.prompts import Prompted, cleared, draw, hold, normalise
from unisci.forecasting.tsdiff import exact
from unisci.guidance.particles import Report, check_threshold, particle_rng, prior, sample_particles, spread
from unisci.guidance.terms import Pin, guided
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import MASK, Rng
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise, Solver, sample, standard_normal
from unisci.solvers.score import check_gaussian
from unisci.state import State, Time, beside, fieldwise


class Conditioner(Protocol):
    """A way to complete windows. y, where: as in `unisci.forecasting.prompts`. Returns windows shaped as y, in which
    known entries are y to the last bit. Without known entries they are those of `draw`; by `Particles`, of its law."""

    def __call__(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> State: ...


@dataclass(frozen=True)
class Clean:
    """Known entries enter the model clean, at t = 0: see `Prompted`. The default for models that were trained so.

    temperature: of all noise, the first draw's and the program's. A Gaussian law is drawn at that many times its
    spread, each draw by itself. Raises ValueError where it is not positive."""

    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ValueError(f"a temperature is positive, got {self.temperature}")

    def __call__(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> State:
        noise = fieldwise(lambda v: self.temperature * v, prior(denoise, y, rng, 1))
        told = Prompted(denoise, y, where)
        return hold(run(told, noise, program.cooled(self.temperature), rng), y, where)


CLEAN = Clean()


@dataclass(frozen=True)
class Moment:
    """Guidance by the likelihood of the known entries with its exact variance, `exact` of `unisci.forecasting.tsdiff`,
    and a hard overwrite in the end. sigma_y: how far from y a path may end, in units of y."""

    sigma_y: float = 0.05
    iterations: int = 16

    def __call__(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> State:
        term = exact(y, where, self.sigma_y, self.iterations)
        return hold(draw(guided(denoise, term), y, program, rng), y, where)


@dataclass(frozen=True)
class Replace:
    """Each step ends with the known entries noised to its time (one draw of noise, kept: they walk a path), and is done
    `resamples` times, noised back in between, as RePaint does. One is biased where known and unknown meet, since what
    is put there has not heard of the rest; more are less so, at that many times the evaluations. Raises ValueError for
    resamples < 1."""

    resamples: int = 1

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise ValueError(f"a step is done once or more, got resamples = {self.resamples}")

    def __call__(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> State:
        known = cleared(y, where)
        pin = Pin(known, fieldwise(lambda v: where, y), denoise.process, rng, denoise.schema)
        x = pin(prior(denoise, y, rng, 1), program.times[0])
        return hold(sample(denoise, x, program.times, Resampled(program, pin, self.resamples), rng), known, where)


@dataclass(frozen=True)
class Resampled:
    """A Solver: a step of `solver` from t to s and `pin`, then noise back to t and again, `resamples` times in all."""

    solver: Solver
    pin: Pin
    resamples: int

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng) -> tuple[State, Any]:
        x_s, following = self.solver.step(denoise, x, t, s, memory, rng)
        x_s = self.pin(x_s, s)
        for j in range(1, self.resamples):
            xi = standard_normal(x_s, rng.at(2 * j - 1), 0, denoise.schema)
            x = fieldwise(_renoised, x_s, xi, denoise.process, beside(s, x_s), beside(t, x_s))
            x_s, following = self.solver.step(denoise, x, t, s, memory, rng.at(2 * j))
            x_s = self.pin(x_s, s)
        return x_s, following


def _renoised(x: Tensor, xi: Tensor, process: Gaussian, s: Tensor, t: Tensor) -> Tensor:
    """A draw of x_t given x_s, t > s."""
    (alpha_s, sigma_s), (alpha, sigma) = level_for(process, s, x), level_for(process, t, x)
    a = alpha / alpha_s
    return a * x + (sigma**2 - (a * sigma_s) ** 2).clamp(min=0).sqrt() * xi


@dataclass(frozen=True)
class Particles:
    """`particles` windows for each that is returned, by a particle filter that observes a noised path of the known
    entries (SMCDiff, Trippe et al., arXiv 2206.04119): for the exact model exact as their number and that of the steps
    grow, without a gradient. Steps are ancestral, on the program's times; its scheme is not used. threshold: see
    `unisci.guidance.particles.resample`. A model that holds conditions of its samples must be a `Bound`. Raises
    ValueError for fewer than one particle, a threshold outside [0, 1], and noise that is not Gaussian.
    """

    particles: int
    threshold: float = 0.5

    def __post_init__(self) -> None:
        check_threshold(self.threshold)

    def __call__(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> State:
        return hold(self.weighted(denoise, y, where, program, rng)[0], y, where)

    def weighted(self, denoise: Denoise, y: State, where: Tensor, program: Program, rng: Rng) -> tuple[State, Report]:
        """A draw of each group by its weights, and all particles, for weighted means."""
        check_gaussian(denoise, "Particles")
        p, known = self.particles, cleared(y, where)
        rng = replace(rng, ids=rng.ids % ((MASK + 1) // max(p, 1)))  # of any 32 bits to room for P
        solver = Filter(spread(known, p), spread(where, p), p, self.threshold)
        x = solver.start(denoise, prior(denoise, y, rng, p), program.times[0], particle_rng(rng, p))
        return sample_particles(for_particles(denoise, p), x, program.times, solver, rng)


def for_particles(denoise: Denoise, particles: int) -> Denoise:
    """The model of samples n, for their particles n P. Raises ValueError for one with an order or a cache."""
    if not isinstance(denoise, Bound):
        return denoise
    if denoise.order is not None or denoise.cache is not None:
        raise ValueError("particles need a model bound without an order and a cache")
    return replace(denoise, mask=spread(denoise.mask, particles), given=spread(denoise.given, particles))


Windows = Callable[[Tensor, Tensor, int], Tensor]  # (y, where, block) -> windows, all (B, ..., L)


def roll(windows: Windows, history: Tensor, horizon: int, keep: int, length: int) -> Tensor:
    """The `horizon` values that follow a history (B, ..., T), of windows of L = `length` steps: blocks of L - keep
    steps, each prompted by the `keep` values before it, which are drawn ones where history has ended.

    windows(y, where, k): draws for block k = 0, 1, ..., known entries as y; y (B, ..., L) is scaled by `normalise`,
    anew in each block. E.g. lambda y, where, k: Clean()(denoise, y, where, program, rng.at(k)). history: nan where
    unknown; of one shorter than keep the left part is unknown, of one longer the last `keep` values count. Axes between
    B and T are channels. Returns (B, ..., horizon). Point forecasts are medians over samples. Raises ValueError unless
    0 <= keep < L and horizon >= 1.
    """
    if not 0 <= keep < length or horizon < 1:
        raise ValueError(f"need 0 <= keep < length and horizon >= 1, got {keep}, {length} and {horizon}")
    steps = history.shape[-1]
    past = torch.nn.functional.pad(history, (max(0, keep - steps), 0), value=torch.nan)
    begin = past.shape[-1]
    for k in range(-(-horizon // (length - keep))):
        y = torch.nn.functional.pad(past[..., past.shape[-1] - keep :], (0, length - keep), value=torch.nan)
        where = y.isfinite()
        loc, scale = normalise(y, where)
        drawn = windows(torch.where(where, (y - loc) / scale, 0.0), where, k).to(y)
        past = torch.cat([past, (loc + scale * drawn)[..., keep:]], -1)
    return past[..., begin : begin + horizon]
