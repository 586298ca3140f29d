"""How good new crystals are: python -m benchmarks.new_crystals mp20.npz --weights NAME

Prints unisci.metrics.crystals of n new crystals against the training rows, and the same of as many training rows as a
baseline; then, for the first `relaxed` of them, how many CHGNet relaxes, and how many of these then lie within .1 eV an
atom of the hull of the training and validation rows under the same potential, the rows taken as they are (their
relaxation would lower the hull a little).
"""

import argparse
import time
from pathlib import Path

import numpy as np

import unisci
from benchmarks.crystal_rows import load
from unisci.design.crystal_samples import CrystalSamples
from unisci.design.crystal_scores import Reference as Hull
from unisci.design.potentials import chgnet
from unisci.domains.crystal import Crystal
from unisci.metrics.crystals import Reference, evaluate_generation, markdown
from unisci.metrics.intervals import proportion

STABLE = 0.1  # eV an atom


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/crystal_rows.py")
    parser.add_argument("--weights", default="crystals-mp20")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--relaxed", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, designer = load(args.data), unisci.load(args.weights)
    train = rows["train"]
    began = time.process_time()
    samples = designer.generate(args.n, seed=args.seed)
    print(f"{args.n / (time.process_time() - began):.1f} structures a CPU second", flush=True)
    order = np.random.default_rng(args.seed).permutation(len(train))
    reference = Reference.from_crystals("train", [train[i] for i in order[args.n :]])
    for name, crystals in (("new crystals", list(samples)), ("training rows", [train[i] for i in order[: args.n]])):
        print(f"\n{name}, n = {args.n}\n\n{markdown(evaluate_generation(crystals, reference))}", flush=True)
    if args.relaxed:
        stability(samples[: args.relaxed], train + rows["validation"])


def stability(samples: CrystalSamples, known: list[Crystal]) -> None:
    """Print the shares that relax and that are then near the hull."""
    systems = [set(c.numbers.tolist()) for c in samples]
    near = [c for c in known if any(set(c.numbers.tolist()) <= s for s in systems)]
    potential, began = chgnet(), time.process_time()
    relaxed = samples.relax(potential).score(reference=Hull.of(near, potential, relaxed=True))
    table, n = relaxed.table, len(relaxed)
    above = table["energy_above_reference"]
    print(f"\nCHGNet, the first {n}: {time.process_time() - began:.0f} CPU s, hull of {len(near)} known rows")
    counts = {
        "relaxed": table["converged"].sum(),
        f"within {STABLE} eV an atom of the hull": (above < STABLE).sum(),
        "on the hull or below": (above <= 0).sum(),
        "without a hull (an element has no row of its own)": above.isna().sum(),
    }
    for name, count in counts.items():
        low, high = proportion(int(count), n)
        print(f"{name}: {count / n:.1%} ({low:.1%} to {high:.1%})")
    print(f"median above the hull: {above.median():.3f} eV an atom")


if __name__ == "__main__":
    main()
