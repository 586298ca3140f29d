"""Designer: a trained generator of molecules behind one call."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from unisci.autoregression.pard import Pard
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.design.predicted import with_predictions
from unisci.design.samples import Samples
from unisci.design.steering import Steering
from unisci.design.wants import Want, Wants, wants
from unisci.domains.molecule import Molecule
from unisci.guidance.particles import particle_rng
from unisci.rng import Rng

MEMORY_SHARE = 0.25  # of a GPU's free memory that one batch may fill
CPU_BYTES = 512 * 2**20  # on a CPU: larger batches leave the caches and gain nothing


@dataclass(frozen=True)
class Designer:
    """model: a trained Pard; steps: network calls a block that its card's numbers were measured at; hash: of its
    weights; card: what the weights say of themselves; properties: a model of properties to steer by, or None."""

    model: Pard
    steps: int
    hash: str
    card: dict
    properties: PropertyModel | None = None

    def generate(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        where: Want | Wants | Sequence[Want] | None = None,
        particles: int = 4,
        push: float = 1.0,
    ) -> Samples:
        """n new molecules (samples 0 to n - 1 of the seed), or the samples `ids` again.

        A sample depends on the weights, (seed, id), steps and what it is steered by, not on n or batch_size. steps:
        network calls a block; batch_size: by default what memory suggests. where: what is wanted of them, such as
        Between("logp", 1, 2) & Above("qed", .55), see `unisci.design.targets`; then each sample is one of so many
        `particles`, which cost as many times the calls, and `push` scales the gradient within blocks. A property that
        only the model of properties knows, such as one of your data's columns, is judged by its prediction, in columns
        named "gap (predicted)" and "meets gap (predicted) 6..7"; a generator that was told it is told the middle of the
        range. The table says what each sample meets, and `hit_rates()` sums it up. Raises ValueError where an argument
        makes no sense, a want contradicts another, has nothing to act by or be measured by, or is more than the model
        draws, before anything is drawn.
        """
        return Samples.join(list(self.stream(n, seed, steps, ids, batch_size, None, where, particles, push)))

    def stream(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        on_done: Callable[[int], None] | None = None,
        where: Want | Wants | Sequence[Want] | None = None,
        particles: int = 4,
        push: float = 1.0,
    ) -> Iterator[Samples]:
        """The same, batch by batch, so that memory does not grow with n. on_done(k) is told how many are finished."""
        ids = check_ids(n, ids)
        steps = self.steps if steps is None else steps
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        Rng(seed, torch.zeros(0))  # refuses a bad seed before any compute
        steering = None if where is None else self.steering(wants(where), particles, push)
        if steering is not None:
            particle_rng(Rng(seed, torch.tensor([max(ids)])), particles)  # refuses ids that leave the range
        size = batch_size or max(1, self.batch_size() // (1 if steering is None else particles))
        return self._stream(ids, seed, steps, size, steering, on_done or (lambda done: None))

    def steering(self, where: Wants, particles: int, push: float) -> Steering:
        """How the wants act on this model. Raises ValueError where they cannot, as `generate` does."""
        classes = self.model.denoiser.product.schema["atom"].classes
        told = () if self.model.conditions is None else self.model.conditions.names
        where = with_predictions(where, self.properties)
        steering = Steering(where, particles, self.properties, classes, self.model.room, push, told)
        if steering.keep is not None and self.model.hops == 0:
            raise ValueError(f"{where}: this generator draws a molecule as one block and keeps no scaffold")
        return steering

    def _stream(
        self,
        ids: Sequence[int],
        seed: int,
        steps: int,
        size: int,
        steering: Steering | None,
        on_done: Callable[[int], None],
    ) -> Iterator[Samples]:
        done = 0
        while done < len(ids):
            part = ids[done : done + size]
            began = time.perf_counter()
            try:
                keys = torch.tensor(part, dtype=torch.long, device=self.model.first.device)
                finished = partial(_tell, on_done, done + len(part), 1 if steering is None else steering.particles)
                molecules = Molecule.unbatch(self._draw(Rng(seed, keys), steps, steering, finished))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            seconds = (time.perf_counter() - began) / len(part)
            samples = Samples.of(molecules, part, seconds, self.hash, seed)
            yield samples if steering is None else samples.meets(steering.wants)
            done += len(part)

    def _draw(self, rng: Rng, steps: int, steering: Steering | None, on_block: Callable) -> Batch:
        if steering is None:
            return self.model.generate(rng, steps, on_block=on_block)
        p, begin = steering.particles, None
        if steering.keep is not None:
            begin = Molecule.batch([steering.keep], steering.classes)
        own = particle_rng(rng, p)
        told = None if steering.values is None else steering.values.expand(len(own.ids), -1)
        drawn = self.model.generate(
            own, steps, on_block=on_block, guide=steering.guide, select=steering.select, begin=begin, values=told
        )
        return drawn[slice(None, None, p)]  # at the end all particles of a sample are the one that is kept

    def batch_size(self) -> int:
        """Samples a batch, from the memory that pair states take: about 16 tensors of their width at once."""
        width = self.model.denoiser.network.trunk.config.pair_width
        sample = 4 * 16 * width * self.model.room**2
        device = self.model.first.device
        free = MEMORY_SHARE * torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else CPU_BYTES
        return int(min(4096, max(16, free // sample)))

    def to(self, device: torch.device | str) -> "Designer":
        """The same designer with its model moved to a device."""
        model: nn.Module = self.model.to(device)
        properties = None if self.properties is None else self.properties.to(device)
        return replace(self, model=model, properties=properties)


def check_ids(n: int | None, ids: Sequence[int] | None) -> Sequence[int]:
    """The ids that (n, ids) ask for. Raises ValueError unless one of them is given, n > 0, and ids lie in [0, 2^32)."""
    if (n is None) == (ids is None):
        raise ValueError("say how many molecules (n) or which (ids), one of the two")
    if ids is None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        return range(n)
    ids = [int(i) for i in ids]
    if not ids or min(ids) < 0 or max(ids) >= 2**32:
        raise ValueError("ids must be a non-empty sequence of integers from 0 to 2^32 - 1")
    return ids


def _tell(on_done: Callable[[int], None], begun: int, particles: int, block: int, growing: torch.Tensor) -> None:
    groups = growing if particles == 1 else (growing // particles).unique()
    on_done(begun - len(groups))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
