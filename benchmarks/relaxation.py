"""Relaxing many candidates with CHGNet: python -m benchmarks.relaxation [--n 100] [--loop 15] [--threads 1]

The batch of unisci.design.relaxation beside a loop of ASE relaxations (CHGNetCalculator, FrechetCellFilter; FIRE as it
comes, which is what CHGNet's StructOptimizer runs, and LBFGS as it comes), from the same starts down to the same fmax.
The candidates are prototypes of 12 sites with a random strain and random displacements. Prints seconds and force calls
a crystal, and how far the energies of the loop's minima are from the batch's. CPU seconds count where others use the
machine too. The loop is slow: it takes the first `--loop` candidates, one of each prototype before any twice.
"""

import argparse
import contextlib
import io
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np
import torch
from ase.build import bulk
from ase.filters import FrechetCellFilter
from ase.optimize import FIRE, LBFGS
from ase.spacegroup import crystal
from chgnet.model.dynamics import CHGNetCalculator
from chgnet.model.model import CHGNet

from unisci.design.potentials import chgnet
from unisci.design.relaxation import relax
from unisci.domains.crystal import Crystal

STRAIN, DISPLACEMENT = 0.04, 0.15  # standard deviations of each component of the strain, and of each site (A)
Row = tuple[str, int, float, float, float, int, np.ndarray]  # of the table, the energies last


def prototypes() -> dict[str, Crystal]:
    """Twelve sites each, at about their experimental lattice constants."""
    cubic, hexagonal = lambda a: [a, a, a, 90, 90, 90], lambda a, c: [a, a, c, 90, 90, 120]
    tetragonal = lambda a, c: [a, a, c, 90, 90, 90]
    delafossite = lambda one, two, a, c, z: crystal(
        [one, two, "O"], [(0, 0, 0), (0, 0, 0.5), (0, 0, z)], spacegroup=166, cellpar=hexagonal(a, c)
    )
    rutile = lambda metal, a, c: crystal(
        [metal, "O"], [(0, 0, 0), (0.305, 0.305, 0)], spacegroup=136, cellpar=tetragonal(a, c)
    ).repeat((1, 1, 2))
    fluorite = lambda one, two, a: crystal(
        [one, two], [(0, 0, 0), (0.25, 0.25, 0.25)], spacegroup=225, cellpar=cubic(a)
    )
    heusler, laves = [(0, 0, 0), (0.25, 0.25, 0.25), (0.5, 0.5, 0.5)], [(1 / 3, 2 / 3, 0.062), (0, 0, 0)]
    atoms = {
        "MgO": bulk("MgO", "rocksalt", a=4.21).repeat((1, 2, 3)),
        "NaCl": bulk("NaCl", "rocksalt", a=5.64).repeat((1, 2, 3)),
        "TiN": bulk("TiN", "rocksalt", a=4.24).repeat((1, 2, 3)),
        "CsCl": bulk("CsCl", "cesiumchloride", a=4.12).repeat((1, 2, 3)),
        "GaAs": bulk("GaAs", "zincblende", a=5.65).repeat((1, 2, 3)),
        "ZnO": bulk("ZnO", "wurtzite", a=3.25, c=5.2).repeat((3, 1, 1)),
        "GaN": bulk("GaN", "wurtzite", a=3.19, c=5.19).repeat((1, 3, 1)),
        "SrF2": fluorite("Sr", "F", 5.8),
        "Li2O": fluorite("O", "Li", 4.6),
        "TiO2": rutile("Ti", 4.59, 2.96),
        "SnO2": rutile("Sn", 4.74, 3.19),
        "LiCoO2": delafossite("Co", "Li", 2.82, 14.05, 0.24),
        "CuAlO2": delafossite("Cu", "Al", 2.86, 16.95, 0.11),
        "TiNiSn": crystal(["Ti", "Ni", "Sn"], heusler, spacegroup=216, cellpar=cubic(5.94)),
        "MgZn2": crystal(
            ["Mg", "Zn", "Zn"], [*laves, (0.83, 0.66, 0.25)], spacegroup=194, cellpar=hexagonal(5.22, 8.56)
        ),
    }
    return {name: Crystal.from_ase(a) for name, a in atoms.items()}


def candidates(n: int, seed: int = 0, strain: float = STRAIN, displacement: float = DISPLACEMENT) -> list[Crystal]:
    """n crystals, the prototypes in turn, each with a strain and displacements of its own."""
    rng, known = np.random.default_rng(seed), list(prototypes().values())
    out = []
    for i in range(n):
        base = known[i % len(known)]
        stretch = rng.normal(0, strain, (3, 3))
        lattice = base.lattice @ (np.eye(3) + (stretch + stretch.T) / 2)
        shift = rng.normal(0, displacement, (len(base), 3)) @ np.linalg.inv(lattice)
        out.append(Crystal(base.numbers, base.fractional + shift, lattice))
    return out


def timed(work: Callable[[], object]) -> tuple[object, float, float]:
    """What it returns, wall seconds and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def batched(crystals: Sequence[Crystal], model: CHGNet, fmax: float, batch_size: int) -> Row:
    found, wall, cpu = timed(lambda: relax(crystals, chgnet(model, batch_size), fmax))
    n = len(crystals)
    energies, calls = np.array([r.energy_per_atom for r in found]), sum(r.steps for r in found)
    name = f"unisci, L-BFGS, {batch_size} in a pass"
    return name, n, wall / n, cpu / n, calls / n, sum(r.converged for r in found), energies


def loop(name: str, optimiser: type, crystals: Sequence[Crystal], model: CHGNet, fmax: float) -> Row:
    with contextlib.redirect_stdout(io.StringIO()):
        calculator = CHGNetCalculator(model, use_device=str(next(model.parameters()).device))
    energies, calls, converged = [], 0, 0

    def work() -> None:
        nonlocal calls, converged
        for c in crystals:
            atoms = c.atoms
            atoms.calc = calculator
            steps = optimiser(FrechetCellFilter(atoms), logfile=None)
            converged += steps.run(fmax=fmax, steps=300)
            calls += steps.nsteps + 1
            energies.append(atoms.get_potential_energy() / len(atoms))

    _, wall, cpu = timed(work)
    n = len(crystals)
    return f"ASE loop, {name}", n, wall / n, cpu / n, calls / n, converged, np.array(energies)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100, help="candidates of the batch")
    parser.add_argument("--loop", type=int, default=15, help="of these, how many the loops take")
    parser.add_argument("--fmax", type=float, default=0.05, help="eV/A")
    parser.add_argument("--batch", type=int, default=8, help="structures in a pass")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(io.StringIO()):
        model = CHGNet.load(use_device=args.device, verbose=False)
    crystals = candidates(args.n)
    few = crystals[: args.loop]
    relax(few[:1], chgnet(model), 1.0, 2)  # imports and first-time work
    rows = [batched(crystals, model, args.fmax, args.batch)]
    rows += [loop(name, o, few, model, args.fmax) for name, o in (("FIRE", FIRE), ("LBFGS", LBFGS))]
    print(f"CHGNet 0.3.0 on {args.device}, {args.threads} thread(s), fmax {args.fmax} eV/A, candidates of 12 sites")
    print("| | n | wall s | CPU s | force calls | ms a call | converged | energy - batch, meV an atom: median, span |")
    print("|---|---|---|---|---|---|---|---|")
    for name, n, wall, cpu, calls, converged, energies in rows:
        off = 1000 * (energies - rows[0][-1][:n])
        print(
            f"| {name} | {n} | {wall:.2f} | {cpu:.2f} | {calls:.1f} | {1000 * cpu / calls:.0f} | {converged} of {n} "
            f"| {np.median(off):.3f}, {off.min():.2f} to {off.max():.2f} |"
        )
    for name, _, wall, cpu, *_ in rows[1:]:
        print(
            f"{name}: {wall / rows[0][2]:.1f} times the wall seconds a crystal, {cpu / rows[0][3]:.1f} times the CPU's"
        )


if __name__ == "__main__":
    main()
