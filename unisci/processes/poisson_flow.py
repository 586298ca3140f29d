"""PFGM++: Poisson flow with D augmented dimensions (Xu et al., arXiv 2302.04265).

    p(x_t | x_0)  ~  (|x_t - alpha x_0|^2 + r^2)^(-(N + D) / 2),     r = sigma sqrt(D)

for x of N elements. The paper draws it by a Beta radius and a direction; it is the Student-t law of D degrees of
freedom,

    x_t = alpha x_0 + sigma xi / sqrt(chi2_D / D),     xi ~ N(0, I), one chi2_D for each sample.

D = 1 is PFGM, D to infinity the Gaussian `base`. The noise is a scale family, so the flow is the base's own,
dx / dsigma = (x - E[x_0 | x]) / sigma at alpha = 1, and the denoiser, its loss and every ODE solver stay as they are.
What needs Gaussian noise does not carry over: reverse SDEs, Langevin steps and the score by Tweedie's formula.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.state import pad

WIDEST = 1e6  # cap of sqrt(D / chi2_D), so that squares stay in float32; at D = 1 it acts once in 1e6 draws


@dataclass(frozen=True)
class StudentT(Gaussian):
    """The levels of `base` with Student-t noise: StudentT(EDM(), 128.0). Smaller `degrees` D give heavier tails.

    The tail of |x| depends on N as well as on D: where samples differ in size, take D as a multiple of the mean N.
    The noise has variance D / (D - 2) for D > 2, none below. Raises ValueError where D is not positive and finite, and
    where the base is not Gaussian.
    """

    base: Gaussian
    degrees: float

    is_gaussian: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.degrees < math.inf:
            raise ValueError(f"degrees must be positive and finite, got {self.degrees}; the limit of many is the base")
        if not (isinstance(self.base, Gaussian) and self.base.is_gaussian):
            raise ValueError(f"the base must be a Gaussian process such as EDM(), got {self.base}")

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return self.base.level(t)

    def time(self, at: Tensor) -> Tensor:
        return self.base.time(at)

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_t given `clean` (B, ...); t: scalar, or the leading axes of `clean`. t = 0 changes nothing."""
        alpha, sigma = level_for(self, t, clean)
        return alpha * clean + sigma * self._noise(clean, rng, name, axes, 0)

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of sigma(1) noise, shaped as `like` (B, ...); independent of `perturb` under the same rng."""
        _, sigma = self.level(torch.ones((), dtype=torch.float64))
        return sigma * self._noise(like, rng, name, axes, 1)

    def _noise(self, like: Tensor, rng: Rng, name: str, axes: int, step: int) -> Tensor:
        """xi sqrt(D / chi2_D), with the xi that the base would draw."""
        xi = rng.normal(name, step, tuple(like.shape), axes)
        chi2 = 2 * rng.gamma(f"{name} chi2", step, tuple(like.shape[:1]), self.degrees / 2, 0)
        return (xi * pad((self.degrees / chi2).sqrt().clamp(max=WIDEST), xi)).to(like.dtype)


def kernel_score(process: StudentT, x: Tensor, clean: Tensor, t: Tensor) -> Tensor:
    """grad_x log p(x_t = x | x_0 = clean), shaped as x (B, ...), for t > 0, a scalar or (B,).

    -(N + D) (x - alpha clean) / (|x - alpha clean|^2 + r^2), N the number of elements of a sample, none of them
    padding. Its mean over p(x_0 | x_t) is the score of x_t, so it is the target of score matching. For finite D the
    score is no function of E[x_0 | x_t].
    """
    alpha, sigma = level_for(process, t, x)
    away = x - alpha * clean
    square = pad(away.flatten(1).square().sum(1), x) + process.degrees * sigma**2
    return -(away[0].numel() + process.degrees) * away / square
