"""The higher-order graph transformer of Pard (Zhao et al., arXiv 2402.03687) with a causal edge product.

Sites carry x (B, N, D), pairs carry e (B, N, N, C). A layer is

    x += attention(x; logits biased by e) + [sum_j e_ij, max(0, max_j e_ij)] W        sums tell the valence
    x += feed-forward(x)
    e += W_2 silu(W_1 e_ij + u_i + u_j + W_p sum_k y1_ik y2_kj)               PPGN product (Maron et al., arXiv 1905.11136)

What i may see is given by an Order. Where sight is mutual the product runs over all k. Where it is not, k counts iff i sees k
or j sees k: (M y1) y2 + (y1 - M y1)(M^T y2). A plain product would carry a later block into an earlier one from the second
layer on. No normalisation looks across samples or sites, so a block's value does not depend on its batch or its padding.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.embedding import TimeEmbedding
from unisci.order import Order


@dataclass(frozen=True)
class GraphTransformerConfig:
    """Sizes: atom and bond states put in, classes put out, widths, and how far ranks and degrees are told apart."""

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

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"width {self.width} is not a multiple of heads {self.heads}")


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

    def forward(self, x: Tensor, e: Tensor, sees: Tensor, either: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
        """sees (B, N, N) bool: i sees j; either: i sees j or j sees i."""
        b, n, d = x.shape
        g = self.norm_e(e)
        bias, h, y1, y2 = self.from_e(g).split(self.sizes, -1)
        q, k, v = self.qkv(self.norm_x(x)).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        bias = bias.permute(0, 3, 1, 2).masked_fill(~sees[:, None], -1e4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        seen = g * sees[..., None]
        # Unseen entries count as 0 in the maximum: a 0 that is always there makes it free of how many there are.
        pooled = torch.cat([seen.sum(2) / 4, seen.amax(2).clamp(min=0)], -1)
        x = x + self.out(attended.transpose(1, 2).reshape(b, n, d)) + self.valence(pooled)
        x = x + self.feed(self.norm_f(x))
        u = self.u(x)
        h = h + u[:, :, None] + u[:, None]
        if self.product:
            h = h + self.wp(edge_product(F.silu(y1), F.silu(y2), sees, causal)) / 3
        return x, e + self.w2(F.silu(h)) * either[..., None]


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

    state: "atom" (B, N) and "bond" (B, N, N) indices; t: a time per site and per pair, 0 where clean; given: "degree" (B, N), each
    site's degree within its own and earlier blocks; order: rank (B, N), and which sites are noised copies.
    """

    def __init__(self, config: GraphTransformerConfig):
        super().__init__()
        c, self.config = config, config
        self.site = nn.Embedding(c.site_states, c.width)
        self.rank = nn.Embedding(c.ranks, c.width)
        self.degree = nn.Embedding(c.degrees, c.width)
        self.noised = nn.Embedding(2, c.width)
        self.time = TimeEmbedding(c.width)
        self.pair = nn.Embedding(c.pair_states, c.pair_width)
        self.relative = nn.Embedding(2 * c.ranks, c.pair_width)  # rank difference; the last row marks the diagonal
        self.pair_noised = nn.Embedding(2, c.pair_width)
        self.layers = nn.ModuleList(Layer(c.width, c.pair_width, c.heads, c.product) for _ in range(c.layers))

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None,
    ) -> tuple[Tensor, Tensor]:
        c, n = self.config, mask.shape[1]
        order = order or Order(torch.where(mask, 0, -1))
        causal = c.causal or order.noisy is not None
        sees = order.visible() if causal else mask[:, :, None] & mask[:, None, :]
        either = (sees | sees.transpose(1, 2)) if causal else sees
        rank = order.rank.clamp(0, c.ranks - 1)
        x = self.site(state["atom"]) + self.rank(rank) + self.degree(given["degree"].clamp(max=c.degrees - 1))
        x = x + self.noised((t["atom"] > 0).long()) + self.time(t["atom"])
        difference = rank[:, :, None] - rank[:, None, :] + c.ranks - 1
        diagonal = torch.eye(n, dtype=torch.bool, device=mask.device)
        e = self.pair(state["bond"]) + self.relative(torch.where(diagonal, 2 * c.ranks - 1, difference))
        e = (e + self.pair_noised((t["bond"] > 0).long())) * either[..., None]
        for layer in self.layers:
            x, e = layer(x, e, sees, either, causal)
        return x, e


class GraphTransformer(nn.Module):
    """Logits of the clean atoms and bonds of a noised graph; satisfies the Network protocol. Inputs as of GraphTrunk.

    Returns {"atom": (B, N, site_classes), "bond": (B, N, N, pair_classes), symmetric}.
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
        cache: None = None,
    ) -> dict[str, Tensor]:
        x, e = self.trunk(state, t, mask, given, order)
        pairs = self.to_pair(e)
        return {"atom": self.to_site(x), "bond": pairs + pairs.transpose(1, 2)}


class GraphHead(nn.Module):
    """Logits of one choice about a whole clean graph, from the sums of site and pair states: (B, outputs)."""

    def __init__(self, config: GraphTransformerConfig, outputs: int):
        super().__init__()
        self.trunk = GraphTrunk(config)
        self.out = _head(config.width + config.pair_width, outputs)

    def forward(self, state: dict[str, Tensor], mask: Tensor, given: dict[str, Tensor], order: Order) -> Tensor:
        t = {k: torch.zeros_like(v, dtype=torch.float32) for k, v in state.items()}
        x, e = self.trunk(state, t, mask, given, order)
        both = mask[:, :, None, None] & mask[:, None, :, None]
        return self.out(torch.cat([(x * mask[..., None]).sum(1), (e * both).sum((1, 2))], -1))


def _head(width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, outputs))
