"""CoRe^2 (arXiv 2503.09662) for graphs drawn block by block: a small graph transformer learns what classifier-free
guidance makes of the conditional logits, so that a guided step costs one call of the big network.

    g = D_c + r(x_t, D_c, c, t),   fitted by KL(D_s || g) at the sites and bonds of the block that is drawn

    weak = WeakGraph(of_size(model, width=64, pair_width=24, layers=2, heads=4, product=8))
    reflect(weak, collect_blocks(model, weak, values, w, Rng(0, ids)), 2000, Rng(1, torch.arange(256)))
    model.generate(rng, values=values, guide=fast_blocks(weak))
"""

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.autoregression.conditions import untold
from unisci.autoregression.pard import Pard
from unisci.denoiser import Bound
from unisci.guidance.core2 import Recorder, Trajectories, WeakToStrong
from unisci.guidance.weak import NARROW, Fast
from unisci.networks.graph_transformer import CONDITION, GraphTransformer, GraphTransformerConfig
from unisci.order import Order
from unisci.processes.product import site_times
from unisci.rng import Rng
from unisci.solvers.sample import Denoise
from unisci.state import State, Time

SITE_AXES = {"atom": 1, "bond": 2, "rank": 1, "degree": 1, CONDITION: 0}


class WeakGraph(nn.Module):
    """g for fields "atom" and "bond": r a graph transformer, 0 at first, of mutual sight. config: of the big network,
    with sizes of its own, see `of_size`."""

    def __init__(self, config: GraphTransformerConfig):
        super().__init__()
        c = config
        self.states = {"atom": c.site_states, "bond": c.pair_states}
        both = (c.site_states + c.site_classes, c.pair_states + c.pair_classes)
        self.residual = GraphTransformer(replace(c, site_states=both[0], pair_states=both[1], causal=False))
        for last in (self.residual.to_site[-1], self.residual.to_pair[-1]):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(self, clean: State, x: State, t: Time, condition: State | None = None) -> State:
        """Logits by field. clean: D_c; x: classes; t: by site and pair; condition: "rank" (B, N), -1 where there is no
        site, "degree" (B, N) and "condition" (B, C)."""
        state = {k: self._told(clean[k], x[k], t[k], self.states[k]) for k in clean}
        mask = condition["rank"] >= 0
        r = self.residual(state, t, mask, condition, Order(condition["rank"]))
        return {k: clean[k] + r[k] for k in clean}

    @staticmethod
    def _told(clean: Tensor, x: Tensor, t: Tensor, states: int) -> Tensor:
        """x_t and, where there is noise, the log probabilities of D_c; what is finished is not asked for D_c."""
        log_p = clean.log_softmax(-1).clamp(min=-NARROW) / NARROW * (t > 0)[..., None]
        return torch.cat([F.one_hot(x, states).to(log_p), log_p], -1)


def of_size(model: Pard, width: int, pair_width: int, layers: int, heads: int, product: int) -> GraphTransformerConfig:
    """The sizes of a weak network for this model."""
    sizes = {"width": width, "pair_width": pair_width, "layers": layers, "heads": heads, "product": product}
    return replace(model.denoiser.network.trunk.config, **sizes)


def fast(bound: Bound, weak: WeakGraph) -> Fast:
    """One call of the big network, and the weak one at the sites and bonds of the block that is drawn."""
    rank = torch.where(bound.mask, bound.order.rank, -1)
    moving = (rank == rank.amax(1, keepdim=True)) & bound.mask
    condition = {"rank": rank, "degree": bound.given["degree"], CONDITION: bound.given[CONDITION]}
    drawn = {k: f for k, f in bound.schema.items() if k in bound.process}
    where = {k: t > 0 for k, t in site_times(drawn, moving, torch.ones((), device=rank.device)).items()}
    return Fast(bound, weak, condition, where)


def fast_blocks(weak: WeakGraph) -> Callable[[Bound], Denoise]:
    """The `guide` of `generate` that costs one call of the big network a step."""
    return lambda bound: fast(bound, weak)


def refined_blocks(
    weak: WeakGraph, weight: float, omega: float = 1.5, until: float = 0.0
) -> Callable[[Bound], Denoise]:
    """The `guide` of `generate` by weak-to-strong guidance: two calls a step at times >= until, one below."""
    return lambda bound: WeakToStrong(fast(bound, weak), untold(bound), weight, omega, until)


@dataclass
class Gathered:
    """A `guide` that records what classifier-free guidance says at each step of each block."""

    weak: WeakGraph
    weight: float
    rng: Rng
    keep: int
    follow: bool
    recorders: list[Recorder] = field(default_factory=list)

    def __call__(self, bound: Bound) -> Denoise:
        rng = Rng(0, torch.arange(len(bound.mask), device=bound.mask.device))
        rng = replace(rng, key=self.rng.at(len(self.recorders)).key)
        way = fast(bound, self.weak)
        recorder = Recorder(way, untold(bound), self.weight, way if self.follow else None, self.keep, rng)
        self.recorders.append(recorder)
        return recorder

    def states(self, room: int) -> Trajectories:
        """All that was recorded, with room for as many sites."""
        whole = None
        for one in self.recorders:
            wide = Trajectories(*(_widened(getattr(one.kept, f.name), room) for f in fields(Trajectories)))
            whole = wide if whole is None else whole.joined(wide, self.keep)
        return whole


def collect_blocks(
    model: Pard,
    weak: WeakGraph,
    values: Tensor,
    weight: float,
    rng: Rng,
    steps: int = 12,
    follow: bool = False,
    keep: int = 20_000,
    cache: bool = True,
) -> Trajectories:
    """Draw graphs told `values` (B, C) by classifier-free guidance of weight w, and keep a uniform choice of the states
    visited. follow: walk the path of the fast model with this weak network, and ask there what guidance would say.
    cache: as of `Pard.generate`.
    """
    gathered = Gathered(weak, weight, rng.at(1), keep, follow)
    model.generate(rng.at(0), steps, values=values, weight=weight, guide=gathered, cache=cache)
    return gathered.states(model.room)


def _widened(value: State | None, room: int) -> State | None:
    """Fields with padding up to `room` sites: no site, and so of rank -1."""
    if not isinstance(value, dict):
        return value
    out = {}
    for k, v in value.items():
        missing = room - v.shape[1] if SITE_AXES[k] else 0
        amounts = (0, 0) * (v.ndim - 1 - SITE_AXES[k]) + (0, missing) * SITE_AXES[k]
        out[k] = F.pad(v, amounts, value=-1 if k == "rank" else 0) if missing else v
    return out
