"""Molecules wanted by their quantum properties, judged by a regressor that shares no data with what drew them.

    python -m benchmarks.quantum_properties qm9.npz [-n 200] [--rows 40000] [--steps 400 1200 1500]

qm9.npz: smiles, props (rows, 15) and prop_names of QM9. Told and judged are the HOMO-LUMO gap (eV, hartree in the
file), the isotropic polarisability alpha (bohr^3) and the dipole mu (debye), all of DFT. Graphs of heavy atoms are
dealt at random into halves A and B that share none. From A a generator learns, begun from the shipped molecules-qm9,
which has seen graphs of both halves and no property, and a model of properties; from B the judge.

First table: targets are the three numbers of held-out molecules of A, each for as many draws; the judge's prediction
less the target, in the mean of absolute values, "any" being that of other molecules of the data. Second table: the
share of draws whose gap and mu both lie in a range, by the judge. The size of blocks is told both there, but by "not
told"; And and averaging are of the model told gap and the model told mu.
"""

import argparse
import csv
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import unisci
from unisci.autoregression.conditions import VALUES, told_only
from unisci.autoregression.pard import Pard, examples
from unisci.autoregression.property_model import PropertyModel
from unisci.autoregression.superdiff_blocks import SuperDiffBlocks, beside
from unisci.batch import Batch, Field
from unisci.design.designer import Designer
from unisci.design.predicted import Predicted
from unisci.design.properties import measure
from unisci.design.targets import Target
from unisci.design.wants import Wants
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.guidance.conditional import classifier_free
from unisci.guidance.superdiff import And
from unisci.jobs import properties
from unisci.jobs.config import DataConfig, ModelConfig, NetworkConfig, PropertyJob
from unisci.jobs.data import prepare, with_properties
from unisci.jobs.models import begin_from, build
from unisci.jobs.property_models import build_for
from unisci.metrics.intervals import proportion
from unisci.order import Order
from unisci.rng import Rng
from unisci.training.data import widen
from unisci.training.fit import FitConfig, fit

NAMES, UNITS = ("gap", "alpha", "mu"), ("eV", "bohr^3", "D")
HARTREE = 27.211386  # eV
START, BATCH, HOLD_OUT, TARGETS, TOLERANCE = "molecules-qm9", 128, 10, 20, 0.25  # tolerance in the data's spread
JUDGE = NetworkConfig(width=96, pair_width=32, layers=4, heads=6, product=8)
KNOWN = {"width": 64, "pair_width": 24, "layers": 3, "heads": 4, "product": 8}  # as configs/properties_qm9.yaml


def halves(path: Path, rows: int, folder: Path, seed: int = 0) -> list[Path]:
    """A.csv and B.csv of the smiles and properties of `rows` distinct graphs, dealt at random."""
    with np.load(path) as file:
        names, props = file["prop_names"].tolist(), file["props"]
        smiles = file["smiles"].tobytes().decode().split("\n")
    values = props[:, [names.index(name) for name in NAMES]] * (HARTREE, 1, 1)
    seen: dict[str, int] = {}
    for i in np.random.default_rng(seed).permutation(len(smiles)):
        try:
            seen.setdefault(Molecule.from_smiles(smiles[i]).smiles, i)
        except MoleculeError:
            continue
        if len(seen) == rows:
            break
    parts = []
    for k, name in enumerate("AB"):
        parts.append(folder / f"{name}.csv")
        with parts[-1].open("w", newline="") as file:
            table = [(s, *values[i]) for s, i in list(seen.items())[k::2]]
            csv.writer(file).writerows([("smiles", *NAMES), *table])
    return parts


class Judge(nn.Module):
    """A model of properties that sees whole, clean graphs alone, and learns their mean absolute error."""

    def __init__(self, model: PropertyModel):
        super().__init__()
        self.model = model

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        order = Order(torch.where(batch.mask, batch.given["rank"], -1))
        mean, _ = self.model(batch.state, None, batch.mask, batch.given, order)
        return ((mean - batch.given[VALUES]).abs() / self.model.std).mean()


def graphs(path: Path, folder: Path, classes: tuple[str, ...]) -> tuple[Batch, Batch]:
    """Graphs of a half with their values, to train by and held out, in the shipped generator's order of atoms."""
    config = DataConfig(smiles=str(path), hold_out=HOLD_OUT)
    data = with_properties(prepare(config, 1, folder, NAMES), NAMES, folder)
    parts = []
    for part in (widen(data.train), widen(data.validation)):
        index = torch.tensor([classes.index(name) for name in part.schema["atom"].classes])
        schema = part.schema | {"atom": Field("site", classes=classes)}
        parts.append(replace(part, schema=schema, state=part.state | {"atom": index[part.state["atom"]]}))
    return parts[0], parts[1]


def model_of(data: Batch, network: NetworkConfig) -> PropertyModel:
    """An untrained model of properties."""
    job = PropertyJob(job="properties", out=Path(), properties=NAMES, hops=1, network=network)
    return build_for(job, data)


def learn(model: nn.Module, data: Batch, steps: int, rate: float, deal: Callable) -> nn.Module:
    config = FitConfig(steps, BATCH, lr=rate, warmup=min(100, steps), ema=0.99, log_every=10**6)
    return fit(model, data, config, prepare=deal, progress=False).eval()


def told_generator(shipped: Pard, data: Batch, steps: int) -> Pard:
    """The shipped generator, trained on to be told the properties."""
    trunk, noise = shipped.denoiser.network.trunk.config, shipped.denoiser.product.processes
    sizes = {k: getattr(trunk, k) for k in ("width", "pair_width", "layers", "heads", "product")}
    config = ModelConfig(causal=True, condition=NAMES, denoiser=NetworkConfig(**sizes))
    classes = data.schema["atom"].classes
    model = build(config, classes, shipped.room, noise["atom"].m, noise["bond"].m, shipped.first)
    begin_from(model, START)
    model.conditions.measure(data.given[VALUES])
    return learn(model, data, steps, 1e-3, examples)


def report(title: str, model: PropertyModel, trained: Batch, held: Batch, steps: int) -> None:
    errors = properties.errors(model, held, len(held))
    print(
        f"{title}: {described(model)}, {len(trained)} graphs, {steps} steps; on {len(held)} held-out graphs it errs by"
    )
    for words, key in (("  ", "whole"), ("  the mean by ", "mean")):
        cells = (f"{k} {errors[f'{k} {key}']:.3f} {u}" for k, u in zip(NAMES, UNITS, strict=True))
        print(words + ", ".join(cells), flush=True)


def described(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters"


def judged(judge: PropertyModel, drawn: list[Molecule]) -> Tensor:
    """(n, P), nan where invalid."""
    values = np.stack([measure(Predicted(judge, name), drawn) for name in NAMES], 1)
    return torch.from_numpy(values)


def quality(drawn: list[Molecule], seconds: float) -> str:
    smiles = [m.smiles for m in drawn if m.smiles]
    unique = len(set(smiles)) / max(1, len(smiles))
    return f"{len(smiles) / len(drawn):8.1%}{unique:9.1%}{1000 * seconds / len(drawn):9.0f}"


def timed(draw: Callable[[], list[Molecule]]) -> tuple[list[Molecule], float]:
    began = time.process_time()
    return draw(), time.process_time() - began


def steered_to(designer: Designer, wanted: Tensor) -> list[Molecule]:
    """Draws by the guidance algebra for each row of targets (n, P), equal rows together."""
    out: dict[int, Molecule] = {}
    for row in wanted.unique(dim=0):
        ids = (wanted == row).all(1).nonzero()[:, 0].tolist()
        spread = TOLERANCE * designer.properties.std
        where = Wants(tuple(Target(k, float(v), float(s)) for k, v, s in zip(NAMES, row, spread, strict=True)))
        out |= dict(zip(ids, designer.generate(ids=ids, where=where, particles=4, push=1.0), strict=True))
    return [out[i] for i in range(len(wanted))]


def to_targets(model: Pard, steered: Designer, judge: PropertyModel, held: Batch, n: int) -> None:
    """The first table."""
    values = held.given[VALUES]
    pick = torch.randperm(len(values), generator=torch.Generator().manual_seed(0))
    wanted = values[pick[: min(TARGETS, n)]].repeat_interleave(-(-n // TARGETS), 0)[:n]
    others = values[torch.arange(n) % len(values)]
    told = lambda w: Molecule.unbatch(model.generate(Rng(0, torch.arange(n)), values=wanted, weight=w))
    ways = {
        "not told": lambda: Molecule.unbatch(model.generate(Rng(0, torch.arange(n)))),
        "told, w = 1": lambda: told(1.0),
        "classifier-free, w = 2": lambda: told(2.0),
        "where, particles 4, push 1": lambda: steered_to(steered, wanted),
    }
    head = "".join(f"{f'{k} ({u})':>16s}" for k, u in zip(NAMES, UNITS, strict=True))
    print(f"\nn = {n}, {len(wanted.unique(dim=0))} targets; mean |judged - target| +- standard error")
    print(f"{'':28s}{head}   valid  unique  CPU ms")
    print(f"{'any molecule of the data':28s}" + "".join(f"{e:16.3f}" for e in (others - wanted).abs().mean(0)))
    for name, draw in ways.items():
        drawn, seconds = timed(draw)
        error = (judged(judge, drawn) - wanted).abs()
        error = error[error.isfinite().all(1)]
        cells = zip(error.mean(0), error.std(0) / len(error) ** 0.5, strict=True)
        print(f"{name:28s}" + "".join(f"{e:9.3f} +-{s:5.3f}" for e, s in cells) + quality(drawn, seconds), flush=True)


def both_of_two(model: Pard, judge: PropertyModel, held: Batch, n: int) -> None:
    """The second table."""
    values, columns = held.given[VALUES], (0, 2)
    middle = values[:, columns].quantile(0.8, dim=0)
    reach = values[:, columns].std(0) / 2
    row = torch.full((n, len(NAMES)), float("nan"))
    row[:, columns] = middle
    average = lambda bound: classifier_free(told_only(0)(bound), told_only(2)(bound), 0.5)
    pair = {"guide": beside(told_only(0), told_only(2)), "solver": SuperDiffBlocks(And())}
    ways = {
        "not told": {},
        "one model told both": {"values": row},
        "averaged logits": {"values": row, "guide": average},
        "SuperDiff And": {"values": row} | pair,
    }
    ranges = " and ".join(f"{NAMES[c]} {m:.2f} +- {r:.2f}" for c, m, r in zip(columns, middle, reach, strict=True))
    within = ((values[:, columns] - middle).abs() <= reach).all(1).double().mean()
    print(f"\nn = {n}; wanted {ranges}, the .8 quantiles +- half a spread; {within:.1%} of the data have both")
    print(f"{'':28s}{'both (95 %)':>22s}{'gap':>8s}{'mu':>8s}   valid   unique  CPU ms")
    for name, options in ways.items():
        rng = Rng(1, torch.arange(n))
        drawn, seconds = timed(lambda rng=rng, options=options: Molecule.unbatch(model.generate(rng, **options)))
        near = (judged(judge, drawn)[:, columns] - middle).abs() <= reach  # not for an invalid one's nan
        hits = int(near.all(1).sum())
        low, high = proportion(hits, n)
        each = "".join(f"{p:8.1%}" for p in near.double().mean(0))
        share = f"{name:28s}{hits / n:8.1%} ({low:.1%}-{high:.1%})"
        print(share.ljust(50) + each + quality(drawn, seconds), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-n", type=int, default=200)
    parser.add_argument("--rows", type=int, default=40_000)
    parser.add_argument("--steps", type=int, nargs=3, default=(400, 1200, 1500), metavar=("TOLD", "KNOWN", "JUDGE"))
    a = parser.parse_args()
    began, shipped = time.process_time(), unisci.load(START)
    classes = shipped.model.denoiser.product.schema["atom"].classes
    print(f"{a.rows} graphs in halves, batches of {BATCH}; CPU, {torch.get_num_threads()} thread(s)", flush=True)
    with tempfile.TemporaryDirectory() as name:
        parts = halves(a.data, a.rows, Path(name))
        (first, held), (second, judged_by) = (graphs(p, Path(name) / p.stem, classes) for p in parts)
    torch.manual_seed(0)
    told, known, judging = a.steps
    judge = learn(Judge(model_of(second, JUDGE)), second, judging, 2e-3, lambda batch, rng: batch).model
    report("judge, of B", judge, second, judged_by, judging)
    steered = replace(shipped, properties=learn(model_of(first, NetworkConfig(**KNOWN)), first, known, 2e-3, examples))
    report("model of properties, of A", steered.properties, first, held, known)
    model = told_generator(shipped.model, first, told)
    print(f"generator, of A: {described(model)}, begun from {START}, {told} steps")
    print(f"trained after {(time.process_time() - began) / 60:.1f} CPU minutes", flush=True)
    to_targets(model, steered, judge, held, a.n)
    both_of_two(model, judge, held, a.n)
    print(f"\n{(time.process_time() - began) / 60:.1f} CPU minutes in all")


if __name__ == "__main__":
    main()
