"""Designer: a trained generator of molecules behind one call."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from unisci.autoregression.pard import Pard
from unisci.design.samples import Samples
from unisci.domains.molecule import Molecule
from unisci.rng import Rng

MEMORY_SHARE = 0.25  # of a GPU's free memory that one batch may fill
CPU_BYTES = 512 * 2**20  # on a CPU: larger batches leave the caches and gain nothing


@dataclass(frozen=True)
class Designer:
    """model: a trained Pard; steps: network calls a block that its card's numbers were measured at; hash: of its
    weights; card: what the weights say of themselves."""

    model: Pard
    steps: int
    hash: str
    card: dict

    def generate(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
    ) -> Samples:
        """n new molecules (samples 0 to n - 1 of the seed), or the samples `ids` again.

        A sample depends on the weights, (seed, id) and steps alone, not on n or batch_size. steps: network calls a
        block; batch_size: by default what memory suggests. Raises ValueError where n, seed, steps, ids or batch_size
        make no sense.
        """
        return Samples.join(list(self.stream(n, seed, steps, ids, batch_size)))

    def stream(
        self,
        n: int | None = None,
        seed: int = 0,
        steps: int | None = None,
        ids: Sequence[int] | None = None,
        batch_size: int | None = None,
        on_done: Callable[[int], None] | None = None,
    ) -> Iterator[Samples]:
        """The same, batch by batch, so that memory does not grow with n. on_done(k) is told how many are finished."""
        ids = check_ids(n, ids)
        steps = self.steps if steps is None else steps
        for name, value in (("steps", steps), ("batch_size", batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        Rng(seed, torch.zeros(0))  # refuses a bad seed before any compute
        return self._stream(ids, seed, steps, batch_size or self.batch_size(), on_done or (lambda done: None))

    def _stream(
        self, ids: Sequence[int], seed: int, steps: int, size: int, on_done: Callable[[int], None]
    ) -> Iterator[Samples]:
        done = 0
        while done < len(ids):
            part = ids[done : done + size]
            began = time.perf_counter()
            try:
                keys = torch.tensor(part, dtype=torch.long, device=self.model.first.device)
                finished = partial(_tell, on_done, done + len(part))
                molecules = Molecule.unbatch(self.model.generate(Rng(seed, keys), steps, on_block=finished))
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not _out_of_memory(error) or size == 1:
                    raise
                size = max(1, size // 2)
                continue
            seconds = (time.perf_counter() - began) / len(part)
            yield Samples.of(molecules, part, seconds, self.hash, seed)
            done += len(part)

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
        return Designer(model, self.steps, self.hash, self.card)


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


def _tell(on_done: Callable[[int], None], begun: int, block: int, growing: torch.Tensor) -> None:
    on_done(begun - len(growing))


def _out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
