"""UniGenX on QM9 in space for some CPU minutes: python -m benchmarks.unigenx_molecules qm9_3d.safetensors

Trains on the file that datasets/qm9/prepare.py --structures writes, then draws n molecules from nothing, and prints
validity, uniqueness and stability by both rules (invalid ones count as unstable), and n conformers of molecules that
were held out, of which it prints the median error of the bond lengths and the stability by distances.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from unisci.autoregression.molecule_sequences import Layout, words_of, write
from unisci.autoregression.unigenx import UniGenXConfig
from unisci.autoregression.unigenx_generator import conformers, generate
from unisci.autoregression.unigenx_molecules import MoleculeUniGenX
from unisci.batch import Batch
from unisci.domains.molecule import Molecule
from unisci.domains.smiles_words import spell
from unisci.metrics.stability import stability_by_bonds, stability_by_distances
from unisci.networks.sequence_transformer import SequenceTransformerConfig
from unisci.rng import Rng
from unisci.training.data import load_batch, widen
from unisci.training.fit import FitConfig, fit

SIZES = UniGenXConfig(SequenceTransformerConfig(width=64, layers=4, heads=4), head_width=96, head_depth=2)


def load(path: Path, rows: int) -> list[Molecule]:
    """So many molecules, drawn evenly."""
    batch = load_batch(path)
    return Molecule.unbatch(widen(batch[torch.from_numpy(np.random.default_rng(0).permutation(len(batch))[:rows])]))


def trained(data: Batch, layout: Layout, minutes: float, lr: float, size: int) -> MoleculeUniGenX:
    """A model trained for so many CPU minutes; the number of steps is from 40 timed ones."""
    torch.manual_seed(0)
    model, dry = MoleculeUniGenX(SIZES, layout), MoleculeUniGenX(SIZES, layout)
    config = lambda steps: FitConfig(steps, size, lr=lr, ema=0.995, warmup=50, checkpoint_every=0)
    fit(dry, data, config(5), progress=False)
    began = time.process_time()
    fit(dry, data, config(40), progress=False)
    steps = max(1, round(40 * 60 * minutes / (time.process_time() - began)))
    began = time.process_time()
    model = fit(model, data, config(steps), progress=False).eval()
    took, weights = (time.process_time() - began) / 60, sum(p.numel() for p in model.parameters())
    print(f"{weights} parameters, {steps} steps of {size} molecules, {took:.1f} CPU minutes", flush=True)
    return model


def length_errors(found: Molecule, truth: Molecule) -> np.ndarray:
    """Of each bond, in angstrom."""
    i, j = np.nonzero(np.triu(truth.bonds))
    lengths = [np.linalg.norm(m.positions[0, i] - m.positions[0, j], axis=1) for m in (found, truth)]
    return np.abs(lengths[0] - lengths[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--minutes", type=float, default=8.0, help="of CPU, to train")
    parser.add_argument("--rows", type=int, default=20_000, help="molecules, of which n are held out")
    parser.add_argument("--n", type=int, default=500)
    parser.add_argument("--steps", type=int, default=20, help="solver steps for each vector")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--absolute", action="store_true", help="positions from the first atom, turned at random")
    args = parser.parse_args()
    molecules = load(args.data, args.rows)
    spellings, n = [spell(m) for m in molecules], args.n
    layout = Layout(words_of(spellings), offsets=not args.absolute, framed=not args.absolute)
    model = trained(write(spellings[n:], layout), layout, args.minutes, args.lr, args.batch)

    began = time.process_time()
    rows = generate(model, Rng(0, torch.arange(n)), limit=48, steps=args.steps)
    print(f"{n / (time.process_time() - began):.0f} molecules a CPU second", flush=True)
    valid = [r.molecule for r in rows if r.molecule is not None]
    known = {m.smiles for m in molecules[n:]}
    distinct = {m.smiles for m in valid}
    print(f"validity {len(valid) / n:.3f} of {n}; {len(distinct)} distinct, {len(distinct - known)} not in training")
    for metric in (*stability_by_bonds(valid), *stability_by_distances(valid)):
        print(f"{metric.name} {metric.value:.3f} of the valid, {metric.value * len(valid) / n:.3f} of all")

    truth = molecules[:n]
    found = conformers(model, [m.with_positions(None) for m in truth], Rng(1, torch.arange(n)), steps=args.steps)
    errors = np.concatenate([length_errors(a, b) for a, b in zip(found, truth, strict=True)])
    share = ", ".join(f"{(errors < e).mean():.3f} below {e} A" for e in (0.05, 0.1))
    print(f"bond lengths of {n} held-out molecules: median error {np.median(errors):.4f} A, {share}")
    for metric in stability_by_distances(found):
        print(f"{metric.name} {metric.value:.3f} ({metric.low:.3f} to {metric.high:.3f})")


if __name__ == "__main__":
    main()
