"""What a network of molecules is told beside its atoms, the geometry and bonds of pairs, and how it puts bonds out.

Distances alone are read, in the unit that positions arrive in, so all is free of origin, turn and reflection.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.edges import distances, radial
from unisci.networks.sites import FieldTimes

LARGEST = 4.5  # of the distances that Gaussians tell apart, in standard deviations of the positions
FARTHEST = 6  # bonds of the shortest path between two atoms that are told apart
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


class Paths(nn.Module):
    """What the known bonds say of pairs that need not be bonded, (B, N, N, edge), zero before it is trained.

    w_ij = W[bond_ij] where a bond is known, else 0, and u_k of the atom k tell of the paths of two to four bonds:

        p2_ij = sum_k w_ik u_k w_kj,    p3_ij = sum_k f(p2)_ik u_k w_kj,    p4_ij = sum_k f(p2)_ik u_k f(p2)_kj

    beside the number of bonds on the shortest path. They fix angles, torsions and rings.
    """

    def __init__(self, width: int, edge: int, bonds: int, channels: int = 16):
        super().__init__()
        self.masked = bonds
        self.bond, self.atom = nn.Embedding(bonds + 1, channels), nn.Linear(width, channels)
        self.mix, self.out = nn.Linear(channels, channels, bias=False), nn.Linear(3 * channels, edge)
        self.hops = nn.Embedding(FARTHEST + 1, edge)
        for weights in (self.out.weight, self.out.bias, self.hops.weight):
            nn.init.zeros_(weights)

    def forward(self, bond: Tensor, atom: Tensor, sight: Tensor) -> Tensor:
        """bond (B, N, N) indices, atom (B, N, width) states; sight (B, N, N) bool: a path of i passes sites it sees."""
        known = (bond > 0) & (bond < self.masked)
        seen = sight[:, None]
        w = (self.bond(bond) * known[..., None]).permute(0, 3, 1, 2)
        u = F.silu(self.atom(atom)).transpose(1, 2)[:, :, None]  # (B, C, 1, N): of the atom passed
        p2 = (w * u * seen) @ w
        q = F.silu(self.mix(p2.permute(0, 2, 3, 1))).permute(0, 3, 1, 2)  # 0 where there is no path
        p3, p4 = (q * u * seen) @ w, (q * u * seen) @ q
        walks = torch.cat([p2, p3 + p3.transpose(2, 3), p4], 1).permute(0, 2, 3, 1)
        return self.out(walks) + self.hops(hops(known, sight))


def hops(adjacency: Tensor, sight: Tensor) -> Tensor:
    """Bonds on the shortest path (B, N, N) through sites that the first sees, 0 where that is longer than FARTHEST, or
    of a site to itself."""
    a, reached = adjacency.float(), torch.eye(adjacency.shape[1], dtype=torch.bool, device=adjacency.device)
    reached = reached.expand_as(adjacency)
    out = torch.zeros_like(adjacency, dtype=torch.long)
    for k in range(1, FARTHEST + 1):
        new = (reached.float() @ a > 0) & ~reached & sight
        out, reached = torch.where(new, k, out), reached | new
    return out


class MoleculePairs(nn.Module):
    """Edge states (B, N, N, edge) from distances, bonds (classes, the mask state is one more), the paths of these,
    atoms and condition."""

    def __init__(self, width: int, edge: int, radial: int, bonds: int):
        super().__init__()
        self.radial = radial
        self.geometry, self.bond = nn.Linear(radial + 1, edge), nn.Embedding(bonds + 1, edge)
        self.condition, self.atom = nn.Linear(width, edge), nn.Linear(width, edge, bias=False)
        self.paths, self.out = Paths(width, edge, bonds), nn.Linear(edge, edge)

    def forward(self, d: Tensor, bond: Tensor, atom: Tensor, c: Tensor, sight: Tensor) -> Tensor:
        """d (B, N, N, 3); bond (B, N, N) indices; atom (B, N, width) states; c (B, 1 or N, width); sight (B, N, N)."""
        r, paths, atom = distances(d), self.paths(bond, atom, sight), self.atom(atom)
        features = torch.cat([radial(r, self.radial, LARGEST), torch.log1p(r * r)[..., None]], -1)
        own = (self.condition(c) + atom)[:, :, None]
        h = self.geometry(features) + self.bond(bond) + paths + own + atom[:, None]
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
