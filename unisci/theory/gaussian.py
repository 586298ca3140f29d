"""When does what appear? The Gaussian picture of a denoiser (Wang & Vastola, arXiv 2303.02490, 2412.09726).

Along an eigenvector of variance c of the data, what the endpoint estimate E[x_0 | x_t] shows of its final value is

    xi(t) / xi(0) = alpha sqrt(c / (alpha^2 c + sigma^2)),     (xi(t) / xi(0))^2 = sigmoid(2 (lam(t) - lam_c)),

lam_c = -1/2 ln c: large variance first. A push along it at time t ends sqrt(c / (alpha^2 c + sigma^2)) times as long:
early pushes along large variance grow, those off the data vanish. And where a model's score is that of the Gaussian
law of its data, the law's closed form can take its steps: `gap` tells where, `saved_calls` at what cost.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, level_for, time
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Denoise
from unisci.solvers.teleport import GaussianDenoise


def emergence(law: GaussianLaw) -> Tensor:
    """lam_c = -1/2 ln c (r,): where half the square of each eigendirection's endpoint has appeared; inf if c = 0."""
    return -law.variances.log() / 2


def emerged(law: GaussianLaw, process: Gaussian, t: Tensor) -> Tensor:
    """(xi(t) / xi(0))^2 of each eigendirection at times (n,), (n, r): from 0 to 1 as t falls."""
    alpha, sigma = (v[:, None] for v in process.level(t))
    return alpha**2 * law.variances / (alpha**2 * law.variances + sigma**2)


def sensitivity(law: GaussianLaw, process: Gaussian, t: Tensor) -> Tensor:
    """How much longer a push along each eigendirection at times (n,) is at the end of the flow, (n, r)."""
    alpha, sigma = (v[:, None] for v in process.level(t))
    return (law.variances / (alpha**2 * law.variances + sigma**2)).sqrt()


def gap(denoise: Denoise, law: GaussianLaw, clean: Tensor, lams: Sequence[float], rng: Rng) -> Tensor:
    """E|s - s_law|^2 / E|s|^2 of the score s of `denoise` over the data `clean` (B, ...) noised to each lam, (n,).

    rng has an id for each row of `clean`. Level k draws from rng.at(k). At high noise |s| is the noise in all D
    dimensions, so that a small gap means less the smaller the part of them that the data fill.
    """
    process, exact, out = denoise.process, GaussianDenoise(denoise.process, law), []
    for k, t in enumerate(time(process, torch.tensor(lams, dtype=torch.float64))):
        x = process.perturb(clean, t, rng.at(k))
        alpha, _ = level_for(process, t, x)
        d = denoise(x, t)
        # The score is (alpha D - x) / sigma^2, and sigma cancels.
        out.append((alpha * (d - exact(x, t))).square().sum() / (alpha * d - x).square().sum())
    return torch.stack(out)


def choose(
    denoise: Denoise, law: GaussianLaw, clean: Tensor, lams: Sequence[float], rng: Rng, tolerance: float = 0.01
) -> float:
    """The largest of the increasing `lams` up to which the gap stays below the tolerance: where to teleport to.

    Raises ValueError where lams do not increase, or where even the first has a larger gap.
    """
    if any(b <= a for a, b in pairwise(lams)):
        raise ValueError(f"lams must increase, from noise to data, got {list(lams)}")
    curve = gap(denoise, law, clean, lams, rng).tolist()
    good = next((k for k, value in enumerate(curve) if not value < tolerance), len(curve))
    if good == 0:
        raise ValueError(
            f"the gap is {curve[0]:.3g} at lam = {lams[0]:.3g} already, above {tolerance}: teleport not, or start the "
            "lams lower; if they are low, the law was fitted to other data than the model's"
        )
    return float(lams[good - 1])


class SavedCalls(NamedTuple):
    """For each number of steps skipped: lam where solving begins, the share of calls saved, and the median distance of
    the samples from those of all steps; each (n,)."""

    lam: Tensor
    saved: Tensor
    error: Tensor


def saved_calls(
    denoise: Denoise, law: GaussianLaw, x: Tensor, times: Tensor, skips: Sequence[int], solver: str = "dpm++2m"
) -> SavedCalls:
    """What it costs to teleport x (B, ...) at times[0] over the first k steps of a grid, for each k in `skips`.

    solver: a deterministic scheme of `compile_solver`. Raises ValueError for a k that leaves no step.
    """
    if not all(0 <= k < len(times) - 1 for k in skips):
        raise ValueError(f"skips {list(skips)} must leave a step of the {len(times) - 1}")
    process = denoise.process
    whole = compile_solver(process, times, solver)
    reference, errors, calls = run(denoise, x, whole), [], []
    for k in skips:
        rest = compile_solver(process, times[k:], solver)
        out = run(denoise, law.flow(process, x, times[0], times[k]), rest)
        errors.append((out - reference).flatten(1).norm(dim=1).median())
        calls.append(1 - rest.nfe / whole.nfe)
    alpha, sigma = process.level(times[list(skips)])
    return SavedCalls((alpha / sigma).log(), torch.tensor(calls), torch.stack(errors))
