"""UniGenX beside the joint model on structure prediction at equal training time: python -m benchmarks.unigenx x.npz

Trains each on the train split for as many CPU minutes, predicts the first n of a permutation of the validation split,
and prints match rate, RMSE and cRMSE (unisci.metrics.crystals) beside random coordinates and the chemically nearest
template of the training crystals. `--models` picks a few of MODELS.
"""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.crystal_rows import load
from benchmarks.retrieval import first
from unisci.autoregression.crystals import CrystalModel, crystal_product
from unisci.autoregression.retrieval import Retriever
from unisci.autoregression.unigenx import UniGenXConfig
from unisci.autoregression.unigenx_crystals import CrystalUniGenX, Layout
from unisci.batch import Batch
from unisci.denoiser import Denoiser
from unisci.domains.crystal import CRYSTAL_FIELDS, ELEMENTS, Crystal
from unisci.domains.templates import TemplateLibrary
from unisci.metrics.crystals import Metric, Reference, evaluate_prediction, floors
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.networks.sequence_transformer import SequenceTransformerConfig
from unisci.processes.torus import UNIFORM_DEVIATION
from unisci.rng import Rng
from unisci.training.fit import FitConfig, fit

Predict = Callable[[nn.Module, Batch, Rng, int], Batch]
SIZES = UniGenXConfig(SequenceTransformerConfig(width=64, layers=4, heads=4), head_width=96, head_depth=2)


def sequence(layout: Layout) -> Callable[[Batch], nn.Module]:
    return lambda data: CrystalUniGenX(SIZES, layout)


def joint(data: Batch) -> nn.Module:
    network = AtomTransformer(AtomTransformerConfig())
    denoiser = Denoiser(network, crystal_product(CRYSTAL_FIELDS, len(ELEMENTS)), {"position": UNIFORM_DEVIATION})
    return CrystalModel(denoiser, torch.bincount(data.sites))


def predict_sequence(model: CrystalUniGenX, batch: Batch, rng: Rng, steps: int) -> Batch:
    numbers = [(a[m] + 1).numpy() for a, m in zip(batch.state["atom"], batch.mask, strict=True)]
    return model.predict(numbers, rng, steps)


def predict_joint(model: CrystalModel, batch: Batch, rng: Rng, steps: int) -> Batch:
    return model.predict(batch, rng, steps)


MODELS: dict[str, tuple[Callable[[Batch], nn.Module], Predict]] = {
    "unigenx, periodic": (sequence(Layout()), predict_sequence),
    "unigenx, plain": (sequence(Layout(periodic=False)), predict_sequence),
    "unigenx, periodic, shuffled": (sequence(Layout(shuffle=True)), predict_sequence),
    "unigenx, plain, translated": (sequence(Layout(periodic=False, translate=True)), predict_sequence),
    "joint": (joint, predict_joint),
}


def trained(build: Callable[[Batch], nn.Module], data: Batch, minutes: float, lr: float) -> nn.Module:
    """A model trained for so many CPU minutes; the number of steps is from 40 timed ones."""
    torch.manual_seed(0)
    model = build(data)
    fit(build(data), data, FitConfig(5, checkpoint_every=0), progress=False)
    began = time.process_time()
    fit(build(data), data, FitConfig(40, checkpoint_every=0), progress=False)
    steps = max(1, round(40 * 60 * minutes / (time.process_time() - began)))
    began = time.process_time()
    model = fit(model, data, FitConfig(steps, lr=lr, ema=0.998, checkpoint_every=0), progress=False).eval()
    took = (time.process_time() - began) / 60
    size = sum(p.numel() for p in model.parameters())
    print(f"{size} parameters, {steps} steps of 64 crystals, {took:.1f} CPU minutes", flush=True)
    return model


def predictions(predict: Predict, model: nn.Module, batch: Batch, steps: int) -> list[list[Crystal | None]]:
    """One crystal for each of the batch; None where what comes out is none."""
    began = time.process_time()
    out = predict(model, batch, Rng(0, batch.ids), steps)
    print(f"{len(batch) / (time.process_time() - began):.0f} predictions a CPU second", flush=True)
    return [[_crystal(out[torch.tensor([i])])] for i in range(len(out))]


def _crystal(batch: Batch) -> Crystal | None:
    try:
        return Crystal.unbatch(batch)[0]
    except ValueError:
        return None


def row(name: str, metrics: dict[str, Metric], prefix: str = "") -> str:
    found = [metrics[prefix + k] for k in ("match_rate", "rmse", "crmse")]
    return f"| {name} | " + " | ".join(f"{m.value:.3f} ({m.low:.3f} to {m.high:.3f})" for m in found) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="see benchmarks/crystal_rows.py")
    parser.add_argument("--minutes", type=float, default=8.0, help="of CPU, to train each")
    parser.add_argument("--n", type=int, default=500, help="validation compounds")
    parser.add_argument("--steps", type=int, default=20, help="solver steps, for each vector or for the whole")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=["unigenx, periodic", "unigenx, plain", "joint"])
    args = parser.parse_args()
    rows = load(args.data)
    train, validation = rows["train"], rows["validation"]
    chosen = [validation[i] for i in np.random.default_rng(0).permutation(len(validation))[: args.n]]
    data, batch, truth = Crystal.batch(train), Crystal.batch(chosen), Reference.from_crystals("validation", chosen)
    nearest = {"nearest_template": partial(first, Retriever(TemplateLibrary.from_crystals(train)))}
    table = ["| | match rate | RMSE | cRMSE |", "| --- | ---: | ---: | ---: |"]
    for i, name in enumerate(args.models):
        build, predict = MODELS[name]
        model = trained(build, data, args.minutes, args.lr)
        found = predictions(predict, model, batch, args.steps)
        baselines = {} if i else floors(train) | nearest
        metrics = {m.name: m for m in evaluate_prediction(found, truth, baselines)}
        table += [row(k.replace("_", " "), metrics, f"{k}_") for k in baselines]
        table.append(row(name, metrics))
        print(table[-1], flush=True)
    print("\n".join(table))


if __name__ == "__main__":
    main()
