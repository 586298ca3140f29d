"""The diffusion classifier (Li et al., arXiv 2303.16203; Clark & Jaini, 2303.15233): the class whose denoiser explains
x best, whatever the denoisers were trained for.

    l_c = sum_k h_k w(t_k) |D_c(alpha x + sigma eps_k, t_k) - x|^2,     p(c | x) ~ exp(-l_c / T)

with the same (t_k, eps_k) for all classes, so that their noise cancels, h_k the spacing in lam = log(alpha / sigma).
For w = alpha^2 / sigma^2, l_c is -log p(x | c) up to a constant (Kong et al., arXiv 2302.03792), and T = 1 is Bayes'
rule with equal priors. It takes a call for each class and time: a plain classifier is faster, and often better.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, perturbed
from unisci.solvers.score import check_gaussian, counted, site_axes, time_for, total
from unisci.state import State, fieldwise


def snr(alpha: Tensor, sigma: Tensor) -> Tensor:
    """w = alpha^2 / sigma^2, the weight of the likelihood."""
    return (alpha / sigma).square()


def class_losses(
    denoises: Sequence[Denoise],
    x: State,
    times: Tensor,
    rng: Rng,
    weight: Callable[[Tensor, Tensor], Tensor] = snr,
    mask: Tensor | None = None,
) -> Tensor:
    """l_c (B, C) of x, whose fields are continuous, under C denoisers, one for each class, or one bound to each.

    times (K,): decreasing in (0, 1], better even in lam, as grid(process, K, end=1e-3); noise k is of rng.at(k). The
    mean over several rng.at(draw) has less noise. mask: (B, N), the sites that exist. Raises ValueError for times out
    of order or range, classes of different processes, and noise that is not Gaussian.
    """
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not bool((times.diff() < 0).all()) or not 0 < times[-1] <= times[0] <= 1:
        raise ValueError(f"times (K,) must decrease within (0, 1], two or more of them, got {times.tolist()}")
    for denoise in denoises:
        check_gaussian(denoise, "class_losses")
        if denoise.process != denoises[0].process:
            raise ValueError(f"classes must share their noise; got {denoises[0].process} and {denoise.process}")
    counts = counted(x, site_axes(denoises[0], x), mask)
    shares = fieldwise(lambda v, process: _shares(process, times, weight), x, denoises[0].process)
    losses = x.new_zeros(()) if not isinstance(x, dict) else 0.0
    for k, t in enumerate(times):
        noised = perturbed(denoises[0], x, t, rng.at(k))
        share = {name: v[k] for name, v in shares.items()} if isinstance(shares, dict) else shares[k]
        apart = [_apart(denoise(noised, time_for(t, x)), x, counts, share) for denoise in denoises]
        losses = losses + torch.stack(apart, 1)
    return losses


def classify(
    denoises: Sequence[Denoise],
    x: State,
    times: Tensor,
    rng: Rng,
    weight: Callable[[Tensor, Tensor], Tensor] = snr,
    temperature: float = 1.0,
    mask: Tensor | None = None,
) -> Tensor:
    """The probabilities (B, C) of the classes, softmax(-l / T) of `class_losses`, whose arguments these are. Raises
    ValueError as it does, and for a temperature that is not positive."""
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return (-class_losses(denoises, x, times, rng, weight, mask) / temperature).softmax(1)


def _shares(process: Gaussian, times: Tensor, weight: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """h_k w(t_k) by the trapezoid in lam, (K,)."""
    at = lam(process, times)
    if not bool(at.isfinite().all()):
        raise ValueError(f"alpha is 0 at t = {times[0].item()}; start the times below")
    gaps = at.diff()
    h = (torch.cat([gaps, gaps.new_zeros(1)]) + torch.cat([gaps.new_zeros(1), gaps])) / 2
    return h * weight(*process.level(times))


def _apart(clean: State, x: State, counts: State, share: State) -> Tensor:
    """The weighted squared error of one prediction, (B,)."""
    return total(fieldwise(lambda c, v, n, s: n * (c - v).square() * s, clean, x, counts, share))
