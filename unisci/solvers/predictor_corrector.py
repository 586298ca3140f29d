"""Predictor-corrector sampling (Song et al., arXiv 2011.13456, algorithms 2 to 5): after a step of any solver to time
s, Langevin steps at time s pull x back to its marginal,

    x <- x + e score + sqrt(2 e) xi,    e = 2 (snr sigma)^2  or  2 (snr |xi| / |score|)^2

The factor alpha_i that the paper puts into e for VP depends on the grid and tends to 1; it is left out. Its norms are
means over the batch; here they belong to one sample, so that no sample depends on another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, Solver
from unisci.solvers.score import check_gaussian, exists, score_of, site_axes, time_for
from unisci.state import State, Time, beside, fieldwise

# (snr, score, xi, sigma, exists) -> e, each a tensor that broadcasts against the field
StepSize = Callable[[float, Tensor, Tensor, Tensor, Tensor], Tensor]


def by_schedule(snr: float, score: Tensor, xi: Tensor, sigma: Tensor, exists: Tensor) -> Tensor:
    """e = 2 (snr sigma)^2, whatever x is: annealed Langevin dynamics."""
    return 2 * (snr * sigma) ** 2


def by_norm(snr: float, score: Tensor, xi: Tensor, sigma: Tensor, exists: Tensor) -> Tensor:
    """e = 2 (snr sigma |xi| / |sigma score|)^2, norms over the entries of a sample's field that exist and are noised.

    Where the field has one time this is the paper's rule. It is for many entries: e depends on x and xi, which adds a
    share of about 4 / n to the variance of n entries, and in the plane scatters the samples. No step where the score
    is 0.
    """
    kept = exists & (sigma > 0)
    square = lambda v: (v * kept).square().reshape(len(v), -1).sum(1).reshape(-1, *(1,) * (v.ndim - 1))
    of_score = square(sigma * score)
    ratio = square(xi) / torch.where(of_score > 0, of_score, 1.0)
    return 2 * (snr * sigma) ** 2 * torch.where(of_score > 0, ratio, 0.0)


@dataclass(frozen=True)
class Langevin:
    """`steps` Langevin steps of signal-to-noise ratio `snr`. Of a Gaussian of variance V they keep V / (1 - e / 2V):
    their error is of first order in e.

    size: gives e. mask: (B, N), the sites that exist, for the norms of `by_norm`.
    Raises ValueError where snr <= 0 or steps < 1.
    """

    snr: float = 0.16
    steps: int = 1
    size: StepSize = by_schedule
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        if self.snr <= 0 or self.steps < 1:
            raise ValueError(f"Langevin needs snr > 0 and steps >= 1, got snr = {self.snr}, steps = {self.steps}")

    def correct(self, denoise: Denoise, x: State, t: Time, rng: Rng | None) -> State:
        """x after the Langevin steps at time t; step m draws from rng.at(m). Where sigma = 0 nothing moves.

        One evaluation a step, none where t is 0 throughout and on the CPU. Raises ValueError for noise that is not
        Gaussian, and without rng.
        """
        check_gaussian(denoise, "Langevin")
        if rng is None:
            raise ValueError("Langevin draws noise; pass rng=Rng(seed, ids)")
        if _is_zero(t):
            return x
        axes = site_axes(denoise, x)
        names, t = {k: k for k in x} if isinstance(x, dict) else "x", beside(t, x)
        for m in range(self.steps):
            x = fieldwise(self._move, x, denoise(x, time_for(t, x)), denoise.process, t, names, axes, rng.at(m))
        return x

    def _move(self, x: Tensor, clean: Tensor, process: Gaussian, t: Tensor, name: str, axes: int, rng: Rng) -> Tensor:
        xi = rng.normal(name, 0, tuple(x.shape), axes).to(x.dtype)
        score, (_, sigma) = score_of(clean, x, process, t), level_for(process, t, x)
        e = self.size(self.snr, score, xi, sigma, exists(x, axes, self.mask))
        return x + e * score + (2 * e).sqrt() * xi


@dataclass(frozen=True)
class PredictorCorrector:
    """A Solver: a step of `predictor`, then `corrector` at the new time. The corrector's noise is of streams below the
    step's own, so that the predictor draws what it draws alone.
    """

    predictor: Solver
    corrector: Langevin

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]:
        """One step from t to s. Raises ValueError as the predictor and `Langevin.correct` do."""
        x, memory = self.predictor.step(denoise, x, t, s, memory, rng)
        return self.corrector.correct(denoise, x, s, rng), memory


def _is_zero(t: Time) -> bool:
    """Whether t is 0 in every field, as far as that is known without waiting for a device."""
    times = t.values() if isinstance(t, dict) else (t,)
    return all(v.device.type == "cpu" and bool((v == 0).all()) for v in times)
