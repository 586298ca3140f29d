import csv
import os
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from unisci.batch import Batch, Field
from unisci.rng import Rng
from unisci.training import fit as fit_module
from unisci.training.checkpoint import latest_checkpoint
from unisci.training.ema import Ema
from unisci.training.fit import FitConfig, distributed, fit


class Killed(BaseException):
    """A kill, as far as one process can have it."""


class Regression(nn.Module):
    """A noisy regression, mean over samples; dies when asked for the loss for the `dies_at`-th time."""

    def __init__(self, dies_at: int | None = None, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.map = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
        self.dies_at, self.asked, self.noise = dies_at, 0, 0.3

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        if self.asked == self.dies_at:
            raise Killed
        self.asked += 1
        x = batch.state["x"]
        noisy = x + self.noise * rng.normal("x", 0, tuple(x.shape))
        return (self.map(noisy)[..., 0] - x.sum(-1)).square().mean()


def data(n: int = 100) -> Batch:
    x = torch.randn(n, 2, 3, generator=torch.Generator().manual_seed(0))
    return Batch({"x": Field("site", (3,))}, {"x": x}, torch.ones(n, 2).bool())


def numbers(folder: Path) -> list[list[str]]:
    return [r for r in csv.reader((folder / "log.csv").open()) if r[1] != "samples_per_second"]


def weights(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


def equal(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(v, weights(b)[k]) for k, v in weights(a).items())


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[int, tuple[nn.Module, nn.Module, list]]:
    out = {}
    for accumulate in (1, 2):
        folder, model = tmp_path_factory.mktemp("run"), Regression()
        average = fit(model, data(), config(accumulate), folder, progress=False)
        out[accumulate] = model, average, numbers(folder)
    return out


def config(accumulate: int = 1, **options) -> FitConfig:
    defaults = {"steps": 30, "batch_size": 4, "warmup": 5, "log_every": 3, "checkpoint_every": 7, "ema": 0.9}
    return FitConfig(**(defaults | {"accumulate": accumulate} | options))


@given(accumulate=st.sampled_from([1, 2]), kills=st.lists(st.integers(0, 40), min_size=1, max_size=3))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_killed_anywhere_and_resumed_gives_the_same_bits(undisturbed, tmp_path_factory, accumulate, kills):
    """Weights, averaged weights, and log; also where a resumed run is killed again, or before its first checkpoint."""
    folder = tmp_path_factory.mktemp("run")

    def run(dies_at: int | None) -> tuple[nn.Module, nn.Module]:
        resumed = latest_checkpoint(folder) is not None  # what a resumed run starts from does not matter
        model = Regression(dies_at, seed=5 if resumed else 0)
        return model, fit(model, data(), config(accumulate), folder, progress=False)

    for dies_at in kills:
        with suppress(Killed):
            run(dies_at)
    model, average = run(None)
    expected = undisturbed[accumulate]
    assert equal(model, expected[0]) and equal(average, expected[1])
    assert numbers(folder) == expected[2]


@pytest.mark.parametrize("dies_at", [0, 6, 7, 8, 13, 14, 20, 29])
def test_a_log_row_after_the_last_checkpoint_is_not_written_twice(undisturbed, tmp_path, dies_at):
    with pytest.raises(Killed):
        fit(Regression(dies_at), data(), config(), tmp_path, progress=False)
    model = Regression(seed=0)
    fit(model, data(), config(), tmp_path, progress=False)
    assert numbers(tmp_path) == undisturbed[1][2]
    assert equal(model, undisturbed[1][0])
    assert model.asked == 30 - 7 * (dies_at // 7)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["log.csv", "step-000000028.pt", "step-000000030.pt"]


def test_a_finished_run_is_read_back_without_a_step(undisturbed, tmp_path):
    fit(Regression(), data(), config(), tmp_path, progress=False)
    model = Regression(seed=3)
    average = fit(model, data(), config(), tmp_path, progress=False)
    assert model.asked == 0 and equal(average, undisturbed[1][1]) and not average.training
    assert not any(p.requires_grad for p in average.parameters())


def test_two_half_batches_are_one_batch(monkeypatch):
    """Fed the halves of a batch, accumulation makes the step of the whole; the noise, whose key is the pass, is off."""

    def run(parts: int) -> nn.Module:
        def stream(d, size, *args):
            for k in range(1000):
                whole = d[torch.arange(8 * k, 8 * k + 8) % len(d)]
                yield from (whole[slice(i * size, (i + 1) * size)] for i in range(parts))

        monkeypatch.setattr(fit_module, "batches", stream)
        model = Regression().double()
        model.noise = 0.0
        d = data()
        d = d.replace(x=d.state["x"].double())
        fit(model, d, config(parts, batch_size=8 // parts), progress=False)
        return model

    whole, halves = run(1), run(2)
    for k, v in weights(whole).items():
        torch.testing.assert_close(v, weights(halves)[k], rtol=0, atol=1e-10)
    assert not equal(whole, Regression().double())


def test_training_learns_and_the_average_trails_the_weights():
    model = Regression()
    model.noise = 0.0
    before = float(model.loss(data(), Rng(0, torch.arange(100))))
    average = fit(model, data(), config(steps=300, warmup=10, lr=2e-2, ema=0.99), progress=False)
    after = [float(m.loss(data(), Rng(0, torch.arange(100)))) for m in (model, average)]
    assert max(after) < 0.1 * before and after[0] != after[1]


def test_average_is_the_exponential_one_with_a_warm_start():
    model = nn.Linear(1, 1, bias=False)
    ema, expected = Ema(model, 0.5), float(model.weight)
    for step in range(20):
        with torch.no_grad():
            model.weight.fill_(float(step))
        ema.update(model, step)
        decay = min(0.5, (step + 1) / (step + 10))
        expected = decay * expected + (1 - decay) * step
        assert float(ema.model.weight) == pytest.approx(expected, rel=1e-5)


def test_the_rate_warms_up_and_falls_on_a_cosine_to_its_end():
    c = FitConfig(steps=1000, lr=1.0, warmup=100, final=0.1)
    assert c.rate(0) == pytest.approx(0.01) and c.rate(49) == pytest.approx(0.5, abs=0.01)
    assert c.rate(500) == pytest.approx(0.55) and c.rate(1000) == pytest.approx(0.1)
    rates = [c.rate(k) for k in range(100, 1000)]
    assert rates == sorted(rates, reverse=True)


def test_validation_sees_the_average_and_is_logged(tmp_path):
    seen = []

    def validate(model: nn.Module) -> dict[str, float]:
        seen.append(model)
        return {"score": float(len(seen))}

    average = fit(Regression(), data(), config(validate_every=10), tmp_path, validate=validate, progress=False)
    assert len(seen) == 3 and all(m is average for m in seen)
    scores = [(r[0], r[2]) for r in numbers(tmp_path) if r[1] == "score"]
    assert scores == [("10", "1"), ("20", "2"), ("30", "3")]


def test_every_batch_draws_noise_of_its_own():
    """Also the second time that a sample comes round: it would else be trained on one noised copy of itself."""

    class Spy(Regression):
        def __init__(self):
            super().__init__()
            self.keys = []

        def loss(self, batch: Batch, rng: Rng) -> Tensor:
            self.keys.append(rng.key)
            return super().loss(batch, rng)

    model = Spy()
    fit(model, data(20), FitConfig(6, 10, accumulate=2), progress=False)
    assert len(model.keys) == len(set(model.keys)) == 12


def test_gradients_are_clipped(monkeypatch):
    clipped = []
    real = nn.utils.clip_grad_norm_
    monkeypatch.setattr(nn.utils, "clip_grad_norm_", lambda p, most: clipped.append(most) or real(p, most))
    fit(Regression(), data(), config(steps=4, clip=0.25), progress=False)
    assert clipped == [0.25] * 4


def test_a_loss_that_is_not_finite_stops_the_run_before_it_is_saved(tmp_path):
    model = Regression()
    model.noise = float("inf")
    with pytest.raises(FloatingPointError, match=r"nan at step 3: lower lr"):
        fit(model, data(), config(), tmp_path, progress=False)
    assert latest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("name", ["steps", "batch_size", "accumulate"])
def test_counts_below_1_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        FitConfig(**({"steps": 1} | {name: 0}))


def test_a_damaged_checkpoint_is_named(tmp_path):
    fit(Regression(), data(), config(steps=3), tmp_path, progress=False)
    path = latest_checkpoint(tmp_path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match=path.name):
        fit(Regression(), data(), config(), tmp_path, progress=False)


def test_one_process_needs_no_process_group(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert distributed() is False


def run_as_a_process() -> None:
    """What each process of the test below runs: joins, trains, and saves its weights."""
    torch.set_num_threads(1)
    assert distributed()
    rank, folder = int(os.environ["RANK"]), Path(sys.argv[1])
    model = Regression(seed=rank)  # the weights of process 0 are everyone's
    average = fit(model, data(), config(batch_size=4), folder / "run", progress=False)
    torch.save({"model": weights(model), "average": weights(average)}, folder / f"rank-{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_train_as_one_of_twice_the_batch(tmp_path):
    """Shares interleave the rows of a group, so that batch k of all processes together is batch k of one process with
    batches as large as all of theirs. It holds where samples have equally many sites: each process sorts its own."""
    with socket.socket() as s:
        s.bind(("localhost", 0))
        port = str(s.getsockname()[1])
    command = [sys.executable, "-c", "from tests.training.test_fit import run_as_a_process as r; r()", str(tmp_path)]
    env = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    running = [
        subprocess.Popen(command, cwd=root, env=env | {"RANK": str(k), "LOCAL_RANK": str(k)}, stderr=subprocess.PIPE)
        for k in range(2)
    ]
    try:
        for p in running:
            _, error = p.communicate(timeout=120)
            assert p.returncode == 0, error.decode()
    finally:
        for p in running:
            p.kill()
    ranks = [torch.load(tmp_path / f"rank-{k}.pt", weights_only=True) for k in range(2)]
    model = Regression(seed=0)
    average = fit(model, data(), config(batch_size=8), progress=False)
    for kind, expected in (("model", model), ("average", average)):
        for k, v in weights(expected).items():
            assert torch.equal(ranks[0][kind][k], ranks[1][kind][k]), f"{kind} {k} differs between the processes"
            torch.testing.assert_close(ranks[0][kind][k], v, rtol=0, atol=1e-6)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["log.csv", "step-000000028.pt", "step-000000030.pt"]
