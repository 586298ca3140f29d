"""Products of models, prod_i q_i^beta_i, by particles: the Feynman-Kac correctors of Skreta et al. (arXiv 2503.02819).
The sum of scores s = sum_i beta_i s_i alone does not lead there, as a product of noised laws is no noised product; with

    d log w = g^2 / 2 (|s|^2 - sum_i beta_i |s_i|^2) dtau

it does. Here that is written for chains: by Bayes' rule q_s(x_s) q(x_t | x_s) = q_t(x_t) p(x_s | x_t) for each model, so
with B = sum_i beta_i the product of the kernels, which is proposed by,

    x_s ~ p'(x_s | x_t) = prod_i p_i(x_s | x_t)^beta_i q(x_t | x_s)^(1 - B) / Z(x_t),    w *= Z(x_t)

With Gaussian p_i of one variance, D = sum_i beta_i D_i / B and small steps, the weight of B = 1 is

    d log w = -1/2 sum_i beta_i |D_i - D|^2 d(alpha^2 / sigma^2)

It is exact for kernels that are; else the error is of first order in the step. One model of power beta is tempering.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.guidance.mixture import Mixture
from unisci.guidance.particles import Weights, check_threshold, particle_rng, spread
from unisci.guidance.twisted import place, unzip, weighted
from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import Gaussian
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.sample import draw_keys
from unisci.solvers.score import check_gaussian, counted, site_axes, time_for, total
from unisci.state import State, Time, fieldwise, pad


@dataclass(frozen=True, kw_only=True)
class Product:
    """A ParticleSolver for prod_i q_i^powers_i of the models of a `Mixture`, whose weights are not asked.

    powers: beta_i, one for each model, negative ones too, with a positive sum B. particles: P; threshold: see
    `resample`. variance: of the data, for that of the Gaussian p_i: steps of any size are exact where data are Gaussian
    with that variance. mask (n P, N): the sites that count.

    Start at `prior`. log_z estimates log of the integral of the product, in nats. A Gaussian field's step to sigma = 0
    has no noise and no weight: it goes to D. Raises ValueError where B <= 0, for a threshold outside [0, 1], a variance
    below 0, a denoiser that is no Mixture of as many models, and other noise.
    """

    powers: tuple[float, ...]
    particles: int
    variance: float = 1.0
    threshold: float = 0.5
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        if not 0 < sum(self.powers) < math.inf:
            raise ValueError(f"powers must have a positive sum, else the product is no law; got {self.powers}")
        if not 0 <= self.variance < math.inf:
            raise ValueError(f"the variance of the data must be finite and >= 0, got {self.variance}")

    def prior(self, mixture: Mixture, like: State, rng: Rng) -> State:
        """Draws of the product of the priors, (n P, ...), for samples shaped as `like` (n, ...)."""
        own, like = particle_rng(rng, self.particles), spread(like, self.particles)
        draw = lambda v, process, key: _start(v, process, sum(self.powers), key, own)
        return fieldwise(draw, like, mixture.process, draw_keys(like, mixture.schema))

    def step(
        self, denoise: Mixture, x: State, t: Time, s: Time, memory: Weights | None, rng: Rng
    ) -> tuple[State, Weights]:
        """Resample at t, then go to s."""
        axes = site_axes(denoise, x)
        if memory is None:
            self._check(denoise)
            memory = Weights.even(len(rng.ids), self.particles, rng.ids.device)
            mass = fieldwise(_start_mass, x, denoise.process, t, sum(self.powers))
            memory = memory.gain(total(fieldwise(weighted, mass, counted(x, axes, self.mask))))
        rows, memory = memory.resample(rng, self.threshold)
        x = fieldwise(lambda v: v[rows], x)
        cleans = denoise.evaluate(x, time_for(t, x))
        cleans = {k: [c[k] for c in cleans] for k in x} if isinstance(x, dict) else list(cleans)
        moved = fieldwise(self._move, x, cleans, denoise.process, t, s, draw_keys(x, denoise.schema), rng)
        x, log_mass = unzip(moved)
        return x, memory.gain(total(fieldwise(weighted, log_mass, counted(x, axes, self.mask))))

    def weigh(self, x: State, memory: Weights) -> Tensor:
        """The log weights (n, P)."""
        return memory.path

    def _check(self, denoise: Mixture) -> None:
        if not isinstance(denoise, Mixture) or len(denoise.models) != len(self.powers):
            raise ValueError(f"a Product of {len(self.powers)} powers steps a Mixture of as many models, got {denoise}")
        check_gaussian(denoise, "Product", (Categorical,))

    def _move(
        self, x: Tensor, cleans: list[Tensor], process: Process, t: Tensor, s: Tensor, key: tuple[str, int], rng: Rng
    ) -> tuple[Tensor, Tensor]:
        """x_s of one field, and the log mass of the product of the kernels of each of its entries."""
        name, axes = key
        if isinstance(process, Categorical):
            log_p, log_mass = _categorical(x, cleans, self.powers, process, t, s)
            return rng.categorical(name, 0, log_p.exp(), axes), log_mass
        mean, deviation, log_mass = _gaussian(x, cleans, self.powers, process, t, s, self.variance)
        return mean + deviation * rng.normal(name, 0, tuple(x.shape), axes).to(x.dtype), log_mass


def _gaussian(
    x: Tensor, cleans: list[Tensor], powers: tuple[float, ...], process: Gaussian, t: Tensor, s: Tensor, data: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, deviation and log mass of the product of kernels N(m_i, p_s v / p_t), m_i the mean of x_s at D_i. Here
    p = alpha^2 variance + sigma^2, a = alpha_t / alpha_s, and v = p_t - a^2 p_s is the variance of the step forward. With m
    the mean of x_s at D, e the noise in x at D, and k = B v + a^2 p_s, x_s is of

        N(m + (1 - B) a p_s v e / (k sigma_t), p_s v / k)
    """
    (alpha, sigma), (alpha_s, sigma_s) = process.level(t.double()), process.level(s.double())
    noisy, weighs = sigma > 0, (sigma > 0) & (sigma_s > 0)
    put, b, a = lambda value: place(value, x), sum(powers), alpha / alpha_s
    v = (sigma**2 - (a * sigma_s) ** 2).clamp(min=0)
    sigma = torch.where(noisy, sigma, 1.0)
    p, p_s = (
        torch.where(weighs, alpha**2 * variance + sigma**2, 1.0)
        for alpha, sigma in ((alpha, sigma), (alpha_s, sigma_s))
    )
    k = b * v + a**2 * p_s
    clean = sum(beta * d for beta, d in zip(powers, cleans, strict=True)) / b
    e = (x - put(alpha) * clean) / put(sigma)
    turned = a / sigma * (sigma_s**2 + torch.where(weighs, (1 - b) * p_s * v / k, 0.0))
    mean = torch.where(put(noisy) > 0, put(alpha_s) * clean + put(turned) * e, x)
    apart = sum(beta * (d - clean) ** 2 for beta, d in zip(powers, cleans, strict=True))
    gained = (alpha_s / sigma**2) ** 2 * v * p / p_s
    constant = b * p.log() + (1 - b) * p_s.log() - k.log()
    log_mass = (put(constant) - put(gained) * apart - put(b * (1 - b) * v * p / (k * sigma**2)) * e**2) / 2
    deviation = torch.where(weighs, (p_s * v / k).sqrt(), 0.0)
    return mean, put(deviation), torch.where(put(weighs) > 0, log_mass, 0.0)


def _categorical(
    x: Tensor, logits: list[Tensor], powers: tuple[float, ...], process: Categorical, t: Tensor, s: Tensor
) -> tuple[Tensor, Tensor]:
    """Log probabilities (..., states) and log mass of the product of kernels, each site on its own."""
    kernels = [process.posterior(x, process.logits(v, x).softmax(-1), t, s) for v in logits]
    forward = _forward(process, x, t, s).to(kernels[0].dtype)
    log_p = sum(torch.xlogy(beta, p) for beta, p in zip(powers, kernels, strict=True))
    log_p = torch.where(forward > 0, log_p + torch.xlogy(1 - sum(powers), forward), -math.inf)
    return log_p.log_softmax(-1), log_p.logsumexp(-1)


def _forward(process: Categorical, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """q(x_t | x_s = k), s < t, for every state k: (..., states)."""
    (a_t, _, g_t), (a_s, _, g_s) = process.level(t.double()), process.level(s.double())
    tiny = torch.finfo(torch.float64).tiny
    a, stay = (pad(v, x)[..., None] for v in (a_t / a_s.clamp(min=tiny), (1 - g_t) / (1 - g_s).clamp(min=tiny)))
    onehot = F.one_hot(x, process.states).to(a)
    m = F.pad(process.m.to(a), (0, int(process.masked)))
    to_x = a * onehot + (stay - a).clamp(min=0) * (onehot * m).sum(-1, keepdim=True)
    if not process.masked:
        return to_x
    is_mask = torch.zeros_like(m)
    is_mask[-1] = 1
    return torch.where(onehot[..., -1:] > 0, is_mask + (1 - is_mask) * (1 - stay), to_x * (1 - is_mask))


def _prior(process: Categorical, like: Tensor) -> Tensor:
    """The law of x_1, (states,)."""
    _, b, gamma = process.level(torch.ones((), dtype=torch.float64, device=like.device))
    p = b * process.m.to(b)
    return torch.cat([p, gamma[None]]) if process.masked else p


def _start(x: Tensor, process: Process, b: float, key: tuple[str, int], rng: Rng) -> Tensor:
    """A draw of the prior to the power b."""
    name, axes = key
    if isinstance(process, Categorical):
        p = torch.where((p := _prior(process, x)) > 0, p**b, 0.0)
        return rng.categorical(name, 0, p.expand(*x.shape, -1), axes)
    return process.prior(x, rng, name, axes) / math.sqrt(b)


def _start_mass(x: Tensor, process: Process, t: Tensor, b: float) -> Tensor:
    """log of the integral of the prior to the power b, for each entry."""
    if isinstance(process, Categorical):
        p = _prior(process, x)
        return torch.where(p > 0, p**b, 0.0).sum().log().expand(x.shape)
    _, sigma = process.level(t.double())
    mass = (1 - b) * (math.log(2 * math.pi) / 2 + torch.where(sigma > 0, sigma, 1.0).log()) - math.log(b) / 2
    return place(torch.where(sigma > 0, mass, 0.0), x).expand(x.shape)
