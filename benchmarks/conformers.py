"""Conformers of held-out QM9 molecules beside ETKDG's, at the same number of each.

python -m benchmarks.conformers qm9_3d.safetensors [--n 200] [--conformers 10] [--programs]

The reference is the one DFT geometry of each molecule; both are told its stereochemistry. COV at .5 angstrom, MAT in
angstrom, over heavy atoms and symmetries. ETKDG gives its geometries as they are, and relaxed by MMFF94. --programs:
instead, the solver programs that benchmarks.structure_programs compares, each at the weights' number of calls.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

import unisci
from benchmarks.molecules3d import molecules
from benchmarks.structure_programs import CHOSEN, OLD, Setting
from unisci.domains.molecule import Molecule
from unisci.metrics.conformers import etkdg, evaluate_conformers

COLUMNS = ("cov_recall", "mat_recall", "mat_recall_median", "cov_precision", "mat_precision")


def by_etkdg(target: Molecule, n: int, seed: int, relaxed: bool) -> Molecule | None:
    """None where it finds fewer than n."""
    try:
        return etkdg(target, n, seed, relaxed)
    except ValueError:
        return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="molecules3d-qm9")
    parser.add_argument("--n", type=int, default=200, help="molecules")
    parser.add_argument("--conformers", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--programs", action="store_true")
    args = parser.parse_args()
    targets, k = molecules(args.data, slice(0, args.n)), args.conformers
    designer = unisci.load(args.weights)

    def ours() -> list[list[Molecule]]:
        made = list(designer.conformers(targets, k, args.seed))
        return [made[i : i + k] for i in range(0, len(made), k)]

    def by(setting: Setting) -> list[list[Molecule]]:
        designer.structures.programs = (setting.program(designer.structures, designer.steps),)
        return ours()

    ways: dict[str, Callable[[], list]] = {f"{s}, {designer.steps} calls": partial(by, s) for s in (OLD, CHOSEN)}
    others: dict[str, Callable[[], list]] = {
        f"{args.weights}, {designer.steps} calls": ours,
        "ETKDG": lambda: [by_etkdg(m, k, args.seed, False) for m in targets],
        "ETKDG, relaxed by MMFF94": lambda: [by_etkdg(m, k, args.seed, True) for m in targets],
    }
    ways = ways if args.programs else others
    print(f"{len(targets)} held-out molecules, {k} conformers each, {torch.get_num_threads()} threads\n")
    print(f"| | {' | '.join(COLUMNS)} | conformers a second | failures |\n|{' --- |' * (len(COLUMNS) + 3)}")
    for name, draw in ways.items():
        began = time.perf_counter()
        made = draw()
        rate = k * len(targets) / (time.perf_counter() - began)
        found = {m.name: m for m in evaluate_conformers(made, targets)}
        cells = " | ".join(f"{found[c].value:.3f} ({found[c].low:.3f} to {found[c].high:.3f})" for c in COLUMNS)
        print(f"| {name} | {cells} | {rate:.1f} | {found['cov_recall'].failures or ''} |", flush=True)


if __name__ == "__main__":
    main()
