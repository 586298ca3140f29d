"""Two transformers of orbits: one says which Wyckoff positions a formula takes, the other their free numbers and cell.

    words:     [begin] [element, count]*  [group?]  [orbit?]*       causal, after CrystalFormer (arXiv 2403.15734)
    geometry:  [crystal] [orbit]*                                    bidirectional, noised numbers and their time

The token of an orbit that is to be named holds its element, the sites of it that are left, and the orbit before. The
model learns chemistry from what elements share: each has its row of the periodic table's facts beside its own vector.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unisci.lattice import wrap
from unisci.networks.edges import fourier
from unisci.networks.embedding import TimeEmbedding
from unisci.networks.sites import mean_over_sites

ELEMENTS, GROUPS, MOST = 101, 231, 64  # rows by atomic number, by space group; the largest count of sites
SYSTEMS = (1, 3, 16, 75, 143, 168, 195)  # the first group of each crystal system
FREQUENCIES = 4


@dataclass(frozen=True)
class OrbitTransformerConfig:
    """Sizes of both transformers; dropout: of their inputs; anonymous: the share of elements whose own vector is
    hidden in training, so that the periodic table's facts alone must tell them."""

    width: int = 128
    layers: int = 4
    heads: int = 8
    dropout: float = 0.1
    anonymous: float = 0.3

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class ElementEmbedding(nn.Module):
    """Atomic numbers (...) -> (..., width); features (101, F): facts of each element, kept with the weights."""

    def __init__(self, width: int, features: Tensor, anonymous: float):
        super().__init__()
        self.own, self.anonymous = nn.Embedding(ELEMENTS, width), anonymous
        self.map = nn.Linear(features.shape[1], width)
        self.register_buffer("features", features.float())

    def forward(self, number: Tensor) -> Tensor:
        own = self.own(number)
        if self.training:
            own = own * (torch.rand(number.shape, device=number.device) >= self.anonymous)[..., None]
        return own + self.map(self.features[number])


class GroupEmbedding(nn.Module):
    """Space groups 1 to 230 (...) -> (..., width): each its own vector and that of its crystal system."""

    def __init__(self, width: int):
        super().__init__()
        self.own, self.system = nn.Embedding(GROUPS, width), nn.Embedding(len(SYSTEMS) + 1, width)
        self.register_buffer("first", torch.tensor(SYSTEMS), persistent=False)

    def forward(self, group: Tensor) -> Tensor:
        return self.own(group) + self.system(torch.bucketize(group, self.first, right=True))


class WyckoffEmbedding(nn.Module):
    """Rows of the table (...), V for none -> (..., width), from a vector of each and its facts (V, F)."""

    def __init__(self, width: int, facts: Tensor):
        super().__init__()
        self.own, self.map = nn.Embedding(len(facts) + 1, width), nn.Linear(facts.shape[1], width)
        self.register_buffer("facts", torch.cat([facts, torch.zeros_like(facts[:1])]).float())

    def forward(self, row: Tensor) -> Tensor:
        return self.own(row) + self.map(self.facts[row])


def _body(config: OrbitTransformerConfig) -> nn.TransformerEncoder:
    c = config
    layer = nn.TransformerEncoderLayer(c.width, c.heads, 4 * c.width, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, c.layers, nn.LayerNorm(c.width), enable_nested_tensor=False)


class OrbitWords(nn.Module):
    """Logits of the next element and count, of the group, and of each orbit's position, given all before."""

    def __init__(self, config: OrbitTransformerConfig, features: Tensor, facts: Tensor):
        super().__init__()
        w = config.width
        self.element, self.count = ElementEmbedding(w, features, config.anonymous), nn.Embedding(MOST + 1, w)
        self.group, self.wyckoff, self.left = GroupEmbedding(w), WyckoffEmbedding(w, facts), nn.Embedding(MOST + 1, w)
        self.special = nn.Parameter(0.02 * torch.randn(3, w))
        self.dropout, self.body = nn.Dropout(config.dropout), _body(config)
        self.to_element, self.to_group = nn.Linear(w, ELEMENTS), nn.Linear(w, GROUPS)
        self.to_count = nn.Sequential(nn.Linear(w, w), nn.GELU(), nn.Linear(w, MOST + 1))
        self.to_wyckoff = nn.Linear(w, len(facts))

    def forward(
        self,
        species: Tensor,
        counts: Tensor,
        group: Tensor,
        element: Tensor,
        left: Tensor,
        before: Tensor,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """species, counts (B, S), 0 behind the last; group (B,); of the M orbits (B, M): element, sites of it that are
        left, row of the orbit before (V for the first), which exist. Gives logits of the next element (B, S + 1, 101),
        0 ends the formula; of its count (B, S, 65); of the group (B, 231); of each orbit's position (B, M, V)."""
        b, s = species.shape
        formula = self.element(species) + self.count(counts)
        begin, ask, orbit = self.special
        orbits = self.element(element) + self.left(left) + self.wyckoff(before) + self.group(group)[:, None] + orbit
        x = torch.cat([begin.expand(b, 1, -1), formula, ask.expand(b, 1, -1), orbits], 1)
        exists = torch.cat([species.new_ones(b, 1), species, species.new_ones(b, 1), mask], 1) > 0
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        x = self.body(self.dropout(x), causal, ~exists)
        told = x[:, :s] + self.element(species)  # the state before an element, and which it is
        return (
            self.to_element(x[:, : s + 1]),
            self.to_count(told),
            self.to_group(x[:, s + 1]),
            self.to_wyckoff(x[:, s + 2 :]),
        )


class OrbitGeometry(nn.Module):
    """state {"free" (B, M, 3), "cell" (B, 6)}, t, mask (B, M), given {"element", "wyckoff" (B, M), "group" (B,),
    "counts" (B, S), "species" (B, S)} -> the same fields; 0 where not free. volumes (101,): first guesses of what an
    element fills, cubic angstrom. form (V, 3, 4): A and b of each position."""

    def __init__(self, config: OrbitTransformerConfig, features: Tensor, facts: Tensor, form: Tensor, volumes: Tensor):
        super().__init__()
        w = config.width
        self.element, self.group, self.wyckoff = (
            ElementEmbedding(w, features, config.anonymous),
            GroupEmbedding(w),
            WyckoffEmbedding(w, facts),
        )
        self.position, self.cell, self.size = nn.Linear(12 * FREQUENCIES, w), nn.Linear(6, w), nn.Linear(2, w)
        self.time = nn.ModuleDict({k: TimeEmbedding(w) for k in ("free", "cell")})
        self.dropout, self.body = nn.Dropout(config.dropout), _body(config)
        self.to_free, self.to_cell = nn.Linear(w, 3), nn.Linear(2 * w, 6)
        self.log_volume = nn.Parameter(volumes.clamp(min=1).log())
        self.register_buffer("form", form.float())
        for head in (self.to_free, self.to_cell):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: None = None,
        cache: None = None,
    ) -> dict[str, Tensor]:
        """See the class; order and cache are for networks that keep them."""
        form = self.form[given["wyckoff"]]
        u = wrap(state["free"])
        site = (form[..., :3] @ u[..., None])[..., 0] + form[..., 3]
        orbits = self.element(given["element"]) + self.wyckoff(given["wyckoff"])
        orbits = orbits + self.position(torch.cat([fourier(u, FREQUENCIES), fourier(site, FREQUENCIES)], -1))
        n = given["counts"].sum(1).to(u)
        filled = (self.log_volume.exp()[given["species"]] * given["counts"]).sum(1)
        size = torch.stack([(filled / n).log() / 3 - 1, n.log() - 2], -1)
        times = sum(embed(t[k].to(u).expand(len(u))) for k, embed in self.time.items())
        whole = self.group(given["group"]) + self.cell(state["cell"]) + self.size(size) + times
        x = torch.cat([whole[:, None], orbits + whole[:, None]], 1)
        x = self.body(self.dropout(x), src_key_padding_mask=~torch.cat([mask.new_ones(len(mask), 1), mask], 1))
        free = (form[..., :3] != 0).any(-2)
        cell = self.to_cell(torch.cat([x[:, 0], mean_over_sites(x[:, 1:], mask)], -1))
        return {"free": self.to_free(x[:, 1:]) * free, "cell": cell}


def facts_of(multiplicity: Tensor, form: Tensor) -> Tensor:
    """Facts of positions for an embedding, (V, 16): their sites in the primitive cell (V,) and A, b (V, 3, 4)."""
    angle = 2 * torch.pi * form[..., 3]
    return torch.cat([multiplicity[:, None].log(), form[..., :3].flatten(1), angle.sin(), angle.cos()], 1)
