"""Teleportation: the first steps of a sampler in one closed form (Wang & Vastola, arXiv 2303.02490, 2412.09726).

At high noise a diffusion model sees little but the mean m and the covariance of its data, so that the probability
flow of their Gaussian law, along an eigenvector of variance c

    x_s = alpha_s m + sqrt((alpha_s^2 c + sigma_s^2) / (alpha_t^2 c + sigma_t^2)) (x_t - alpha_t m),

replaces its first steps; `unisci.theory.gaussian` finds how many. A stochastic solver may follow, for the marginals
are the same. A guided denoiser may not: its flow is that of another law.
"""

import math

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.gaussian import Gaussian, lam, level_for, time
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.state import State, Time, fieldwise


class GaussianDenoise:
    """The exact `Denoise` of Gaussian data. process and law: of a bare state, or one of each by field."""

    def __init__(
        self,
        process: Gaussian | dict[str, Gaussian],
        law: GaussianLaw | dict[str, GaussianLaw],
        schema: Schema | None = None,
    ):
        self.process, self.law, self.schema = process, law, schema

    def __call__(self, x: State, t: Time) -> State:
        """E[x_0 | x_t = x]; m along a direction without variance."""
        return fieldwise(self._clean, x, t, self.process, self.law)

    @staticmethod
    def _clean(x: Tensor, t: Tensor, process: Gaussian, law: GaussianLaw) -> Tensor:
        law, flat = law.to(x), x.flatten(1)
        alpha, sigma = level_for(process, t, flat)
        tiny = torch.finfo(x.dtype).tiny
        gain = lambda c: alpha * c / (alpha**2 * c + sigma**2).clamp(min=tiny)
        return (law.mean + law.scale(flat - alpha * law.mean, gain)).reshape(x.shape)


def teleport(law: GaussianLaw, process: Gaussian, x: Tensor, at: float, start: float = 1.0) -> tuple[Tensor, Tensor]:
    """Carry x (B, ...) from time `start` along the flow of `law` to the time t with lam(t) = `at`: (x_t, t), t float64.

    Then solve on from t: run(denoise, x_t, compile_solver(process, grid(process, n, start=float(t)), "dpm++2m")).
    For x draw law.draw(process, like, torch.ones(()), rng), which is right even where alpha(1) is not small. Raises
    ValueError for a process whose noise is not Gaussian, and an `at` not between lam(start) and infinity.
    """
    if not getattr(process, "is_gaussian", False):
        raise ValueError(
            f"{process} has no Gaussian noise, so that its flow has no Gaussian closed form; start at t = 1"
        )
    begin = torch.tensor(start, dtype=torch.float64)
    first = float(lam(process, begin))
    if not first <= at < math.inf:
        raise ValueError(f"lam = {at} is not between lam({start}) = {first:.4g} and infinity: teleport to less noise")
    t = time(process, torch.tensor(at, dtype=torch.float64))
    return law.flow(process, x, begin, t), t
