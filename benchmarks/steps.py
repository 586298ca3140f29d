"""Validity and distance to the data by network calls a block and by the power of the time grid, on shipped weights.

    python benchmarks/steps.py [--weights molecules-qm9] [--n 1000] [--seed 5]

Prints the table of docs/molecules.md.
"""

import argparse
import time

import torch

from unisci.domains.molecule import Molecule
from unisci.jobs.models import load
from unisci.jobs.references import chemnet_statistics, reference
from unisci.metrics.molecules import evaluate
from unisci.rng import Rng

GRIDS = ((5, 3.5), (8, 1.0), (8, 3.5), (12, 1.0), (12, 2.0), (12, 3.5), (12, 5.0), (20, 1.0), (20, 3.5))
SHOWN = ("validity", "uniqueness", "novelty", "fcd_torch", "rings_tv", "sa_w1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="molecules-qm9")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=5)
    a = parser.parse_args()
    designer, known = load(a.weights), reference("qm9")
    statistics = chemnet_statistics("qm9", known)
    print(f"| calls a block | power | {' | '.join(SHOWN)} | per CPU s |\n|{'---|' * (len(SHOWN) + 3)}")
    for steps, power in GRIDS:
        began = time.process_time()
        drawn = Molecule.unbatch(designer.model.generate(Rng(a.seed, torch.arange(a.n)), steps, power))
        rate = a.n / (time.process_time() - began)
        found = {
            m.name: m.value for m in evaluate([m.smiles for m in drawn], [m.reason for m in drawn], known, statistics)
        }
        print(f"| {steps} | {power} | {' | '.join(f'{found[k]:.4g}' for k in SHOWN)} | {rate:.0f} |", flush=True)


if __name__ == "__main__":
    main()
