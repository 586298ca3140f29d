"""Blocks against one shot at equal training time and network calls: validity by order, noise and edge product.

    python benchmarks/blocks.py --out runs/blocks [--smiles qm9] [--seconds 45] [--calls 70] [--n 300] [--seeds 3]

Each run is a row of <out>/runs.csv; runs that are there already are not repeated. Prints the table of
docs/molecules.md.
"""

import argparse
import csv
import time
from pathlib import Path

import torch

from unisci.autoregression.pard import Pard, examples
from unisci.batch import Batch
from unisci.domains.molecule import Molecule
from unisci.jobs.config import DataConfig, ModelConfig, NetworkConfig
from unisci.jobs.models import build_for
from unisci.jobs.molecules import prepare
from unisci.metrics.intervals import proportion
from unisci.rng import Rng
from unisci.training.data import widen
from unisci.training.fit import FitConfig, fit

BASE = ModelConfig()
VARIANTS = {
    "one shot (hops 0), marginal": BASE.model_copy(update={"hops": 0}),
    "hops 1, marginal": BASE,
    "hops 2, marginal": BASE.model_copy(update={"hops": 2}),
    "hops 3, marginal": BASE.model_copy(update={"hops": 3}),
    "hops 1, absorbing": BASE.model_copy(update={"noise": "absorbing"}),
    "hops 1, uniform": BASE.model_copy(update={"noise": "uniform"}),
    "hops 1, marginal, no edge product": BASE.model_copy(update={"denoiser": NetworkConfig(product=0)}),
    "hops 1, marginal, causal sight": BASE.model_copy(update={"causal": True}),
}
COLUMNS = ("variant", "seed", "train_steps", "train_cpu_s", "calls", "n", "valid", "unique", "per_cpu_s")


def training_steps(config: ModelConfig, data: Batch, seconds: float) -> int:
    """How many training steps of this model fit into `seconds` of CPU time, from 40 timed ones."""
    model = build_for(config, data)
    fit(model, data, FitConfig(5), None, examples, progress=False)
    began = time.process_time()
    fit(model, data, FitConfig(40), None, examples, progress=False)
    return max(1, round(40 * seconds / (time.process_time() - began)))


def mean_blocks(data: Batch) -> float:
    """Mean number of blocks of the training graphs."""
    return float((data.given["rank"].amax(1) + 1).float().mean())


def run(config: ModelConfig, data: Batch, seed: int, seconds: float, calls: int, n: int) -> dict:
    """Train for `seconds`, draw n molecules with about `calls` network calls each."""
    steps = training_steps(config, data, seconds)
    torch.manual_seed(seed)
    began = time.process_time()
    model = fit(build_for(config, data), data, FitConfig(steps, ema=0.998, seed=seed), None, examples, progress=False)
    trained = time.process_time() - began
    per_block = max(1, round(calls / mean_blocks(data)))
    assert isinstance(model, Pard)
    began = time.process_time()
    drawn = Molecule.unbatch(model.generate(Rng(seed, torch.arange(n)), per_block))
    took = time.process_time() - began
    smiles = [m.smiles for m in drawn if m.smiles]
    return {
        "train_steps": steps,
        "train_cpu_s": round(trained, 1),
        "calls": round(per_block * mean_blocks(data), 1),
        "n": n,
        "valid": len(smiles),
        "unique": len(set(smiles)),
        "per_cpu_s": round(n / took, 1),
    }


def table(rows: list[dict]) -> str:
    """Markdown: each variant's validity over its seeds, with the 95 % interval of the pooled share."""
    lines = [
        "| variant | training steps | calls | valid % by seed | valid % (95 % interval) | unique % | per CPU s |",
        "|" + "---|" * 7,
    ]
    for name in VARIANTS:
        mine = [r for r in rows if r["variant"] == name]
        if not mine:
            continue
        total = lambda key: sum(float(r[key]) for r in mine)  # noqa: B023
        valid, n = int(total("valid")), int(total("n"))
        low, high = proportion(valid, n)
        seeds = ", ".join(f"{100 * float(r['valid']) / float(r['n']):.1f}" for r in mine)
        lines.append(
            f"| {name} | {total('train_steps') / len(mine):.0f} | {total('calls') / len(mine):.0f} | {seeds} "
            f"| {100 * valid / n:.1f} ({100 * low:.1f}-{100 * high:.1f}) | {100 * total('unique') / valid:.1f} "
            f"| {total('per_cpu_s') / len(mine):.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smiles", default="qm9")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=45)
    parser.add_argument("--calls", type=int, default=70)
    parser.add_argument("--n", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    a = parser.parse_args()
    torch.set_num_threads(1)
    a.out.mkdir(parents=True, exist_ok=True)
    path = a.out / "runs.csv"
    rows = list(csv.DictReader(path.open())) if path.exists() else []
    for seed in range(a.seeds):
        for name, config in VARIANTS.items():
            if any(r["variant"] == name and r["seed"] == str(seed) for r in rows):
                continue
            data = widen(prepare(DataConfig(smiles=a.smiles), config.hops, a.out / f"hops{config.hops}").train)
            rows.append({"variant": name, "seed": str(seed)} | run(config, data, seed, a.seconds, a.calls, a.n))
            print(rows[-1], flush=True)
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS)
                writer.writeheader()
                writer.writerows(rows)
    print(table(rows))


if __name__ == "__main__":
    main()
