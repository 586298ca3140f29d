"""Grids of times: where the steps of a solver begin and end."""

import math

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam, time

LAST = 1e-3  # the time from which a grid in lam jumps to t = 0, where lam is infinite


def grid(
    process: Gaussian, n: int, kind: str = "lambda", start: float | None = None, end: float = 0.0, rho: float = 7.0
) -> Tensor:
    """n + 1 strictly decreasing times from `start` to `end`, float64 on the CPU.

    kind: "time", uniform in t; "lambda", uniform in log(alpha / sigma); "karras", uniform in (sigma / alpha)^(1 / rho)
    (arXiv 2206.00364). The latter two reach end = 0 by one step from t = 1e-3. start None: 1, or .999 if alpha(1) = 0.
    Raises ValueError for an unknown kind, n < 1, ends out of order, or a start that the kind cannot have.
    """
    if kind not in ("lambda", "time", "karras"):
        raise ValueError(f"unknown grid kind {kind!r}; known are 'lambda', 'time' and 'karras'")
    if start is None:
        start = 1.0 if bool(lam(process, torch.ones((), dtype=torch.float64)).isfinite()) else 0.999
    if n < 1 or not 0 <= end < start <= 1:
        raise ValueError(f"a grid needs n >= 1 and 0 <= end < start <= 1, got n = {n}, start = {start}, end = {end}")
    if kind == "time":
        return torch.linspace(start, end, n + 1, dtype=torch.float64)
    if end == 0:
        if n == 1:
            return torch.tensor([start, 0.0], dtype=torch.float64)
        body = grid(process, n - 1, kind, start, min(LAST, start / 2), rho)
        return torch.cat([body, body.new_zeros(1)])
    first, last = lam(process, torch.tensor([start, end], dtype=torch.float64)).tolist()
    if not math.isfinite(first):
        raise ValueError(f"a {kind} grid cannot start at t = {start}, where alpha is 0; start below, say at 0.999")
    u = torch.linspace(0, 1, n + 1, dtype=torch.float64)
    if kind == "lambda":
        at = first + u * (last - first)
    else:
        high, low = math.exp(-first / rho), math.exp(-last / rho)
        at = -rho * (high + u * (low - high)).log()
    times = time(process, at)
    times[0], times[-1] = start, end
    return times
