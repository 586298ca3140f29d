"""Molecules in space: how sound, at how many calls, how fast; all at once against blocks; what is kept.

python -m benchmarks.molecules3d qm9_3d.safetensors [--n 1000] [--seeds 0 1 2] [--blocks] [--poses 200] [--xtb 60]
python -m benchmarks.molecules3d qm9_3d.safetensors --kept 100

The data are what datasets/qm9/prepare.py --structures writes. Held-out molecules of the data stand beside as the
baseline. --blocks: instead of the default (the graph in blocks, then positions) all fields together, at once, in the
blocks of the graph's own order and atom by atom, at about equal calls. --poses, --xtb: the checks of PoseBusters, and
the strain by GFN2-xTB (package tblite), of so many molecules of the first seed and as many held-out ones. --kept:
instead, graphs of the shapes of so many held-out molecules, and as many molecules grown from parts of them.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

import unisci
from unisci.design.structure_designer import StructureDesigner
from unisci.design.structure_orders import atom_by_atom, structural
from unisci.domains.molecule import Molecule
from unisci.metrics.intervals import proportion
from unisci.metrics.pose_checks import pose_checks
from unisci.metrics.strain import Strain, fault, strain, strain_metrics
from unisci.metrics.structures import evaluate_structures, mmff_strains
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


def gfn2(molecule: Molecule) -> Strain | str:
    """The strain of a molecule by GFN2-xTB, or why there is none."""
    from tblite.ase import TBLite

    try:
        return strain(molecule, TBLite(method="GFN2-xTB", verbosity=0))
    except (ValueError, RuntimeError) as error:
        return str(error).splitlines()[0]


def strains(name: str, made: list[Molecule]) -> None:
    """Medians and means of both strains, of the same molecules."""
    good = [m for m in made if fault(m) is None]
    for method, found in (("mmff", mmff_strains(good)), ("gfn2", [gfn2(m) for m in good])):
        for m in strain_metrics(method, found):
            print(f"{name}: {m.name} {m.value:.3f} ({m.low:.3f} to {m.high:.3f}), n = {m.n}, {m.failures}", flush=True)


def fragments(truth: list[Molecule]) -> list[Molecule]:
    """Of each molecule all but one heavy atom that has one heavy neighbour, and its hydrogens; whole rings are left
    out."""
    out = []
    for m in truth:
        heavy = np.array([a != "H" for a in m.atoms])
        ends = np.flatnonzero(heavy & ((m.bonds[:, heavy] > 0).sum(1) == 1))
        if len(ends):
            keep = np.arange(len(heavy)) != ends[-1]
            keep &= heavy | (m.bonds[ends[-1]] == 0)
            atoms = tuple(np.array(m.atoms)[keep].tolist())
            out.append(Molecule(atoms, m.bonds[np.ix_(keep, keep)], m.positions[:1, keep]))
    return out


def share(hits: list[bool]) -> str:
    """Of a list, with its interval."""
    low, high = proportion(sum(hits), len(hits))
    return f"{np.mean(hits):.1%} ({low:.1%} to {high:.1%}) of {len(hits)}"


def kept(designer: StructureDesigner, truth: list[Molecule], n: int, draws: int = 4) -> None:
    """What share of drawn graphs of shapes, and of grown fragments, is valid, and whether what was given is in them."""
    made = list(designer.graphs_of([m.positions[0] for m in truth[:n]]))
    pairs = list(zip(made, truth[:n], strict=True))
    print(f"graphs of shapes: valid {share([m.reason is None for m in made])}", flush=True)
    print(f"  the molecule itself {share([m.smiles == t.smiles for m, t in pairs])}")
    print(f"  sites of its element {share([a == b for m, t in pairs for a, b in zip(m.atoms, t.atoms, strict=True)])}")
    print(f"  positions as given {share([np.array_equal(m.positions[0], t.positions[0]) for m, t in pairs])}")
    grown = [(part, m) for part in fragments(truth)[: n // draws] for m in designer.grow(part, draws)]
    print(f"grown from {n // draws} fragments: valid {share([m.reason is None for _, m in grown])}")
    print(f"  the fragment as given {share([holds(m, part) for part, m in grown])}", flush=True)


def holds(molecule: Molecule, part: Molecule) -> bool:
    """Whether its first sites are the part's, bit for bit."""
    k = len(part.atoms)
    same = molecule.atoms[:k] == part.atoms and np.array_equal(molecule.bonds[:k, :k], part.bonds)
    return same and np.array_equal(molecule.positions[0, :k], part.positions[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="molecules3d-qm9")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--reference", type=int, default=10_000, help="training molecules to compare with")
    parser.add_argument("--held", type=int, default=2000, help="rows at the head of the permutation, not trained on")
    parser.add_argument("--blocks", action="store_true")
    parser.add_argument("--poses", type=int, default=0, help="molecules for PoseBusters; needs the extra molecules")
    parser.add_argument("--xtb", type=int, default=0, help="molecules for GFN2-xTB; needs tblite")
    parser.add_argument("--kept", type=int, default=0, help="only graphs of so many shapes, and grown fragments")
    args = parser.parse_args()
    designer = unisci.load(args.weights)
    if args.kept:
        kept(designer, held_out(args.data, 2 * args.kept), args.kept)
        return
    reference = molecules(args.data, slice(args.held, args.held + args.reference))
    print(
        f"n = {args.n}, {torch.get_num_threads()} threads, against {args.reference} training molecules; W1 of lengths"
    )
    print("in angstrom, of angles and torsions in degrees, MMFF strain in kcal/mol, then molecules a second\n")
    print(f"| | {' | '.join(COLUMNS.values())} | a second |\n|{' --- |' * (len(COLUMNS) + 2)}")
    first, truth = None, held_out(args.data, min(max(args.n, args.poses, args.xtb), args.held))
    for seed in args.seeds:
        for name, draw in ways(designer, args.n, seed, args.blocks).items():
            made, rate = timed(draw, args.n)
            row(name, made, reference, rate)
            first = first or (name, made)
    row("held-out QM9", truth[: args.n], reference, None)
    for name, made in (first, ("held-out QM9", truth)):
        if args.poses:
            print(f"{name}: {pose_checks(made[: args.poses])}", flush=True)
        if args.xtb:
            strains(name, made[: args.xtb])


if __name__ == "__main__":
    main()
