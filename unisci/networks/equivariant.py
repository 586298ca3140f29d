"""An E(3)-equivariant network of spherical tensors on a sparse graph (e3nn; Thomas et al., arXiv 1802.08219).

    m_ij = h_j (x) Y(r_ij) weighted by an MLP of |r_ij|,    h_i = gate(W [h_i, sum_j u(|r_ij|) m_ij])

u falls to 0 at the cutoff with two derivatives, so outputs are smooth as atoms cross it. All images of a crystal's
cell within the cutoff are neighbours: outputs are exact under rotation and reflection, translation, permutation, and
any change of the cell's basis. A crystal's cell is moved by a strain S (L' = L exp(S), S symmetric, of the summed
scalars and l = 2 tensors) and positions by Cartesian vectors. A bond enters the MLP of its edge, beyond the cutoff
none; bonds are read from the scalars of both sites, their distance and the bond that was. Slow on a CPU: for tests,
forces and small data.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unisci.lattice import cell_matrix, cell_numbers
from unisci.networks.edges import differences, distances, radial, to_edge_index
from unisci.networks.molecule_inputs import BondHead, RankEmbedding
from unisci.networks.sites import FieldTimes, centred, check_bonds, count, mean_over_sites, sees
from unisci.order import Order


@dataclass(frozen=True)
class E3NetConfig:
    """Sizes: channels of each degree up to l_max, of scalars and of tensors; cutoff in the unit of Cartesian positions.
    classes: elements, the mask state is one more; bonds: of bonds, likewise, 0: there are none; ranks: of a molecule's
    structural order that are told apart. Raises ValueError where l_max is not 1 or 2.
    """

    classes: int = 100
    scalars: int = 32
    tensors: int = 8
    l_max: int = 2
    layers: int = 2
    radial: int = 8
    cutoff: float = 5.0
    bonds: int = 0
    ranks: int = 16

    def __post_init__(self) -> None:
        if self.l_max not in (1, 2):
            raise ValueError(f"l_max must be 1 or 2, got {self.l_max}")


class Layer(nn.Module):
    """One step of the node states under the edges' harmonics and radial features."""

    def __init__(self, config: E3NetConfig, first: bool):
        from e3nn import nn as e3
        from e3nn import o3

        super().__init__()
        c = config
        parities = [(c.tensors, (degree, p)) for degree in range(1, c.l_max + 1) for p in (-1, 1)]
        tensors, scalars = o3.Irreps(parities), o3.Irreps([(c.scalars, (0, 1))])
        gates = o3.Irreps([(tensors.num_irreps, (0, 1))])
        self.irreps_in = scalars if first else scalars + tensors
        harmonics = o3.Irreps.spherical_harmonics(c.l_max)
        self.gate = e3.Gate(scalars, [nn.functional.silu], gates, [torch.sigmoid], tensors)
        self.product = o3.FullyConnectedTensorProduct(
            self.irreps_in, harmonics, self.gate.irreps_in.simplify(), shared_weights=False
        )
        self.own = o3.Linear(self.irreps_in, self.gate.irreps_in)
        features = c.radial * (2 if c.bonds else 1)
        self.weights = nn.Sequential(nn.Linear(features, 16), nn.SiLU(), nn.Linear(16, self.product.weight_numel))
        self.irreps_out = self.gate.irreps_out

    def forward(self, h: Tensor, index: Tensor, harmonics: Tensor, features: Tensor, fade: Tensor) -> Tensor:
        source, target = index
        m = self.product(h[source], harmonics, self.weights(features)) * fade[:, None]
        own = self.own(h)
        return self.gate(own + torch.zeros_like(own).index_add(0, target, m) / 4)


class E3Net(nn.Module):
    """state, t, mask, given, order -> the fields of the state, as EGNN; needs e3nn, which is imported here alone."""

    def __init__(self, config: E3NetConfig):
        from e3nn import o3

        super().__init__()
        c, self.config = config, config
        self.harmonics = o3.SphericalHarmonics(list(range(c.l_max + 1)), normalize=True, normalization="component")
        self.atom, self.time = nn.Embedding(c.classes + 1, c.scalars), FieldTimes(c.scalars)
        self.layers = nn.ModuleList(Layer(c, first=k == 0) for k in range(c.layers))
        last = self.layers[-1].irreps_out
        self.to_atom = o3.Linear(last, o3.Irreps([(c.classes, (0, 1))]))
        self.to_vector = o3.Linear(last, o3.Irreps("1x1o"))
        self.to_strain = o3.Linear(last, o3.Irreps("0e + 2e"))
        self.gain = nn.Linear(c.scalars, 1)
        basis = o3.ReducedTensorProducts("ij=ji", i="1o").change_of_basis
        self.register_buffer("symmetric", basis, persistent=False)  # (6, 3, 3) of 0e + 2e
        for weights in (*self.to_atom.parameters(), *self.to_strain.parameters(), *self.to_vector.parameters()):
            nn.init.zeros_(weights)
        if c.bonds:
            self.bond, self.rank = nn.Embedding(c.bonds + 1, c.radial), RankEmbedding(c.scalars, c.ranks)
            self.to_bond = BondHead(c.scalars, 2 * c.radial, c.bonds)

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
            raise ValueError("E3Net keeps no cache: pass None")
        c = self.config
        check_bonds(state, c.bonds)
        position, lattice = state["position"], None
        if "cell" in state:
            lattice = cell_matrix(state["cell"].clamp(-6, 6), count(mask, given, order, position.dtype))
        time = self.time(t, position).expand(-1, mask.shape[1], -1)[mask]
        h, node = self.atom(state["atom"][mask]) + time, mask.nonzero()
        if c.bonds and "rank" in given:
            h = h + self.rank(given["rank"][mask])
        bond = self.bond(state["bond"]) if c.bonds else None
        h = self._nodes(h, position, bond, mask, lattice, order)
        vector = torch.exp(4 * torch.tanh(self.gain(time))) * self.to_vector(h)
        dense = lambda x: x.new_zeros(*mask.shape, x.shape[-1]).index_put(tuple(node.T), x)
        vector = dense(vector) if lattice is None else dense(vector) @ torch.linalg.inv(lattice)
        vector = centred(vector, mask, t.get("position", mask.new_zeros(())), order)
        out = {"atom": dense(self.to_atom(h)), "position": vector}
        if c.bonds:
            r = distances(differences(position, periodic=lattice is not None), lattice)
            pairs = torch.cat([radial(r, c.radial, c.cutoff), bond], -1)
            out["bond"] = self.to_bond(dense(h[:, : c.scalars]), pairs)
        if lattice is None:
            return out
        strain = torch.einsum("bk,kij->bij", mean_over_sites(dense(self.to_strain(h)), mask), self.symmetric)
        return out | {"cell": strained(lattice, strain) - strained(lattice, torch.zeros_like(strain))}

    def _nodes(
        self,
        h: Tensor,
        position: Tensor,
        bond: Tensor | None,
        mask: Tensor,
        lattice: Tensor | None,
        order: Order | None,
    ) -> Tensor:
        """States (nodes, irreps) of the sites that exist, after all layers; bond (B, N, N, radial)."""
        (source, target), shift, sample = to_edge_index(position, mask, lattice, self.config.cutoff)
        site = mask.nonzero()[:, 1]
        if order is not None:
            seen = sees(mask, order)[sample[target], site[target], site[source]]
            source, target, shift = source[seen], target[seen], shift[seen]
        vector = position[mask][source] + shift - position[mask][target]
        if lattice is not None:
            vector = (vector[:, None] @ lattice[sample[target]])[:, 0]
        r = (vector * vector).sum(-1).clamp(min=1e-6).sqrt()
        harmonics, features = self.harmonics(vector), radial(r, self.config.radial, self.config.cutoff)
        if bond is not None:
            features = torch.cat([features, bond[sample[target], site[target], site[source]]], -1)
        fade = (1 - (r / self.config.cutoff) ** 2).clamp(min=0) ** 3
        for layer in self.layers:
            h = layer(h, torch.stack([source, target]), harmonics, features, fade)
        return h


def strained(lattice: Tensor, strain: Tensor) -> Tensor:
    """Cell numbers (B, 6), at one site, of L exp(S), turned to lower triangular; lattice, strain (B, 3, 3)."""
    # L' = R^T Q^T of the QR factors of L'^T; the signs make the diagonal positive.
    r = torch.linalg.qr((lattice @ torch.matrix_exp(strain)).transpose(1, 2))[1]
    r = r * r.diagonal(dim1=1, dim2=2).sign()[..., None]
    return cell_numbers(r.transpose(1, 2), lattice.new_ones(len(lattice)))
