"""The graph transformer on numbers, for processes that noise classes as points (unisci.discrete.cdcd), and its drafts.

Classes are decided together: a bond moves only where another one goes. So the network may be shown what its own
estimate looks like as a graph, before the first layer and again between layers:

    l <- l + draft(x, e);    p = softmax(log w + l);    x += sites(p), e += pairs(p)

w are the weights put in, l the logits so far. The drafts' logits are part of the output, which trains them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from unisci.batch import pair_mask
from unisci.networks.graph_transformer import GraphTransformer, GraphTransformerConfig
from unisci.order import Order

TINY = 1e-12  # class weights are at least this


def reach(p: Tensor) -> Tensor:
    """The strongest path between any two nodes, (B, N, N) of p (B, N, N) in [0, 1]: a path is as strong as its weakest
    pair. 1 on the diagonal."""
    eye = torch.eye(p.shape[1], dtype=torch.bool, device=p.device)
    p = p.masked_fill(eye, 1.0)
    for _ in range(max(1, p.shape[1] - 1).bit_length()):  # paths twice as long each time
        p = torch.minimum(p[:, :, :, None], p[:, None]).amax(2)
    return p


class Hints(nn.Module):
    """What class weights show of the graph as a whole, ready to be added to its embedding: (B, N, D), (B, N, N, C).

    Of a site: log weights of its classes, sums of the weights of its pairs by class (its valence), the weakest reach
    between two nodes (whether the graph hangs together). Of a pair: log weights, the walks of length 2, 3 and 4 over
    1 - p(class 0), which must be "no bond", and `reach`. All 0 before it is trained.
    """

    def __init__(self, sites: int, pairs: int, width: int, pair_width: int):
        super().__init__()
        self.site = _added(2 * sites + pairs + 1, width, width)
        self.pair = _added(2 * pairs + 5, 2 * pair_width, pair_width)

    def forward(self, state: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        atom, bond, both = state["atom"], state["bond"], pair_mask(mask)
        p = (1 - bond[..., 0]) * both
        p2 = p @ p
        joined = reach(p)
        weakest = joined.masked_fill(~both, 1.0).amin((1, 2))[:, None, None].expand(*mask.shape, 1)
        valence = (bond * both[..., None]).sum(2)
        site = torch.cat([atom, _log(atom), valence[..., 1:] / 2, valence[..., :1] / 8, weakest], -1)
        walks = torch.stack([p, p2, p2 @ p, p2 @ p2, joined], -1)
        walks = torch.cat([walks[..., :1], torch.log1p(walks[..., 1:4]), walks[..., 4:]], -1)
        return self.site(site), self.pair(torch.cat([bond, _log(bond), walks], -1))


def _log(weights: Tensor) -> Tensor:
    """The log of weights in [0, 1], to [-2, 0]."""
    return (weights + 1e-6).log() / 7


def _added(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    last = nn.Linear(hidden, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), last)


class JointTransformer(nn.Module):
    """The graph transformer on numbers: "atom" (B, N, K) and "bond" (B, N, N, C) floats, all at one time () or (B,).

    config: site_states, pair_states are K and C, and site_classes, pair_classes the widths put out.
    drafts: the inputs are weights of classes, of which the first of "bond" is no bond, and before the first layer and
    these further ones the network is shown `Hints` of its estimate so far, to which each draft adds:
    softmax(log weights + logits). The drafts' logits are part of the output.
    """

    def __init__(self, config: GraphTransformerConfig, drafts: Sequence[int] = ()):
        super().__init__()
        self.inner = GraphTransformer(config)
        c, self.drafts = config, tuple(drafts)
        if any(not 0 < k < c.layers for k in self.drafts):
            raise ValueError(f"drafts {self.drafts} must lie between the {c.layers} layers: 1 to {c.layers - 1}")
        stages = (0, *self.drafts) if self.drafts else ()
        sizes = c.site_classes, c.pair_classes, c.width, c.pair_width
        self.hints = nn.ModuleDict({str(k): Hints(*sizes) for k in stages})
        self.to_site = nn.ModuleDict({str(k): _added(c.width, c.width, c.site_classes) for k in self.drafts})
        self.to_pair = nn.ModuleDict({str(k): _added(c.pair_width, c.pair_width, c.pair_classes) for k in self.drafts})

    def forward(
        self,
        state: dict[str, Tensor],
        t: dict[str, Tensor],
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        at = {k: t[k].to(v).reshape(-1, *(1,) * (v.ndim - 2)).expand(v.shape[:-1]) for k, v in state.items()}
        given = given | {"degree": torch.zeros_like(mask, dtype=torch.long)}
        if not self.drafts:
            return self.inner(state, at, mask, given, order)
        logs = {k: (v + TINY).log() for k, v in state.items()}
        added = {k: torch.zeros_like(v) for k, v in state.items()}

        def before(k: int, x: Tensor, e: Tensor) -> tuple[Tensor, Tensor]:
            if k in self.drafts:
                pair = self.to_pair[str(k)](e)
                added["atom"] = added["atom"] + self.to_site[str(k)](x)
                added["bond"] = added["bond"] + pair + pair.transpose(1, 2)
            elif k:
                return x, e
            site, pair = self.hints[str(k)]({f: (logs[f] + added[f]).softmax(-1) for f in logs}, mask)
            return x + site, e + pair * pair_mask(mask)[..., None]

        x, e, _ = self.inner.trunk(state, at, mask, given, order, before)
        pair = self.inner.to_pair(e)
        return {"atom": added["atom"] + self.inner.to_site(x), "bond": added["bond"] + pair + pair.transpose(1, 2)}
