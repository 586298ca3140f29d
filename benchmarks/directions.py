"""What it adds to a searched program to have numbers of its own for each direction:

    python -m benchmarks.directions --dim 8 --calls 5

For one law (`benchmarks.mixtures`), from t = 1 and from a teleport: the error of the searched table and of the same
refined by direction in the principal axes of 20,000 draws, on noises that neither has seen.
"""

import argparse
import time

import torch

from benchmarks.mixtures import draw, mixture
from benchmarks.problems import PROCESS, problem
from unisci.rng import Rng
from unisci.solvers.directions import Directional, by_direction, refine_directions
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.refine import Problem
from unisci.solvers.sample import sample
from unisci.solvers.search import search

SEARCHED = 2048  # noises of the search; the refinement takes all


def error(program: Directional, on: Problem) -> float:
    x = on.begin(torch.tensor(program.times[0], dtype=on.noises.dtype))
    return on.loss(sample(on.denoise, x, program.times, program)).item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dim", type=int, default=8)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--noises", type=int, default=65_536, help="that the refinement is fitted to")
    parser.add_argument("--held", type=int, default=1024, help="that the errors are printed for")
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--seed", type=int, default=100, help="of the law")
    args = parser.parse_args()
    law, one = mixture(PROCESS, args.dim, seed=args.seed), range(args.seed, args.seed + 1)
    held, fitted = problem(args.dim, one, args.held), problem(args.dim, one, args.noises, draw=1)
    data = draw(law, 20_000, torch.Generator().manual_seed(args.seed))
    moments, axes = GaussianLaw.fit(data), torch.linalg.eigh(torch.cov(data.T))[1]
    flow = lambda x, t: moments.flow(PROCESS, x, torch.ones((), dtype=x.dtype), t.to(x.dtype))
    for title, start in (("from t = 1", None), ("teleported", flow)):
        began, rng = time.process_time(), Rng(args.seed, torch.arange(1))
        x, reference = fitted.x[0], fitted.endpoint[0]
        table = search(law, PROCESS, x[:SEARCHED], reference[:SEARCHED], args.calls, 600, rng, start)
        on, seen = (Problem(law, PROCESS, p.x[0], p.endpoint[0], start) for p in (held, fitted))
        refined = refine_directions(by_direction(table, axes), seen, args.iterations)
        print(
            f"{args.dim} dimensions, {args.calls} calls, {title}: table {on.error(table):.4f}, by direction "
            f"{error(refined, on):.4f} (on the {args.noises} noises it was fitted to {error(refined, seen):.4f}), "
            f"{time.process_time() - began:.0f} s of CPU time"
        )


if __name__ == "__main__":
    main()
