"""What the weights of crystals reach on structure prediction: python -m benchmarks.crystals mp20.npz --weights NAME

Prints unisci.metrics.crystals on the first n of a permutation of the validation split, train rows as templates: one
structure for each compound, from the best template, or from the model alone without any; then the same for compounds
whose prototype (counts, space group, Wyckoff letters) no training row has; then k candidates for each of the first m,
as they come and ranked; and structures a CPU second. Nothing is left out: a failure counts as no match.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

import unisci
from benchmarks.crystal_rows import load
from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystal_prediction import Proposal, predict, ranked
from unisci.autoregression.retrieval import Retriever
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.templates import TemplateLibrary
from unisci.domains.wyckoff import Orbits
from unisci.metrics.crystals import Reference, evaluate_prediction, floors, markdown
from unisci.rng import Rng

PART = 64
Predictions = list[list[Crystal]]


def in_parts(count: int, make: Callable[[list[int]], list]) -> list:
    """make of the numbers 0 to count - 1, part by part."""
    out = []
    for first in range(0, count, PART):
        out += make(list(range(first, min(first + PART, count))))
    return out


def prototype(crystal: Crystal) -> tuple | None:
    """Counts, space group and letters of each species, whatever the elements are; None where there is no symmetry."""
    try:
        orbits = Orbits.of(crystal)
    except CrystalError:
        return None
    kinds = [
        (
            int((crystal.numbers == z).sum()),
            "".join(p.letter for p, n in zip(orbits.positions, orbits.numbers, strict=True) if n == z),
        )
        for z in np.unique(crystal.numbers)
    ]
    return orbits.group, *sorted(kinds)


def candidates(
    generator: CrystalGenerator, retriever: Retriever | None, formulas: Sequence[np.ndarray], seed: int, k: int
) -> list[list[Proposal]]:
    """k structures of each; one is the likeliest of several draws where it is no template, of several each is one."""

    def make(rows: list[int]) -> list[list[Proposal]]:
        rng, part = Rng(seed, torch.tensor(rows)), [formulas[i] for i in rows]
        return predict(generator, retriever, part, rng, k) if k == 1 else predict(generator, retriever, part, rng, k, 1)

    return in_parts(len(formulas), make)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/crystal_rows.py")
    parser.add_argument("--weights", default="crystals-mp20")
    parser.add_argument("--n", type=int, default=2000, help="validation compounds")
    parser.add_argument("--m", type=int, default=300, help="compounds with k candidates")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows, generator = load(args.data), unisci.load(args.weights).generator
    train, validation = rows["train"], rows["validation"]
    chosen = np.random.default_rng(0).permutation(len(validation))[: args.n]
    crystals = [validation[i] for i in chosen]
    formulas = [c.numbers for c in crystals]
    retriever = Retriever(TemplateLibrary.from_crystals(train), generator.rankers)
    nearest = partial(first, Retriever(retriever.library))
    baselines = floors(train) | {"nearest_template": nearest}

    ways = {"with templates": retriever, "without templates": None}
    one = {}
    for name, source in ways.items():
        began = time.process_time()
        one[name] = candidates(generator, source, formulas, args.seed, 1)
        print(f"{name}: {len(formulas) / (time.process_time() - began):.1f} structures a CPU second", flush=True)
    known = {prototype(c) for c in train}
    new = [i for i, c in enumerate(crystals) if prototype(c) not in known]
    for rows_name, part in (("all", range(len(crystals))), ("prototypes that no training row has", new)):
        for name, found in one.items():
            report(f"{rows_name}, {name}, k = 1", [crystals[i] for i in part], [found[i] for i in part], baselines)
            baselines = {}
        baselines = {"nearest_template": nearest}
    few = crystals[: args.m]
    for name, source in ways.items():
        found = candidates(generator, source, formulas[: args.m], args.seed, args.k)
        report(f"{args.k} candidates {name}, as they come", few, found, {})
        report(f"{args.k} candidates {name}, ranked", few, [ranked(f) for f in found], {})


def report(title: str, truth: list[Crystal], found: list[list[Proposal]], baselines: dict) -> None:
    """Print the metrics of predictions."""
    metrics = evaluate_prediction(
        [[p.crystal for p in ps] for ps in found], Reference.from_crystals("validation", truth), baselines
    )
    print(f"\n{title}, n = {len(truth)}\n\n{markdown(metrics)}", flush=True)


def first(retriever: Retriever, numbers: np.ndarray) -> Crystal | None:
    """The best template for the atomic numbers, None where there is none."""
    found = retriever.retrieve([numbers], 1)[0]
    return found[0].crystal if found else None


if __name__ == "__main__":
    main()
