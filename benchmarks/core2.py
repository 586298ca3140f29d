"""CoRe^2 (arXiv 2503.09662) beside classifier-free guidance: hits and distance by calls of the network.

    python -m benchmarks.core2 [--seeds 3] [--n 4000]
    python -m benchmarks.core2 --molecules [--weights FILE]      see benchmarks/core2_molecules.py

Four classes N(m_y, I) in the plane, m_y = (+-1, +-1), and a small conditional network, trained anew for each seed with
the class dropped from one sample in five. A sample hits where it falls into the quadrant of its class, of points of the
classes themselves .708; guidance of w = 2 has more. Distances are to samples of full guidance from other noises: few
steps of guidance overshoot, and hit more, but lie farther. The weak network has seen states of the full grid alone.
"""

import argparse
import time
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import core2_molecules
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.guidance.conditional import classifier_free, drop_conditions
from unisci.guidance.core2 import WeakToStrong, collect, reflect
from unisci.guidance.weak import Fast, WeakNet, WeakNets
from unisci.metrics.intervals import proportion
from unisci.networks.embedding import TimeEmbedding
from unisci.processes.gaussian import VP
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import Program, compile_solver, run
from unisci.solvers.sample import Denoise
from unisci.state import State, Time
from unisci.training.fit import FitConfig, fit

PROCESS = VP()
MEANS = torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, -1.0], [1.0, -1.0]], dtype=torch.float64)
SCHEMA = {"x": Field("whole", (2,)), "kind": Field("whole", (4,))}
STEPS, WEIGHT, OMEGA = 12, 2.0, 1.5
TRAIN, REFLECT = 700, 800  # steps of the conditional network and of the weak one


class Net(nn.Module):
    """A small network of a point and its class, 0 where that was dropped."""

    def __init__(self):
        super().__init__()
        self.time = TimeEmbedding(16)
        self.map = nn.Sequential(nn.Linear(22, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, state, t, mask, given, order=None, cache=None):
        now = self.time(t["x"].to(state["x"])).expand(len(mask), 16)
        return {"x": self.map(torch.cat([state["x"], given["kind"], now], -1))}


@dataclass
class Counted:
    """A Denoise that counts its calls."""

    denoise: Denoise
    calls: int = 0

    def __post_init__(self):
        self.process, self.schema = self.denoise.process, self.denoise.schema

    def __call__(self, x: State, t: Time) -> State:
        self.calls += 1
        return self.denoise(x, t)


def batch_of(kind: Tensor, x: Tensor | None = None) -> Batch:
    """The points x (B, 2) of the classes kind (B,), of no class where kind < 0."""
    x = torch.zeros(len(kind), 2) if x is None else x.float()
    return Batch(SCHEMA, {"x": x}, torch.ones(len(kind), 1, dtype=torch.bool), {"kind": told(kind)})


def told(kind: Tensor) -> Tensor:
    """(B, 4), 1 at the class, 0 everywhere where kind < 0."""
    return (kind[:, None] == torch.arange(4)).float()


def train(seed: int, steps: int = TRAIN) -> Denoiser:
    """A conditional denoiser fitted to 8000 points."""
    torch.manual_seed(seed)
    kind = torch.arange(8000) % 4
    noise = Rng(seed, torch.arange(8000)).normal("data", 0, (8000, 2), 0)
    data = batch_of(kind, MEANS[kind] + noise)
    drop = lambda batch, rng: drop_conditions(batch, rng, 0.2, {"kind": 0.0})
    config = FitConfig(steps, batch_size=256, lr=4e-3, warmup=50, ema=0.99, seed=seed)
    return fit(Denoiser(Net(), Product({"x": PROCESS}, SCHEMA), {"x": 1.4}), data, config, prepare=drop, progress=False)


def hits(x: Tensor, kind: Tensor) -> Tensor:
    """(B,) bool: which points fall into the quadrant of their class."""
    return (x * MEANS[kind].to(x) > 0).all(1)


def energy_distance(a: Tensor, b: Tensor) -> Tensor:
    """2 E|a - b| - E|a - a'| - E|b - b'| (...) of samples (..., n, D), without bias: 0 on average for equal laws."""
    inside = lambda v: torch.cdist(v, v).sum((-2, -1)) / (v.shape[-2] * (v.shape[-2] - 1))
    return 2 * torch.cdist(a, b).mean((-2, -1)) - inside(a) - inside(b)


class Outcome(NamedTuple):
    """Of one way of sampling and one seed: calls a sample, hits of n samples, and the distance to full guidance."""

    calls: int
    hits: int
    distance: float


def program(steps: int) -> Program:
    return compile_solver(PROCESS, grid(PROCESS, steps), "dpm++2m")


def noise(n: int, seed: int) -> State:
    return {"x": PROCESS.prior(torch.zeros(n, 2), Rng(seed, torch.arange(n)))}


def distilled(model: Denoiser, seed: int, n: int = 1000) -> WeakNets:
    """A weak network trained on n guided trajectories of the model."""
    torch.manual_seed(seed)
    kind, solver = torch.arange(n) % 4, program(STEPS)
    conditional, unconditional = bound(model, kind)
    fast = Fast(conditional, WeakNets({"x": WeakNet(2, 4, width=32, layers=1)}), told(kind))
    rng, rows = Rng(seed, torch.arange(n)), Rng(seed, torch.arange(256))
    states = collect(fast, unconditional, WEIGHT, noise(n, 50 + seed), solver.times, solver, rng, keep=12 * n)
    reflect(fast.weak, states, REFLECT, rows, lr=3e-3)
    return fast.weak


def bound(model: Denoiser, kind: Tensor) -> tuple[Denoise, Denoise]:
    """The model with the classes kind (B,), and without."""
    return model.on(batch_of(kind)), model.on(batch_of(torch.full_like(kind, -1)))


def compare(model: Denoiser, weak: WeakNets, seed: int, n: int) -> dict[str, Outcome]:
    """Every way of sampling from the same n noises."""
    kind, full, half, few = torch.arange(n) % 4, program(STEPS), program(STEPS // 2), program(STEPS // 4)
    strong, free = (Counted(one) for one in bound(model, kind))
    guided, fast = classifier_free(strong, free, WEIGHT), Fast(strong, weak, told(kind))
    ways = {
        "conditional": (strong, full),
        f"classifier-free, {STEPS} steps": (guided, full),
        f"classifier-free, {STEPS // 2} steps": (guided, half),
        f"classifier-free, {STEPS // 4} steps": (guided, few),
        f"CoRe^2 fast, {STEPS} steps": (fast, full),
        f"CoRe^2 fast, {STEPS // 2} steps": (fast, half),
        f"CoRe^2 slow above t = .5, omega {OMEGA}": (WeakToStrong(fast, free, WEIGHT, OMEGA, until=0.5), full),
        f"CoRe^2 slow, omega {OMEGA}": (WeakToStrong(fast, free, WEIGHT, OMEGA), full),
    }
    by_class = lambda x: x.reshape(-1, 4, 2).transpose(0, 1)
    reference, found = by_class(run(guided, noise(n, 1000 + seed), full)["x"]), {}
    for name, (way, solver) in ways.items():
        strong.calls = free.calls = 0
        x = run(way, noise(n, 2000 + seed), solver)["x"]
        distance = energy_distance(by_class(x), reference).mean()
        found[name] = Outcome(strong.calls + free.calls, int(hits(x, kind).sum()), float(distance))
    return found


def table(outcomes: list[dict[str, Outcome]], n: int) -> str:
    """A line for each way of sampling, over all seeds."""
    lines = [f"{'':38s}{'calls':>6s}{'hit rate (95 % interval)':>26s}{'by seed':>24s}{'energy distance':>18s}"]
    for name in outcomes[0]:
        mine = [one[name] for one in outcomes]
        total, count = sum(one.hits for one in mine), n * len(mine)
        low, high = proportion(total, count)
        seeds = " ".join(f"{one.hits / n:.3f}" for one in mine)
        distance = sum(one.distance for one in mine) / len(mine)
        rate = f"{total / count:.4f} ({low:.4f}-{high:.4f})"
        lines.append(f"{name:38s}{mine[0].calls:6d}{rate:>26s}{seeds:>24s}{distance:18.4f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--n", type=int, help="samples of a seed; of the toy 4000, a multiple of 4; of molecules 500")
    parser.add_argument("--molecules", action="store_true")
    parser.add_argument("--weights", default=core2_molecules.WEIGHTS)
    a = parser.parse_args()
    torch.set_num_threads(1)
    if a.molecules:
        return core2_molecules.main(a.n or 500, a.seeds, a.weights)
    toy(a.seeds, a.n or 4000)


def toy(seeds: int, n: int) -> None:
    """The table of the toy."""
    began, outcomes = time.process_time(), []
    for seed in range(seeds):
        model = train(seed)
        weak = distilled(model, seed)
        outcomes.append(compare(model, weak, seed, n))
    sizes = [sum(p.numel() for p in net.parameters()) for net in (model, weak)]
    print(f"network {sizes[0]} parameters, {TRAIN} training steps of 256; weak network {sizes[1]}, {REFLECT}")
    print(f"w = {WEIGHT}, dpm++2m, {n} samples of each of {seeds} seeds; {time.process_time() - began:.0f} CPU s\n")
    print(table(outcomes, n))


if __name__ == "__main__":
    main()
