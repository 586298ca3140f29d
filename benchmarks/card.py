"""Measure trained weights and ship them, their numbers in the header of the weights file and in a card beside it.

    python benchmarks/card.py runs/molecules-qm9/model.safetensors --name molecules-qm9 \
        --config configs/molecules_qm9.yaml

Draws n molecules for each of several seeds at the weights' own number of steps and at others, compares with the
reference, and puts the held-out rows of the training set through the same metrics as the baseline: what perfect
samples would score.
"""

import argparse
import time
from pathlib import Path

import torch

from unisci.jobs.models import load, with_card
from unisci.jobs.references import chemnet_statistics, read_smiles, reference
from unisci.metrics.intervals import proportion
from unisci.metrics.metric import Metric
from unisci.metrics.molecules import evaluate

SHOWN = (
    "validity",
    "uniqueness",
    "novelty",
    "fcd_torch",
    "qed_w1",
    "logp_w1",
    "sa_w1",
    "atoms_tv",
    "bonds_tv",
    "rings_tv",
)


def measure(path: str, steps: int, n: int, seeds: int, against: str) -> tuple[list[list[Metric]], float]:
    """Metrics of each seed's n samples, and molecules a second over all of them."""
    designer, known = load(path), reference(against)
    statistics = chemnet_statistics(against, known)
    found, seconds = [], 0.0
    for seed in range(seeds):
        began = time.perf_counter()
        samples = designer.generate(n, seed, steps)
        seconds += time.perf_counter() - began
        found.append(evaluate(samples.smiles, list(samples.table["reason"]), known, statistics))
    return found, seeds * n / seconds


def baseline(against: str, n: int, hold_out: int) -> list[Metric]:
    """The same metrics of n held-out rows, spread evenly; their novelty says only that the reference has them."""
    known = reference(against)
    held = [s for _, s in read_smiles(against)][::hold_out]
    spread = [held[i * len(held) // n] for i in range(n)] if n < len(held) else held
    return evaluate(spread, None, known, chemnet_statistics(against, known))


def row(name: str, runs: list[list[Metric]]) -> str:
    """A line of the card: the mean over seeds, and their range in brackets."""
    cells = []
    for metric in SHOWN:
        values = [next(m.value for m in run if m.name == metric) for run in runs]
        mean = sum(values) / len(values)
        spread = f" ({min(values):.4g}-{max(values):.4g})" if len(values) > 1 else ""
        cells.append(f"{mean:.4g}{spread}")
    return f"| {name} | " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--reference", default="qm9")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--other-steps", type=int, nargs="*", default=[8, 20])
    parser.add_argument("--hold-out", type=int, default=25)
    parser.add_argument("--note", help="a line for the card: what the numbers above do not say")
    parser.add_argument("--folder", type=Path, default=Path("unisci/weights"))
    a = parser.parse_args()
    designer = load(str(a.model))
    runs, rate = measure(str(a.model), designer.steps, a.n, a.seeds, a.reference)
    valid = round(sum(next(m.value for m in r if m.name == "validity") for r in runs) * a.n)
    low, high = proportion(valid, a.n * a.seeds)
    rows = [row(f"{designer.steps} calls a block, {a.seeds} seeds", runs)]
    for steps in a.other_steps:
        others, other_rate = measure(str(a.model), steps, a.n, 1, a.reference)
        rows.append(row(f"{steps} calls a block, seed 0, {other_rate:.0f} molecules/s", others))
    rows.append(row("held-out molecules of QM9 (baseline)", [baseline(a.reference, a.n, a.hold_out)]))
    share, threads = 100 * valid / (a.n * a.seeds), torch.get_num_threads()
    card = designer.card | {
        "summary": f"QM9 heavy-atom graphs, {share:.1f} % valid at {designer.steps} calls a block",
        "measured": {
            "validity": valid / (a.n * a.seeds),
            "n": a.n,
            "seeds": a.seeds,
            "steps": designer.steps,
            "molecules_per_second": round(rate, 1),
            "threads": torch.get_num_threads(),
        },
    }
    a.folder.mkdir(parents=True, exist_ok=True)
    target = a.folder / f"{a.name}.safetensors"
    with_card(a.model, target, card)
    training, data, model = card["training"], card["data"], designer.model
    statistics = chemnet_statistics(a.reference, reference(a.reference))
    facts = {
        "trained by": f"`unisci train {a.config}`: {training['steps']} steps of {training['batch_size']} examples, "
        f"on a {card['device'].upper()}",
        "data": f"{data['source']}: {data['train']} rows to train, every {a.hold_out}th row held out "
        f"({data['validation']}); see datasets/qm9/card.md",
        "parameters": f"{card['parameters']}; in half precision {target.stat().st_size / 2**20:.1f} MB",
        "network calls": f"{designer.steps} a block by default; a molecule of QM9 has 3.5 blocks on average",
        "speed": f"{rate:.1f} molecules a second at the default calls, threads: {threads}",
        "validity": f"{share:.2f} % without correction (95 % interval {100 * low:.2f} to {100 * high:.2f}, "
        f"n = {a.n * a.seeds})",
    }
    facts |= {"note": a.note} if a.note else {}
    text = f"""# {a.name}

Pard (arXiv 2402.03687) on the heavy-atom graphs of QM9: Kekulé bonds, formal charges, no stereochemistry, at most
{model.room} atoms of the classes {", ".join(model.denoiser.product.schema["atom"].classes)}.

| | |
| --- | --- |
{chr(10).join(f"| {key} | {value} |" for key, value in facts.items())}

Printed by `python benchmarks/card.py {a.model} --name {a.name} --config {a.config}`; n = {a.n} a seed, reference
{a.reference} (novelty: against all its rows; ChemNet: {statistics.n} of them, package fcd_torch). Mean over seeds,
range in brackets.

| samples | {" | ".join(SHOWN)} |
|---|{"---|" * len(SHOWN)}
{chr(10).join(rows)}
"""
    (a.folder / f"{a.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
