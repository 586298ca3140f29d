"""Gradient refinement of a program's whole table, the last stage of `unisci.solvers.search`.

In y = x / sigma, every linear method that is exact where D is constant reads

    y_k+1 = y_k + (e^lam_k+1 - e^lam_k) sum_{j <= k} v_kj D_j,     sum_j v_kj = 1.

A program is written in this form and v and lam are descended on the endpoint error, through the denoiser.
"""

from collections.abc import Callable
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


def _shares(raw: Tensor, k: int) -> Tensor:
    """v_k0 .. v_kk with sum 1, nearest to the free values."""
    v = raw[k, : k + 1]
    return v - (v.sum() - 1) / (k + 1)


def roll(problem: Problem, at: Tensor, raw: Tensor) -> Tensor:
    """The endpoints by the table: at (n + 1,) the lam of the evaluations and of the end, raw (n, n) the free v."""
    process, like, outputs = problem.process, problem.noises, []
    t = time(process, at)
    sigma = process.level(t)[1].to(like.dtype)
    y = problem.begin(t[0]) / sigma[0]
    for k in range(len(raw)):
        outputs.append(problem.denoise(sigma[k] * y, t[k].to(like.dtype)))
        mix = sum(v * d for v, d in zip(_shares(raw, k).to(like.dtype), outputs, strict=True))
        y = y + (at[k + 1].exp() - at[k].exp()).to(like.dtype) * mix
    return (-at[-1]).exp().to(like.dtype) * y


def as_program(process: Gaussian, at: Tensor, raw: Tensor, model: str = "") -> Program:
    """The table as a program of n steps of one evaluation, which ends by x / alpha, the clean value."""
    times = time(process, at)
    level, sigma = at.exp().tolist(), process.level(times)[1].tolist()
    n, times = len(raw), times.tolist()
    sigma[-1] = 1 / level[-1]  # the end divides by alpha
    steps = []
    for k in range(n):
        v = ((level[k + 1] - level[k]) * sigma[k + 1] * _shares(raw, k)).tolist()
        cleans = tuple((k - j, v[j]) for j in range(k, -1, -1))
        steps.append((Row(times[k], ((0, sigma[k + 1] / sigma[k]),), cleans, None),))
    return Program("searched", process, tuple(times), tuple(steps), 1, model)


def refine(program: Program, problem: Problem, steps: int, rate: float = 0.02, model: str = "") -> Program:
    """The program of one evaluation a row after `steps` steps of Adam on its table, whose loss was least on the way.

    Raises ValueError where its evaluations' times do not decrease.
    """
    times, w = full_table(program)
    at = lam(program.process, torch.tensor(times, dtype=torch.float64))
    if not bool((at.diff() > 0).all()):
        raise ValueError(f"{program.name} evaluates at times {times[:-1]}, which must decrease to be refined")
    v = torch.from_numpy(np.diff(w, axis=0)) / at.exp().diff()[:, None]
    at, raw = at.clone().requires_grad_(), v.clone().requires_grad_()
    optimizer = torch.optim.Adam([at, raw], lr=rate, betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps))
    best = (float("inf"), at.detach().clone(), raw.detach().clone())
    for _ in range(steps):
        loss = problem.loss(roll(problem, at, raw))
        if not bool(loss.isfinite()) or not bool((at.diff() > 0.01).all()):
            break
        if loss.item() < best[0]:
            best = (loss.item(), at.detach().clone(), raw.detach().clone())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return as_program(program.process, best[1], best[2], model)
