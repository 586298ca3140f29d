"""Products of models, prod_i q_i^beta_i, by particles: the Feynman-Kac correctors of Skreta et al. (arXiv 2503.02819).
The sum of scores s = sum_i beta_i s_i alone does not lead there, as a product of noised laws is no noised product; with

    d log w = g^2 / 2 (|s|^2 - sum_i beta_i |s_i|^2) dtau,     sum_i beta_i = 1

it does. Here that is written for chains. By Bayes' rule q_s(x_s) q(x_t | x_s) = q_t(x_t) p_i(x_s | x_t) for each model,
so the product of the reverse kernels is proposed by, and its mass is the weight:

    x_s ~ p'(x_s | x_t) = prod_i p_i(x_s | x_t)^beta_i / Z(x_t),     w *= Z(x_t)

Where the powers sum to B, a reference r, whose kernels are known, takes the power 1 - B on the way, and the end is
weighed by r(x_0)^(B - 1). Every path then starts at the prior, where a product of B priors would cost most particles.
It is exact for kernels that are; else the error is of first order in the step. One model of power beta is tempering.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.guidance.mixture import Mixture
from unisci.guidance.particles import Weights, check_threshold
from unisci.guidance.twisted import unzip, weighted
from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import level_for
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.reverse_kernel import Kernel, ancestral
from unisci.solvers.sample import draw_keys
from unisci.solvers.score import check_gaussian, counted, site_axes, time_for, total
from unisci.state import State, Time, beside, fieldwise, place

BROAD = 2.0  # the default of `broad` over the largest of the variances


@dataclass(frozen=True, kw_only=True)
class Product:
    """A ParticleSolver for prod_i q_i^powers_i of the models of a `Mixture`, whose weights are not asked.

    powers: beta_i, one for each model, negative ones too. particles: P; threshold: see `resample`. variances: of the
    data of each model about their mean, 1 where None, from which the Gaussian p_i have their width: steps of any size
    are exact where data are Gaussian with these. broad: the variance of the reference, N(0, broad) in Gaussian fields
    and uniform in discrete ones; twice the largest of `variances` where None, more where data lie far from 0, so that
    it covers them: B > 1 divides by it. mask (n P, N): the sites that count.

    Start at `prior`. log_z estimates log of the integral of the product, in nats. A Gaussian field's step to sigma = 0
    has no noise and no weight: it goes to sum_i beta_i D_i, the reference with them. Raises ValueError where powers are
    not finite or Gaussians of these variances have no product, with the reference or without, for a threshold outside
    [0, 1], variances that are not positive or not one for each power, a denoiser that is no Mixture of as many models,
    and other noise.
    """

    powers: tuple[float, ...]
    particles: int
    variances: tuple[float, ...] | None = None
    broad: float | None = None
    threshold: float = 0.5
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if self.variances is None:
            object.__setattr__(self, "variances", (1.0,) * len(self.powers))
        if len(self.variances) != len(self.powers) or not all(0 < c < math.inf for c in self.variances):
            raise ValueError(
                f"variances must be positive, one for each of {len(self.powers)} powers, got {self.variances}"
            )
        if self.broad is None:
            object.__setattr__(self, "broad", BROAD * max(self.variances))
        if not 0 < self.broad < math.inf:
            raise ValueError(f"broad, the variance of the reference, must be positive, got {self.broad}")
        precision = sum(beta / c for beta, c in zip(self.powers, self.variances, strict=True))
        if not all(0 < p < math.inf for p in (precision, precision + self._powers[-1] / self.broad)):
            raise ValueError(
                f"the powers {self.powers} of data of variances {self.variances}, with a reference of {self.broad}, "
                "give no law, as the sum of power / variance must be positive; give powers less negative"
            )

    @property
    def _powers(self) -> tuple[float, ...]:
        """Those of the models and the reference, which sum to 1."""
        return (*self.powers, 1 - sum(self.powers))

    def step(
        self, denoise: Mixture, x: State, t: Time, s: Time, memory: Weights | None, rng: Rng
    ) -> tuple[State, Weights]:
        """Resample at t, then go to s."""
        if memory is None:
            self._check(denoise)
            memory = Weights.even(len(rng.ids), self.particles, rng.ids.device)
        rows, memory = memory.resample(rng, self.threshold)
        x = fieldwise(lambda v: v[rows], x)
        now, t, s = time_for(t, x), beside(t, x), beside(s, x)
        cleans = (*denoise.evaluate(x, now), fieldwise(self._reference, x, denoise.process, now))
        cleans = {k: [c[k] for c in cleans] for k in x} if isinstance(x, dict) else cleans
        moved = fieldwise(self._move, x, cleans, denoise.process, t, s, draw_keys(x, denoise.schema), rng)
        x, log_mass = unzip(moved)
        return x, memory.gain(self._sum(denoise, log_mass))

    def weigh(self, denoise: Mixture, x: State, memory: Weights) -> Tensor:
        """The log weights (n, P) of final particles x (n P, ...), from which the reference is taken out."""
        log_r = self._sum(denoise, fieldwise(self._log_reference, x, denoise.process))
        return memory.gain(-self._powers[-1] * log_r).path

    def _check(self, denoise: Mixture) -> None:
        if not isinstance(denoise, Mixture) or len(denoise.models) != len(self.powers):
            raise ValueError(f"a Product of {len(self.powers)} powers steps a Mixture of as many models, got {denoise}")
        check_gaussian(denoise, "Product", (Categorical,))

    def _sum(self, denoise: Mixture, values: State) -> Tensor:
        """The sum over the entries of each sample that count, (n P,)."""
        count = counted(values, site_axes(denoise, values), self.mask)
        return total(fieldwise(weighted, values, count))

    def _reference(self, x: Tensor, process: Process, t: Tensor) -> Tensor:
        """What the reference predicts from x at t: E[x_0 | x_t], or logits."""
        if isinstance(process, Categorical):
            return process.likelihood(x, t).log()
        alpha, sigma = level_for(process, t, x)
        return alpha * self.broad / (alpha**2 * self.broad + sigma**2) * x

    def _log_reference(self, x: Tensor, process: Process) -> Tensor:
        """log r of each entry of final states."""
        if isinstance(process, Categorical):
            return torch.full(x.shape, -math.log(process.classes), device=x.device)
        return -(x**2 / self.broad + math.log(2 * math.pi * self.broad)) / 2

    def _move(
        self,
        x: Tensor,
        cleans: tuple[Tensor, ...],
        process: Process,
        t: Tensor,
        s: Tensor,
        key: tuple[str, int],
        rng: Rng,
    ) -> tuple[Tensor, Tensor]:
        """x_s of one field, and the log mass of the product of the kernels of each of its entries."""
        name, axes = key
        if isinstance(process, Categorical):
            probs, log_mass = _categorical(x, cleans, self._powers, process, t, s)
            return rng.categorical(name, 0, probs, axes), log_mass
        kernels = [ancestral(process, t, s, variance) for variance in (*self.variances, self.broad)]
        mean, deviation, log_mass = _gaussian(x, cleans, self._powers, kernels)
        return mean + deviation * rng.normal(name, 0, tuple(x.shape), axes).to(x.dtype), log_mass


def _gaussian(
    x: Tensor,
    cleans: tuple[Tensor, ...],
    powers: tuple[float, ...],
    kernels: list[Kernel],
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and log mass of the product of kernels N(m_i, V_i), m_i the mean of x_s at D_i. With
    L_i = beta_i / V_i, L = sum_i L_i and m = sum_i L_i m_i / L it is

        N(m, 1 / L) of log mass -1/2 (sum_i L_i |m_i - m|^2 + log L + sum_i beta_i log V_i)
    """
    keep, gain, deviation = kernels[0]
    noisy, put = deviation > 0, lambda value: place(value, x)
    v = [torch.where(noisy, deviation**2, 1.0) for _, _, deviation in kernels]
    parts = [beta / v_i for beta, v_i in zip(powers, v, strict=True)]
    whole = sum(parts)
    clean = sum(put(part / whole) * d for part, d in zip(parts, cleans, strict=True))
    apart = sum(put(gain**2 * part) * (d - clean) ** 2 for part, d in zip(parts, cleans, strict=True))
    constant = whole.log() + sum(beta * v_i.log() for beta, v_i in zip(powers, v, strict=True))
    log_mass = torch.where(put(noisy) > 0, -(apart + put(constant)) / 2, 0.0)
    return put(keep) * x + put(gain) * clean, put(torch.where(noisy, whole.rsqrt(), 0.0)), log_mass


def _categorical(
    x: Tensor, logits: tuple[Tensor, ...], powers: tuple[float, ...], process: Categorical, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Probabilities (..., states) and log mass of the product of kernels, each site on its own. What a model with a
    positive power forbids is forbidden."""
    kernels = [process.posterior(x, process.logits(v, x).softmax(-1), t, s) for v in logits]
    never = torch.stack([p == 0 for beta, p in zip(powers, kernels, strict=True) if beta > 0]).any(0)
    log_p = sum(torch.xlogy(beta, p) for beta, p in zip(powers, kernels, strict=True))
    log_p = torch.where(never, -math.inf, log_p)
    return log_p.softmax(-1), log_p.logsumexp(-1)
