"""CoRe^2 (arXiv 2503.09662) on molecules: hits of wanted logP and QED, by calls of the network.

    python -m benchmarks.core2 --molecules [--n 500] [--seeds 3]

Wanted are the (logP, QED) of held-out molecules of QM9, spread evenly over logP from its 1st to its 99th percentile,
one pair for each sample. A sample hits where it is valid and within .5 in logP, within .05 in QED; it reaches its logP
where that lies no nearer to the mean of the data than wanted. The weak network learns from other targets, molecules and
seeds than those that it is judged by. Beside the denoiser's calls, of 12 or 6 steps a block, a block takes one call of
the head that chooses its size, two where it is guided.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from unisci.autoregression.conditions import classifier_free_blocks, untold
from unisci.autoregression.core2_blocks import WeakGraph, collect_blocks, fast_blocks, of_size, refined_blocks
from unisci.autoregression.pard import Pard
from unisci.batch import Batch
from unisci.denoiser import Bound
from unisci.design.properties import measure
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.guidance.core2 import reflect
from unisci.jobs.models import load
from unisci.jobs.references import read_smiles
from unisci.metrics.intervals import proportion
from unisci.rng import Rng
from unisci.solvers.sample import Denoise

WEIGHTS, HOLD_OUT, NEAR, MEAN = "molecules-qm9-conditional", 25, (0.5, 0.05), 0.33
STEPS, WEIGHT, OMEGA = 12, 2.0, 1.5
LEARN, REFLECT = 1000, 1500  # graphs that the weak network learns from, half of them on its own path, and its steps
WEAK = {"width": 64, "pair_width": 24, "layers": 2, "heads": 4, "product": 8}

Guide = Callable[[Bound], Denoise]


@dataclass
class Watched:
    """Calls of a network, rows of all of them, and the CPU seconds that they took."""

    calls: int = 0
    rows: int = 0
    seconds: float = 0.0
    began: float = 0.0

    def watch(self, network: nn.Module, rows: Callable[[tuple], int]) -> "Watched":
        def before(module: nn.Module, inputs: tuple) -> None:
            self.calls, self.rows, self.began = self.calls + 1, self.rows + rows(inputs), time.process_time()

        def after(module: nn.Module, inputs: tuple, output: object) -> None:
            self.seconds += time.process_time() - self.began

        network.register_forward_pre_hook(before)
        network.register_forward_hook(after)
        return self

    @property
    def cost(self) -> float:
        """Seconds a row."""
        return self.seconds / self.rows


@dataclass
class Tally:
    """What one way of sampling gave, over all seeds."""

    hits: Tensor = field(default_factory=lambda: torch.zeros(3))  # of logP, of QED, and logP reached
    n: int = 0
    valid: int = 0
    smiles: list[str] = field(default_factory=list)
    by_seed: list[float] = field(default_factory=list)
    calls: float = 0.0
    seconds: float = 0.0

    def add(self, batch: Batch, wanted: Tensor, calls: float, seconds: float) -> None:
        molecules = Molecule.unbatch(batch)
        found = torch.from_numpy(np.stack([measure(name, molecules) for name in ("logp", "qed")], 1))
        near = (found - wanted).abs() < torch.tensor(NEAR)  # that of an invalid one is nan, and not near
        far = (found[:, :1] - wanted[:, :1]) * (wanted[:, :1] - MEAN).sign() >= 0
        self.hits += torch.cat([near, far], 1).sum(0)
        smiles = [m.smiles for m in molecules if m.smiles]
        self.n, self.valid, self.smiles = self.n + len(molecules), self.valid + len(smiles), self.smiles + smiles
        self.by_seed.append(float(near[:, 0].double().mean()))
        self.calls, self.seconds = self.calls + calls, self.seconds + seconds

    def row(self, name: str) -> str:
        low, high = proportion(int(self.hits[0]), self.n)
        error = lambda p: (p * (1 - p) / self.n) ** 0.5
        logp, qed, far = (self.hits / self.n).tolist()
        seeds = " ".join(f"{s:.3f}" for s in self.by_seed)
        return (
            f"{name:34s}{self.calls / len(self.by_seed):7.1f}{logp:8.3f} +- {error(logp):.3f} ({low:.3f}-{high:.3f})"
            f"{qed:8.3f} +- {error(qed):.3f}{far:8.3f} +- {error(far):.3f}{self.valid / self.n:8.3f}"
            f"{len(set(self.smiles)) / max(1, len(self.smiles)):9.3f}{1000 * self.seconds / self.n:8.0f}   {seeds}"
        )


def held_out(n: int, offset: int = 0) -> Tensor:
    """(n, 2) pairs of logP and QED of held-out molecules, spread evenly over logP's middle 98 %; offset: 0 or 1, of two
    halves of the molecules that share none."""
    molecules = []
    for _, smiles in list(read_smiles("qm9"))[::HOLD_OUT][offset::2]:
        try:
            molecules.append(Molecule.from_smiles(smiles))
        except MoleculeError:
            continue
    values = torch.from_numpy(np.stack([measure(name, molecules) for name in ("logp", "qed")], 1)).float()
    low, high = values[:, 0].quantile(torch.tensor([0.01, 0.99])).tolist()
    return values[(values[:, :1] - torch.linspace(low, high, n)).abs().argmin(0)]


def distilled(model: Pard, seed: int = 0) -> WeakGraph:
    """A weak network trained on guided trajectories, and on what guidance says on its own path."""
    torch.manual_seed(seed)
    weak, wanted, rows = WeakGraph(of_size(model, **WEAK)), held_out(LEARN // 2, 1), torch.arange(LEARN // 2)
    rng, part = Rng(1000 + seed, rows), Rng(seed, torch.arange(256))
    states = collect_blocks(model, weak, wanted, WEIGHT, rng, STEPS, cache=False)
    reflect(weak, states, REFLECT // 2, part)
    second = collect_blocks(model, weak, wanted, WEIGHT, rng.at(1), STEPS, follow=True, cache=False)
    losses = reflect(weak, states.joined(second, len(states) + len(second)), REFLECT // 2, part.at(1))
    print(f"weak network: KL to guidance {float(losses[-50:].mean()):.4f} summed over atoms' and bonds' means")
    return weak.eval()


def ways(weak: WeakGraph) -> dict[str, tuple[Guide, int, float]]:
    """By name: guide, steps a block, and the weight of guidance of the head."""
    free = classifier_free_blocks(WEIGHT)
    return {
        "unconditional, full": (untold, STEPS, 0.0),
        "conditional, full": (lambda bound: bound, STEPS, 1.0),
        "classifier-free, full": (free, STEPS, WEIGHT),
        "classifier-free, half the calls": (free, STEPS // 2, WEIGHT),
        "CoRe2 fast, half the calls": (fast_blocks(weak), STEPS, 1.0),
        "CoRe2 fast, head guided": (fast_blocks(weak), STEPS, WEIGHT),
        "CoRe2 slow above t = .1": (refined_blocks(weak, WEIGHT, OMEGA, 0.1), STEPS, WEIGHT),
    }


def compare(model: Pard, weak: WeakGraph, n: int, seeds: int) -> dict[str, Tally]:
    """Every way of sampling, for the same targets and seeds."""
    big = Watched().watch(model.denoiser, lambda inputs: len(inputs[2]))
    head = Watched().watch(model.head, lambda inputs: len(inputs[1]))
    small = Watched().watch(weak, lambda inputs: len(inputs[3]["rank"]))
    wanted, found = held_out(n), {name: Tally() for name in ways(weak)}
    for seed in range(seeds):
        for name, (guide, steps, weight) in ways(weak).items():
            before, began, groups = big.calls, time.process_time(), []
            counted = lambda bound, guide=guide, groups=groups: groups.append(1) or guide(bound)
            rng, told = Rng(seed, torch.arange(n)), {"values": wanted, "weight": weight}
            batch = model.generate(rng, steps, guide=counted, cache=False, **told)
            seconds = time.process_time() - began
            found[name].add(batch, wanted, (big.calls - before) / len(groups), seconds)
            print(f"seed {seed}: {found[name].row(name)}", flush=True)
    print(
        f"time of a call: weak network {small.cost / big.cost:.2f} of the denoiser's, head {head.cost / big.cost:.2f}"
    )
    return found


def main(n: int, seeds: int, weights: str = WEIGHTS) -> None:
    """Print the table."""
    began, model = time.process_time(), load(weights).model
    weak = distilled(model)
    sizes = {"denoiser": model.denoiser, "head": model.head, "weak network": weak}
    print("parameters: " + ", ".join(f"{k} {sum(p.numel() for p in m.parameters())}" for k, m in sizes.items()))
    found = compare(model, weak, n, seeds)
    print(f"\nw = {WEIGHT}, {n} targets x {seeds} seeds, +- standard errors; {time.process_time() - began:.0f} CPU s")
    print(
        f"{'':34s}{'calls':>7s}{'logP within .5 (95 %)':>31s}{'QED within .05':>17s}{'logP reached':>17s}{'valid':>8s}"
        f"{'distinct':>9s}{'CPU ms':>8s}   logP by seed"
    )
    for name, tally in found.items():
        print(tally.row(name))
