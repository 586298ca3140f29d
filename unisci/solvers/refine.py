"""Refinement of a program's whole table, the last stage of `unisci.solvers.search`.

In y = x / sigma, every linear method that is exact where D is constant reads

    y_k+1 = y_k + (e^lam_k+1 - e^lam_k) sum_{j <= k} v_kj D_j,     sum_j v_kj = 1.

A program is written in this form, and v and lam are fitted to the endpoints by least squares.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam, time
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise
from unisci.solvers.tape import Row

Start = Callable[[Tensor, Tensor], Tensor]  # (x_1, t) -> x_t in closed form, such as the flow of a GaussianLaw
LATEST = 1e-4  # a refined program does not end below this time


@dataclass(frozen=True, eq=False)
class Problem:
    """What is solved: noises x_1 (n, ...) and the endpoints (n, ...) of a fine solve. Fields are one bare tensor."""

    denoise: Denoise
    process: Gaussian
    noises: Tensor
    reference: Tensor
    start: Start | None = None

    def begin(self, t: Tensor) -> Tensor:
        """The state at the program's first time: x_1 itself, or where `start` takes it."""
        return self.noises if self.start is None else self.start(self.noises, t)

    def loss(self, x: Tensor) -> Tensor:
        """RMS distance of the endpoints x over the RMS norm of the reference."""
        return ((x - self.reference).square().sum() / self.reference.square().sum()).sqrt()

    def error(self, program: Program) -> float:
        """The loss of a program; inf where its run is not finite."""
        try:
            return self.loss(run(self.denoise, self.begin(program.times[0]), program)).item()
        except ValueError:
            return float("inf")


def full_table(program: Program) -> tuple[list[float], np.ndarray]:
    """The times of the n evaluations and of the end, and W (n + 1, n): y = y_0 + W D at each of them.

    A program that ends at t = 0 is taken to end at LATEST: there is no y at sigma = 0.
    """
    n, times, at = program.nfe, [], []
    points = [(1.0, np.zeros(n))]  # newest first: the coefficients of x_0 and of the outputs
    for rows in program.steps:
        for row in rows:
            if row.time is not None:
                times.append(row.time)
                at.append(points[0])
            w = sum((c * points[back][1] for back, c in row.points), np.zeros(n))
            for back, c in row.cleans:
                w[len(times) - 1 - back] += c
            points.insert(0, (sum(c * points[back][0] for back, c in row.points), w))
    end = max(program.grid[-1], LATEST)
    sigma = program.process.level(torch.tensor([*times, end], dtype=torch.float64))[1].numpy()
    return [*times, end], np.stack([w for _, w in [*at, points[0]]]) / sigma[:, None]


def _pack(at: Tensor, v: Tensor) -> Tensor:
    """The free numbers of a table: the first lam, the logarithms of the gaps, and v below the diagonal."""
    return torch.cat([at[:1], at.diff().log(), v[tuple(torch.tril_indices(*v.shape, -1))]])


def _unpack(free: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """lam (n + 1,) and v (n, n), whose diagonal the sum fixes."""
    v = free.new_zeros(n, n)
    v[tuple(torch.tril_indices(n, n, -1))] = free[n + 1 :]
    return torch.cat([free[:1], free[0] + free[1 : n + 1].exp().cumsum(0)]), v + torch.diag(1 - v.sum(1))


def roll(problem: Problem, at: Tensor, v: Tensor) -> Tensor:
    """The endpoints by the table: at (n + 1,) the lam of the evaluations and of the end, v (n, n) lower triangular."""
    process, like, outputs = problem.process, problem.noises, []
    t = time(process, at)
    sigma = process.level(t)[1].to(like.dtype)
    y = problem.begin(t[0]) / sigma[0]
    for k in range(len(v)):
        outputs.append(problem.denoise(sigma[k] * y, t[k].to(like.dtype)))
        mix = sum(c * d for c, d in zip(v[k, : k + 1].to(like.dtype), outputs, strict=True))
        y = y + (at[k + 1].exp() - at[k].exp()).to(like.dtype) * mix
    return (-at[-1]).exp().to(like.dtype) * y


def as_program(process: Gaussian, at: Tensor, v: Tensor, model: str = "") -> Program:
    """The table as a program of n steps of one evaluation, which ends by x / alpha, the clean value."""
    times = time(process, at)
    level, sigma = at.exp().tolist(), process.level(times)[1].tolist()
    n, times = len(v), times.tolist()
    sigma[-1] = 1 / level[-1]  # the end divides by alpha
    steps = []
    for k in range(n):
        c = ((level[k + 1] - level[k]) * sigma[k + 1] * v[k]).tolist()
        cleans = tuple((k - j, c[j]) for j in range(k, -1, -1))
        steps.append((Row(times[k], ((0, sigma[k + 1] / sigma[k]),), cleans, None),))
    return Program("searched", process, tuple(times), tuple(steps), 1, model)


def refine(program: Program, problem: Problem, budget: int, model: str = "") -> list[Program]:
    """The programs that Levenberg-Marquardt passes through from this one's table, each better than the one before.

    budget: evaluations of a program. Derivatives are differences, one evaluation for each free number, so that the
    denoiser need not be differentiable. Raises ValueError where the program's evaluations are not at decreasing times.
    """
    times, w = full_table(program)
    at = lam(program.process, torch.tensor(times, dtype=torch.float64))
    n = program.nfe
    if not bool((at.diff() > 0).all()):
        raise ValueError(f"{program.name} evaluates at times {times[:-1]}, which must decrease to be refined")
    v = torch.from_numpy(np.diff(w, axis=0)) / at.exp().diff()[:, None]
    free = _pack(at, v)
    residual = lambda free: (roll(problem, *_unpack(free, n)) - problem.reference).flatten().double()
    found = [as_program(program.process, *_unpack(free, n), model)]
    delta = torch.finfo(problem.noises.dtype).eps ** (1 / 3)
    with torch.no_grad():
        for better in _levenberg_marquardt(residual, free, budget, delta):
            found.append(as_program(program.process, *_unpack(better, n), model))
    return found


def _levenberg_marquardt(
    residual: Callable[[Tensor], Tensor], free: Tensor, budget: int, delta: float
) -> Iterator[Tensor]:
    """The accepted points of a least-squares descent."""
    damping, r = 1e-2, residual(free)
    unit = torch.eye(len(free), dtype=free.dtype)
    left = budget - 1
    while left > len(free):
        jacobian = torch.stack([(residual(free + delta * e) - r) / delta for e in unit], 1)
        left -= len(free)
        gram, slope = jacobian.T @ jacobian, jacobian.T @ r
        if not bool(gram.isfinite().all()):
            return
        for _ in range(8):
            step = torch.linalg.solve(gram + damping * torch.diag(gram.diag() + 1e-9), slope)
            tried = free - step
            ahead = residual(tried)
            left -= 1
            if bool(ahead.square().sum() < r.square().sum()):
                break
            damping *= 4
        else:
            return
        done = bool(ahead.square().sum() > 0.9999 * r.square().sum())
        free, r, damping = tried, ahead, max(damping / 5, 1e-6)
        yield free
        if done:
            return
