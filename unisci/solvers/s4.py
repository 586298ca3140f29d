"""S4, the symmetric splitting for systems of SDEs (GDSS, Jo et al., arXiv 2202.02514). In falling time tau the reverse
SDE of each field is the sum of a part F, solved exactly, and a part S, the scores that couple the fields:

    F:  dx = -f x dtau + g dw        x_s = a x_t + sqrt(v) xi,   a = alpha_s / alpha_t,   v = a^2 sigma_t^2 - sigma_s^2
    S:  dx = g^2 score(x, t) dtau

One step of size h, score = score(x_t, t) evaluated once:

    x <- x + e score + scale sqrt(2 e) xi        Langevin correction, e = 2 (snr |xi| / |score|)^2
    x <- F_{h/2} x;   x <- x + h g(t)^2 score;   x <- F_{h/2} x

The score is that from before the first two moves, so in spite of its symmetry the scheme is of weak order 1.
`SecondOrderS4` takes S where Strang's splitting has it, from the state after F_{h/2} and at the middle of the step.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, drift_diffusion, level_for
from unisci.rng import Rng
from unisci.solvers.predictor_corrector import StepSize, by_norm
from unisci.solvers.sample import Denoise, standard_normal
from unisci.solvers.score import check_gaussian, check_start, exists, score_of, site_axes, time_for
from unisci.state import State, Time, fieldwise, place


@dataclass(frozen=True)
class S4:
    """The paper's scheme, one evaluation a step, weak order 1.

    snr, scale: of the Langevin correction, snr = 0 leaves it out; size: gives e, by default from norms of one sample
    and field (the paper's are means over the batch); mask (B, N): the sites that exist, where noise is drawn.
    legacy: the released code's variance of F, v / a^2, which is right for VE and for VP only to first order in h.
    Raises ValueError where snr or scale is negative.
    """

    snr: float = 0.0
    scale: float = 1.0
    size: StepSize = by_norm
    mask: Tensor | None = None
    legacy: bool = False

    def __post_init__(self) -> None:
        _check_langevin("S4", self.snr, self.scale)

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]:
        """One step from t to s; E[x_0 | x_t] without noise where sigma_s = 0. Raises ValueError for noise that is not
        Gaussian, a start where alpha is 0, and without rng."""
        if memory is None:
            _check(denoise, t, rng, "S4")
        middle, noise = _between(t, s), _Noise(denoise, x, rng, self.mask)
        clean = denoise(x, time_for(t, x))
        score = fieldwise(score_of, clean, x, denoise.process, t)
        if self.snr:
            x = _langevin(self, x, score, noise, denoise.process, t)
        x = fieldwise(_linear, x, noise(1), denoise.process, t, middle, self.legacy)
        x = fieldwise(_push, x, score, denoise.process, t, t, s)
        x = fieldwise(_linear, x, noise(2), denoise.process, middle, s, self.legacy)
        return fieldwise(_land, x, clean, denoise.process, s), True


@dataclass(frozen=True)
class SecondOrderS4:
    """F_{h/2}, then S by the midpoint rule of Runge and Kutta with time held at the middle of the step, then F_{h/2}:
    weak order 2, two evaluations a step.

    snr, scale, size: of a Langevin correction before the step, as of `S4`, which takes a third evaluation and whose own
    error is no smaller for more steps; mask (B, N): the sites that exist, where noise is drawn. Raises ValueError where
    snr or scale is negative.
    """

    snr: float = 0.0
    scale: float = 1.0
    size: StepSize = by_norm
    mask: Tensor | None = None

    def __post_init__(self) -> None:
        _check_langevin("SecondOrderS4", self.snr, self.scale)

    def step(self, denoise: Denoise, x: State, t: Time, s: Time, memory: Any, rng: Rng | None) -> tuple[State, Any]:
        """One step from t to s; E[x_0 | x] of the middle without noise where sigma_s = 0. Raises ValueError as S4."""
        if memory is None:
            _check(denoise, t, rng, "SecondOrderS4")
        process, middle, noise = denoise.process, _between(t, s), _Noise(denoise, x, rng, self.mask)
        if self.snr:
            score = fieldwise(score_of, denoise(x, time_for(t, x)), x, process, t)
            x = _langevin(self, x, score, noise, process, t)
        at = time_for(middle, x)
        x = fieldwise(_linear, x, noise(1), process, t, middle, False)
        score = fieldwise(score_of, denoise(x, at), x, process, middle)
        half = fieldwise(_push, x, score, process, middle, t, middle)
        clean = denoise(half, at)
        x = fieldwise(_push, x, fieldwise(score_of, clean, half, process, middle), process, middle, t, s)
        x = fieldwise(_linear, x, noise(2), process, middle, s, False)
        return fieldwise(_land, x, clean, process, s), True


class _Noise:
    """noise(k): draw number k of the step, 0 where there is no site, and on the diagonal of pairs."""

    def __init__(self, denoise: Denoise, x: State, rng: Rng, mask: Tensor | None):
        self.x, self.rng, self.schema = x, rng, denoise.schema
        self.there = fieldwise(lambda v, axes: exists(v, axes, mask), x, site_axes(denoise, x))

    def __call__(self, k: int) -> State:
        return fieldwise(lambda xi, there: xi * there, standard_normal(self.x, self.rng, k, self.schema), self.there)


def _langevin(solver: S4 | SecondOrderS4, x: State, score: State, noise: _Noise, process: Any, t: Time) -> State:
    """x + e score + scale sqrt(2 e) xi, e of each field."""

    def corrected(x: Tensor, score: Tensor, xi: Tensor, process: Gaussian, t: Tensor, there: Tensor) -> Tensor:
        _, sigma = level_for(process, t, x)
        e = solver.size(solver.snr, score, xi, sigma, there)
        return x + e * score + solver.scale * (2 * e).sqrt() * xi

    return fieldwise(corrected, x, score, noise(0), process, t, noise.there)


def _linear(x: Tensor, xi: Tensor, process: Gaussian, t: Tensor, s: Tensor, legacy: bool) -> Tensor:
    """F from t to s, exactly."""
    # In double precision: v is a small difference of levels.
    (alpha, sigma), (alpha_s, sigma_s) = process.level(t.double()), process.level(s.double())
    a = alpha_s / alpha
    v = (a**2 * sigma**2 - sigma_s**2).clamp(min=0)
    if legacy:
        v = v / a**2
    return place(a, x) * x + place(v.sqrt(), x) * xi


def _push(x: Tensor, score: Tensor, process: Gaussian, at: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """S from t to s by a score that is held, with g at the time `at`."""
    _, g2 = drift_diffusion(process, at.double())
    return x + place(g2 * (t - s), x) * score


def _land(x: Tensor, clean: Tensor, process: Gaussian, s: Tensor) -> Tensor:
    alpha, sigma = level_for(process, s, x)
    return torch.where(sigma > 0, x, alpha * clean)


def _check_langevin(who: str, snr: float, scale: float) -> None:
    if snr < 0 or scale < 0:
        raise ValueError(f"{who} needs snr >= 0 and scale >= 0, got snr = {snr}, scale = {scale}")


def _between(t: Time, s: Time) -> Time:
    return fieldwise(lambda t, s: (t + s) / 2, t, s)


def _check(denoise: Denoise, t: Time, rng: Rng | None, who: str) -> None:
    check_gaussian(denoise, who)
    check_start(denoise, t)
    if rng is None:
        raise ValueError(f"{who} draws noise; pass rng=Rng(seed, ids)")
