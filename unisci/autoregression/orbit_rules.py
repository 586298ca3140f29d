"""Which Wyckoff positions an orbit may take: those of the group, in order, that leave what others can hold."""

from collections import Counter
from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.domains.orbit_batches import WyckoffTable
from unisci.networks.orbit_transformer import GROUPS, MOST


class OrbitRules(nn.Module):
    """Facts of the V positions of a table as buffers: multiplicity, fixed, of_group, rank (V,), free (V, 3)."""

    def __init__(self, table: WyckoffTable):
        super().__init__()
        multiplicity = torch.from_numpy(table.multiplicities)
        free = torch.tensor([p.free.tolist() for p in table.positions])
        group = torch.tensor([p.group for p in table.positions])
        facts = {"multiplicity": multiplicity, "free": free, "fixed": ~free.any(1), "of_group": group}
        facts["rank"] = torch.tensor([ord(p.letter) for p in table.positions])
        facts["after"], facts["reachable"] = _sums(multiplicity, facts["fixed"], group, facts["rank"])
        for name, value in facts.items():
            self.register_buffer(name, value, persistent=False)

    def __len__(self) -> int:
        return len(self.multiplicity)

    def held(self, wyckoff: Tensor, mask: Tensor) -> Tensor:
        """Sites that each orbit (B, M) holds, 0 where there is none."""
        return self.multiplicity[wyckoff] * mask

    def left(self, element: Tensor, wyckoff: Tensor, species: Tensor, counts: Tensor, mask: Tensor) -> Tensor:
        """(B, M): for each orbit the sites of its element that no earlier orbit holds."""
        same = element[:, :, None] == element[:, None]
        earlier = torch.ones(same.shape[1:], dtype=torch.bool, device=same.device).tril(-1)
        taken = (self.held(wyckoff, mask)[:, None] * (same & earlier)).sum(2)
        needed = ((element[:, :, None] == species[:, None]) * counts[:, None]).sum(2)
        return ((needed - taken) * mask).clamp(0, MOST)

    def before(self, wyckoff: Tensor) -> Tensor:
        """(B, M): the position of the orbit before each, V for the first."""
        return F.pad(wyckoff, (1, 0), value=len(self))[:, : wyckoff.shape[1]]

    def allowed(self, group: Tensor, element: Tensor, left: Tensor, before: Tensor) -> Tensor:
        """(B, M, V) bool: positions of the group (B,) that leave a number of sites which those after can hold, in the
        order of their letters within an element; one without freedom once."""
        rest = left[..., None] - self.multiplicity
        fits = (self.of_group == group[:, None, None]) & (rest >= 0)
        fits &= self.after[torch.arange(len(self), device=rest.device), rest.clamp(min=0)]
        previous = F.pad(element, (1, 0))[:, : element.shape[1]]
        last = torch.where((previous == element) & (before < len(self)), self.rank[before.clamp(max=len(self) - 1)], 0)
        used = F.one_hot(before, len(self) + 1)[..., :-1].cumsum(1) > 0
        return fits & (self.rank >= last[..., None]) & ~(used & self.fixed)

    def possible(self, counts: Tensor) -> Tensor:
        """(B, 231) bool: groups that can hold every one of the counts (B, S)."""
        return self.reachable[:, counts].all(2).T

    def holds(self, group: int, counts: Sequence[int]) -> bool:
        """Whether some choice of positions of the group gives all the counts of a formula at once."""
        own = self.of_group == group
        multiplicities = lambda rows: self.multiplicity[own & rows].tolist()
        return _fits(Counter(multiplicities(self.fixed)), set(multiplicities(~self.fixed)), counts)


def _fits(fixed: Counter[int], free: set[int], counts: Sequence[int]) -> bool:
    """fixed: multiplicity -> positions without freedom, each taken once by one element; free: multiplicities of those
    that all elements take as often as they like."""
    sums = {0}  # that free positions give
    for n in range(1, max(counts, default=0) + 1):
        if any(n - m in sums for m in free):
            sums.add(n)
    left = {tuple(fixed.values())}
    for count in counts:
        left = {
            tuple(k - u for k, u in zip(state, used, strict=True))
            for state in left
            for used in product(*(range(k + 1) for k in state))
            if count - sum(m * u for m, u in zip(fixed, used, strict=True)) in sums
        }
    return bool(left)


def _sums(multiplicity: Tensor, fixed: Tensor, group: Tensor, rank: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers of sites that one element can fill, bool: behind each position (V, MOST + 1), letters not before its own,
    and in each group (231, MOST + 1); a position without freedom once, the others as often as one likes.

    What other elements hold is not looked at: a few draws come to no end, and are told.
    """
    held, after = [0] * GROUPS, [0] * len(rank)  # bit n: n sites can be filled
    for v in sorted(range(len(rank)), key=lambda v: -int(rank[v])):
        g, m = int(group[v]), int(multiplicity[v])
        held[g] = after[v] = held[g] | 1
        for k in range(m, MOST + 1, m):
            held[g] |= after[v] << k
            if fixed[v]:
                break
        if not fixed[v]:
            after[v] = held[g]
    bits = lambda rows: torch.tensor([[row >> n & 1 for n in range(MOST + 1)] for row in rows], dtype=torch.bool)
    return bits(after), bits(held)
