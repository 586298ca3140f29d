"""The training loop: AdamW on a cosine, EMA, clipping, accumulation, bf16 on GPUs, several devices, exact resume.

Every random number comes from (seed, step), so a run that is killed and resumed has the same weights as one that was
not, bit for bit on a CPU.
"""

import csv
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm import tqdm

from unisci.batch import Batch
from unisci.rng import Rng
from unisci.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from unisci.training.data import batches
from unisci.training.ema import Ema


@dataclass(frozen=True)
class FitConfig:
    """steps: optimiser steps; batch_size: samples a backward pass and device; accumulate: backward passes a step; lr
    falls on a cosine from its peak after `warmup` steps to `final` of it. Periods are in steps, 0 = never."""

    steps: int
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 2e-3
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup: int = 200
    final: float = 0.02
    clip: float = 1.0
    ema: float = 0.9995
    seed: int = 0
    log_every: int = 50
    checkpoint_every: int = 1000
    keep: int = 2
    validate_every: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    def rate(self, step: int) -> float:
        """Learning rate of step number `step`."""
        warm = min(1.0, (step + 1) / max(1, self.warmup))
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.lr * warm * (cosine * (1 - self.final) + self.final)


class _Loss(nn.Module):
    """The loss as a forward pass, which is what DistributedDataParallel wraps."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, batch: Batch, rng: Rng) -> Tensor:
        return self.model.loss(batch, rng)


def fit(
    model: nn.Module,
    data: Batch,
    config: FitConfig,
    folder: Path | None = None,
    prepare: Callable[[Batch, Rng], Batch] = lambda batch, rng: batch,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    progress: bool = True,
) -> nn.Module:
    """Train `model`, whose `loss(batch, rng)` is a scalar, on the model's device; returns the averaged weights' model.

    folder: where checkpoints and log.csv go; a run found there is resumed. validate(ema_model) -> numbers to log.
    Under torchrun each process takes its share of the data and process 0 writes. Raises FloatingPointError where the
    loss is not finite.
    """
    share = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    device = next(model.parameters()).device
    objective: nn.Module = _Loss(model)
    if share[1] > 1:  # gives every process the weights of process 0, from which the average starts
        objective = nn.parallel.DistributedDataParallel(objective)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay, fused=True
    )
    ema, first = Ema(model, config.ema), 0
    if folder is not None and (found := latest_checkpoint(folder)):
        first = _restore(load_checkpoint(found, device), model, ema, optimiser)
    stream = batches(data, config.batch_size, config.seed, prepare, first * config.accumulate, share, device)
    log = _Log(folder / "log.csv" if folder is not None and share[0] == 0 else None, first)
    bar = tqdm(range(first, config.steps), initial=first, total=config.steps, disable=not progress or share[0] > 0)
    began = time.perf_counter()
    for step in bar:
        loss = _step(objective, optimiser, stream, config, step, share)
        ema.update(model, step)
        done = step + 1
        saves = (config.checkpoint_every and done % config.checkpoint_every == 0) or done == config.steps
        logs = done % config.log_every == 0 or done == config.steps
        if (saves or logs) and not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"the loss is {float(loss)} at step {done}: lower lr ({config.lr}) or look at the data"
            )
        if logs:
            speed = (done - first) * config.batch_size * config.accumulate * share[1] / (time.perf_counter() - began)
            log.write(step=done, loss=float(loss), lr=config.rate(step), samples_per_second=speed)
            bar.set_postfix_str(f"loss {float(loss):.3f}, {speed:.0f} samples/s")
        if validate is not None and config.validate_every and done % config.validate_every == 0 and share[0] == 0:
            numbers = validate(ema.model)
            log.write(step=done, **numbers)
            bar.write(f"step {done}: " + ", ".join(f"{k} {v:.4g}" for k, v in numbers.items()))
        if saves and folder is not None and share[0] == 0:
            save_checkpoint(folder, done, _capture(model, ema, optimiser, done), config.keep)
    return ema.model


def _step(
    objective: nn.Module,
    optimiser: torch.optim.Optimizer,
    stream: Iterator[Batch],
    config: FitConfig,
    step: int,
    share: tuple[int, int],
) -> Tensor:
    """One optimiser step; the mean loss of its batches, left on the device."""
    for group in optimiser.param_groups:
        group["lr"] = config.rate(step)
    optimiser.zero_grad(set_to_none=True)
    total = torch.zeros((), device=next(objective.parameters()).device)
    for part in range(config.accumulate):
        batch = next(stream)
        rng = Rng(config.seed, batch.ids).at(1).at(step * config.accumulate + part)
        with torch.autocast(batch.mask.device.type, torch.bfloat16, enabled=batch.mask.is_cuda):
            loss = objective(batch, rng) / config.accumulate
        loss.backward()
        total += loss.detach()
    nn.utils.clip_grad_norm_(objective.parameters(), config.clip)
    optimiser.step()
    return total


def _capture(model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer, step: int) -> dict:
    return {
        "step": step,
        "model": model.state_dict(),
        "ema": ema.model.state_dict(),
        "optimiser": optimiser.state_dict(),
    }


def _restore(state: dict, model: nn.Module, ema: Ema, optimiser: torch.optim.Optimizer) -> int:
    if state.keys() != {"step", "model", "ema", "optimiser"}:
        raise ValueError(f"a checkpoint with the entries {sorted(state)} is not one of this training loop: delete it")
    model.load_state_dict(state["model"])
    ema.model.load_state_dict(state["ema"])
    optimiser.load_state_dict(state["optimiser"])
    return state["step"]


class _Log:
    """Rows (step, name, value) appended to a CSV file; a resumed run first drops what lies after its checkpoint."""

    def __init__(self, path: Path | None, first: int):
        self.path = path
        if path is None:
            return
        rows = list(csv.reader(path.open())) if path.exists() else []
        rows = [r for r in rows if len(r) == 3 and r[0].isdigit() and int(r[0]) <= first]  # a kill may cut the last row
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([["step", "name", "value"], *rows])

    def write(self, step: int, **numbers: float) -> None:
        if self.path is not None:
            with self.path.open("a", newline="") as file:
                csv.writer(file).writerows([step, name, f"{value:.6g}"] for name, value in numbers.items())


def distributed() -> bool:
    """Join the process group that torchrun announces in the environment; False where there is none."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend)
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return True
