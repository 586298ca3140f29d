"""Programs whose numbers differ by direction: for a field of fixed size, the last refinement of a searched program.

In orthonormal axes Q, such as the principal ones of the data, with y = Q^T x / sigma and E_j = Q^T D_j,

    y_k+1 = g_k y_k + (e^lam_k+1 - e^lam_k) sum_{j <= k} w_kj E_j + b_k           g_k, w_kj, b_k (d,), by component

A table of `unisci.solvers.program` has one number for all d components of each. But a direction in which the data are
narrow turns from noise to data later than a wide one, and wants other numbers: for a Gaussian law with principal axes Q
one call is exact. All numbers and lam_k are fitted to the endpoints of a fine solve by L-BFGS, through the denoiser.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, lam, time
from unisci.rng import Rng
from unisci.solvers.program import Program
from unisci.solvers.refine import Problem, full_table
from unisci.solvers.sample import Denoise


class Seen(NamedTuple):
    """done: steps made; outputs: Q^T D of each, (B, d)."""

    done: int
    outputs: tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Directional:
    """times (n + 1,), of the evaluations and of the end; axes Q (d, d); gain (n, d), weight (n, n, d), the part
    j <= k of which counts, and shift (n, d). One evaluation a step; the last step ends in the clean value x / alpha.

    A Solver: sample(denoise, x, program.times, program), x (B, d) at the first time.
    """

    process: Gaussian
    times: tuple[float, ...]
    axes: Tensor
    gain: Tensor
    weight: Tensor
    shift: Tensor

    def step(
        self, denoise: Denoise, x: Tensor, t: Tensor, s: Tensor, memory: Seen | None, rng: Rng | None
    ) -> tuple[Tensor, Seen]:
        """The next step; t and s are those of the program. Raises ValueError for another process or a state of another
        shape."""
        if memory is None:
            self._check(denoise, x)
        k, outputs = memory or (0, ())
        at = torch.tensor(self.times[k : k + 2], dtype=torch.float64)
        (alpha, alpha_next), (sigma, sigma_next) = ([float(v) for v in part] for part in self.process.level(at))
        axes = self.axes.to(x)
        outputs = (*outputs, denoise(x, torch.full((), self.times[k], dtype=x.dtype, device=x.device)) @ axes)
        y = _advance(x @ axes / sigma, outputs, alpha_next / sigma_next - alpha / sigma, self._row(k, x))
        last = k + 2 == len(self.times)
        return (y * (sigma_next / alpha_next if last else sigma_next)) @ axes.T, Seen(k + 1, outputs)

    def _row(self, k: int, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.gain[k].to(x), self.weight[k].to(x), self.shift[k].to(x)

    def _check(self, denoise: Denoise, x: Tensor) -> None:
        if denoise.process != self.process:
            raise ValueError(f"the program was made for {self.process}, the denoiser has {denoise.process}")
        if not isinstance(x, Tensor) or x.ndim != 2 or x.shape[1] != len(self.axes):
            shape = tuple(x.shape) if isinstance(x, Tensor) else sorted(x)
            raise ValueError(f"the program's states are (B, {len(self.axes)}), got {shape}")


def by_direction(program: Program, axes: Tensor) -> Directional:
    """The same method as a program of one evaluation a step, in axes (d, d); its numbers are alike in all directions.

    Raises ValueError where the axes are not orthonormal, or the program's evaluations are not at decreasing times.
    """
    d = len(axes)
    if axes.shape != (d, d) or not torch.allclose(axes.T @ axes, torch.eye(d).to(axes), atol=1e-4):
        raise ValueError(f"axes must be the orthonormal columns of a square matrix, got shape {tuple(axes.shape)}")
    times, w = full_table(program)
    gaps = lam(program.process, torch.tensor(times, dtype=torch.float64)).exp().diff()
    if not bool((gaps > 0).all()):
        raise ValueError(f"{program.name} evaluates at times {times[:-1]}, which must decrease")
    n, v = len(gaps), torch.from_numpy(w).diff(dim=0) / gaps[:, None]
    weight = v.tril()[..., None].repeat(1, 1, d)
    ones, zeros = torch.ones(n, d, dtype=torch.float64), torch.zeros(n, d, dtype=torch.float64)
    return Directional(program.process, tuple(times), axes.double(), ones, weight, zeros)


def refine_directions(program: Directional, problem: Problem, iterations: int = 200) -> Directional:
    """The program with all numbers and times fitted to the problem's endpoints, at most `iterations` of L-BFGS.

    problem: noises (n, d) in thousands: there are as many numbers as n_steps^2 / 2 times d, and a few samples that end
    in another mode make up most of the error. The denoiser must be differentiable.
    """
    at = lam(program.process, torch.tensor(program.times, dtype=torch.float64))
    free = [torch.cat([at[:1], at.diff().log()]), program.gain, program.weight, program.shift]
    free = [v.clone().requires_grad_() for v in free]
    optimiser = torch.optim.LBFGS(
        free, max_iter=iterations, tolerance_change=1e-15, tolerance_grad=1e-12, history_size=30,
        line_search_fn="strong_wolfe",
    )  # fmt: skip

    def loss() -> Tensor:
        optimiser.zero_grad()
        value = problem.loss(_roll(problem, program.axes, *free)).square()
        value.backward()
        return value

    with torch.enable_grad():
        optimiser.step(loss)
    gaps, *numbers = (v.detach() for v in free)
    times = time(program.process, _levels(gaps))
    return Directional(program.process, tuple(times.tolist()), program.axes, *numbers)


def _levels(gaps: Tensor) -> Tensor:
    """lam at the times, from the first and the logarithms of the steps."""
    return torch.cat([gaps[:1], gaps[0] + gaps[1:].exp().cumsum(0)])


def _roll(problem: Problem, axes: Tensor, gaps: Tensor, gain: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
    """The endpoints, differentiable by all numbers."""
    at, outputs = _levels(gaps), ()
    t = time(problem.process, at)
    sigma = problem.process.level(t)[1]
    x = problem.begin(t[0])
    axes, sigma, rise = axes.to(x), sigma.to(x), at.exp().diff().to(x)
    y = x @ axes / sigma[0]
    for k in range(len(rise)):
        outputs = (*outputs, problem.denoise((sigma[k] * y) @ axes.T, t[k].to(x)) @ axes)
        y = _advance(y, outputs, rise[k], (gain[k].to(x), weight[k].to(x), shift[k].to(x)))
    return (y * (-at[-1]).exp().to(x)) @ axes.T


def _advance(
    y: Tensor, outputs: tuple[Tensor, ...], rise: Tensor | float, row: tuple[Tensor, Tensor, Tensor]
) -> Tensor:
    """y_k+1 from y_k (B, d) and the outputs so far."""
    gain, weight, shift = row
    mix = sum(w * e for w, e in zip(weight[: len(outputs)], outputs, strict=True))
    return gain * y + rise * mix + shift
