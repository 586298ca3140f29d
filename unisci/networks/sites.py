"""What all networks of atoms share: who sees whom, how many sites there are, the fields' times, the free origin, and
whether there are bonds."""

import torch
from torch import Tensor, nn

from unisci.networks.embedding import TimeEmbedding
from unisci.order import Order


def sees(mask: Tensor, order: Order | None) -> Tensor:
    """(B, N, N) bool: i sees j; all sites that exist see each other where there is no order."""
    return mask[:, :, None] & mask[:, None] if order is None else order.visible()


def share(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """(B, N, N): one over the number of sites that i sees, at those. Its product with values of j is their mean."""
    return sees.to(dtype) / sees.sum(-1, keepdim=True).clamp(min=1)


def count(mask: Tensor, given: dict[str, Tensor], order: Order | None, dtype: torch.dtype) -> Tensor:
    """Sites (B,) of the finished object: given's "sites" where the mask holds a part of it; noised copies count not."""
    if "sites" in given:
        return given["sites"].to(dtype)
    clean = mask if order is None or order.noisy is None else mask & ~order.noisy
    return clean.sum(1).clamp(min=1).to(dtype)


def mean_over_sites(x: Tensor, mask: Tensor) -> Tensor:
    """(B, N, D) -> (B, D), over the sites that exist."""
    return (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def centred(vector: Tensor, mask: Tensor, t: Tensor, order: Order | None) -> Tensor:
    """vector (B, N, 3), 0 at padding, less its mean over the first block where no site of that is held, at time 0.

    Such a block is free to move as a whole: nothing tells where its origin is. t (), (B,) or (B, N): of positions.
    """
    first = mask
    if order is not None:
        first = first & (order.rank == 0)
        first = first if order.noisy is None else first & order.noisy
    t = t.expand(len(mask)) if t.ndim == 0 else t
    moves = (t > 0) if t.ndim == 2 else (t > 0)[:, None]
    free = (first & (moves | ~first).all(1, keepdim=True))[..., None]
    mean = (vector * free).sum(1, keepdim=True) / free.sum(1, keepdim=True).clamp(min=1)
    return torch.where(mask[..., None], vector - mean * free, 0)


def check_bonds(state: dict[str, Tensor], bonds: int) -> None:
    """Raise ValueError unless the state has "bond" where a network's config has bonds, and there alone."""
    if ("bond" in state) != bool(bonds):
        there = "has" if "bond" in state else "has no"
        raise ValueError(f'the state {there} "bond" and the config bonds = {bonds}: set bonds to the number of classes')


class FieldTimes(nn.Module):
    """The sum of an embedding for each field's time, (B, 1 or N, width): N where a time is one a site."""

    def __init__(self, width: int, fields: tuple[str, ...] = ("atom", "position", "cell")):
        super().__init__()
        self.embed = nn.ModuleDict({k: TimeEmbedding(width) for k in fields})

    def forward(self, t: dict[str, Tensor], like: Tensor) -> Tensor:
        """t by field, (), (B,) or (B, N); a field without a time is clean, at 0. like: any tensor (B, ...)."""
        total = 0.0
        for k, embed in self.embed.items():
            time = t[k].to(like) if k in t else like.new_zeros(())
            time = time.expand(len(like)) if time.ndim == 0 else time
            total = total + embed(time[:, None] if time.ndim == 1 else time)
        return total
