"""EGNN (Satorras et al., arXiv 2102.09844) and its periodic form after DiffCSP (Jiao et al., arXiv 2309.04475).

    m_ij = phi_m(h_i, h_j, geometry_ij),    h_i += phi_h(h_i, mean_j m_ij),    x_i += mean_j (x_i - x_j) phi_x(m_ij)

geometry_ij is |x_i - x_j|^2, and where there is a cell also its Gram matrix L L^T and sines and cosines of the
fractional difference, whose first sine stands for the difference in the update of x: it does not jump at half a cell.
Exact: permutation, translation, and O(3): molecules turn with their frame; a crystal's numbers, fractional coordinates
and Gram matrix, do not change. A change of the cell's basis, even of the names of its axes, is another input, as it is
for DiffCSP: reduce cells first. Of a molecule's graph geometry_ij also holds the bond, and bonds are read from it and
both sites.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unisci.lattice import cell_matrix
from unisci.networks.edges import differences, distances, fourier, radial
from unisci.networks.molecule_inputs import BondHead, RankEmbedding
from unisci.networks.sites import FieldTimes, centred, check_bonds, count, mean_over_sites, sees, share
from unisci.order import Order


@dataclass(frozen=True)
class EGNNConfig:
    """Sizes. classes: elements, the mask state is one more; largest: distance up to which the Gaussians tell, in
    angstrom; bonds: classes of bonds, the mask state is one more, 0: there are none; ranks: of a molecule's structural
    order that are told apart.
    """

    classes: int = 100
    width: int = 64
    layers: int = 4
    frequencies: int = 8
    radial: int = 16
    largest: float = 6.0
    bonds: int = 0
    ranks: int = 16


class Frame(NamedTuple):
    """A cell: its lattice (B, 3, 3), None for a molecule; axes: 1, and 0 for a molecule, which has none."""

    lattice: Tensor | None
    axes: float

    @classmethod
    def of(cls, state: dict[str, Tensor], sites: Tensor) -> "Frame":
        """The one question whether there is a cell."""
        if "cell" not in state:
            return cls(None, 0.0)
        return cls(cell_matrix(state["cell"].clamp(-6, 6), sites), 1.0)

    def pairs(self, position: Tensor, frequencies: int) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (B, N, N, 3) from i to j in the unit of the positions, their lengths (B, N, N), and what only a frame
        can tell (B, N, N, 6 + 6 frequencies): the Gram matrix and the Fourier features.
        """
        d = differences(position, periodic=self.lattice is not None)
        r = distances(d, self.lattice)
        if self.lattice is None:
            return d, r, d.new_zeros(*r.shape, 6 + 6 * frequencies)
        i, j = torch.tril_indices(3, 3, device=d.device)
        gram = (self.lattice @ self.lattice.transpose(1, 2))[:, i, j]
        gram = torch.asinh(gram)[:, None, None].expand(*r.shape, 6)
        return torch.sin(2 * math.pi * d) / (2 * math.pi), r, torch.cat([gram, fourier(d, frequencies)], -1)


class Layer(nn.Module):
    """One step of the sites h (B, N, width) and the positions (B, N, 3)."""

    def __init__(self, width: int, features: int):
        super().__init__()
        self.own, self.other = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.pair, self.message = nn.Linear(features, width, bias=False), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, width))
        self.step = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, 1))
        self.norm, self.act = nn.LayerNorm(width), nn.SiLU()

    def forward(self, h: Tensor, d: Tensor, features: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
        """The new h, and the step of the positions. mean (B, N, 1, N): the weights of the mean over what i sees."""
        x = self.norm(h)
        m = self.act(self.own(x)[:, :, None] + self.other(x)[:, None] + self.pair(features))
        m = self.act(self.message(m))
        step = mean @ (-d * torch.tanh(self.step(m)))
        return h + self.feed(torch.cat([x, (mean @ m)[:, :, 0]], -1)), step[:, :, 0]


class EGNN(nn.Module):
    """state, t, mask, given, order -> the fields of the state: "atom" logits (B, N, classes), "position" (B, N, 3).

    With "cell" (B, 6) in the state also "cell" (B, 6), in the basis of the lattice, and positions are fractional;
    without it they are Cartesian. Where the config has bonds also "bond" (B, N, N) indices, and logits (B, N, N, bonds)
    that are symmetric. "position" is centred, see `centred`. given, all optional: "sites" (B,); where there are bonds
    "rank" (B, N), -1 where not told.
    """

    def __init__(self, config: EGNNConfig):
        super().__init__()
        c, self.config = config, config
        self.atom, self.time, self.size = (
            nn.Embedding(c.classes + 1, c.width),
            FieldTimes(c.width),
            nn.Linear(1, c.width),
        )
        features = c.radial + 1 + 6 + 6 * c.frequencies + c.radial * bool(c.bonds)
        self.layers = nn.ModuleList(Layer(c.width, features) for _ in range(c.layers))
        self.norm = nn.LayerNorm(c.width)
        self.to_atom, self.to_axes = nn.Linear(c.width, c.classes), nn.Linear(c.width, 3)
        self.to_cell = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, 6))
        self.gain = nn.Linear(c.width, 1)
        if c.bonds:
            self.bond, self.rank = nn.Embedding(c.bonds + 1, c.radial), RankEmbedding(c.width, c.ranks)
            self.to_bond = BondHead(c.width, features, c.bonds)
        for last in (
            self.to_atom,
            self.to_axes,
            self.to_cell[-1],
            self.gain,
            *(layer.step[-1] for layer in self.layers),
        ):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """Raises ValueError where there is a cache, which this network does not keep, and where the state has bonds and
        the config none, or the other way round."""
        if cache is not None:
            raise ValueError("EGNN keeps no cache: pass None")
        check_bonds(state, self.config.bonds)
        c, position = self.config, state["position"]
        sites = count(mask, given, order, position.dtype)
        mean = share(sees(mask, order), position.dtype)[:, :, None]
        frame = Frame.of(state, sites)
        time = self.time(t, position) + self.size(sites[:, None].log() - 2)[:, None]
        h, moved = self.atom(state["atom"]) + time, position
        if c.bonds and "rank" in given:
            h = h + self.rank(given["rank"])
        bond = [self.bond(state["bond"])] if c.bonds else []
        for layer in self.layers:
            d, r, told = frame.pairs(moved, c.frequencies)
            features = torch.cat([radial(r, c.radial, c.largest), torch.log1p(r * r)[..., None], told, *bond], -1)
            h, step = layer(h, d, features, mean)
            moved = moved + step
        x = self.norm(h)
        # Unit targets over small displacements: the steps must be able to grow as 1 / sigma.
        vector = torch.exp(4 * torch.tanh(self.gain(time))) * (moved - position) + frame.axes * self.to_axes(x)
        vector = centred(vector, mask, t.get("position", mask.new_zeros(())), order)
        out = {"atom": self.to_atom(x), "position": vector}
        out |= {"bond": self.to_bond(x, features)} if c.bonds else {}
        return out | {"cell": self.to_cell(mean_over_sites(x, mask))} if "cell" in state else out
