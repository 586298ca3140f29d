"""Diffusion ODEs with optimal boundary conditions (Ma et al., arXiv 2305.15357): of one conditional model and one
deterministic solver, the start x_T that serves all conditions best.

    x_T* = argmin over k = 1..K of mean_i M(h(x_T^k, y_i), z_i),     h(x_T, y) the solution of the ODE under condition y

for references z_i with conditions y_i. One start serves all where the spread of p(x | y) does not depend on y: with
p(x | y) = N(m(y), v), h = m(y) + sqrt(v) x_T. The metric M decides what is won. With a squared error the best start is
x_T = 0 (`zero_boundary`), the conditional mean: it turns the generator into a regressor; a metric of distributions or
of structure keeps the texture. For forecasts take a `boundary_set` and publish its spread.

A start belongs to its solver, grid, guidance and weights: search again when any of them changes. It stands in a fixed
frame: a rotation-equivariant model then gives outputs that depend on the frame of the conditions.
"""

import math
import warnings
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from unisci.inverse.adam import Adam
from unisci.inverse.halving import Distance, Solve, count, race, rows, split_half
from unisci.inverse.operators import pullback
from unisci.rng import Rng
from unisci.state import State, fieldwise

RELIABLE = 0.7  # the split-half correlation below which the pick does not carry over to other conditions


@dataclass(frozen=True, eq=False)
class Boundary:
    """x_T: the start of one sample, fields without the axis B. scores (K,): the mean distance of each candidate, inf
    for those that halving dropped. correlation: of the candidates' ranks by the two halves of the references.
    solutions: how many the search took."""

    x_T: State
    scores: Tensor
    correlation: float
    solutions: int

    def starts(self, n: int) -> State:
        """The same start for n samples, (n, ...)."""
        return _repeat(self.x_T, n)

    def ranked(self, rank: Tensor, axes: Any = 1) -> State:
        """Starts (B, N, ...) whose sites take the rows of x_T by their canonical rank (B, N) int64, so that permuting a
        graph permutes what is made of it. axes: of sites, 0, 1 or 2, for each field if a dict."""
        sites = {1: (rank,), 2: (rank[:, :, None], rank[:, None, :])}
        return fieldwise(lambda v, a: v[sites[a]] if a else v.expand(len(rank), *v.shape), self.x_T, axes)


def zero_boundary(like: State) -> Boundary:
    """x_T = 0 for states as `like` (B, ...), the baseline to beat."""
    return Boundary(fieldwise(lambda v: torch.zeros_like(v[0]), like), torch.zeros(0), math.nan, 0)


@torch.no_grad()
def search_boundary(
    solve: Solve,
    metric: Distance,
    candidates: State,
    conditions: State | None,
    references: State,
    rng: Rng,
    halving: bool = True,
) -> Boundary:
    """The best of K candidates (K, ...), draws of the process's prior, on R references (R, ...) with their conditions.

    solve: deterministic, on fixed times, as lambda x_T, y: run(denoiser.on(y), x_T, program). metric: M, (n,). rng: of
    one id; puts the references in random order. halving: score all on R / 8 references, keep the better half, double
    the references, and so on, at 5/16 of the solutions; the correlation is then that of the first round. Warns where
    the correlation is below .7. Raises ValueError without conditions, for fewer than two candidates or 4 references, 32
    with halving, and for distances that are not finite.
    """
    k, r = count(candidates), _check_references(conditions, references)
    if k < 2 or r < (32 if halving else 4):
        raise ValueError(f"a search needs 2 candidates and 4 references, 32 with halving; got {k} and {r}")
    order = rng.uniform("order", 0, (1, r), 0)[0].argsort()
    conditions, references = (rows(state, order) for state in (conditions, references))
    shares = (8, 4, 2, 1) if halving else (1,)
    left, table, first, solutions = race(solve, metric, candidates, conditions, references, shares)
    scores = torch.full((k,), math.inf, dtype=torch.float64)
    scores[left] = table.mean(1)
    correlation = split_half(first, r)
    if correlation < RELIABLE:
        warnings.warn(
            f"two halves of the references rank the candidates alike only to {correlation:.2f}, below {RELIABLE}: the "
            "pick does not carry over; take more references, or a start for each kind of condition",
            stacklevel=3,
        )
    return Boundary(fieldwise(lambda v: v[left[0]], candidates), scores, correlation, solutions)


def polish(
    boundary: Boundary,
    solve: Solve,
    metric: Distance,
    conditions: State | None,
    references: State,
    steps: int = 20,
    lr: float = 0.1,
    sigma: float = 1.0,
) -> Boundary:
    """The boundary after `steps` of Adam on the mean distance through a differentiable `solve`, each field of x_T put
    back onto |x_T| = sigma sqrt(d), where draws of N(0, sigma^2 I) in d dimensions lie.

    `scores` becomes the one mean distance reached. Raises ValueError without conditions, for steps < 1, and
    for x_T = 0, which has no direction.
    """
    r = _check_references(conditions, references)
    fields = boundary.x_T.values() if isinstance(boundary.x_T, dict) else [boundary.x_T]
    if steps < 1 or not all(bool(v.any()) for v in fields):
        raise ValueError(f"polishing needs steps >= 1 and an x_T that is not 0, got {steps} steps from {boundary.x_T}")
    tangent = lambda g, v: g - v * ((g * v).sum() / (v * v).sum())  # what Adam would else spend its steps on
    typical = lambda v: v * (sigma * math.sqrt(v.numel()) / v.norm())
    mean = lambda x: metric(solve(_repeat(x, r), conditions), references).double().mean()
    adam, past, x, one = Adam(lr), None, fieldwise(typical, boundary.x_T), torch.ones((), dtype=torch.float64)
    for _ in range(steps):
        along = fieldwise(tangent, pullback(mean, one, x), x)
        x, past = adam.step(x, along, past)
        x = fieldwise(typical, x)
    with torch.no_grad():
        score = mean(x).cpu()[None]
    return replace(boundary, x_T=x, scores=score, solutions=boundary.solutions + (steps + 1) * r)


@torch.no_grad()
def boundary_set(
    solve: Solve, distance: Distance, candidates: State, conditions: State | None, references: State, m: int
) -> Tensor:
    """The indices (m,) of the candidates (K, ...) that, added one by one, lower most the mean energy score of the
    ensemble h(x_T^j, y_i), j = 1..m, of the references z_i:

        mean_j |h_j - z| - 1/2 mean_jl |h_j - h_l|

    distance: |a - b|, a Euclidean norm or another of negative type. Takes K R solutions and keeps them all: search
    first, and pass the best few tens. Raises ValueError without conditions, and for m not in 1..K.
    """
    k, r = count(candidates), _check_references(conditions, references)
    if not 1 <= m <= k:
        raise ValueError(f"m must lie in 1..{k}, the number of candidates, got {m}")
    ends = [solve(_repeat(fieldwise(lambda v, j=j: v[j], candidates), r), conditions) for j in range(k)]
    near = torch.stack([distance(end, references).double().mean() for end in ends])  # (K,)
    to_chosen, chosen = torch.zeros_like(near), []  # the sum of distances of each to the chosen
    for p in range(1, m + 1):
        inside = to_chosen[chosen].sum()  # of all ordered pairs of the chosen
        score = (near[chosen].sum() + near) / p - (inside + 2 * to_chosen) / (2 * p**2)
        score[chosen] = math.inf
        chosen.append(int(score.argmin()))
        to_chosen = to_chosen + torch.stack([distance(ends[chosen[-1]], end).double().mean() for end in ends])
    return torch.tensor(chosen)


def _check_references(conditions: State | None, references: State) -> int:
    """R."""
    if conditions is None:
        raise ValueError(
            "a boundary makes one sample for each condition; without conditions it makes one sample in all"
        )
    if count(conditions) != count(references):
        raise ValueError(f"{count(conditions)} conditions do not fit {count(references)} references")
    return count(references)


def _repeat(sample: State, n: int) -> State:
    return fieldwise(lambda v: v.expand(n, *v.shape), sample)
