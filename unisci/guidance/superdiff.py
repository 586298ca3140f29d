"""SuperDiff (Skreta et al., arXiv 2412.17762): superposing diffusion models by their densities along the sampled path.

The step is that of the reverse SDE with the prediction sum_i kappa_i D_i, and log q_i of every model is followed along
it at no cost (`unisci.solvers.ito_density`). The weights kappa are decided at each step and for each sample:

    Or:    kappa = softmax_i(T log q_i + l_i), for samples of the mixture of the models' laws
    And:   log q_1 = ... = log q_M after the step, sum_i kappa_i = 1, for samples as likely to one as to the others

Let v_k be what a unit of kappa_k taken from kappa_1 moves x by, s_i the scores, and g_i what log q_i gains in the step
with kappa = 1/M, noise and all. Then And is the linear system, for j, k = 2, ..., M and kappa_k = 1/M + delta_k,

    sum_k <v_k, s_j - s_1> delta_k = (log q_1 + g_1) - (log q_j + g_j)

kappa so takes the noise out along the span of the s_j - s_1, while Ito's rule counts it: with P the projection on that
span, H_i the Hessian of log q_i and g^2 the diffusion, log q_i is off by g^2 tr(P H_i) dtau / 2. The paper leaves it
there, and its densities stay equal by its own count only. On two Gaussians in space their true gap is .25 nats in the
median, at any number of steps; `And(corrected=True)` brings it to .05 in 100 steps, and to 0 with more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from unisci.guidance.joint_step import JointStep, joint_step
from unisci.guidance.mixture import Mixture, equal
from unisci.processes.categorical import Categorical
from unisci.rng import Rng
from unisci.solvers.divergence import Vectors
from unisci.solvers.score import check_end, check_gaussian, check_start
from unisci.state import State, Time

RIDGE = 1e-6  # a direction with less than this part of the system's trace is left alone
FLOOR = 1e-8  # in nats^2: models that the noise of a step tells apart by 1e-4 nats coincide; float32 errs by 1e-6


@dataclass(frozen=True)
class Or:
    """kappa = softmax_i(temperature log q_i + bias_i).

    temperature 1 is the mixture with weights proportional to exp(bias_i), a large one takes the likeliest model. bias:
    M numbers, 0 where None. The estimates of log q_i err by about a nat in 200 steps, which a temperature multiplies.
    """

    temperature: float = 1.0
    bias: tuple[float, ...] | None = None
    differentiates: ClassVar[bool] = False

    def choose(self, step: JointStep, log_q: Tensor) -> tuple[Tensor, Tensor | float]:
        """kappa (B, M), and what is to be added to the gains of log q."""
        bias = self.bias or (0.0,) * log_q.shape[1]
        scores = [self.temperature * one + b for one, b in zip(log_q.unbind(1), bias, strict=True)]
        return torch.stack(scores, 1).softmax(1), 0.0


@dataclass(frozen=True)
class And:
    """kappa that keeps log q_i + bias_i (1 - t) the same for all models, and is 1/M where they coincide.

    bias: M numbers in nats, 0 where None; at t = 0 log q_i - log q_j is bias_j - bias_i. corrected: with the
    second-order term, M (M - 1) backward passes a step through the models; False is the paper.
    """

    bias: tuple[float, ...] | None = None
    corrected: bool = True

    @property
    def differentiates(self) -> bool:
        """Whether the models are differentiated."""
        return self.corrected

    def choose(self, step: JointStep, log_q: Tensor) -> tuple[Tensor, Tensor | float]:
        """kappa (B, M), and what is to be added to the gains of log q."""
        even = equal(step.x, step.t, step.cleans).to(log_q)
        if log_q.shape[1] == 1:
            return even, 0.0
        inverse = _regular_inverse(step.gram())
        added = step.second_order(inverse) if self.corrected and step.noise is not None else 0.0
        after = log_q + step.gains(step.end(even)) + added
        if self.bias is not None:
            after = torch.stack([one + b * (1 - step.s) for one, b in zip(after.unbind(1), self.bias, strict=True)], 1)
        delta = -(inverse * (after[:, 1:] - after[:, :1])[:, None]).sum(2)
        return even + torch.cat([-delta.sum(1, keepdim=True), delta], 1), added


def _regular_inverse(gram: Tensor) -> Tensor:
    """A (A^2 + mu^2)^-1 of the symmetric A (B, m, m): its inverse where that is well posed, 0 where A = 0."""
    mu = RIDGE * gram.diagonal(dim1=1, dim2=2).sum(1) + FLOOR
    unit = torch.eye(gram.shape[1], dtype=gram.dtype, device=gram.device)
    square = (gram[:, :, :, None] * gram[:, None]).sum(2)
    return torch.linalg.solve_ex(square + (mu**2)[:, None, None] * unit, gram)[0]  # does not wait for the device


@dataclass(frozen=True)
class SuperDiff:
    """A Solver of a `Mixture` whose weights the `policy` decides, not the mixture's own; its memory is log q (B, M).

    A step evaluates every model once. Gaussian fields take the ancestral step; where `vectors` are given, `exact` or
    `hutchinson(rng)`, that of the flow without noise (DDIM), and log q then takes the divergence of every model.
    Discrete fields, with `Or` alone, take the ancestral step. mask (B, N): the sites that count; a pair counts once.
    start (B, M): log q at the first time; by default that of the process's prior, for every model.
    """

    policy: Or | And
    mask: Tensor | None = None
    vectors: Vectors | None = None
    start: Tensor | None = None

    def step(
        self, denoise: Mixture, x: State, t: Time, s: Time, memory: Tensor | None, rng: Rng | None
    ) -> tuple[State, Tensor]:
        """One step from t to s. Raises ValueError for a denoiser that is no Mixture, a bias that does not fit, discrete
        fields with `And` or `vectors`, a missing rng, a model that cannot be differentiated where it must be, and a
        field that starts where alpha = 0 or steps to sigma = 0."""
        if memory is None:
            self._check(denoise, t, rng)
        check_end(denoise, s)
        step = joint_step(denoise, x, t, s, rng, self.mask, self.vectors, self.policy.differentiates)
        log_q = memory
        if memory is None:
            log_q = step.prior() if self.start is None else self.start.double()
        kappa, added = self.policy.choose(step, log_q)
        end = step.end(kappa)
        return end, log_q + step.gains(end) + added

    def _check(self, denoise: Mixture, t: Time, rng: Rng | None) -> None:
        if not isinstance(denoise, Mixture):
            raise ValueError(f"SuperDiff steps a Mixture, got {type(denoise).__name__}; pass Mixture((model, ...))")
        bias, both = self.policy.bias, isinstance(self.policy, And)
        if bias is not None and len(bias) != len(denoise.models):
            raise ValueError(f"bias {bias} is not one number for each of {len(denoise.models)} models")
        if bias is not None and both and (isinstance(t, dict) or t.ndim > 1):
            raise ValueError("the bias of And grows in time; give a sample one time for all its fields and sites")
        besides = () if both or self.vectors is not None else (Categorical,)
        check_gaussian(denoise, "SuperDiff with And or vectors" if besides == () else "SuperDiff", besides)
        if self.vectors is None and rng is None:
            raise ValueError("SuperDiff draws noise; pass rng=Rng(seed, ids), or vectors for the flow without noise")
        check_start(denoise, t)


def superpose(
    mixture: Mixture, x: State, times: Sequence[Time], solver: SuperDiff, rng: Rng | None = None
) -> tuple[State, Tensor]:
    """Solve from x at times[0] down to times[-1]: the state there, and its log q under every model, (B, M) in nats.

    superpose(Mixture((a, b)), x, grid(process, 200, end=1e-2), SuperDiff(Or()), rng). Gaussian fields stop above t = 0.
    Step k draws from rng.at(k). Raises as `SuperDiff.step`.
    """
    log_q = None
    for k, (t, s) in enumerate(pairwise(times)):
        x, log_q = solver.step(mixture, x, t, s, log_q, None if rng is None else rng.at(k))
    return x, log_q
