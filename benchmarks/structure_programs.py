"""Which solver program places the atoms of molecules3d-qm9: chosen on held-out molecules, judged on others.

python -m benchmarks.structure_programs qm9_3d.safetensors [--n 300] [--out weights.safetensors]

One conformer of each of n held-out graphs, whose DFT geometry is known, all candidates from the same noise. A number at
a time is screened at 20 calls on the first of them: the scheme, the amount of noise eta (0: the ODE, 1: the reverse
SDE), the power of the times, their end, their start. The best few are then judged on all n, and the best of these, at
10 to 30 calls, on n molecules that the search never saw, beside the earlier program (ancestral, power 2). Measures:

local    RMS error of the distances of atoms one and two bonds apart, angstrom, mean over molecules: what is chosen by
stable   share of molecules that EDM's table of lengths finds stable
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

import unisci
from benchmarks.molecules3d import molecules
from unisci.autoregression.structures import StructureModel
from unisci.design.structure_tasks import draw
from unisci.domains.molecule import Molecule
from unisci.domains.molecule_rdkit import parse_class
from unisci.jobs.shipped import find_weights
from unisci.jobs.structure_models import with_programs
from unisci.metrics.intervals import bootstrap_mean, proportion
from unisci.metrics.stability import by_distances
from unisci.rng import Rng
from unisci.solvers.dpm_solver import bh2, multistep
from unisci.solvers.formulas import SCHEMES
from unisci.solvers.program import Program, trace

NAMES = ("ancestral", "heun", "dpm++2m", "unipc2", "edm-heun", "sde-2m", "sde-dpm++2m", "sde-dpm++3m")
SEARCHED = {"eta": (0.5, 2.0, 3.0, 4.0, 6.0), "power": (1.5, 2.5, 3.0), "end": (0.005, 0.02), "start": (0.98, 0.95)}
CALLS = (10, 15, 20)  # of the programs that are written
FIRST = 300  # row of the data's permutation where the molecules of the search begin; the others follow
FINAL = 3  # of the screened, how many are judged on all molecules


class Setting(NamedTuple):
    """A scheme, or, where eta says how much noise, DPM-Solver++(2M) with it; its times, even to a power."""

    scheme: str = "ancestral"
    eta: float | None = None
    power: float = 2.0
    start: float = 1.0
    end: float = 0.0

    def program(self, model: StructureModel, calls: int) -> Program:
        """Of at most so many calls, as a table."""
        scheme = SCHEMES[self.scheme]
        formula = scheme.formula if self.eta is None else partial(multistep, order=2, factor=bh2, eta=self.eta)
        even = torch.linspace(1, 0, max(1, calls // scheme.evaluations) + 1, dtype=torch.float64)
        times = self.end + (self.start - self.end) * even**self.power
        order = scheme.order if self.eta is None else 1
        return trace(str(self), formula, order, model.denoiser.product.processes["position"], times)

    def __str__(self) -> str:
        name = self.scheme if self.eta is None else f"2M, eta {self.eta:g}"
        ends = "" if (self.start, self.end) == (1, 0) else f", {self.start:g} to {self.end:g}"
        return f"{name}, power {self.power:g}{ends}"


OLD = Setting()
CHOSEN = Setting("sde-2m", 6.0)  # what the search has found for the shipped weights


class Quality(NamedTuple):
    """local (n,) angstrom and stable (n,) bool, of each molecule, and the seconds of one conformer."""

    local: np.ndarray
    stable: np.ndarray
    seconds: float

    def text(self) -> str:
        low, high = bootstrap_mean(self.local)
        least, most = proportion(int(self.stable.sum()), len(self.stable))
        return (
            f"{self.local.mean():.4f} ({low:.4f} to {high:.4f}) | {self.stable.mean():.1%} ({least:.1%} to {most:.1%})"
            f" | {1000 * self.seconds:.0f}"
        )


def local_error(made: Molecule, truth: Molecule) -> float:
    """RMS error in angstrom of the distances of atoms one and two bonds apart."""
    bonded = (truth.bonds > 0).astype(int)
    near = np.triu(bonded + bonded @ bonded > 0, 1)
    a, b = (np.linalg.norm(m.positions[0][:, None] - m.positions[0], axis=-1)[near] for m in (made, truth))
    return float(np.sqrt(np.square(a - b).mean()))


def judge(model: StructureModel, truth: Sequence[Molecule], program: Program, seed: int = 0) -> Quality:
    """One conformer of each molecule by the program."""
    fold = lambda batch, own: model.fold(batch, own, solver=program)
    began = time.perf_counter()
    made = draw(model, truth, range(len(truth)), lambda ids: Rng(seed, ids), fold)
    seconds = (time.perf_counter() - began) / len(truth)
    stable = [by_distances([parse_class(a)[0] for a in m.atoms], m.positions[0]).stable.all() for m in made]
    return Quality(np.array([local_error(m, t) for m, t in zip(made, truth, strict=True)]), np.array(stable), seconds)


def search(model: StructureModel, truth: Sequence[Molecule], screen: int) -> Setting:
    """The setting chosen at 20 calls; every candidate is printed."""
    seen: dict[Setting, float] = {}

    def measure(setting: Setting, n: int = screen) -> float:
        quality = judge(model, truth[:n], setting.program(model, 20))
        print(f"| {n} | {setting} | {quality.text()} |", flush=True)
        return float(quality.local.mean())

    # Formulas of two stages divide by the signal, of which there is none at t = 1.
    candidates = [Setting(name, start=0.9 if SCHEMES[name].evaluations > 1 else 1.0) for name in NAMES]
    for name in (None, *SEARCHED):
        if name is not None:
            setting = min(seen, key=seen.get)
            if name == "eta" and not setting.scheme.startswith("sde"):
                continue
            candidates = [setting._replace(**{name: v}) for v in SEARCHED[name]]
        seen |= {c: measure(c) for c in candidates}
    final = sorted(seen, key=seen.get)[:FINAL]
    return min(final, key=lambda setting: measure(setting, len(truth)))


def report(model: StructureModel, truth: Sequence[Molecule], setting: Setting) -> None:
    """The setting beside the earlier program, at 20 calls and at other numbers; differences are of the same
    molecules."""
    against = judge(model, truth, OLD.program(model, 20))
    print(f"| 20 | {OLD} | {against.text()} | |", flush=True)
    for candidate, calls in ((setting, 20), (setting, 10), (setting, 15), (setting, 30), (OLD, 30)):
        quality = judge(model, truth, candidate.program(model, calls))
        more = quality.stable.astype(float) - against.stable
        low, high = bootstrap_mean(more)
        print(
            f"| {calls} | {candidate} | {quality.text()} | {more.mean():+.1%} ({low:+.1%} to {high:+.1%}) |", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--weights", default="molecules3d-qm9")
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument(
        "--screen",
        type=int,
        default=150,
        help="molecules that candidates are screened on; 0: no search, CHOSEN is judged alone",
    )
    parser.add_argument("--out", type=Path, help="a copy of the weights with the chosen programs")
    args = parser.parse_args()
    designer, n = unisci.load(args.weights), args.n
    model, head = designer.structures, "program | local, angstrom | stable | ms a conformer |"
    setting = CHOSEN
    if args.screen:
        print(f"search on held-out molecules, 20 calls, {torch.get_num_threads()} threads\n\n| n | {head}")
        print(f"|{' --- |' * 5}", flush=True)
        setting = search(model, molecules(args.data, slice(FIRST, FIRST + n)), args.screen)
    print(f"\nchosen, on {n} other held-out molecules\n\n| calls | {head} stable, less {OLD} at 20 calls |")
    print(f"|{' --- |' * 6}", flush=True)
    report(model, molecules(args.data, slice(FIRST + n, FIRST + 2 * n)), setting)
    if args.out is not None:
        programs = [setting.program(model, calls) for calls in CALLS]
        with_programs(find_weights(args.weights), args.out, programs)


if __name__ == "__main__":
    main()
