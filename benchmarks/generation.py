"""What generating costs: molecules a second, the share of random numbers, peak memory as n grows, cache on and off.

python benchmarks/generation.py [--weights molecules-qm9] [--n 2000] [--memory 2000 10000]
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from unisci.autoregression.pard import Pard
from unisci.jobs.models import load
from unisci.jobs.runs import generate
from unisci.rng import Rng

# The official GDSS code and weights on QM9, 2,000 network calls, two CPU cores: 96.1 % valid.
GDSS_PER_SECOND = 1.7


def speed(weights: str, n: int) -> None:
    """Molecules a second at the card's steps, the first batch of a process left out."""
    designer = load(weights)
    designer.generate(64, seed=1)
    began = time.perf_counter()
    samples = designer.generate(n)
    rate = n / (time.perf_counter() - began)
    valid = len(samples.valid()) / n
    print(
        f"speed: {rate:.1f} molecules/s, {100 * valid:.1f} % valid, n = {n}, {designer.steps} calls a block, "
        f"{torch.get_num_threads()} threads; GDSS {GDSS_PER_SECOND}/s: ratio {rate / GDSS_PER_SECOND:.1f}"
    )


def workers(weights: str, n: int, count: int) -> None:
    """Molecules a second of a run into a folder by several processes of one thread or more, their start included."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        for _ in generate(weights, n, Path(folder) / "out", workers=count):
            pass
        rate = n / (time.perf_counter() - began)
    print(f"workers: {rate:.1f} molecules/s by {count} processes into a folder, files included, n = {n}")


def cache(weights: str, n: int) -> None:
    """The same samples with finished blocks remembered and recomputed."""
    designer = load(weights)
    assert isinstance(designer.model, Pard)
    if not designer.model.denoiser.network.trunk.config.causal:
        print("cache: this network's sight is not causal, so there is none")
        return
    rates = {}
    for on in (True, False):
        began = time.perf_counter()
        designer.model.generate(Rng(0, torch.arange(n)), designer.steps, cache=on)
        rates[on] = n / (time.perf_counter() - began)
    print(f"cache: {rates[True]:.1f} molecules/s on, {rates[False]:.1f} off, one batch of {n}")


def randomness(weights: str, batch: int = 500, repeats: int = 20) -> None:
    """One step's draws of atoms and bonds against its network call, and normal draws against torch.randn."""
    designer = load(weights)
    model, n = designer.model, designer.model.room
    rng = Rng(0, torch.arange(batch))
    atom, bond = torch.rand(batch, n, len(model.denoiser.product.processes["atom"].m)), torch.rand(batch, n, n, 4)
    state = {"atom": torch.zeros(batch, n).long(), "bond": torch.zeros(batch, n, n).long()}
    t = {"atom": torch.full((batch, n), 0.5), "bond": torch.full((batch, n, n), 0.5)}
    mask, given = torch.ones(batch, n).bool(), {"degree": torch.zeros(batch, n).long()}

    def draw() -> None:
        rng.categorical("atom", 0, atom, 1)
        rng.categorical("bond", 0, bond, 2)

    with torch.no_grad():
        call = _seconds(lambda: model.denoiser.network(state, t, mask, given), repeats)
    draws = _seconds(draw, repeats)
    ours = _seconds(lambda: rng.normal("x", 0, (batch, n, 3)), repeats)
    torchs = _seconds(lambda: torch.randn(batch, n, 3), repeats)
    print(
        f"randomness: draws {1e3 * draws:.2f} ms, network call {1e3 * call:.2f} ms of {batch} graphs: "
        f"{100 * draws / (draws + call):.1f} % of a step; normals take {ours / torchs:.1f} x torch.randn"
    )


def _seconds(function, repeats: int) -> float:
    function()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        function()
        times.append(time.perf_counter() - began)
    return sorted(times)[repeats // 2]


def memory(weights: str, n: int) -> None:
    """Peak resident memory of a process that generates n molecules into a folder."""
    code = (
        "import resource, sys; from pathlib import Path; from unisci.jobs.runs import generate\n"
        "for _ in generate(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])): pass\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-c", code, weights, str(n), str(Path(folder) / "out")]
        peak = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    print(f"memory: {peak / 2**20:.2f} GiB peak for n = {n}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default="molecules-qm9")
    parser.add_argument("--n", type=int, default=2000)
    parser.add_argument("--memory", type=int, nargs="*", default=[2000, 10000])
    a = parser.parse_args()
    speed(a.weights, a.n)
    for count in (1, 2):
        workers(a.weights, 2 * a.n, count)
    cache(a.weights, min(a.n, 1000))
    randomness(a.weights)
    for n in a.memory:
        memory(a.weights, n)
    print(f"whole process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB peak")


if __name__ == "__main__":
    main()
