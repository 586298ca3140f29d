"""The molecules of the GDSS benchmark: training, and what each way draws."""

import argparse
import time
from collections import Counter
from pathlib import Path

import torch

from benchmarks.gdss_models import cdcd_model, draft_model, draw, empty, paper_model, parameters, started, train
from benchmarks.gdss_ways import END, way
from unisci.batch import Batch
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.metrics.chemnet import Statistics
from unisci.metrics.intervals import proportion
from unisci.metrics.molecules import Reference, evaluate
from unisci.rng import Rng
from unisci.training.data import load_batch, save_batch
from unisci.training.fit import FitConfig

MODELS = {"paper": paper_model, "cdcd": cdcd_model, "drafts": draft_model}


def molecules(a: argparse.Namespace) -> None:
    """For each way, a solver and its calls: validity without correction of n molecules, and how near the data they are.

    a: the arguments of benchmarks.gdss.
    """
    data = _molecules(a.smiles, a.out)
    reference = Reference(a.smiles.stem, tuple(sorted(set(a.smiles.read_text().split()))))
    chemnet = Statistics.load(a.chemnet) if a.chemnet else None
    torch.manual_seed(0)
    model = MODELS[a.model](data)
    model = started(model, a.start) if a.start else model
    size, lr = (256, 5e-3) if a.model == "paper" else (64, 2e-3)
    began = time.process_time()
    model = train(model, data, FitConfig(a.steps, size, lr=a.lr or lr, ema=0.999), a.out / a.model)
    print(f"{a.model}: {parameters(model)} parameters, {(time.process_time() - began) / 60:.1f} CPU min of training")
    some = [
        reference.smiles[i]
        for i in torch.randperm(len(reference.smiles), generator=torch.Generator().manual_seed(0))[: a.n]
    ]
    print(f"{a.n} of the data: {_distances(some, reference, chemnet)}", flush=True)
    rng = Rng(a.seed, torch.arange(a.n))
    for spec in a.ways:
        name, calls = spec.split(":")
        solver, times = way(name, int(calls), model, END)
        began = time.process_time()
        drawn = draw(model, empty(data, rng), solver, times, rng)
        seconds = time.process_time() - began
        print(_row(f"{name}, {calls} calls", drawn, seconds, reference, chemnet), flush=True)


def _molecules(path: Path, out: Path) -> Batch:
    """The molecules of a file of SMILES, one a line, kept in DIR; RDKit reads them once."""
    cache = out / "data.safetensors"
    if not cache.exists():
        found = []
        for smiles in path.read_text().split():
            try:
                found.append(Molecule.from_smiles(smiles))
            except MoleculeError:
                continue
        out.mkdir(parents=True, exist_ok=True)
        data = Molecule.batch(found)
        save_batch(Batch({k: data.schema[k] for k in data.state}, data.state, data.mask), cache)
    return load_batch(cache)


def _row(title: str, drawn: Batch, seconds: float, reference: Reference, chemnet: Statistics | None) -> str:
    found = Molecule.unbatch(drawn)
    smiles = [m.smiles for m in found if m.smiles]
    low, high = proportion(len(smiles), len(found))
    reasons = dict(Counter(m.reason for m in found if m.reason))
    valid, unique = len(smiles) / len(found), len(set(smiles)) / max(1, len(smiles))
    return (
        f"{title:24s} valid {valid:.4f} ({low:.4f}-{high:.4f}) unique {unique:.4f} "
        f"{len(found) / seconds:.1f} per CPU s, {_distances(smiles, reference, chemnet)} {reasons}"
    )


def _distances(smiles: list[str], reference: Reference, chemnet: Statistics | None) -> str:
    """Novelty, distances of the counts of bonds and rings, and the Fréchet ChemNet distance of valid molecules."""
    shown = {"novelty": "novel", "bonds_tv": "bonds", "rings_tv": "rings", "fcd_torch": "FCD"}
    found = {m.name: m.value for m in evaluate(smiles, None, reference, chemnet)}
    return ", ".join(f"{title} {found[k]:.3f}" for k, title in shown.items() if k in found)
