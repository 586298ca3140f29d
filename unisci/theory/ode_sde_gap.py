"""How far apart the laws of the probability-flow ODE and of the reverse SDE of one model are (arXiv 2311.15996)."""

from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.rng import Rng
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Denoise
from unisci.solvers.score import check_gaussian


@dataclass(frozen=True)
class Gap:
    """`gap`: the 2-Wasserstein distance of the two laws, in units of x; exact in one dimension, else sliced.

    ode_change, sde_change: by how much each law moves when its steps are halved in number, with the sampling error in
    the latter. ode_std, sde_std: the standard deviation of an entry. n samples; evaluations of each law; seed.
    """

    gap: float
    ode_change: float
    sde_change: float
    ode_std: float
    sde_std: float
    n: int
    ode_nfe: int
    sde_nfe: int
    seed: int

    @property
    def resolved(self) -> bool:
        """Whether the gap exceeds twice what step size and sampling leave open."""
        return self.gap > 2 * (self.ode_change + self.sde_change)


@torch.no_grad()
def ode_sde_gap(
    denoise: Denoise, x: Tensor, times: Tensor, rng: Rng, ode: str = "heun", sde: str = "ancestral", slices: int = 128
) -> Gap:
    """Run both laws from x (n, ...), draws at times[0], over times and over every other of them.

    times (2 k + 1,): a fine grid, as grid(process, 1000, end=1e-4). ode, sde: names of `SCHEMES`.
    Raises ValueError for another number of times, a dict of fields, noise that is not Gaussian, and schemes of the
    wrong kind.
    """
    check_gaussian(denoise, "the reverse SDE")
    if isinstance(x, dict):
        raise ValueError(f"the gap is of a bare tensor; x has fields {sorted(x)}")
    if len(times) % 2 == 0:
        raise ValueError(f"every other time must lead to the last: pass an odd number of times, got {len(times)}")
    grids = times, times[::2]
    flow, flow_2 = (compile_solver(denoise.process, g, ode) for g in grids)
    noisy, noisy_2 = (compile_solver(denoise.process, g, sde) for g in grids)
    if flow.stochastic or not noisy.stochastic:
        raise ValueError(f"need a scheme without noise and one with it, got ode = {ode!r}, sde = {sde!r}")
    by_ode, by_ode_2 = run(denoise, x, flow), run(denoise, x, flow_2)
    by_sde, by_sde_2 = run(denoise, x, noisy, rng.at(0)), run(denoise, x, noisy_2, rng.at(1))
    distance = lambda a, b: wasserstein(a, b, rng, slices)
    spread = lambda v: v.reshape(len(v), -1).var(0).mean().sqrt().item()
    return Gap(
        distance(by_ode, by_sde),
        distance(by_ode, by_ode_2),
        distance(by_sde, by_sde_2),
        spread(by_ode),
        spread(by_sde),
        len(x),
        flow.nfe,
        noisy.nfe,
        rng.seed,
    )


def wasserstein(a: Tensor, b: Tensor, rng: Rng, slices: int = 128) -> float:
    """The 2-Wasserstein distance of two samples of equal size (n, ...): in one dimension by sorting, else sliced, the
    root of the mean square over random directions. Raises ValueError where the shapes differ."""
    if a.shape != b.shape:
        raise ValueError(f"samples must have one shape, got {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if a.shape[1] > 1:
        lines = Rng(rng.seed, torch.arange(slices, device=a.device)).normal("direction", 0, (slices, a.shape[1]), 0)
        lines = (lines / lines.norm(dim=1, keepdim=True)).to(a.dtype)
        a, b = a @ lines.T, b @ lines.T
    return (a.sort(0).values - b.sort(0).values).square().mean().sqrt().item()
