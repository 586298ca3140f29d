"""A particle filter along the reverse chain, which observes a noised path of the known entries (SMCDiff, Trippe et al.,
arXiv 2206.04119). With K the known entries, y their values and D = E[x_0 | x_t],

    x_s^K ~ q(x_s | x_t, x_0 = y)           one path for all particles of a group
    log w += log p(x_s^K | x_t; D),         then resample, then move the others by p(x_s | x_t; D)

p(x_s | x_t; D) is the ancestral step. As w does not depend on the noise of the other entries, what moves is drawn from
particles that are worth it. Only D near the known entries' seams differs between particles, hence the even weights:
a path of one's own for each particle, as of a twisted sampler, needs far more of them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.forecasting.prompts import hold, values
from unisci.guidance.particles import Weights, group_rng, spread
from unisci.inverse.red_diff import noised
from unisci.rng import Rng
from unisci.solvers.reverse_kernel import Kernel, ancestral
from unisci.solvers.sample import Denoise, standard_normal
from unisci.solvers.score import time_for
from unisci.state import State, Time, beside, fieldwise


@dataclass(frozen=True, eq=False)
class Filter:
    """A ParticleSolver. The known entries of a group follow one path, q(x_s | x_t, x_0 = y). By how likely the model
    finds its next point the group is weighed and resampled, before the others move:

        log w += log N(x_s; keep x_t + gain D, deviation^2)     over the known entries

    known (n P, N): y at `where` (n P, N). A step to sigma = 0 has no noise and no weight.
    """

    known: State
    where: Tensor
    particles: int
    threshold: float = 0.5

    def start(self, denoise: Denoise, x: State, t: Tensor, rng: Rng) -> State:
        """The particles x (n P, N) with each group's path at time t, where it begins."""
        eps = fieldwise(Tensor.to, self._shared(denoise, x, rng), self.known)
        return hold(x, fieldwise(noised, self.known, eps, denoise.process, beside(t, x)), self.where)

    def step(
        self, denoise: Denoise, x: State, t: Time, s: Time, memory: Weights | None, rng: Rng
    ) -> tuple[State, Weights]:
        """Weigh, resample, then go to s."""
        if memory is None:
            memory = Weights.even(len(rng.ids), self.particles, rng.ids.device)
        clean, path = denoise(x, time_for(t, x)), self._shared(denoise, x, rng)
        step = lambda x, process, t, s: ancestral(process, t, s).on(x)
        kernel = fieldwise(step, x, denoise.process, beside(t, x), beside(s, x))
        log_p = values(fieldwise(self._log_density, self.known, clean, path, kernel))
        rows, memory = memory.gain(log_p).resample(rng, self.threshold)
        take = lambda v: v[rows]
        xi = hold(standard_normal(x, rng, 0, denoise.schema), path, self.where)
        ahead = hold(fieldwise(take, clean), self.known, self.where)
        move = lambda x, d, xi, kernel: kernel.keep * x + kernel.gain * d + kernel.deviation * xi
        return fieldwise(move, fieldwise(take, x), ahead, xi, kernel), memory

    def weigh(self, denoise: Denoise, x: State, memory: Weights) -> Tensor:
        """Nothing is left to weigh."""
        return memory.path

    def _log_density(self, known: Tensor, clean: Tensor, xi: Tensor, kernel: Kernel) -> Tensor:
        """(n P,), but for a constant of the group: all of it has one x_t, one x_s and one noise between them."""
        noisy = kernel.deviation > 0
        away = torch.where(noisy, kernel.gain / torch.where(noisy, kernel.deviation, 1.0), 0.0) * (known - clean)
        return torch.where(self.where, -away * (xi + away / 2), 0.0).sum(1)

    def _shared(self, denoise: Denoise, x: State, rng: Rng) -> State:
        """Standard normal noise, one draw for each group."""
        first = fieldwise(lambda v: v[:: self.particles], x)
        draws = standard_normal(first, group_rng(rng, self.particles), 1, denoise.schema)
        return spread(draws, self.particles)
