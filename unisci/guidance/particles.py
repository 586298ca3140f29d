"""Particles: sequential Monte Carlo inside a sampler (twisted diffusion sampler, Wu et al., arXiv 2306.17775), which
makes exact what added scores only aim at.

Each sample is a group of P particles, with weights that say by how much their law p' misses the target p:

    log w += log p(x_s | x_t) - log p'(x_s | x_t),    Z ~ mean of w,    ess = (sum w)^2 / sum w^2

and where ess < threshold P the group is drawn anew from itself in proportion to w. At the end one particle is drawn. As
P grows its law tends to the target, with an error of order 1 / P. Groups do not mix, so that no sample depends on its
batch. Rows are group-major: particle p of sample i is row i P + p.
"""

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from unisci.rng import MASK, Rng
from unisci.solvers.sample import Denoise, Solver, draw_keys
from unisci.state import State, fieldwise


def particle_rng(rng: Rng, particles: int) -> Rng:
    """The draws of the particles of samples rng.ids (n,): ids (n P,), id P + p. Raises ValueError where P < 1, or an id
    does not fit into 32 bits."""
    if particles < 1:
        raise ValueError(f"a group needs at least one particle, got {particles}")
    ids = (rng.ids[:, None] * particles + torch.arange(particles, device=rng.ids.device)).flatten()
    largest = int(rng.ids.max()) if len(ids) else 0
    if (largest + 1) * particles > MASK + 1:
        raise ValueError(
            f"sample {largest} with {particles} particles leaves the ids [0, 2^32); take ids below {2**32 // particles}"
        )
    return replace(rng, ids=ids)


def group_rng(rng: Rng, particles: int) -> Rng:
    """The draws of whole groups, keyed by the samples' own ids (n,): the inverse of `particle_rng`. Raises ValueError
    where the rows of rng are no whole number of groups."""
    if len(rng.ids) % particles:
        raise ValueError(f"{len(rng.ids)} rows are no groups of {particles}; pass particle_rng(rng, {particles})")
    return replace(rng, ids=torch.div(rng.ids[::particles], particles, rounding_mode="floor"))


def spread(state: Any, particles: int) -> Any:
    """Each row of a state (n, ...) P times over, (n P, ...). What a model, a term or a mask holds of the samples must
    be repeated likewise."""
    return fieldwise(lambda v: v.repeat_interleave(particles, 0), state)


def prior(denoise: Denoise, like: State, rng: Rng, particles: int) -> State:
    """Draws of x_1 for every particle, (n P, ...), of samples shaped as `like` (n, ...)."""
    own, like = particle_rng(rng, particles), spread(like, particles)
    draw = lambda v, process, key: process.prior(v, own, *key)
    return fieldwise(draw, like, denoise.process, draw_keys(like, denoise.schema))


def reindex(memory: Any, rows: Tensor) -> Any:
    """memory with the rows of every tensor in it taken by `rows` (n P,), through tuples, NamedTuples, lists and dicts.

    Tensors without a leading axis of n P, and all that is no tensor, stay. A tensor of that length is always taken for
    one that has a row for each particle.
    """
    if isinstance(memory, Tensor):
        return memory[rows] if memory.ndim and len(memory) == len(rows) else memory
    if isinstance(memory, dict):
        return {k: reindex(v, rows) for k, v in memory.items()}
    if isinstance(memory, tuple | list):
        values = [reindex(v, rows) for v in memory]
        return type(memory)(*values) if hasattr(memory, "_fields") else type(memory)(values)
    return memory


def log_mean(log_weights: Tensor) -> Tensor:
    """log of the mean weight of each group (n, P), (n,): the estimate of log Z. -inf where no particle has weight."""
    return log_weights.logsumexp(1) - math.log(log_weights.shape[1])


def normalised(log_weights: Tensor) -> Tensor:
    """Weights (n, P) that sum to 1 in each group; 1 / P in a group where none has any."""
    alive = (log_weights > -math.inf).any(1, keepdim=True)
    return torch.where(alive, log_weights, 0.0).softmax(1)


def effective_size(log_weights: Tensor) -> Tensor:
    """(sum w)^2 / sum w^2 of each group (n, P), (n,), from 1 to P."""
    return 1 / normalised(log_weights).square().sum(1)


def resample(log_weights: Tensor, rng: Rng, threshold: float) -> tuple[Tensor, Tensor]:
    """Systematic resampling of the groups (n, P) whose effective size is below threshold * P: which row follows in the
    place of each, (n P,), and the log weights from here on, the group's log mean weight for all of its particles.

    rng: one draw for each of the n groups. A particle gets P w / sum w successors in the mean, and that many rounded
    down or up; one without weight gets none. The other groups, and those without any weight, stay as they are.
    """
    n, size = log_weights.shape
    place = torch.arange(size, device=log_weights.device)
    cumulative = normalised(log_weights).cumsum(1)
    u = rng.uniform("resample", 0, (n,), 0).to(cumulative)[:, None]
    drawn = torch.searchsorted(cumulative, (place + u) / size * cumulative[:, -1:]).clamp(max=size - 1)
    uneven = (effective_size(log_weights) < threshold * size)[:, None]
    rows = torch.where(uneven, drawn, place) + size * torch.arange(n, device=place.device)[:, None]
    return rows.flatten(), torch.where(uneven, log_mean(log_weights)[:, None], log_weights)


def choose(log_weights: Tensor, rng: Rng) -> Tensor:
    """One row of each group (n, P), drawn by its weight: (n,). rng: one draw for each of the n groups."""
    n, size = log_weights.shape
    return rng.categorical("choose", 0, normalised(log_weights), 0) + size * torch.arange(n, device=log_weights.device)


class Weights(NamedTuple):
    """What a particle solver carries from step to step, float64.

    path (n, P): log weights without the twist; twist (n, P): log h of the particles where it was last taken, which only
    guides the resampling and is undone in `path`; ess (n,): the effective sizes before the last resampling.
    """

    path: Tensor
    twist: Tensor
    ess: Tensor

    @classmethod
    def even(cls, rows: int, particles: int, device: torch.device) -> "Weights":
        """Equal weights. Raises ValueError where the rows are no whole number of groups."""
        if particles < 1 or rows % particles:
            raise ValueError(f"a state of {rows} rows is no groups of {particles} particles; spread it, or see `prior`")
        zeros = torch.zeros(rows // particles, particles, dtype=torch.float64, device=device)
        return cls(zeros, zeros, torch.full_like(zeros[:, 0], particles))

    def gain(self, log_ratio: Tensor) -> "Weights":
        """With the log ratio (n P,) of target and proposal in a step added. A particle without weight stays so,
        whatever the model says of it."""
        log_ratio = log_ratio.to(self.path).reshape(self.path.shape)
        return self._replace(path=torch.where(self.path == -math.inf, self.path, self.path + log_ratio))

    def resample(self, rng: Rng, threshold: float) -> tuple[Tensor, "Weights"]:
        """The rows (n P,) that follow, and their weights; rng is of the particles."""
        full = self.path + self.twist
        rows, log_weights = resample(full, group_rng(rng, full.shape[1]), threshold)
        twist = self.twist.flatten()[rows].reshape(full.shape)
        # A particle with h = 0 follows only where its group stays as it is, and then so does its path.
        path = torch.where(twist > -math.inf, log_weights - twist, self.path)
        return rows, Weights(path, twist, effective_size(full))


class ParticleSolver(Solver, Protocol):
    """A solver whose memory is `Weights`, in groups of `particles` rows."""

    particles: int

    def weigh(self, denoise: Denoise, x: State, memory: Weights) -> Tensor:
        """The log weights (n, P) of the particles x (n P, ...) when the last step is done."""


class Report(NamedTuple):
    """log_z (n,): log of the normalising constant; ess (steps, n): effective sizes at each step, before resampling;
    particles (n P, ...) and log_weights (n, P): all that the samples were drawn from, for weighted means."""

    log_z: Tensor
    ess: Tensor
    particles: State
    log_weights: Tensor


def sample_particles(denoise: Denoise, x: State, times: Any, solver: ParticleSolver, rng: Rng) -> tuple[State, Report]:
    """Solve from times[0] to times[-1] and draw a particle of each group by its weight: n samples, and a `Report`.

    x: the particles at times[0], (n P, ...), see `prior`; rng: that of the n samples, whose particles draw in step k
    from particle_rng(rng, P).at(k). Raises ValueError where x is not P rows for each id, and where a weight is nan. A
    group without weight (log_z = -inf, h = 0 for all that it found) gives any of its particles.
    """
    own = particle_rng(rng, solver.particles)
    rows = len(next(iter(x.values())) if isinstance(x, dict) else x)
    if rows != len(own.ids):
        raise ValueError(f"{len(rng.ids)} samples of {solver.particles} particles are not {rows} rows; see `prior`")
    memory, ess = None, []
    for k, (t, s) in enumerate(pairwise(times)):
        x, memory = solver.step(denoise, x, t, s, memory, own.at(k))
        ess.append(memory.ess)
    log_weights = solver.weigh(denoise, x, memory)
    if bool(log_weights.isnan().any()):
        bad = log_weights.isnan().any(1).nonzero()[:, 0].tolist()
        raise ValueError(f"weights of samples {bad[:8]} are nan: a model or a potential gave nan; log 0 is -inf")
    picked = choose(log_weights, rng)
    return fieldwise(lambda v: v[picked], x), Report(log_mean(log_weights), torch.stack(ess), x, log_weights)


def check_threshold(threshold: float) -> None:
    """Raise ValueError unless 0 <= threshold <= 1."""
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold is a share of the particles, 0 <= threshold <= 1, got {threshold}")
