"""Likelihood and codes by the probability-flow ODE (Song et al., arXiv 2011.13456, section 4.3 and appendix D.2).

Every Gaussian process is variance preserving in z = x / r, r^2 = alpha^2 + sigma^2. With a = alpha / r, s = sigma / r
and lam = log(alpha / sigma),

    dz / dlam = F = a D(r z, t) - a^2 z,     log p(z_0) = log N(z_1; 0, s_1^2) + int_0^1 div F dlam

F is flat at both ends of lam, so a fixed grid does: 50 RK4 steps leave 5e-4 nats of error on three modes in the plane.
Steps in t, in x for VE, or of Heun at equal cost leave more.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, drift_diffusion, lam, time
from unisci.solvers.divergence import Probe, Vectors, divergence, exact, prepare
from unisci.solvers.sample import Denoise
from unisci.solvers.score import check_gaussian, check_start, counted, site_axes, time_for, total
from unisci.state import State, pick

Slope = Callable[[list[Tensor], float], list[Tensor]]  # (y, lam) -> dy / dlam
Integrate = Callable[[Slope, list[Tensor], Sequence[float]], list[Tensor]]  # (slope, y, lams) -> y at the last lam


def rk4(slope: Slope, y: list[Tensor], lams: Sequence[float]) -> list[Tensor]:
    """Runge and Kutta's method of order 4 on the given grid: four evaluations a step, and no wait for the device."""
    add = lambda h, k: [v + h * d for v, d in zip(y, k, strict=True)]
    for left, right in pairwise(lams):
        h = right - left
        k1 = slope(y, left)
        k2 = slope(add(h / 2, k1), left + h / 2)
        k3 = slope(add(h / 2, k2), left + h / 2)
        k4 = slope(add(h, k3), right)
        y = add(h / 6, [a + 2 * b + 2 * c + d for a, b, c, d in zip(k1, k2, k3, k4, strict=True)])
    return y


def adaptive(rtol: float = 1e-5, atol: float = 1e-5) -> Integrate:
    """RK45 of scipy from the first lam to the last, as a reference: in float64 on the CPU, with one error bound for the
    whole batch, so that samples affect each other's steps. Needs scipy, of the extra `metrics`."""

    def integrate(slope: Slope, y: list[Tensor], lams: Sequence[float]) -> list[Tensor]:
        from scipy.integrate import solve_ivp

        ends = np.cumsum([v.numel() for v in y])[:-1]
        pack = lambda values: torch.cat([v.detach().double().cpu().flatten() for v in values]).numpy()

        def unpack(flat: np.ndarray) -> list[Tensor]:
            parts = np.split(flat.copy(), ends)
            return [torch.from_numpy(p).reshape(v.shape).to(v) for p, v in zip(parts, y, strict=True)]

        rates = lambda at, flat: pack(slope(unpack(flat), at))
        return unpack(solve_ivp(rates, (lams[0], lams[-1]), pack(y), rtol=rtol, atol=atol).y[:, -1])

    return integrate


@dataclass(frozen=True)
class _Flow:
    """The ODE of z on named fields. lam is that of the first field; another, at the same t, moves `rate` as fast."""

    denoise: Denoise
    bare: bool
    names: tuple[str, ...]

    def process(self, name: str) -> Gaussian:
        return pick(self.denoise.process, name)

    def level(self, name: str, at: float) -> tuple[float, float, float, Tensor]:
        """a, r and rate of a field where the first field's lam is `at`, and the time t."""
        process, first = self.process(name), self.process(self.names[0])
        t = time(first, torch.tensor(at, dtype=torch.float64))
        rate = 1.0
        if process != first:
            at = lam(process, t).item()
            rate = (_speed(process, t) / _speed(first, t)).item()
        a = 1 / math.sqrt(1 + math.exp(-2 * at))
        return a, process.level(t)[0].item() / a, rate, t

    def velocity(self, z: dict[str, Tensor], at: float) -> dict[str, Tensor]:
        """dz / dlam."""
        levels = {k: self.level(k, at) for k in z}
        x = {k: r * z[k] for k, (_, r, _, _) in levels.items()}
        x = x["x"] if self.bare else x
        clean = self.denoise(x, time_for(levels[self.names[0]][3], x))
        clean = {"x": clean} if self.bare else clean
        return {k: rate * (a * clean[k] - a**2 * z[k]) for k, (a, _, rate, _) in levels.items()}

    def slope(self, y: list[Tensor], at: float) -> list[Tensor]:
        return list(self.velocity(dict(zip(self.names, y, strict=True)), at).values())

    def slope_and_divergence(self, probes: list[Probe]) -> Slope:
        """That of y = (z, the integral of div F)."""

        def slope(y: list[Tensor], at: float) -> list[Tensor]:
            with torch.enable_grad():
                z = {k: v.detach().requires_grad_() for k, v in zip(self.names, y, strict=False)}
                out = self.velocity(z, at)
                div = divergence(out, z, probes)
            return [*(v.detach() for v in out.values()), div]

        return slope


def _speed(process: Gaussian, t: Tensor) -> Tensor:
    """-dlam / dt = g^2 / (2 sigma^2)."""
    return drift_diffusion(process, t)[1] / (2 * process.level(t)[1] ** 2)


def _start(denoise: Denoise, x: State, times: Tensor) -> tuple[_Flow, list[float]]:
    """The flow, and lam at the times from the last to the first."""
    check_gaussian(denoise, "the probability-flow ODE")
    times = torch.as_tensor(times, dtype=torch.float64, device="cpu")
    if times.ndim != 1 or len(times) < 2 or not bool((times[:-1] > times[1:]).all()) or float(times[-1]) <= 0:
        raise ValueError(f"times must decrease to a last time above 0, as grid(process, n, end=1e-3), got {times}")
    flow = _Flow(denoise, not isinstance(x, dict), tuple(x) if isinstance(x, dict) else ("x",))
    check_start(denoise, times[0])
    return flow, lam(flow.process(flow.names[0]), times).flip(0).tolist()


def log_likelihood(
    denoise: Denoise,
    x: State,
    times: Tensor,
    vectors: Vectors = exact,
    mask: Tensor | None = None,
    integrate: Integrate = rk4,
) -> Tensor:
    """log p(x) (B,) in nats; for a dict of fields, jointly, over the entries of the sites `mask` (B, N), pairs once.

    p is the law of x_0 + nu xi, nu = sigma / alpha at the last time: x is not noised, and the step from there to the
    data is not taken, as data on a surface have no density. At the first time p is taken for N(0, sigma^2), an error of
    alpha <x_T, mean of the data> / sigma^2 nats to first order. A field without a mean counts as if it had one.

    times (n + 1,): from noise to data, as grid(process, n, end=1e-3). vectors: `exact`, or `hutchinson(rng, probes)`
    for an unbiased estimate. integrate: `rk4`, or `adaptive(rtol, atol)` between the first and the last time.
    Raises ValueError for noise that is not Gaussian, for discrete fields, and for times that do not decrease, reach 0
    or start where alpha = 0.
    """
    flow, lams = _start(denoise, x, times)
    axes = site_axes(denoise, x)
    fields, axes = ({"x": x}, {"x": axes}) if flow.bare else (x, axes)
    with torch.inference_mode(False):
        z = [
            flow.level(k, lams[0])[0] * v.detach().clone() for k, v in fields.items()
        ]  # z = a y, y = x_t / alpha_t = x
        probes = prepare(vectors, dict(zip(fields, z, strict=True)), axes, mask)
        y = integrate(flow.slope_and_divergence(probes), [*z, z[0].new_zeros(len(z[0]))], lams)
    counts, nats = counted(fields, axes, mask), y[-1]
    for (name, count), z in zip(counts.items(), y[:-1], strict=True):
        a_0, a_1 = flow.level(name, lams[0])[0], flow.level(name, lams[-1])[0]
        s2 = 1 - a_1**2
        nats = nats + total(count * (math.log(a_0) - 0.5 * (z**2 / s2 + math.log(2 * math.pi * s2))))
    return nats


def encode(denoise: Denoise, x: State, times: Tensor, integrate: Integrate = rk4) -> State:
    """The latent x_T at times[0] to which the flow takes x, read as in `log_likelihood`. Raises as it does."""
    return _carry(denoise, x, times, integrate, False)


def decode(denoise: Denoise, latent: State, times: Tensor, integrate: Integrate = rk4) -> State:
    """The inverse of `encode`, from the latent at times[0]. Raises as it does."""
    return _carry(denoise, latent, times, integrate, True)


@torch.no_grad()
def _carry(denoise: Denoise, x: State, times: Tensor, integrate: Integrate, back: bool) -> State:
    flow, lams = _start(denoise, x, times)
    data = {k: flow.level(k, lams[0])[0] for k in flow.names}  # z over x at the data's end,
    noise = {k: 1 / flow.level(k, lams[-1])[1] for k in flow.names}  # and at the other
    first, last, lams = (noise, data, lams[::-1]) if back else (data, noise, lams)
    z = [first[k] * v for k, v in ({"x": x} if flow.bare else x).items()]
    out = {k: v / last[k] for k, v in zip(flow.names, integrate(flow.slope, z, lams), strict=True)}
    return out["x"] if flow.bare else out


def bits_per_dim(nats: Tensor, dims: Tensor | int, scale: float = 1.0) -> Tensor:
    """Bits for each of `dims` entries of the data, where x = (data - shift) / scale has log density `nats`: 127.5 for
    bytes scaled to [-1, 1]. dims: a number, or (B,) where samples differ."""
    return math.log2(scale) - nats / (dims * math.log(2))
