"""The rank of a denoiser and edits along its Jacobian (Wang et al., arXiv 2409.02426; LOCO-Edit, arXiv 2409.02374).

J = d E[x_0 | x_t] / d x_t has few singular values that count, about as many as the data have dimensions near x_0, and
fewest at a mid noise level. Its right singular vectors v are what the sample can be changed by: solve on from
x_t + size v. Block power iteration finds them by products J V and J^T U; J itself is never made.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.rng import Rng
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise


class Directions(NamedTuple):
    """Singular values (B, r), decreasing, and right singular vectors (B, r, ...), the largest entry positive."""

    values: Tensor
    right: Tensor


def _directions(function: Callable[[Tensor], Tensor], x: Tensor, most: int, rng: Rng, rounds: int) -> Directions:
    """The `most` largest of the Jacobian of `function`, which must treat the samples of x (B, ...) one by one."""
    b, d = len(x), x[0].numel()
    if not 1 <= most <= d:
        raise ValueError(f"most = {most} directions do not lie in 1, ..., {d}, the size of a sample")
    _, pull = torch.func.vjp(function, x)  # u to J^T u, linear, so that its own transpose is v to J v
    _, push = torch.func.vjp(lambda u: pull(u)[0], torch.zeros_like(x))
    columns = lambda f, v: torch.stack([f(c.reshape(x.shape))[0].flatten(1) for c in v.unbind(2)], 2)
    v = torch.linalg.qr(rng.normal("direction", 0, (b, d, most), 0).to(x))[0]
    for _ in range(rounds):
        u = torch.linalg.qr(columns(push, v))[0]
        v = torch.linalg.qr(columns(pull, u))[0]
    _, values, turn = torch.linalg.svd(columns(push, v), full_matrices=False)
    if not bool((values[:, 0] > 0).all()):
        raise ValueError("the Jacobian is 0: the denoiser must not detach its output, nor run under no_grad")
    right = turn @ v.mT
    sign = right.gather(2, right.abs().argmax(2, keepdim=True)).sign()
    return Directions(values, (sign * right).reshape(b, most, *x.shape[1:]))


def singular_directions(denoise: Denoise, x: Tensor, t: Tensor, most: int, rng: Rng, rounds: int = 6) -> Directions:
    """The `most` largest singular values of the Jacobian of `denoise` at x (B, ...) and t, () or (B,), and their right
    singular vectors, from random ones by `rounds` of block power iteration.

    The denoiser must be differentiable, in evaluation mode, and treat samples one by one. Raises ValueError for `most`
    beyond the size of a sample, and a Jacobian of 0.
    """
    return _directions(lambda y: denoise(y, t), x, most, rng, rounds)


def energy_rank(values: Tensor, eta: float = 0.99) -> Tensor:
    """The smallest r with sum_{i <= r} s_i^2 >= eta sum_i s_i^2 of decreasing values (..., n), (...)."""
    energy = values.square().cumsum(-1)
    return (energy < eta * energy[..., -1:]).sum(-1) + 1


def jacobian_rank(denoise: Denoise, x: Tensor, t: Tensor, most: int, rng: Rng, eta: float = 0.99) -> Tensor:
    """The `energy_rank` of the Jacobian at each x (B, ...), (B,), among its `most` largest singular values; a rank of
    `most` says that more are needed. Raises as `singular_directions`."""
    return energy_rank(singular_directions(denoise, x, t, most, rng).values, eta)


def intrinsic_dimension(
    denoise: Denoise, clean: Tensor, times: Tensor, most: int, rng: Rng, eta: float = 0.99
) -> Tensor:
    """The mean Jacobian rank over data `clean` (B, ...) noised to each of times (n,), (n,): the least of them is the
    dimension of the data as the denoiser sees it. Time k draws from rng.at(k). Raises as `singular_directions`."""
    ranks = []
    for k, t in enumerate(times):
        x = denoise.process.perturb(clean, t, rng.at(k))
        ranks.append(jacobian_rank(denoise, x, t, most, rng.at(k), eta).double().mean())
    return torch.stack(ranks)


def edit_along(
    denoise: Denoise,
    x: Tensor,
    program: Program,
    size: float,
    rng: Rng,
    index: int = 0,
    most: int = 8,
    keep: Tensor | None = None,
) -> Tensor:
    """The sample that ends from x + size v instead of x (B, ...), which is at the program's first time, mid noise.

    v: right singular vector number `index` of the `most` found. keep: bool, of the shape of a sample, entries of the
    endpoint to leave alone: v then belongs to the Jacobian of the other entries, less what moves these (the right
    singular vectors of theirs). Raises ValueError for a program that draws noise, an index not below `most`, and a
    `keep` that leaves no direction.
    """
    if program.stochastic:
        raise ValueError(f"{program.name} draws noise, which would hide the edit; take a deterministic program")
    if not 0 <= index < most:
        raise ValueError(f"index {index} does not lie in 0, ..., {most - 1}; raise most, now {most}")
    t = program.times[0]
    if keep is None:
        return run(denoise, x + size * singular_directions(denoise, x, t, most, rng).right[:, index], program)
    part = lambda where: _directions(lambda y: denoise(y, t) * where, x, most, rng, rounds=6).right.flatten(2)
    free, held = part(~keep)[:, index], part(keep)
    v = free - (held.mT @ (held @ free[..., None]))[..., 0]
    length = v.norm(dim=1, keepdim=True)
    if not bool((length > 1e-6).all()):
        raise ValueError(f"every direction that changes the free entries changes those to keep; lower most, now {most}")
    return run(denoise, x + size * (v / length).reshape(x.shape), program)
