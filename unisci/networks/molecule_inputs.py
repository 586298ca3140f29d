"""What a network of molecules is told beside its atoms, the geometry and bonds of pairs, and how it puts bonds out.

Distances alone are read, in the unit that positions arrive in, so all is free of origin, turn and reflection.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.edges import distances, radial
from unisci.networks.sites import FieldTimes

LARGEST = 4.5  # of the distances that Gaussians tell apart, in standard deviations of the positions
FIELDS = ("atom", "position")  # whose times are told: bonds are masked where they are not known


class MoleculeCondition(nn.Module):
    """What modulates all layers, (B, 1 or N, width): the times of atoms and of positions, and the number of sites."""

    def __init__(self, width: int):
        super().__init__()
        self.times, self.size = FieldTimes(width, FIELDS), nn.Linear(1, width)
        self.out = nn.Sequential(nn.SiLU(), nn.Linear(width, width), nn.SiLU())

    def forward(self, t: dict[str, Tensor], sites: Tensor) -> Tensor:
        """t by field, (), (B,) or (B, N); sites (B,)."""
        return self.out(self.times(t, sites) + self.size(sites[:, None].log() - 3)[:, None])


class RankEmbedding(nn.Module):
    """What a site is told of its rank in the molecule's structural order: (B, N) -> (B, N, width), 0 where it is -1."""

    def __init__(self, width: int, ranks: int):
        super().__init__()
        self.rank = nn.Embedding(ranks + 1, width, padding_idx=0)

    def forward(self, rank: Tensor) -> Tensor:
        return self.rank((rank + 1).clamp(0, self.rank.num_embeddings - 1))


class MoleculePairs(nn.Module):
    """Edge states (B, N, N, edge) from distances, bonds (classes, the mask state is one more), atoms and condition."""

    def __init__(self, width: int, edge: int, radial: int, bonds: int):
        super().__init__()
        self.radial = radial
        self.geometry, self.bond = nn.Linear(radial + 1, edge), nn.Embedding(bonds + 1, edge)
        self.condition, self.atom = nn.Linear(width, edge), nn.Linear(width, edge, bias=False)
        self.out = nn.Linear(edge, edge)

    def forward(self, d: Tensor, bond: Tensor, atom: Tensor, c: Tensor) -> Tensor:
        """d (B, N, N, 3); bond (B, N, N) indices; atom (B, N, width) states; c (B, 1 or N, width)."""
        r, atom = distances(d), self.atom(atom)
        features = torch.cat([radial(r, self.radial, LARGEST), torch.log1p(r * r)[..., None]], -1)
        own = (self.condition(c) + atom)[:, :, None]
        h = self.geometry(features) + self.bond(bond) + own + atom[:, None]
        return h + self.out(F.silu(h))


class BondHead(nn.Module):
    """Logits of bonds (B, N, N, bonds), symmetric, from the states of sites (B, N, width) and of pairs."""

    def __init__(self, width: int, edge: int, bonds: int):
        super().__init__()
        self.site, self.pair, self.out = nn.Linear(width, edge), nn.Linear(edge, edge), nn.Linear(edge, bonds)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, e: Tensor) -> Tensor:
        x = self.site(x)
        logits = self.out(F.silu(self.pair(e) + x[:, :, None] + x[:, None]))
        return logits + logits.transpose(1, 2)
