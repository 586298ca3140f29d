"""GDSS (arXiv 2202.02514): its solvers on an exact oracle, its networks and a stronger one on graphs and molecules.

    python -m benchmarks.gdss                                    errors and orders of the solvers on Gaussian data
    python -m benchmarks.gdss --graphs [FILE.npz] --out DIR      graphs of two communities, beside Erdos-Renyi
    python -m benchmarks.gdss --smiles FILE.smi --out DIR        validity of molecules by calls

--model paper: the two networks of the paper, with time as an input, VP(.1, 20), bond orders as numbers; --model cdcd:
the graph transformer on one-hot channels, trained as classes; --model drafts, for molecules: the same shown what its
estimates so far look like, trained where classes are decided. DIR keeps the training's checkpoints: a run resumes
there, and draws without training where it is done. Without FILE.npz the graphs are our own (`benchmarks.communities`).
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks import communities
from benchmarks.gdss_models import cdcd_model, draw, empty, paper_model, parameters, train
from benchmarks.gdss_oracle import table
from benchmarks.gdss_ways import END, way
from unisci.metrics.graphs import erdos_renyi, evaluate
from unisci.rng import Rng
from unisci.training.fit import FitConfig

WAYS = (
    *("s4:200", "s4-2:200", "s4-langevin:200", "s4-2-langevin:198", "s4-langevin:100"),
    *("ancestral:200", "sde-dpm++2m:200", "sde-dpm++2m:50"),
)
TESTED = 20  # of 100 graphs, those held back


def graphs(path: Path | None, out: Path, kind: str, steps: int, calls: int) -> None:
    """Squared MMDs to the held-out graphs: the training graphs, Erdos-Renyi, samples."""
    rng = Rng(0, torch.arange(100))
    known = communities.published(path) if path else communities.communities(rng)
    test, known = known[:TESTED], known[TESTED:]
    data = communities.batch(known)
    torch.manual_seed(0)
    model = (
        paper_model(data, width=32, layers=5) if kind == "paper" else cdcd_model(data, width=64, pair_width=24, heads=4)
    )
    began = time.process_time()
    model = train(model, data, FitConfig(steps, 32, lr=2e-3, ema=0.999), out)
    print(f"{kind}: {parameters(model)} parameters, {(time.process_time() - began) / 60:.1f} CPU min of training")
    rows = {"training graphs": known, "Erdos-Renyi": erdos_renyi(known, rng)}
    for name in ("s4", "s4-2", "ancestral"):
        solver, times = way(name, calls, model, END)
        rows[f"{name}, {calls} calls"] = communities.unbatch(draw(model, empty(data, rng), solver, times, rng))
    print(f"{'':30s}  degree  cluster    orbit spectrum")
    for title, found in rows.items():
        print(f"{title:30s}" + "".join(f"{m.value:9.4f}" for m in evaluate(found, test)), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path, nargs="?", const=Path())
    parser.add_argument("--smiles", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gdss"))
    parser.add_argument("--model", choices=("paper", "cdcd", "drafts"), default="cdcd")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--lr", type=float, help="its peak, for molecules")
    parser.add_argument("--start", type=Path, help="the folder of checkpoints of an earlier training, for molecules")
    parser.add_argument("--calls", type=int, default=200, help="of the network, for graphs")
    parser.add_argument("--n", type=int, default=512, help="molecules")
    parser.add_argument("--seed", type=int, default=7, help="of the molecules drawn")
    parser.add_argument("--chemnet", type=Path, help="statistics of the data, as of unisci.metrics.chemnet")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="solver:calls")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.graphs is not None:
        graphs(a.graphs if a.graphs.name else None, a.out / a.model, a.model, a.steps, a.calls)
    elif a.smiles is not None:
        from benchmarks.gdss_molecules import molecules  # needs RDKit

        molecules(a)
    else:
        print(table())


if __name__ == "__main__":
    main()
