"""Can the models of crystals learn one by heart? python -m benchmarks.carbon_x carbon24_unique.npz

480 copies of one carbon crystal, each shifted at random, are all the training data. Prints the share of drawn crystals
that match it (StructureMatcher .3 / .5 / 10), for the model of orbits and for the flow of sites, and beside them random
coordinates in the right cell. A model that does not know that positions are periodic cannot pass.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from benchmarks.crystal_rows import load
from unisci.autoregression.crystals import CrystalModel
from unisci.autoregression.orbits import OrbitModel
from unisci.domains.crystal import Crystal
from unisci.domains.elements import element_features
from unisci.domains.orbit_batches import WyckoffTable, batch_of, formula_rows, orbits_of
from unisci.domains.wyckoff import Orbits
from unisci.jobs.crystal_models import build_refiner
from unisci.metrics.structure_match import match
from unisci.networks.atom_transformer import AtomTransformerConfig
from unisci.networks.orbit_transformer import OrbitTransformerConfig
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

COPIES = 480


def of_orbits(copies: list[Crystal], steps: int, n: int) -> list[Crystal | None]:
    """n crystals of the formula from a model of orbits."""
    orbits = [Orbits.of(c) for c in copies]
    table = WyckoffTable.of(orbits)
    torch.manual_seed(0)
    features, volumes = torch.from_numpy(element_features()), torch.full((101,), 16.0)
    model = OrbitModel(OrbitTransformerConfig(64, 2, 4), table, features, volumes)
    model = fit(model, batch_of(orbits, table), FitConfig(steps, 64, ema=0.98, checkpoint_every=0), progress=False)
    species, counts = (torch.from_numpy(x).expand(n, -1) for x in formula_rows(copies[0].numbers))
    rng = Rng(1, torch.arange(n))
    words = model.eval().draw_words(species, counts, rng.at(0))
    return [o.crystal for o in orbits_of(model.draw_geometry(words, species, counts, rng.at(1), 20), table)]


def of_sites(copies: list[Crystal], steps: int, n: int) -> list[Crystal | None]:
    """n crystals of the atoms from the flow of sites."""
    torch.manual_seed(0)
    sizes = torch.bincount(torch.tensor([len(c) for c in copies]))
    config = AtomTransformerConfig(width=64, layers=3, edge=32, templates=False)
    model, data = build_refiner(config, sizes, 1.0, torch.full((101,), 16.0)), Crystal.batch(copies)
    model = fit(model, data, FitConfig(steps, 64, ema=0.99, checkpoint_every=0), progress=False).eval()
    assert isinstance(model, CrystalModel)
    return Crystal.unbatch(model.predict(data[slice(0, n)], Rng(1, torch.arange(n)), steps=20))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/crystal_rows.py")
    parser.add_argument("--row", type=int, default=0, help="of the training rows of at most --sites sites")
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--n", type=int, default=100, help="crystals drawn")
    parser.add_argument("--steps", type=int, nargs=2, default=(400, 3000), help="training steps of the two models")
    args = parser.parse_args()
    one = [c for c in load(args.data)["train"] if len(c) <= args.sites][args.row].reduced()
    shifts = np.random.default_rng(0).random((COPIES, 1, 3))
    copies = [Crystal(one.numbers, one.fractional + s - np.floor(one.fractional + s), one.lattice) for s in shifts]
    random = [Crystal(one.numbers, x, one.lattice) for x in np.random.default_rng(1).random((args.n, len(one), 3))]
    print(f"{one!r}, {args.n} drawn, {COPIES} copies to train on")
    report("random coordinates", lambda: random, one)
    report("orbits", lambda: of_orbits(copies, args.steps[0], args.n), one)
    report("sites", lambda: of_sites(copies, args.steps[1], args.n), one)


def report(name: str, draw: Callable[[], Sequence[Crystal | None]], one: Crystal) -> None:
    """One line: how many of the crystals match, each against the one; time-outs count as misses."""
    began = time.process_time()
    found = draw()
    seconds = time.process_time() - began
    # Pairs alone: all are of one formula, and METRe would compare everyone with everyone.
    rms = match(found, [one] * len(found)).primitive.rms
    hit = ~np.isnan(rms)
    error = f"{rms[hit].mean():.4f}" if hit.any() else "none"
    print(f"{name}: match {hit.mean():.1%} of {len(found)}, RMSE {error}, {seconds:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
