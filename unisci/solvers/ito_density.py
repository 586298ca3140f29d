"""The density of what a sampler draws, from what it evaluates anyway: the Ito density estimator of SuperDiff (Skreta et
al., arXiv 2412.17762, theorem 1), and its twin for discrete chains.

Along any path of the model's own diffusion g, whatever its drift, with s the score and tau reverse time,

    d log q = <dx, s> + (div f + <f - g^2 s / 2, s>) dtau

The Laplacian of log q in Ito's lemma and that in the Fokker-Planck equation cancel. In z = x / r, r^2 = alpha^2 +
sigma^2, every process is variance preserving, and a step from t to s with the score held gives, in d dimensions,

    log q_s(z_s) - log q_t(z_t) = <z_s - z_t, s> - h (d + <z_t, s> + |s|^2),   h = log(alpha_s r_t / (alpha_t r_s))

A path without noise keeps the Laplacian: - h div s more. For a discrete chain Bayes' rule is exact, and the forward
kernel drops out of it: with f the predicted distribution of the clean class,

    log q_s(x_s) - log q_t(x_t) = log p(x_s | x_t) - log q(x_t | x_s) = log sum_k f_k q(x_s | k) / q(x_t | k)

What is left: on a noisy path the fluctuation of dx^2 about its mean, of order sqrt(h) in the step h; on a path without
noise, order h; in a chain of several sites, that they are drawn each on its own, order h (a single site is exact).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import Gaussian, level_for
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.divergence import Vectors, divergence, prepare
from unisci.solvers.known import Known
from unisci.solvers.predictor_corrector import PredictorCorrector
from unisci.solvers.sample import Denoise, Solver
from unisci.solvers.score import check_end, check_gaussian, check_start, counted, score_of, site_axes, time_for, total
from unisci.state import State, Time, beside, fieldwise


class Followed(NamedTuple):
    """What `ItoDensity` carries from step to step: the memory of its solver and log q of the state (B,)."""

    memory: Any
    log_density: Tensor


@dataclass(frozen=True)
class ItoDensity:
    """A Solver that takes the steps of `solver` and follows log q in its memory, in nats; see `sample_with_density`.

    solver: any that draws the reverse SDE of Gaussian fields (Euler-Maruyama, ancestral, SDE-DPM-Solver++), or any for
    discrete fields, or both side by side; not one with a corrector, whose noise is not g. A solver without noise needs
    `vectors` for the divergence, `exact` or `hutchinson(rng, probes)`, and asks once more a step. mask (B, N): the
    sites that count; a pair counts once. start (B,): log q at the first time; by default that of the process's prior.
    """

    solver: Solver
    mask: Tensor | None = None
    vectors: Vectors | None = None
    start: Tensor | None = None

    def step(
        self, denoise: Denoise, x: State, t: Time, s: Time, memory: Followed | None, rng: Rng | None
    ) -> tuple[State, Followed]:
        """One step from t to s. Raises ValueError where a Gaussian field steps to sigma = 0, and where `vectors` are
        given to a solver with noise or missing for one without, or the noise is of another kind."""
        axes = site_axes(denoise, x)
        if memory is None:
            self._check(denoise, t)
            prior = total(fieldwise(log_prior, x, denoise.process, beside(t, x), counted(x, axes, self.mask)))
            memory = Followed(None, prior if self.start is None else self.start)
        check_end(denoise, s)
        clean = denoise(x, time_for(t, x))
        known = Known(denoise.process, denoise.schema, clean, x, denoise)
        end, inner = self.solver.step(known, x, t, s, memory.memory, rng)
        t, s = beside(t, x), beside(s, x)
        gained = total(fieldwise(log_gain, x, end, clean, denoise.process, t, s, counted(x, axes, self.mask)))
        if self.vectors is not None:
            gained = gained - self._laplacian(denoise, x, t, s, axes)
        return end, Followed(inner, memory.log_density + gained)

    def _check(self, denoise: Denoise, t: Time) -> None:
        if isinstance(self.solver, PredictorCorrector):
            raise ValueError("ItoDensity cannot follow a corrector, whose noise is not the model's; take its predictor")
        noisy = getattr(self.solver, "stochastic", None)  # of a Program; other solvers do not say
        if noisy is False and self.vectors is None:
            raise ValueError(f"{self.solver.name} draws no noise; pass vectors=exact or hutchinson(rng)")
        check_gaussian(denoise, "ItoDensity", (Categorical,) if self.vectors is None else ())
        if self.vectors is not None and noisy:
            raise ValueError(f"{self.solver.name} draws noise, with which no divergence is needed; leave vectors out")
        check_start(denoise, t)

    @torch.inference_mode(False)
    def _laplacian(self, denoise: Denoise, x: State, t: Time, s: Time, axes: Any) -> Tensor:
        """h div s, (B,)."""
        with torch.enable_grad():
            x = fieldwise(lambda v: v.detach().clone().requires_grad_(), x)
            out = fieldwise(laplacian_field, x, denoise(x, time_for(t, x)), denoise.process, t, s)
            return divergence(out, x, prepare(self.vectors, x, axes, self.mask))


def sample_with_density(
    denoise: Denoise, x: State, times: Sequence[Time], solver: ItoDensity, rng: Rng | None = None
) -> tuple[State, Tensor]:
    """As `sample`, and log q (B,) of the state returned, in nats: sample_with_density(denoise, x, program.times,
    ItoDensity(program), rng). Gaussian fields stop above t = 0. Raises as `ItoDensity.step`."""
    memory = None
    for k, (t, s) in enumerate(pairwise(times)):
        x, memory = solver.step(denoise, x, t, s, memory, None if rng is None else rng.at(k))
    return x, memory.log_density


def log_prior(x: Tensor, process: Process, t: Tensor, count: Tensor) -> Tensor:
    """log q of each entry of x (B, ...) under the process's prior, in nats, 0 where `count` is 0; shaped as x. For a
    Gaussian it has the sigma of t, for classes it is that at t = 1."""
    if isinstance(process, Categorical):
        return count * process.likelihood(x, torch.ones((), device=x.device))[..., 0].log()
    _, sigma = level_for(process, t, x)
    return count * (-0.5 * ((x / sigma) ** 2 + (2 * math.pi * sigma**2).log()))


def preserving(process: Gaussian, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """r and log(alpha / r) at t, to multiply x (B, ...); z = x / r is variance preserving, whatever the process."""
    alpha, sigma = level_for(process, t, x)
    r = (alpha**2 + sigma**2).sqrt()
    return r, (alpha / r).log()


def laplacian_field(x: Tensor, clean: Tensor, process: Gaussian, t: Tensor, s: Tensor) -> Tensor:
    """The field of x (B, ...) whose divergence is h div s: what log q loses besides `log_gain` in a step without noise.
    clean = D(x, t), with its graph where the divergence is to be taken."""
    (r, a_t), (_, a_s) = preserving(process, t, x), preserving(process, s, x)
    return (a_s - a_t) * r**2 * score_of(clean, x, process, t)


def log_gain(x: Tensor, end: Tensor, clean: Tensor, process: Process, t: Tensor, s: Tensor, count: Tensor) -> Tensor:
    """log q_s(end) - log q_t(x) of each entry of a step from x at t to `end` at s, without the Laplacian, in nats, 0
    where `count` is 0; shaped as x. clean: the prediction at x, of the model whose log q this is."""
    if isinstance(process, Categorical):
        before, after = process.likelihood(x, t), process.likelihood(end, s)
        f = torch.where(before > 0, process.logits(clean, x).softmax(-1), 0.0)  # what x_t allows
        f = f / f.sum(-1, keepdim=True)
        return count * (f * after / torch.where(before > 0, before, 1.0)).sum(-1).log()
    (r_t, a_t), (r_s, a_s) = preserving(process, t, x), preserving(process, s, x)
    score = r_t * score_of(clean, x, process, t)
    h = a_s - a_t
    z_t, z_s = x / r_t, end / r_s
    return count * ((z_s - z_t) * score - h * (1 + z_t * score + score**2) - (r_s / r_t).log())
