"""Steering of the shipped molecule model: how many samples meet what is wanted, and at what cost.

    python -m benchmarks.steering [-n 500] [--seeds 0 1 2]

Beside each number of particles stand no steering, and rejection at the same cost: of as many molecules as the steered
run drew for a sample, the share of times that at least one meets the wants. Cost is counted in particles, each of
which takes the generator's calls; the calls of the model of properties, a seventh of its parameters, come on top, as
the seconds show.
"""

import argparse
import time

import torch

import unisci
from unisci.design.atoms import Keep
from unisci.design.designer import Designer
from unisci.design.samples import Samples
from unisci.design.targets import Above, Below, Between
from unisci.design.wants import Wants, wants
from unisci.metrics.intervals import proportion

WANTED = Between("logp", 1, 2) & Above("qed", 0.55)
CHOICES = ((1, 1.0), (4, 0.0), (4, 1.0))  # particles, push
SCAFFOLDS = ("c1ccccc1", "C1CCNC1", "c1ccoc1", "C1CC1")


def row(title: str, samples: Samples, where: Wants, seconds: float) -> str:
    """Shares of all samples that meet the wants and that are valid, and of valid ones that are distinct."""
    met = samples.meets(where)
    n, hits, valid = len(met), int(met.table["meets"].sum()), int(met.table["valid"].sum())
    low, high = proportion(hits, n)
    distinct = len(met.dedupe()) / max(1, valid)
    return (
        f"{title:34s} met {hits / n:6.1%} ({low:.1%} to {high:.1%})  valid {valid / n:6.1%}  "
        f"distinct {distinct:6.1%}  {1000 * seconds / n:6.0f} ms a sample"
    )


def drawn(designer: Designer, n: int, seeds: list[int], **options) -> tuple[Samples, float]:
    began = time.perf_counter()
    samples = Samples.join([designer.generate(n, seed=seed, **options) for seed in seeds])
    return samples, time.perf_counter() - began


def steering(designer: Designer, n: int, seeds: list[int]) -> None:
    plain, seconds = drawn(designer, 4 * n, seeds)
    print(f"{WANTED}: n = {n} x seeds {seeds}, {designer.steps} calls a block and particle")
    print(row("no steering", plain, WANTED, seconds), flush=True)
    p = float(plain.meets(WANTED).table["meets"].mean())
    for particles, push in CHOICES:
        samples, seconds = drawn(designer, n, seeds, where=WANTED, particles=particles, push=push)
        print(row(f"particles {particles}, push {push:g}", samples, WANTED, seconds))
        print(f"{'':34s} rejection at the same calls {1 - (1 - p) ** particles:6.1%}", flush=True)


def others(designer: Designer, n: int) -> None:
    """A function of one's own, a descriptor that no model knows, and scaffolds."""

    def rings(molecules: list) -> list[int]:
        return [m.rdkit.GetRingInfo().NumRings() for m in molecules]

    for where, particles in ((Between("tpsa", 60, 90), 8), (Below(rings, 0), 8)):
        plain, seconds = drawn(designer, n, [0])
        print(f"{wants(where)}: a property without a model")
        print(row("no steering", plain, wants(where), seconds))
        samples, seconds = drawn(designer, n, [0], where=where, particles=particles)
        print(row(f"particles {particles}", samples, wants(where), seconds), flush=True)
    for scaffold in SCAFFOLDS:
        samples, seconds = drawn(designer, n, [0], where=Keep(scaffold), particles=1)
        valid = samples.valid().meets(Keep(scaffold))
        kept = int(valid.table["meets"].sum())
        print(
            f"{f'keep {scaffold}':34s} {kept} of {len(valid)} valid contain it; valid {len(valid) / len(samples):.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=500)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    a = parser.parse_args()
    designer = unisci.load("molecules-qm9")
    print(f"CPU, {torch.get_num_threads()} thread(s)")
    steering(designer, a.n, a.seeds)
    others(designer, min(a.n, 100))


if __name__ == "__main__":
    main()
