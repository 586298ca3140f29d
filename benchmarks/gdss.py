"""GDSS (arXiv 2202.02514): its solvers on an exact oracle, its networks and a stronger one on graphs and molecules.

    python -m benchmarks.gdss                                    errors and orders of the solvers on Gaussian data
    python -m benchmarks.gdss --graphs [FILE.npz] --out DIR      graphs of two communities, beside Erdos-Renyi
    python -m benchmarks.gdss --smiles FILE.smi --out DIR        validity of molecules by calls

--model paper: the two networks of the paper, with time as an input, VP(.1, 20), bond orders as numbers; --model cdcd:
the graph transformer on one-hot channels, trained as classes. DIR keeps the training's checkpoints: a run resumes
there, and draws without training where it is done. Without FILE.npz the graphs are our own (`benchmarks.communities`).
"""

import argparse
import time
from collections import Counter
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import communities
from benchmarks.gdss_models import Model, cdcd_model, draw, empty, paper_model, train
from benchmarks.gdss_oracle import table
from unisci.batch import Batch
from unisci.metrics.graphs import erdos_renyi, evaluate
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver
from unisci.solvers.s4 import S4, SecondOrderS4
from unisci.solvers.sample import Solver
from unisci.training.data import load_batch, save_batch
from unisci.training.fit import FitConfig

WAYS = ("ancestral:200", "s4:200", "s4-2:200", "sde-dpm++2m:200", "sde-dpm++2m:50", "unipc2:50")
END = 0.05
TESTED = 20  # of 100 graphs, those held back
START = 0.98  # the first time: alpha is 0 at t = 1 in the cosine process
S4S = {"s4": S4(), "s4-langevin": S4(snr=0.1, scale=0.7), "s4-2": SecondOrderS4()}


def way(name: str, calls: int, model: Model, end: float) -> tuple[Solver, Tensor]:
    """A solver and its times, uniform in t from START to `end`, from where the last step jumps to clean points: `calls`
    evaluations, or one more where steps take two and `calls` is odd."""
    process = model.denoiser.product.processes["bond"]
    steps = -(-calls // 2) if name == "s4-2" else calls
    times = torch.cat([grid(process, steps - 1, "time", START, end), torch.zeros(1, dtype=torch.float64)])
    return (S4S[name] if name in S4S else compile_solver(process, times, name)), times


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
    print(f"{kind}: {_parameters(model)} parameters, {(time.process_time() - began) / 60:.1f} CPU min of training")
    rows = {"training graphs": known, "Erdos-Renyi": erdos_renyi(known, rng)}
    for name in ("s4", "s4-2", "ancestral"):
        solver, times = way(name, calls, model, END)
        rows[f"{name}, {calls} calls"] = communities.unbatch(draw(model, empty(data, rng), solver, times, rng))
    print(f"{'':30s}  degree  cluster    orbit spectrum")
    for title, found in rows.items():
        print(f"{title:30s}" + "".join(f"{m.value:9.4f}" for m in evaluate(found, test)), flush=True)


def molecules(path: Path, out: Path, kind: str, steps: int, n: int, ways: list[str]) -> None:
    """Validity without correction and uniqueness of n molecules for each way, a solver and its calls."""
    data = _molecules(path, out)
    torch.manual_seed(0)
    model = paper_model(data) if kind == "paper" else cdcd_model(data)
    config = FitConfig(steps, 64 if kind == "cdcd" else 256, lr=2e-3 if kind == "cdcd" else 5e-3, ema=0.999)
    began = time.process_time()
    model = train(model, data, config, out / kind)
    print(f"{kind}: {_parameters(model)} parameters, {(time.process_time() - began) / 60:.1f} CPU min of training")
    rng = Rng(7, torch.arange(n))
    for spec in ways:
        name, calls = spec.split(":")
        solver, times = way(name, int(calls), model, END)
        began = time.process_time()
        drawn = draw(model, empty(data, rng), solver, times, rng)
        print(_row(f"{name}, {calls} calls", drawn, time.process_time() - began), flush=True)


def _molecules(path: Path, out: Path) -> Batch:
    """The molecules of a file of SMILES, one a line, kept in DIR; RDKit reads them once."""
    cache = out / "data.safetensors"
    if not cache.exists():
        from unisci.domains.molecule import Molecule, MoleculeError

        found = []
        for smiles in path.read_text().split():
            try:
                found.append(Molecule.from_smiles(smiles))
            except MoleculeError:
                continue
        out.mkdir(parents=True, exist_ok=True)
        data = Molecule.batch(found)
        save_batch(Batch({k: data.schema[k] for k in data.state}, data.state, data.mask), cache)
    return load_batch(cache)


def _row(title: str, drawn: Batch, seconds: float) -> str:
    from unisci.domains.molecule import Molecule
    from unisci.metrics.intervals import proportion

    found = Molecule.unbatch(drawn)
    smiles = [m.smiles for m in found if m.smiles]
    low, high = proportion(len(smiles), len(found))
    reasons = dict(Counter(m.reason for m in found if m.reason))
    valid, unique = len(smiles) / len(found), len(set(smiles)) / max(1, len(smiles))
    return (
        f"{title:38s} valid {valid:.4f} ({low:.4f}-{high:.4f}) unique {unique:.4f} "
        f"{len(found) / seconds:.1f} per CPU s {reasons}"
    )


def _parameters(model: Model) -> int:
    return sum(p.numel() for p in model.denoiser.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=Path, nargs="?", const=Path())
    parser.add_argument("--smiles", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/gdss"))
    parser.add_argument("--model", choices=("paper", "cdcd"), default="cdcd")
    parser.add_argument("--steps", type=int, default=2000, help="of training")
    parser.add_argument("--calls", type=int, default=200, help="of the network, for graphs")
    parser.add_argument("--n", type=int, default=512, help="molecules")
    parser.add_argument("--ways", nargs="+", default=WAYS, help="solver:calls")
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.graphs is not None:
        graphs(a.graphs if a.graphs.name else None, a.out / a.model, a.model, a.steps, a.calls)
    elif a.smiles is not None:
        molecules(a.smiles, a.out, a.model, a.steps, a.n, a.ways)
    else:
        print(table())


if __name__ == "__main__":
    main()
