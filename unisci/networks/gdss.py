"""The networks of GDSS (Jo et al., arXiv 2202.02514): one for the nodes and one for the edges, each of which sees both.

    s_theta:  H_l+1 = tanh(GCN(H_l, A)),                            output MLP([H_0, ..., H_L])
    s_phi:    H_l+1, A_l+1 = graph multi-head attention(H_l, A_l),  A_0 = (A, A^2), output MLP([A_0, ..., A_L])

A holds one or more channels of real numbers, as noise leaves them. Both networks permute with the nodes, and the edges'
output is symmetric. Time is no input in the paper, as the noise shows it; here it may be one.

A stronger network of the same signature is `unisci.networks.joint_transformer`.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from unisci.batch import pair_mask
from unisci.networks.embedding import TimeEmbedding
from unisci.order import Order


def mlp(inputs: int, hidden: int, outputs: int, layers: int) -> nn.Sequential:
    """`layers` linear maps with ELU between them."""
    sizes = [inputs, *[hidden] * (layers - 1), outputs]
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ELU()]
    return nn.Sequential(*parts[:-1])


def normalised(a: Tensor) -> Tensor:
    """D^-1/2 (A + I) D^-1/2 of adjacencies (..., N, N); D the row sums of A + I, 1 where a noised one is less."""
    a = a + torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    d = a.sum(-1).clamp(min=1).rsqrt()
    return d[..., :, None] * a * d[..., None, :]


class Convolution(nn.Module):
    """Graph convolution (Kipf & Welling, arXiv 1609.02907), one for each channel: x (B, N, D), a (B, C, N, N)
    normalised -> (B, C, N, E)."""

    def __init__(self, channels: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(channels, inputs, outputs) * inputs**-0.5)
        self.bias = nn.Parameter(torch.zeros(channels, 1, outputs))

    def forward(self, x: Tensor, a: Tensor) -> Tensor:
        return a @ (x[:, None] @ self.weight) + self.bias


class Attention(nn.Module):
    """Graph multi-head attention (Baek et al., arXiv 2102.11533): x (B, N, D), a (B, C, N, N) to the next of both.

    Queries, keys and values are convolutions by each channel; the maps tanh(q k^T), averaged over heads and made
    symmetric, are mixed with the channels into the next ones.
    """

    def __init__(self, channels: int, outputs: int, inputs: int, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is not a multiple of heads {heads}")
        self.heads = heads
        self.qkv = Convolution(channels, inputs, 3 * width)
        self.sites = mlp(channels * width, max(channels, outputs, width), width, 2)
        self.pairs = mlp(2 * channels, 2 * max(channels, outputs), outputs, 2)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        b, n, _ = x.shape
        q, k, v = self.qkv(x, normalised(a)).chunk(3, -1)
        q, k = (w.unflatten(-1, (self.heads, -1)).transpose(2, 3) for w in (q, k))  # (B, C, H, N, E/H)
        maps = torch.tanh(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).mean(2)
        maps = (maps + maps.transpose(-1, -2)) / 2
        x = torch.tanh(self.sites(v.transpose(1, 2).reshape(b, n, -1))) * mask[..., None]
        a = self.pairs(torch.cat([maps, a], 1).movedim(1, -1)).movedim(-1, 1)
        return x, (a + a.transpose(-1, -2)) * pair_mask(mask)[:, None]


class NodeNetwork(nn.Module):
    """s_theta: x (B, N, D), a (B, C, N, N) -> (B, N, outputs)."""

    def __init__(self, inputs: int, channels: int, outputs: int, width: int, layers: int):
        super().__init__()
        sizes = [inputs, *[width] * layers]
        self.layers = nn.ModuleList(Convolution(channels, i, o) for i, o in pairwise(sizes))
        self.out = mlp(sum(sizes), 2 * sum(sizes), outputs, 3)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        a, seen = normalised(a), [x]
        for layer in self.layers:
            seen.append(torch.tanh(layer(seen[-1], a).sum(1)) * mask[..., None])
        return self.out(torch.cat(seen, -1))


class EdgeNetwork(nn.Module):
    """s_phi: x (B, N, D), a (B, C, N, N) -> (B, outputs, N, N), symmetric, 0 on the diagonal."""

    def __init__(self, inputs: int, channels: int, outputs: int, width: int, layers: int, heads: int, hidden: int):
        super().__init__()
        sizes = [2 * channels, *[hidden] * (layers - 1), max(4, outputs)]
        self.layers = nn.ModuleList(
            Attention(i, o, inputs if k == 0 else width, width, heads) for k, (i, o) in enumerate(pairwise(sizes))
        )
        self.out = mlp(sum(sizes), 2 * sum(sizes), outputs, 3)

    def forward(self, x: Tensor, a: Tensor, mask: Tensor) -> Tensor:
        a = torch.cat([a, a @ a * pair_mask(mask)[:, None]], 1)
        seen = [a]
        for layer in self.layers:
            x, a = layer(x, a, mask)
            seen.append(a)
        return self.out(torch.cat(seen, 1).movedim(1, -1)).movedim(-1, 1) * pair_mask(mask)[:, None]


class Gdss(nn.Module):
    """Both networks as one of the Network protocol: "atom" (B, N, features) and "bond" (B, N, N, channels), or
    (B, N, N) where channels is None, to outputs of the same shapes.

    width, layers, heads, hidden (channels between the layers): by default the paper's for QM9. time: width of an
    embedding of the time () or (B,), which every node then has as further features; 0, as in the paper: no time.
    """

    def __init__(
        self,
        features: int,
        channels: int | None = None,
        width: int = 16,
        layers: int = 3,
        heads: int = 4,
        hidden: int = 8,
        time: int = 0,
    ):
        super().__init__()
        self.single, c = channels is None, channels or 1
        self.time = TimeEmbedding(time) if time else None
        self.nodes = NodeNetwork(features + time, c, features, width, layers)
        self.edges = EdgeNetwork(features + time, c, c, width, layers, heads, hidden)

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        x, a = state["atom"], state["bond"]
        if self.time is not None:
            at = self.time(t["atom"].to(x).reshape(-1, 1)).expand(*x.shape[:2], -1)
            x = torch.cat([x, at], -1)
        x = x * mask[..., None]
        a = (a[:, None] if self.single else a.movedim(-1, 1)) * pair_mask(mask)[:, None]
        bond = self.edges(x, a, mask)
        return {"atom": self.nodes(x, a, mask), "bond": bond[:, 0] if self.single else bond.movedim(1, -1)}
