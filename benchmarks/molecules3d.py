"""Molecules in space: how sound, at how many calls, how fast; all at once against blocks.

python -m benchmarks.molecules3d qm9_3d.safetensors [--n 1000] [--seeds 0 1 2] [--blocks] [--poses]

The data are what datasets/qm9/prepare.py --structures writes. Held-out molecules of the data stand beside as the
baseline. --blocks: instead of the default (the graph in blocks, then positions) all fields together, at once, in the
blocks of the graph's own order and atom by atom, at about equal calls. --poses: PoseBusters too, of the first seed.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch

import unisci
from unisci.design.structure_designer import StructureDesigner
from unisci.design.structure_orders import atom_by_atom, structural
from unisci.domains.molecule import Molecule
from unisci.metrics.structures import evaluate_structures
from unisci.training.data import load_batch, widen

COLUMNS = {
    "validity": "valid",
    "uniqueness": "unique",
    "novelty": "new",
    "molecules_stable_by_bonds": "stable, bonds",
    "atoms_stable_by_distances": "atoms, distances",
    "molecules_stable_by_distances": "stable, distances",
    "lengths_w1": "lengths W1",
    "angles_w1": "angles W1",
    "torsions_w1": "torsions W1",
    "mmff_strain_median": "strain, median",
}
CALLS = 50  # of a draw at once; blocks share about as many


def held_out(path: Path, n: int) -> list[Molecule]:
    """The first n molecules of a permutation of those that the shipped weights were not trained on."""
    return molecules(path, slice(0, n))


def molecules(path: Path, rows: slice) -> list[Molecule]:
    """The molecules of the data at the rows of its permutation; training takes those from HELD on."""
    data = load_batch(path)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    return Molecule.unbatch(widen(data[order[rows]]))


def row(name: str, made: list[Molecule], reference: list[Molecule], rate: float | None) -> None:
    """One line of the table."""
    found = {m.name: m for m in evaluate_structures(made, reference)}
    cells = [f"{found[k].value:.1%}" if k in list(COLUMNS)[:6] else f"{found[k].value:.3f}" for k in COLUMNS]
    print(f"| {name} | {' | '.join(cells)} | {'' if rate is None else f'{rate:.1f}'} |", flush=True)


def timed(draw: Callable[[], list[Molecule]], n: int) -> tuple[list[Molecule], float]:
    """What is drawn, and how many a second."""
    began = time.perf_counter()
    made = draw()
    return made, n / (time.perf_counter() - began)


def ways(designer: StructureDesigner, n: int, seed: int, blocks: bool) -> dict[str, Callable[[], list[Molecule]]]:
    """Each way of drawing by name."""
    if not blocks:
        return {f"graph, then {designer.steps} calls, seed {seed}": lambda: list(designer.generate(n, seed))}
    together = lambda **how: lambda: list(designer.generate(n, seed, **how))
    return {
        f"at once, {CALLS} calls": together(steps=CALLS, at_once=True),
        f"structural blocks, {CALLS // 5} calls each": together(steps=CALLS // 5, order=structural),
        "atom by atom, 3 calls each": together(steps=3, order=atom_by_atom),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="molecules3d-qm9")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reference", type=int, default=10_000, help="training molecules to compare with")
    parser.add_argument("--held", type=int, default=2000, help="rows at the head of the permutation, not trained on")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--poses", action="store_true", help="needs the extra molecules")
    args = parser.parse_args()
    designer = unisci.load(args.weights)
    reference = molecules(args.data, slice(args.held, args.held + args.reference))
    print(
        f"n = {args.n}, {torch.get_num_threads()} threads, against {args.reference} training molecules; W1 of lengths"
    )
    print("in angstrom, of angles and torsions in degrees, MMFF strain in kcal/mol, then molecules a second\n")
    print(f"| | {' | '.join(COLUMNS.values())} | a second |\n|{' --- |' * (len(COLUMNS) + 2)}")
    for seed in args.seeds:
        for name, draw in ways(designer, args.n, seed, args.blocks).items():
            made, rate = timed(draw, args.n)
            row(name, made, reference, rate)
            if args.poses and seed == args.seeds[0]:
                from unisci.metrics.pose_checks import pose_checks

                print(f"PoseBusters: {pose_checks(made)}", flush=True)
    row("held-out QM9", held_out(args.data, min(args.n, args.held)), reference, None)


if __name__ == "__main__":
    main()
