"""Training data: collated once into a file of tensors, then dealt out in a reproducible order without per-item
Python.
"""

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unisci.batch import Batch, Field
from unisci.rng import Rng, mix

GROUP = 8  # batches dealt together, so that samples of like size share one


def save_batch(batch: Batch, path: Path) -> None:
    """Write a batch as safetensors, small integer types where the values allow, schema in the header; atomically."""
    tensors = {"mask": batch.mask, "ids": batch.ids}
    tensors |= {f"state.{k}": _shrink(v) for k, v in batch.state.items()}
    tensors |= {f"given.{k}": _shrink(v) for k, v in batch.given.items()}
    metadata = {"schema": json.dumps({k: f._asdict() for k, f in batch.schema.items()})}
    temporary = path.with_suffix(".tmp")
    save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata)
    temporary.rename(path)


def load_batch(path: Path) -> Batch:
    """Read what `save_batch` wrote. Raises ValueError where the file is damaged or another's."""
    try:
        with safe_open(path, "pt") as file:
            fields = json.loads((file.metadata() or {})["schema"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{path} is damaged or not a batch; prepare it again: {error}") from error
    schema = {
        k: Field(f["kind"], tuple(f["shape"]), None if f["classes"] is None else tuple(f["classes"]))
        for k, f in fields.items()
    }
    part = lambda p: {k.removeprefix(p): v for k, v in tensors.items() if k.startswith(p)}
    return Batch(schema, part("state."), tensors["mask"], part("given."), tensors["ids"])


def batches(
    data: Batch,
    size: int,
    seed: int,
    prepare: Callable[[Batch, Rng], Batch] = lambda batch, rng: batch,
    start: int = 0,
    share: tuple[int, int] = (0, 1),
    device: torch.device | str = "cpu",
) -> Iterator[Batch]:
    """Batches of `size` samples without end, from number `start` on; number k depends on (data, size, seed, k, share)
    alone.

    Each epoch is a fresh permutation. prepare(batch, rng) makes the training examples; they are sorted by their
    number of sites, cut into batches of like size, trimmed, and dealt in random order. share = (i, n): every n-th
    sample from i on. Raises ValueError where there are no samples.
    """
    if not len(data):
        raise ValueError("there are no samples to deal out")
    epoch, permutation = -1, torch.empty(0, dtype=torch.long)
    whole = size * GROUP * share[1]
    for group in count(start // GROUP):
        rows = []
        for position in range(group * whole, (group + 1) * whole, min(whole, len(data))):
            # A group that spans epochs, or a data set smaller than a group, takes a piece of each permutation.
            need = min(whole, len(data), (group + 1) * whole - position)
            while need:
                at, offset = divmod(position, len(data))
                if at != epoch:
                    epoch = at
                    generator = torch.Generator().manual_seed(mix(seed, epoch) >> 1)
                    permutation = torch.randperm(len(data), generator=generator)
                piece = permutation[offset : offset + need]
                rows.append(piece)
                need, position = need - len(piece), position + len(piece)
        rows = torch.cat(rows)[share[0] :: share[1]]
        part = widen(data[rows].to(device))
        part = prepare(part, Rng(seed, part.ids.to(device)).at(0).at(group))
        parts = part.sites.argsort(stable=True).split(size)
        generator = torch.Generator().manual_seed(mix(mix(seed, 1), group) >> 1)
        dealt = torch.randperm(len(parts), generator=generator).tolist()
        for k in dealt[start - group * GROUP if group == start // GROUP else 0 :]:
            chosen = part[parts[k]]
            yield chosen.trim(int(chosen.sites.max()))


def _shrink(x: Tensor) -> Tensor:
    if x.dtype == torch.long and x.numel() and int(x.min()) >= -128 and int(x.max()) < 128:
        return x.to(torch.int8)
    return x


def widen(batch: Batch) -> Batch:
    """The batch with the small integers of a cache as int64, which models index with."""
    wide = lambda d: {k: v.long() if v.dtype == torch.int8 else v for k, v in d.items()}
    return Batch(batch.schema, wide(batch.state), batch.mask, wide(batch.given), batch.ids)
