"""The problems of `benchmarks.solvers`: laws, start noises and where the probability-flow ODE takes them; and the error
of every configuration, ours and the peers', on one of them."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from itertools import product

import torch
from torch import Tensor

from benchmarks.mixtures import Mixture, draw, mixture, side_by_side
from benchmarks.peers import Peer, solve
from unisci.processes.gaussian import VP
from unisci.rng import Rng
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.grids import grid
from unisci.solvers.program import Program, compile_solver, run
from unisci.solvers.search import search as search_program

PROCESS = VP()
CALLS = (5, 6, 8, 10, 15, 20, 30)
SEARCHED, SEARCH, TELEPORTED = (5, 10), "searched", "teleported, searched"
# Grids may start below t = 1, as "leading" timesteps do, and end above 0, as final_sigmas_type = "sigma_min" does.
KINDS, SPANS = ("lambda", "time", "karras"), [(1.0, 0.0), *product((1.0, 0.98, 0.95, 0.85), (1e-3, 3e-3, 1e-2, 2e-2))]
Scores = dict[tuple[str, str, int], Tensor]  # (method, configuration, calls): error by law


@dataclass(frozen=True)
class Problem:
    """Laws side by side, noises (laws, n, dim) at t = 1, and where the ODE takes them."""

    law: Mixture
    x: Tensor
    endpoint: Tensor

    def error(self, x: Tensor) -> Tensor:
        """RMS distance to the endpoint over its RMS norm, by law."""
        return distance(x, self.endpoint)


def distance(x: Tensor, endpoint: Tensor) -> Tensor:
    """The norm of x - endpoint (..., n, dim) over that of the endpoint."""
    return (x - endpoint).norm(dim=(-1, -2)) / endpoint.norm(dim=(-1, -2))


def problem(dim: int, seeds: range, n: int, draw: int = 0) -> Problem:
    """The laws `seeds`, each with its noises number draw n to (draw + 1) n. The reference is UniPC-3 on 2,000 steps in
    lam down to t = 1e-7. Raises RuntimeError where 1,000 steps do not agree with it to 1e-6."""
    law = side_by_side([mixture(PROCESS, dim, seed=s) for s in seeds])
    like = torch.zeros(n, dim, dtype=torch.float64)
    x = torch.stack([PROCESS.prior(like, Rng(s, torch.arange(draw * n, (draw + 1) * n))) for s in seeds])
    fine = lambda steps: torch.cat([grid(PROCESS, steps, end=1e-7), torch.zeros(1, dtype=torch.float64)])
    coarse, endpoint = (run(law, x, compile_solver(PROCESS, fine(steps), "unipc3")) for steps in (1000, 2000))
    found = Problem(law, x, endpoint)
    if (off := float(found.error(coarse).max())) > 1e-6:
        raise RuntimeError(f"the reference has not converged: 1,000 and 2,000 steps differ by {off:.1e}")
    return found


@cache
def programs(calls: int) -> list[tuple[str, str, Program]]:
    """Every ODE scheme on every grid, with the most steps that make at most `calls` evaluations."""
    found = {}
    deterministic = [n for n in SCHEMES if not compile_solver(PROCESS, grid(PROCESS, 3), n).stochastic]
    for name, kind, (start, stop) in product(deterministic, KINDS, SPANS):
        least = calls // SCHEMES[name].evaluations
        for steps in range(max(1, least), least + 2):  # the step to t = 0 is one evaluation
            program = compile_solver(PROCESS, grid(PROCESS, steps, kind, start, stop), name)
            if program.nfe <= calls:
                found[name, f"{kind} {start:g}..{stop:g}"] = program
    return [(*key, program) for key, program in found.items()]


def score_ours(p: Problem) -> Scores:
    scores = {(m, c, n): p.error(run(p.law, p.x, program)) for n in CALLS for m, c, program in programs(n)}
    return {k: v for k, v in scores.items() if bool(v.isfinite().all())}


def score_peers(p: Problem, configurations: Iterable[Peer]) -> Scores:
    scores = {}
    for peer in configurations:
        scheduler = peer.scheduler(PROCESS)
        for n in CALLS:
            if (x := solve(peer, scheduler, p.law, p.x, n)) is not None:
                scores[peer.family, str(peer), n] = p.error(x)
    return scores


def search(p: Problem, dim: int, seeds: range, budget: int, n: int = 2048) -> Scores:
    """Programs for each law, searched on n other noises of that law and scored on those of p: from t = 1, and from
    where the mean and covariance of 20,000 draws of the law take the noise without a call."""
    errors: dict[tuple[str, str, int], list[Tensor]] = {}
    for i, seed in enumerate(seeds):
        law, other = mixture(PROCESS, dim, seed=seed), problem(dim, range(seed, seed + 1), n, draw=1)
        moments = GaussianLaw.fit(draw(law, 20_000, torch.Generator().manual_seed(seed)))
        flow = lambda x, t, moments=moments: moments.flow(PROCESS, x, torch.ones((), dtype=x.dtype), t.to(x.dtype))
        for calls, (title, start) in product(SEARCHED, ((SEARCH, None), (TELEPORTED, flow))):
            rng = Rng(seed, torch.arange(1))
            program = search_program(law, PROCESS, other.x[0], other.endpoint[0], calls, budget, rng, start)
            x = p.x[i] if start is None else start(p.x[i], program.times[0])
            error = distance(run(law, x, program), p.endpoint[i])
            errors.setdefault((title, "for its law", calls), []).append(error)
    return {key: torch.stack(e) for key, e in errors.items()}
