"""Denoising an observation y = x_0 + sigma n, n standard normal, by one call of a denoiser at the level that matches
(the survey of Kazerouni et al., arXiv 2211.07804), and the level itself where it is not known:

    x_t = alpha y,  sigma = sigma_t / alpha_t,     E[x_0 | y] = D(alpha y, t),     eps = (y - D) / sigma
    |eps|^2 / n = 1                                the published rule, of n entries
    |eps|^2 / n + div_y D / n = 1                  d log p_sigma(y) / d sigma = 0: the likeliest sigma

The predicted noise eps is shorter than the noise by what D takes for signal, div_y D / n. Where the data have few
directions that is little, and the rule holds. Of x_0 ~ N(0, 1) at sigma = .5 it finds 1, whatever n; the likelihood .5.
"""

import torch
from torch import Tensor

from unisci.processes.gaussian import lam, level_for, time
from unisci.solvers.divergence import Vectors, divergence, prepare
from unisci.solvers.sample import Denoise
from unisci.solvers.score import check_gaussian, counted, site_axes, time_for, total
from unisci.state import State, fieldwise

SIGMAS = torch.logspace(-2, 1, 61, dtype=torch.float64)  # levels to try for data of unit scale, 12 % apart


def denoise_at(denoise: Denoise, y: State, sigma: float | Tensor | None = None, mask: Tensor | None = None) -> State:
    """E[x_0 | y] where y = x_0 + sigma n in all fields, which are continuous.

    sigma: in the units of y, a number or (B,); None: each sample's own by `blind_sigma`, with mask as there. Raises
    ValueError for noise that is not Gaussian, and a sigma that is not positive or beyond the process's own.
    """
    check_gaussian(denoise, "denoise_at")
    if sigma is None:
        sigma = blind_sigma(denoise, y, SIGMAS, mask)
    sigma = torch.as_tensor(sigma, dtype=torch.float64)
    _check_sigma(denoise, sigma)
    return _denoised(denoise, y, sigma)


def noise_excess(
    denoise: Denoise, y: State, sigma: Tensor, vectors: Vectors | None = None, mask: Tensor | None = None
) -> Tensor:
    """|eps|^2 / n - 1 at sigma () or (B,), (B,), over the entries of the sites `mask` (B, N), pairs once.

    With `vectors`, `exact` or `hutchinson(rng)` of `unisci.solvers.divergence`, div_y D / n is added.
    """
    axes = site_axes(denoise, y)
    counts = counted(y, axes, mask)
    if vectors is None:
        return _excess(y, _denoised(denoise, y, sigma), sigma, counts)
    with torch.inference_mode(False), torch.enable_grad():
        y = fieldwise(lambda v: v.detach().clone().requires_grad_(), y)
        clean = _denoised(denoise, y, sigma)
        div = divergence(clean, y, prepare(vectors, y, axes, mask))
        y, clean = fieldwise(torch.detach, y), fieldwise(torch.detach, clean)
    return _excess(y, clean, sigma, counts) + div / total(counts)


def blind_sigma(denoise: Denoise, y: State, sigmas: Tensor = SIGMAS, mask: Tensor | None = None) -> Tensor:
    """The sigma (B,) of each sample whose | |eps|^2 / n - 1 | is least among `sigmas` (S,), ascending, and by
    interpolation between them. For data of few directions in n; else `likeliest_sigma`. S calls.

    Raises ValueError for fewer than 2 sigmas, that do not ascend, or that the process does not reach.
    """
    excess = _profile(denoise, y, sigmas, None, mask)
    return _crossing(excess, excess.abs().argmin(1), sigmas)


def likeliest_sigma(
    denoise: Denoise, y: State, vectors: Vectors, sigmas: Tensor = SIGMAS, mask: Tensor | None = None
) -> Tensor:
    """The sigma (B,) of the largest likelihood p_sigma(y) among `sigmas` (S,), ascending, and by interpolation: the
    likelihood over sigma is the integral of the excess over log sigma. S calls, each with a backward pass for each
    vector. Raises ValueError as `blind_sigma`."""
    excess = _profile(denoise, y, sigmas, vectors, mask)
    gain = torch.cumulative_trapezoid(excess, sigmas.log().to(excess), dim=1)
    return _crossing(excess, torch.nn.functional.pad(gain, (1, 0)).argmax(1), sigmas)


def _denoised(denoise: Denoise, y: State, sigma: Tensor) -> State:
    t = fieldwise(lambda v, process: time(process, -sigma.log()), y, denoise.process)
    x = fieldwise(lambda v, process, t: level_for(process, t, v)[0] * v, y, denoise.process, t)
    return denoise(x, time_for(t, x))


def _excess(y: State, clean: State, sigma: Tensor, counts: State) -> Tensor:
    square = fieldwise(lambda v, c, n: n * (v - c).square(), y, clean, counts)
    summed = total(square)
    return summed / (sigma.to(summed) ** 2 * total(counts)) - 1


def _profile(denoise: Denoise, y: State, sigmas: Tensor, vectors: Vectors | None, mask: Tensor | None) -> Tensor:
    """The excess at each of sigmas, (B, S)."""
    check_gaussian(denoise, "an estimate of sigma")
    if sigmas.ndim != 1 or len(sigmas) < 2 or not bool((sigmas.diff() > 0).all()):
        raise ValueError(f"sigmas (S,) must ascend, two or more of them, got {sigmas.tolist()}")
    _check_sigma(denoise, sigmas)
    return torch.stack([noise_excess(denoise, y, sigma, vectors, mask) for sigma in sigmas], 1)


def _crossing(excess: Tensor, k: Tensor, sigmas: Tensor) -> Tensor:
    """Where the excess falls through 0 beside number k (B,) of sigmas, linear in log sigma; sigmas[k] where it does
    not. Where sigma is too small the predicted noise is too long for it, so that a root is a fall."""
    at = lambda i: excess.gather(1, i.clamp(0, len(sigmas) - 1)[:, None])[:, 0]
    left = torch.where(at(k) >= 0, k, k - 1)
    high, low = at(left), at(left + 1)
    falls = (high >= 0) & (low < 0)  # never so beyond an end, where both are the same
    share = torch.where(falls, high / torch.where(falls, high - low, 1.0), 0.0)
    logs = sigmas.log().to(excess)
    start = torch.where(falls, left, k)
    step = logs[(start + 1).clamp(max=len(sigmas) - 1)] - logs[start]
    return (logs[start] + share * step).exp()


def _check_sigma(denoise: Denoise, sigma: Tensor) -> None:
    """Only on the CPU: reading a sigma from another device would wait for it."""
    if sigma.device.type != "cpu":
        return
    processes = denoise.process.values() if isinstance(denoise.process, dict) else [denoise.process]
    least = max(lam(process, torch.ones((), dtype=torch.float64)).item() for process in processes)
    if not bool((sigma > 0).all() & (-sigma.double().log() >= least).all()):
        raise ValueError(f"sigma must be positive, and within the process's largest noise; got {sigma.tolist()}")
