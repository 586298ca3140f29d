"""Our solvers and the schedulers of `diffusers` on the same ODEs in one run: error of the endpoint by network calls.

    python -m benchmarks.solvers [--dims 2 8 64] [--noises 64] [--search 600] [--picture docs/solvers.png]
    python -m benchmarks.solvers --check        do the peers converge to the same endpoint?
    python -m benchmarks.solvers --overhead     time and allocations of a step, network left out

Laws are Gaussian mixtures (`benchmarks.mixtures`) with their exact denoiser under VP. The error is the RMS distance to
the endpoint of the probability-flow ODE from the same noises, over the RMS norm of that endpoint; its geometric mean
over test laws. Peers, and ours in the line "best", are shown by their best configuration on the test laws themselves;
the line "chosen" has ours with the configuration that was best on other laws.
"""

import argparse
import math
import time
import warnings
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.overhead import report
from benchmarks.peers import PLANS, defaults, peers, solve
from benchmarks.problems import CALLS, PROCESS, SEARCH, TELEPORTED, Scores, problem, score_ours, score_peers, search

TUNE, TEST = range(3), range(100, 105)
SHOWN = ("DDIM", "HeunDiscrete", "DEISMultistep", "DPMSolverMultistep", "UniPCMultistep", "SASolver")


def mean(errors: Tensor) -> float:
    """The geometric mean over laws."""
    return float(errors.log().mean().exp())


def best(scores: Scores, calls: int, method: str | None = None) -> tuple[str, str, int] | None:
    """The key of the smallest mean error at this number of calls, of one method or of all."""
    keys = [k for k in scores if k[2] == calls and method in (None, k[0])]
    return min(keys, key=lambda k: mean(scores[k]), default=None)


def row(title: str, values: list[float]) -> str:
    return f"{title:24s}" + "".join(f"{'-' if math.isnan(v) else f'{v:.4f}':>9s}" for v in values)


def line(scores: Scores, method: str | None = None) -> list[float]:
    """The best mean error at each number of calls, nan where there is none."""
    keys = [best(scores, n, method) for n in CALLS]
    return [math.nan if k is None else mean(scores[k]) for k in keys]


def table(mine: Scores, theirs: Scores, plain: Scores, tuned: Scores, searched: Scores) -> str:
    """Methods by calls, the ratios of ours to theirs, and which configurations won."""
    keys = [(best(mine, n), best(tuned, n), best(theirs, n)) for n in CALLS]
    best_ratios = [mine[m] / theirs[t] for m, _, t in keys]
    rows = [f"{'calls':24s}" + "".join(f"{n:9d}" for n in CALLS)]
    rows += [row(family, line(theirs, family)) for family in PLANS]
    rows += [row(f"ours: {name}", line(mine, name)) for name in dict.fromkeys(k[0] for k in mine)]
    usual = {k: v for k, v in mine.items() if k[1].endswith(" 1..0")}
    rows += [
        row("peers, default settings", line(plain)),
        row("peers, best", line(theirs)),
        row("ours, grids from 1 to 0", line(usual)),
        row("ours, best", line(mine)),
    ]
    rows += [row("ratio, ours best", [mean(r) for r in best_ratios])]
    rows += [row("ratio, ours chosen", [mean(mine[c] / theirs[t]) for _, c, t in keys])]
    rows += [f"{'laws won by ours best':24s}" + "".join(f"{f'{int((r < 1).sum())}/{len(r)}':>9s}" for r in best_ratios)]
    for title in dict.fromkeys(k[0] for k in searched):
        rows += [row(title, line(searched, title))]
        for name, other in (("best", theirs), ("default", plain)):
            ratios = {k[2]: mean(searched[k] / other[best(other, k[2])]) for k in searched if k[0] == title}
            rows += [row(f"ratio to peers' {name}", [ratios.get(n, math.nan) for n in CALLS])]
    rows += [
        f"{n:3d} calls: {m[0]} on {m[1]} (chosen: {c[0]} on {c[1]}); {t[1]}"
        for n, (m, c, t) in zip(CALLS, keys, strict=True)
    ]
    return "\n".join(rows)


def check(n: int, calls: int = 199) -> None:
    """Every configuration of the peers at many calls, where a wrong adapter would not be near the endpoint. 199 suits
    "leading", which begins at (calls + 1) (1000 // (calls + 1)). High orders of SA-Solver may be unstable there."""
    p = problem(2, TUNE[:1], n)
    for family in PLANS:
        found = [solve(q, q.scheduler(PROCESS), p.law, p.x, calls) for q in peers() if q.family == family]
        errors = sorted(mean(p.error(x)) for x in found if x is not None)
        over = sum(e > 0.02 for e in errors)
        print(
            f"{family:20s} {calls} calls: error {errors[0]:.1e} to {errors[-1]:.1e}; {over} of {len(errors)} over 2 %"
        )


def picture(tables: dict[int, tuple[Scores, Scores, Scores]], path: Path) -> None:
    """Error by calls, a panel for each dimension: the best of some classes, of ours, and searched programs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(tables), figsize=(4 * len(tables), 4.3), sharey=True, squeeze=False)
    for panel, (dim, (mine, theirs, searched)) in zip(axes[0], tables.items(), strict=True):
        for family, colour in zip(SHOWN, plt.cm.viridis(torch.linspace(0, 0.9, len(SHOWN)).tolist()), strict=True):
            panel.loglog(CALLS, line(theirs, family), "--", color=colour, lw=1, label=f"diffusers {family}")
        panel.loglog(CALLS, line(mine), "o-", color="crimson", lw=2, ms=4, label="unisci, best scheme and grid")
        for title, mark in ((SEARCH, "s"), (TELEPORTED, "^")):
            if searched:
                panel.loglog(CALLS, line(searched, title), mark, color="black", ms=5, label=f"unisci, {title}")
        panel.set(title=f"{dim} dimensions", xlabel="network calls", xticks=CALLS, xticklabels=CALLS)
        panel.minorticks_off()
    axes[0, 0].set_ylabel("RMS error of the endpoint, relative")
    figure.tight_layout(rect=(0, 0.17, 1, 1))
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=150)


def compare(dim: int, n: int, budget: int) -> tuple[Scores, Scores, Scores]:
    """Print the table of one dimension; returns the scores of ours, of the peers and of searched programs."""
    began = time.process_time()
    tune, test = problem(dim, TUNE, n), problem(dim, TEST, n)
    mine, theirs, tuned = score_ours(test), score_peers(test, peers()), score_ours(tune)
    searched = search(test, dim, TEST, budget) if budget else {}
    print(f"\n{dim} dimensions: laws {TEST} of 12 components, {n} noises each, float64, CPU; chosen on laws {TUNE}")
    print(table(mine, theirs, score_peers(test, defaults()), tuned, searched))
    tried, seconds = [len({k[:2] for k in scores}) for scores in (mine, theirs)], time.process_time() - began
    print(f"configurations tried: {tried[0]} of ours, {tried[1]} of theirs; {seconds:.0f} s of CPU time", flush=True)
    return mine, theirs, searched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", type=int, nargs="*", default=[2, 8, 64])
    parser.add_argument("--noises", type=int, default=64)
    parser.add_argument("--search", type=int, default=0, metavar="BUDGET", help="also search programs")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--overhead", action="store_true")
    a = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the schedulers warn of the grids and orders that they were asked for
    if a.overhead:
        report()
    if a.check:
        check(a.noises)
    if a.check or a.overhead:
        return
    scores = {dim: compare(dim, a.noises, a.search) for dim in a.dims}
    if a.picture:
        picture(scores, a.picture)


if __name__ == "__main__":
    main()
