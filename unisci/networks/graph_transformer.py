"""The higher-order graph transformer of Pard (Zhao et al., arXiv 2402.03687) with a causal edge product.

Sites carry x (B, N, D), pairs carry e (B, N, N, C). A layer is

    x += attention(x; logits biased by e) + [sum_j e_ij, max(0, max_j e_ij)] W        sums tell the valence
    x += feed-forward(x)
    e += W_2 silu(W_1 e_ij + u_i + u_j + W_p sum_k y1_ik y2_kj)               PPGN product (Maron et al., arXiv
    1905.11136)

What i may see is given by an Order. Where sight is mutual the product runs over all k. Where it is not, k counts iff
i sees k or j sees k: (M y1) y2 + (y1 - M y1)(M^T y2). A plain product would carry a later block into an earlier one
from the second layer on. No normalisation looks across samples or sites, so a block's value does not depend on its
batch or its padding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.embedding import NumberEmbedding, TimeEmbedding
from unisci.order import Order

CONDITION = "condition"  # the condition (B, C) of a batch: numbers about the whole graph, nan where not told


@dataclass(frozen=True)
class GraphTransformerConfig:
    """Sizes: atom and bond states put in, classes put out, widths, how far ranks and degrees are told apart, and
    how many numbers about the whole graph it may be told."""

    site_states: int
    pair_states: int
    site_classes: int
    pair_classes: int
    width: int = 96
    pair_width: int = 32
    layers: int = 5
    heads: int = 6
    product: int = 16
    ranks: int = 16
    degrees: int = 8
    causal: bool = False
    conditions: int = 0

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


class Past(NamedTuple):
    """What a layer remembers of p finished sites: keys and values (B, H, p, D/H), u (B, p, 2C), y1 and y2 (B, p, p,
    P).
    """

    k: Tensor
    v: Tensor
    u: Tensor
    y1: Tensor
    y2: Tensor


class Layer(nn.Module):
    """One step of sites and pairs; see the module's equations. `product` = 0 leaves the edge product out."""

    def __init__(self, width: int, pair_width: int, heads: int, product: int):
        super().__init__()
        self.heads, self.product = heads, product
        self.norm_x, self.norm_e, self.norm_f = nn.LayerNorm(width), nn.LayerNorm(pair_width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.sizes = [heads, 2 * pair_width, product, product]
        self.from_e = nn.Linear(pair_width, sum(self.sizes))  # attention bias, W_1 e, y1, y2 in one product
        self.out = nn.Linear(width, width)
        self.valence = nn.Linear(2 * pair_width, width)
        self.feed = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        self.u = nn.Linear(width, 2 * pair_width)
        self.w2 = nn.Linear(2 * pair_width, pair_width)
        if product:
            self.wp = nn.Linear(product, 2 * pair_width, bias=False)

    def forward(self, x: Tensor, e: Tensor, sees: Tensor, either: Tensor, causal: bool) -> tuple[Tensor, Tensor, Past]:
        """sees (B, N, N) bool: i sees j; either: i sees j or j sees i. Returns x, e and what later sites need of
        these.
        """
        g = self.norm_e(e)
        bias, h, y1, y2 = self._from_e(g)
        q, k, v = self._qkv(x)
        bias = bias.permute(0, 3, 1, 2).masked_fill(~sees[:, None], -1e4)
        x = self._sites(x, F.scaled_dot_product_attention(q, k, v, attn_mask=bias), g * sees[..., None])
        u = self.u(x)
        h = h + u[:, :, None] + u[:, None]
        if self.product:
            h = h + self.wp(edge_product(y1, y2, sees, causal)) / 3
        return x, e + self.w2(F.silu(h)) * either[..., None], Past(k, v, u, y1, y2)

    def extend(self, x: Tensor, rows: Tensor, columns: Tensor, past: Past) -> tuple[Tensor, Tensor, Tensor]:
        """The same for m new sites beside p finished ones, which the new see and which do not see the new.

        x (B, m, D); rows (B, m, p + m, C): pairs from the new sites to all; columns (B, p, m, C): from the finished
        sites to the new.
        """
        p = columns.shape[1]
        g = self.norm_e(rows)
        bias, h_rows, y1_rows, y2_rows = self._from_e(g)
        _, h_columns, y1_columns, y2_columns = self._from_e(self.norm_e(columns))
        q, k, v = self._qkv(x)
        k, v = torch.cat([past.k, k], 2), torch.cat([past.v, v], 2)
        x = self._sites(x, F.scaled_dot_product_attention(q, k, v, attn_mask=bias.permute(0, 3, 1, 2)), g)
        u = self.u(x)
        h_rows = h_rows + u[:, :, None] + torch.cat([past.u, u], 1)[:, None]
        h_columns = h_columns + past.u[:, :, None] + u[:, None]
        if self.product:
            y1_top = torch.cat([past.y1, y1_columns], 2).permute(0, 3, 1, 2)
            y2 = torch.cat([torch.cat([past.y2, y2_columns], 2), y2_rows], 1).permute(0, 3, 1, 2)
            h_rows = h_rows + self.wp((y1_rows.permute(0, 3, 1, 2) @ y2).permute(0, 2, 3, 1)) / 3
            h_columns = h_columns + self.wp((y1_top @ y2[..., p:]).permute(0, 2, 3, 1)) / 3
        return x, rows + self.w2(F.silu(h_rows)), columns + self.w2(F.silu(h_columns))

    def _from_e(self, g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        bias, h, y1, y2 = self.from_e(g).split(self.sizes, -1)
        return bias, h, F.silu(y1), F.silu(y2)

    def _qkv(self, x: Tensor) -> Tensor:
        b, n, d = x.shape
        return self.qkv(self.norm_x(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)

    def _sites(self, x: Tensor, attended: Tensor, seen: Tensor) -> Tensor:
        """x after attention (B, H, N, D/H), the sums and maxima of the pair states it sees, and the feed-forward
        map.
        """
        # Unseen entries are 0 here: a 0 that always counts makes the maximum free of how many there are.
        pooled = torch.cat([seen.sum(2) / 4, seen.amax(2).clamp(min=0)], -1)
        x = x + self.out(attended.transpose(1, 2).reshape(x.shape)) + self.valence(pooled)
        return x + self.feed(self.norm_f(x))


def edge_product(y1: Tensor, y2: Tensor, sees: Tensor, causal: bool) -> Tensor:
    """sum_k y1_ik y2_kj by channel, over the k that i or j sees: y1, y2 (B, N, N, P) -> (B, N, N, P)."""
    y1, y2, m = y1.permute(0, 3, 1, 2), y2.permute(0, 3, 1, 2), sees[:, None].to(y1.dtype)
    y1_seen = y1 * m
    out = y1_seen @ y2
    if causal:
        out = out + (y1 - y1_seen) @ (y2 * m.transpose(2, 3))
    return out.permute(0, 2, 3, 1)


class GraphTrunk(nn.Module):
    """Embeds a noised graph and runs the layers: state, t, mask, given, order -> x (B, N, D), e (B, N, N, C).

    state: "atom" (B, N) and "bond" (B, N, N) indices, or weights over the states, floats with an axis more; t: a time
    per site and per pair, 0 where clean; given: "degree" (B, N), each site's degree within its own and earlier blocks,
    and "condition" (B, config.conditions), nan where not told, as is all of it where it is not given; order: rank
    (B, N), and which sites are noised copies. everywhere: all sites are told the condition; else those at noise alone,
    so that what is remembered of finished ones holds for every condition.
    """

    def __init__(self, config: GraphTransformerConfig, everywhere: bool = False):
        super().__init__()
        c, self.config, self.everywhere = config, config, everywhere
        self.site = nn.Embedding(c.site_states, c.width)
        self.rank = nn.Embedding(c.ranks, c.width)
        self.degree = nn.Embedding(c.degrees, c.width)
        self.noised = nn.Embedding(2, c.width)
        self.time = TimeEmbedding(c.width)
        self.pair = nn.Embedding(c.pair_states, c.pair_width)
        self.relative = nn.Embedding(2 * c.ranks, c.pair_width)  # rank difference; the last row marks the diagonal
        self.pair_noised = nn.Embedding(2, c.pair_width)
        self.layers = nn.ModuleList(Layer(c.width, c.pair_width, c.heads, c.product) for _ in range(c.layers))
        if c.conditions:
            self.condition = NumberEmbedding(c.conditions, c.width)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None,
        before: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
    ) -> tuple[Tensor, Tensor, list[Past]]:
        """x, e, and what each layer remembers. before(k, x, e) -> x, e: what layer k is given in their place."""
        order = order or Order(torch.where(mask, 0, -1))
        causal = self.config.causal or order.noisy is not None
        sees = order.visible() if causal else mask[:, :, None] & mask[:, None, :]
        either = (sees | sees.transpose(1, 2)) if causal else sees
        x, e, past = self._embed_sites(state, t, given, order), self._embed_pairs(state, t, order), []
        e = e * either[..., None]
        for i, layer in enumerate(self.layers):
            if before is not None:
                x, e = before(i, x, e)
            x, e, kept = layer(x, e, sees, either, causal)
            past.append(kept)
        return x, e, past

    def extend(
        self, state: dict[str, Tensor], t: dict[str, Tensor], given: dict[str, Tensor], order: Order, past: list[Past]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x (B, m, D), rows (B, m, p + m, C), columns (B, p, m, C) of the last m sites, one block, after p remembered
        ones.

        All p + m sites exist; the inputs are as of `forward`.
        """
        p = past[0].u.shape[1]
        x, e = self._embed_sites(state, t, given, order)[:, p:], self._embed_pairs(state, t, order)
        rows, columns = e[:, p:], e[:, :p, p:]
        for layer, kept in zip(self.layers, past, strict=True):
            x, rows, columns = layer.extend(x, rows, columns, kept)
        return x, rows, columns

    def _embed_sites(
        self, state: dict[str, Tensor], t: dict[str, Tensor], given: dict[str, Tensor], order: Order
    ) -> Tensor:
        c = self.config
        x = _look_up(self.site, state["atom"]) + self.rank(order.rank.clamp(0, c.ranks - 1))
        x = x + self.degree(given["degree"].clamp(max=c.degrees - 1))
        x = x + self.noised((t["atom"] > 0).long()) + self.time(t["atom"])
        return x + self._told(t["atom"], given).to(x) if c.conditions else x

    def _told(self, t: Tensor, given: dict[str, Tensor]) -> Tensor:
        """What each site is told of the condition, (B, N, D)."""
        b, c = len(t), self.config.conditions
        values = given.get(CONDITION, t.new_full((b, c), float("nan")))
        if values.shape != (b, c):
            raise ValueError(f"this network takes conditions {(b, c)}, got {tuple(values.shape)}")
        told = self.condition(values.to(self.site.weight))[:, None]
        return told.expand(*t.shape, -1) if self.everywhere else told * (t > 0)[..., None]

    def _embed_pairs(self, state: dict[str, Tensor], t: dict[str, Tensor], order: Order) -> Tensor:
        ranks = self.config.ranks
        rank = order.rank.clamp(0, ranks - 1)
        difference = rank[:, :, None] - rank[:, None, :] + ranks - 1
        diagonal = torch.eye(rank.shape[1], dtype=torch.bool, device=rank.device)
        e = _look_up(self.pair, state["bond"]) + self.relative(torch.where(diagonal, 2 * ranks - 1, difference))
        return e + self.pair_noised((t["bond"] > 0).long())


class GraphTransformer(nn.Module):
    """Logits of the clean atoms and bonds of a noised graph; satisfies the Network protocol. Inputs as of GraphTrunk.

    Returns {"atom": (B, N, site_classes), "bond": (B, N, N, pair_classes), symmetric}. With a cache of the finished
    sites only the last block is computed; the logits of finished sites, which nobody asks for, are then 0.
    """

    def __init__(self, config: GraphTransformerConfig):
        super().__init__()
        self.trunk = GraphTrunk(config)
        self.to_site = _head(config.width, config.site_classes)
        self.to_pair = _head(config.pair_width, config.pair_classes)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: list[Past] | None = None,
    ) -> dict[str, Tensor]:
        """Logits by field; cache: of `remember`, whose sites are the first ones of every graph, all existing."""
        if cache is None:
            x, e, _ = self.trunk(state, t, mask, given, order)
            pairs = self.to_pair(e)
            return {"atom": self.to_site(x), "bond": pairs + pairs.transpose(1, 2)}
        x, rows, columns = self.trunk.extend(state, t, given, order, cache)
        (b, m, _), p = x.shape, columns.shape[1]
        atom = x.new_zeros(b, p + m, self.trunk.config.site_classes)
        bond = x.new_zeros(b, p + m, p + m, self.trunk.config.pair_classes)
        rows, columns = self.to_pair(rows), self.to_pair(columns)
        within = rows[:, :, p:]
        atom[:, p:] = self.to_site(x)
        bond[:, p:, p:] = within + within.transpose(1, 2)
        bond[:, p:, :p] = rows[:, :, :p] + columns.transpose(1, 2)
        bond[:, :p, p:] = bond[:, p:, :p].transpose(1, 2)
        return {"atom": atom, "bond": bond}

    def remember(self, state: dict[str, Tensor], mask: Tensor, given: dict[str, Tensor], order: Order) -> list[Past]:
        """The cache of finished, clean sites, for a network of causal sight. Raises ValueError for any other."""
        if not self.trunk.config.causal:
            raise ValueError(
                "only a network of causal sight can be cached: finished sites of this one see later blocks"
            )
        return self.trunk(state, _clean(state), mask, given, order)[2]


class GraphHead(nn.Module):
    """Numbers about a whole graph, from the sums of site and pair states: (B, outputs). t = None: all is clean."""

    def __init__(self, config: GraphTransformerConfig, outputs: int):
        super().__init__()
        self.trunk = GraphTrunk(config, everywhere=True)
        self.out = _head(config.width + config.pair_width, outputs)

    def forward(
        self,
        state: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order,
        t: dict[str, Tensor] | None = None,
    ) -> Tensor:
        x, e, _ = self.trunk(state, _clean(state) if t is None else t, mask, given, order)
        both = mask[:, :, None, None] & mask[:, None, :, None]
        return self.out(torch.cat([(x * mask[..., None]).sum(1), (e * both).sum((1, 2))], -1))


def _clean(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Time 0 at every site and pair."""
    return {k: torch.zeros_like(v, dtype=torch.float32) for k, v in state.items()}


def _look_up(embedding: nn.Embedding, index: Tensor) -> Tensor:
    """The rows of indices (...), or of weights (..., states), which may be differentiated by."""
    return index @ embedding.weight if index.is_floating_point() else embedding(index)


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))
