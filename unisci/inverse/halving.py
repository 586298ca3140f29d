"""Successive halving (Jamieson & Talwalkar, arXiv 1502.07943) of candidate starts x_T of a conditional ODE, scored on
references z_i with conditions y_i (Ma et al., arXiv 2305.15357).

    score_k = mean_i M(h(x_T^k, y_i), z_i),     h(x_T, y) the solution

A candidate's references are kept from round to round: with R / 8, R / 4, R / 2 and R of them the search takes 5/16 of
the solutions that scoring all candidates on all would.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unisci.state import State, fieldwise

Solve = Callable[[State, State], State]  # x_T (n, ...), n conditions -> h (n, ...)
Distance = Callable[[State, State], Tensor]  # two states (n, ...) -> (n,)

BATCH = 1024  # solutions at a time


def race(
    solve: Solve, metric: Distance, starts: State, conditions: State, references: State, shares: tuple[int, ...]
) -> tuple[Tensor, Tensor, Tensor, int]:
    """After R / share references for each of the shares, half of the starts drop out, none after the last. Returns
    those left, best first, their distances (L, R), those of the first round (K, n), and the number of solutions."""
    left, r, solutions, rounds = torch.arange(count(starts)), count(references), 0, []
    table = torch.zeros(len(left), 0, dtype=torch.float64)
    for share in shares:
        seen = torch.arange(table.shape[1], r // share)
        new = distances(solve, metric, rows(starts, left), rows(conditions, seen), rows(references, seen))
        table, solutions = torch.cat([table, new], 1), solutions + new.numel()
        rounds.append(table)
        best = table.mean(1).argsort()[: max(1, len(left) // 2) if share > 1 else len(left)]
        table, left = table[best], left[best]
    return left, table, rounds[0], solutions


def distances(solve: Solve, metric: Distance, starts: State, conditions: State, references: State) -> Tensor:
    """M of every start and every reference, (K, R), float64 on the CPU."""
    k, r = count(starts), count(references)
    pairs = torch.cartesian_prod(torch.arange(k), torch.arange(r))
    parts = []
    for pair in pairs.split(BATCH):
        ends = solve(rows(starts, pair[:, 0]), rows(conditions, pair[:, 1]))
        parts.append(metric(ends, rows(references, pair[:, 1])).double().cpu())
    table = torch.cat(parts).reshape(k, r)
    if not bool(table.isfinite().all()):
        raise ValueError(f"{int((~table.isfinite()).sum())} of {k} x {r} distances are not finite; check the solver")
    return table


def split_half(table: Tensor, r: int) -> float:
    """Spearman's correlation of the scores (K, n) by the even and by the odd columns, carried to r columns by the
    formula of Spearman and Brown."""
    ranks = torch.stack([half.mean(1).argsort().argsort().double() for half in (table[:, ::2], table[:, 1::2])])
    rho, longer = torch.corrcoef(ranks)[0, 1].item(), r / table.shape[1]
    return longer * rho / (1 + (longer - 1) * rho) if rho > 0 else rho


def count(state: State) -> int:
    return len(next(iter(state.values())) if isinstance(state, dict) else state)


def rows(state: State, rows: Tensor) -> State:
    return fieldwise(lambda v: v[rows.to(v.device)], state)
