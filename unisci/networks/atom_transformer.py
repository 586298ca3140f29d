"""A transformer of the atoms of a crystal or a molecule that sees differences of positions alone.

Attention reads the geometry e_ij of pairs in three ways, after Graphormer's bias (arXiv 2106.05234), AlphaFold's
attended geometry and EGNN's edge message (arXiv 2102.09844), with adaLN from times and cell (DiT, arXiv 2212.09748):

    a_ij = softmax_j(q_i k_j / sqrt(d) + W_b e_ij),    m_i = mean_j silu(A x_i + B x_j + C e_ij)
    h_i += W [sum_j a_ij v_j, sum_j a_ij e_ij, m_i],   h_i += feed-forward(h_i)
    position_i = V h_i + mean_j sum_k w^k_ij g^k_ij - mean
    g = sin(2 pi d_ij) / (2 pi), sin(4 pi d_ij) / (4 pi), r_ij, sin(2 pi r_ij) / (2 pi)

so that a force along a difference d_ij, or towards a template (r_ij, see crystal_inputs), is a linear readout. The
sines replace the wrapped d_ij, which jumps at half a cell, where atoms of symmetric crystals lie. A molecule has no
cell: e_ij holds distances and bonds (see molecule_inputs), g = d_ij, d_ij / (|d_ij| + c), no V, and bonds are read
from e_ij and both sites. Exact: permutation of sites, translation, rotation (a lower-triangular cell has one frame; a
molecule turns, and is reflected, with its positions). Where an Order is given a site sees earlier blocks and its own;
the cell, a field of the whole, is read from all sites and read by none but as the input it was.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.lattice import cell_matrix
from unisci.networks.crystal_inputs import LIMIT, Condition, PairEmbedding, Template
from unisci.networks.edges import differences, distances
from unisci.networks.molecule_inputs import BondHead, MoleculeCondition, MoleculePairs, RankEmbedding
from unisci.networks.sites import centred, count, mean_over_sites, sees, share
from unisci.order import Order

SINES = 2
SOFT = 0.1  # c, by which a unit vector is softened where sites meet


@dataclass(frozen=True)
class AtomTransformerConfig:
    """Sizes. classes: elements, the mask state is one more; templates: whether it has weights to read a template;
    bonds: classes of bonds, for molecules; 0: for crystals; ranks: of a molecule's structural order, told apart.
    """

    classes: int = 100
    width: int = 96
    layers: int = 4
    heads: int = 8
    edge: int = 48
    frequencies: int = 8
    radial: int = 16
    templates: bool = False
    bonds: int = 0
    ranks: int = 16

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")
        if self.bonds and self.templates:
            raise ValueError("templates are known crystals: a network of molecules (bonds > 0) reads none")


class Layer(nn.Module):
    """One step of the sites x (B, N, width) under edges e (B, N, N, edge) and condition c (B, 1 or N, width)."""

    def __init__(self, width: int, heads: int, edge: int):
        super().__init__()
        self.heads, self.sizes = heads, [3 * width, edge, edge]
        self.modulation = nn.Linear(width, 6 * width)
        self.from_x = nn.Linear(width, sum(self.sizes))
        self.from_e = nn.Linear(edge, heads + edge, bias=False)
        self.out = nn.Linear(width + heads * edge + edge, width)
        self.feed = nn.Sequential(nn.Linear(width, 3 * width), nn.GELU(approximate="tanh"), nn.Linear(3 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, e: Tensor, c: Tensor, hidden: Tensor, share: Tensor) -> Tensor:
        """hidden (B, 1, N, N): 0 where i sees j, else very negative; share (B, N, 1, N): one over the number seen."""
        b, n, width = h.shape
        shift, scale, gate, shift_f, scale_f, gate_f = self.modulation(c).chunk(6, -1)
        qkv, own, other = self.from_x(_norm(h) * (1 + scale) + shift).split(self.sizes, -1)
        q, k, v = qkv.view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias, message = self.from_e(e).split([self.heads, e.shape[-1]], -1)
        a = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5 + bias.permute(0, 3, 1, 2) + hidden).softmax(-1)
        what = (a @ v).transpose(1, 2).reshape(b, n, width)
        where = (a.transpose(1, 2) @ e).flatten(2)
        both = (share @ F.silu(message + own[:, :, None] + other[:, None])).flatten(2)
        h = h + (1 + gate) * self.out(torch.cat([what, where, both], -1))
        return h + (1 + gate_f) * self.feed(_norm(h) * (1 + scale_f) + shift_f)


class Displacement(nn.Module):
    """A vector for each site: a weighted mean of the vectors g^k_ij of its pairs and, where there are axes, a linear
    map of its state."""

    def __init__(self, width: int, edge: int, terms: int, axes: bool):
        super().__init__()
        self.own, self.other, self.pair = (nn.Linear(n, edge, bias=False) for n in (width, width, edge))
        self.vector = nn.Linear(width, 3) if axes else None
        self.weight, self.gain = nn.Linear(edge, terms), nn.Linear(width, terms)

    def forward(self, x: Tensor, e: Tensor, c: Tensor, terms: Tensor, share: Tensor) -> Tensor:
        """terms (B, N, N, K, 3): the g^k_ij; share (B, N, 1, N) as for the layers."""
        w = self.weight(F.silu(self.own(x)[:, :, None] + self.other(x)[:, None] + self.pair(e)))
        # Unit targets over small displacements: the weights must be able to grow as 1 / sigma.
        mean = (share @ (w[..., None] * terms).flatten(3)).unflatten(-1, terms.shape[3:])[:, :, 0]
        vector = (torch.exp(4 * torch.tanh(self.gain(c)))[..., None] * mean).sum(2)
        return vector if self.vector is None else self.vector(x) + vector


class AtomTransformer(nn.Module):
    """state, t, mask, given, order -> "atom" logits (B, N, classes), "position" (B, N, 3), and "cell" (B, 6) of a
    crystal, "bond" logits (B, N, N, bonds) of a molecule.

    state: "atom" (B, N) indices, `classes` = the mask state; "position" (B, N, 3) fractional, Cartesian for molecules;
    "cell" (B, 6) numbers of `unisci.lattice`; "bond" (B, N, N) indices, `bonds` = the mask state. t: by field, 0 where
    missing; bonds have none of their own. given, all optional: "sites" (B,), where the mask holds only a part of the
    crystal; a molecule's "rank" (B, N), -1 where not told; "template_position", "template_cell", "template_distance",
    see `Template.of`. "position" is centred, see `centred`. volumes: see `Condition`.
    """

    def __init__(self, config: AtomTransformerConfig, volumes: Tensor | None = None):
        super().__init__()
        c, self.config = config, config
        self.atom = nn.Embedding(c.classes + 1, c.width)
        if c.bonds:
            self.condition, self.rank = MoleculeCondition(c.width), RankEmbedding(c.width, c.ranks)
            self.pairs = MoleculePairs(c.width, c.edge, c.radial, c.bonds)
        else:
            self.condition = Condition(c.width, c.classes, c.templates, volumes)
            self.pairs = PairEmbedding(c.width, c.edge, c.frequencies, c.radial, c.templates)
        self.layers = nn.ModuleList(Layer(c.width, c.heads, c.edge) for _ in range(c.layers))
        self.modulation = nn.Linear(c.width, 2 * c.width)
        self.to_atom = nn.Linear(c.width, c.classes)
        self.to_position = Displacement(c.width, c.edge, SINES + 2 * c.templates, axes=not c.bonds)
        last = [self.to_atom, self.to_position.weight, self.to_position.gain, self.modulation]
        if c.bonds:
            self.to_bond = BondHead(c.width, c.edge, c.bonds)
        else:
            self.to_cell = nn.Sequential(nn.Linear(c.width, c.width), nn.SiLU(), nn.Linear(c.width, 6))
            last += [self.to_cell[-1], self.to_position.vector]
        for head in last:
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """Raises ValueError where the state is not of a crystal, or not of a molecule, as the config says, and for a
        cache, which this network does not keep."""
        if cache is not None:
            raise ValueError("AtomTransformer keeps no cache: pass None")
        needed, bonds = "bond" if self.config.bonds else "cell", self.config.bonds
        if needed not in state:
            raise ValueError(f'the state has no "{needed}", which this network needs: its config has bonds = {bonds}')
        sight = sees(mask, order)
        mean = share(sight, state["position"].dtype)[:, :, None]
        hidden = torch.zeros_like(sight, dtype=mean.dtype).masked_fill_(~sight, -1e4)[:, None]
        h = self.atom(state["atom"])
        if "rank" in given and bonds:
            h = h + self.rank(given["rank"])
        read = self._molecule if bonds else self._crystal
        c, e, terms = read(state, t, mask, given, order, sight)
        for layer in self.layers:
            h = layer(h, e, c, hidden, mean)

        scale, shift = self.modulation(c).chunk(2, -1)
        x = _norm(h) * (1 + scale) + shift
        vector = centred(self.to_position(x, e, c, terms, mean), mask, t.get("position", mask.new_zeros(())), order)
        out = {"atom": self.to_atom(x), "position": vector}
        return out | ({"bond": self.to_bond(x, e)} if bonds else {"cell": self.to_cell(mean_over_sites(x, mask))})

    def _crystal(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None,
        sight: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The condition c, edges e and vectors g (B, N, N, K, 3)."""
        cell = state["cell"].clamp(-LIMIT, LIMIT)
        sites = count(mask, given, order, cell.dtype)
        d, lattice = differences(state["position"], periodic=True), cell_matrix(cell, sites)
        template = Template.of(given, d, sites) if self.config.templates else None
        counted = mask[:, None] if order is None else sight
        c = self.condition(t, cell, sites, state["atom"], lattice, counted, template)
        parts = [torch.sin(2 * math.pi * k * d) / (2 * math.pi * k) for k in range(1, SINES + 1)]
        if self.config.templates:
            r = torch.zeros_like(d) if template is None else template.residual
            parts += [r, torch.sin(2 * math.pi * r) / (2 * math.pi)]
        return c, self.pairs(d, lattice, sites, c, template), torch.stack(parts, 3)

    def _molecule(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None,
        sight: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same of a molecule."""
        d = differences(state["position"], periodic=False)
        c = self.condition(t, count(mask, given, order, d.dtype))
        e = self.pairs(d, state["bond"], self.atom(state["atom"]), c, sight)
        return c, e, torch.stack([d, d / (distances(d)[..., None] + SOFT)], 3)


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:])
