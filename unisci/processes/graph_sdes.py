"""GDSS: a system of SDEs on the nodes and edges of a graph (Jo et al., arXiv 2202.02514).

    forward     dX = f_1 X dt + g_1 dw_1,    dA = f_2 A dt + g_2 dw_2
    backward    dX = [f_1 X - g_1^2 grad_X log p_t(X, A)] dt + g_1 dw_1,    and so for A: the scores couple them

X (B, N, F) are node features, A (B, N, N) a symmetric adjacency of zero diagonal; each follows a Gaussian process of
its own. Classes (atoms, bond orders) enter as points of a number space, an `Alphabet`, and leave as the nearest.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unisci.batch import Batch, Field
from unisci.processes.gaussian import VE, VP, Gaussian, time
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.state import Time, pad

VIRTUAL = "virtual"

# The processes of the paper's models, of fields "atom" and "bond".
QM9: dict[str, Gaussian] = {"atom": VE(0.1, 1.0), "bond": VE(0.1, 1.0)}
ZINC250K: dict[str, Gaussian] = {"atom": VP(0.1, 1.0), "bond": VE(0.2, 1.0)}
COMMUNITY: dict[str, Gaussian] = {"atom": VP(0.1, 1.0), "bond": VP(0.1, 1.0)}


@dataclass(frozen=True)
class Alphabet:
    """The points that stand for K classes: the unit vectors of R^K, or, if `ordinal`, the numbers 0, 1, ..., K - 1."""

    classes: tuple[str, ...]
    ordinal: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one point: (K,), or () for a number."""
        return () if self.ordinal else (len(self.classes),)

    def points(self, like: Tensor) -> Tensor:
        """All points, (K, *shape), of the dtype and on the device of `like`."""
        k = len(self.classes)
        return torch.arange(k).to(like) if self.ordinal else torch.eye(k).to(like)

    def encode(self, index: Tensor) -> Tensor:
        """Class indices (...) to points (..., *shape), float32."""
        return self.points(torch.empty(0, device=index.device))[index]

    def decode(self, value: Tensor) -> Tensor:
        """The nearest class of values (..., *shape), (...): the largest channel, or a number cut at .5, 1.5, ..."""
        if self.ordinal:
            return (value + 0.5).floor().clamp(0, len(self.classes) - 1).long()
        return value.argmax(-1)


Alphabets = dict[str, Alphabet]


def encode(batch: Batch, alphabets: Alphabets) -> Batch:
    """The batch with the fields of `alphabets` as points, 0 where there is no site or pair.

    Raises ValueError where the classes of an alphabet are not those of its field.
    """
    schema, state = dict(batch.schema), dict(batch.state)
    for k, alphabet in alphabets.items():
        if batch.schema[k].classes != alphabet.classes:
            raise ValueError(f"field {k!r} has classes {batch.schema[k].classes}, its alphabet {alphabet.classes}")
        schema[k] = Field(batch.schema[k].kind, alphabet.shape)
        points = alphabet.encode(batch.state[k])
        state[k] = points * pad(batch.exists(k), points)
    return replace(batch, schema=schema, state=state)


def decode(batch: Batch, alphabets: Alphabets) -> Batch:
    """The batch with the fields of `alphabets` as the nearest classes, class 0 where there is no site or pair."""
    schema, state = dict(batch.schema), dict(batch.state)
    for k, alphabet in alphabets.items():
        schema[k] = Field(batch.schema[k].kind, (), alphabet.classes)
        state[k] = alphabet.decode(batch.state[k]) * batch.exists(k)
    return replace(batch, schema=schema, state=state)


def with_virtual(batch: Batch, field: str = "atom") -> Batch:
    """Graphs of classes with every site there: those that were padding have the new, last class "virtual" of `field`,
    so that the number of real sites is generated too."""
    old = batch.schema[field]
    index = torch.where(batch.mask, batch.state[field], len(old.classes))
    schema = batch.schema | {field: old._replace(classes=(*old.classes, VIRTUAL))}
    return replace(batch, schema=schema, state=batch.state | {field: index}, mask=torch.ones_like(batch.mask))


def without_virtual(batch: Batch, field: str = "atom") -> Batch:
    """The graphs of the sites that are not virtual, which come first in their order; pairs of virtual ones are dropped.

    Raises ValueError where the last class of `field` is not "virtual".
    """
    classes = batch.schema[field].classes
    if not classes or classes[-1] != VIRTUAL:
        raise ValueError(f"field {field!r} has classes {classes}, of which the last is not {VIRTUAL!r}")
    real = batch.mask & (batch.state[field] < len(classes) - 1)
    index = (~real).to(torch.uint8).argsort(dim=1, stable=True)
    mask, rows = real.gather(1, index), torch.arange(len(batch), device=index.device)
    picks = (
        lambda v: v,
        lambda v: v[rows[:, None], index],
        lambda v: v[rows[:, None, None], index[:, :, None], index[:, None]],
    )
    moved = lambda fields: {k: picks[batch.schema[k].axes](v) for k, v in fields.items()}
    schema = batch.schema | {field: batch.schema[field]._replace(classes=classes[:-1])}
    out = Batch(schema, moved(batch.state), mask, moved(batch.given), batch.ids)
    return out.replace(**{k: v * pad(out.exists(k), v) for k, v in out.state.items()})


@dataclass(frozen=True)
class Focus:
    """Where training times lie: log(alpha / sigma) is normal of this mean and deviation, but for a share of times,
    which are uniform in t."""

    mean: float
    deviation: float
    uniform: float = 0.1


@dataclass(frozen=True)
class GraphSDEs(Product):
    """The system: a Gaussian process for each field. Pair fields are symmetric, as their draws are, and 0 on the
    diagonal. focus: where training times lie, by default uniform."""

    focus: Focus | None = None

    def times(self, rng: Rng, smallest: float = 1e-3) -> dict[str, Tensor]:
        t, b, focus = super().times(rng, smallest), (len(rng.ids),), self.focus
        if focus is None:
            return t
        at = focus.mean + focus.deviation * rng.normal("focus", 0, b, 0)
        anywhere = rng.uniform("anywhere", 0, b, 0) < focus.uniform
        return {k: torch.where(anywhere, v, time(self.processes[k], at).clamp(smallest, 1)) for k, v in t.items()}

    def perturb(self, clean: dict[str, Tensor], t: Time, rng: Rng) -> dict[str, Tensor]:
        return self.hollow(super().perturb(clean, t, rng))

    def prior(self, like: dict[str, Tensor], rng: Rng) -> dict[str, Tensor]:
        return self.hollow(super().prior(like, rng))

    def hollow(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The state with zero diagonals."""
        return {k: _hollow(v) if self.schema[k].kind == "pair" else v for k, v in state.items()}


def graph_sdes(processes: dict[str, Gaussian], alphabets: Alphabets, focus: Focus | None = None) -> GraphSDEs:
    """The system of fields "atom" (sites) and "bond" (pairs) in the points of their alphabets."""
    schema = {"atom": Field("site", alphabets["atom"].shape), "bond": Field("pair", alphabets["bond"].shape)}
    return GraphSDEs(processes, schema, focus=focus)


def _hollow(v: Tensor) -> Tensor:
    off = ~torch.eye(v.shape[1], dtype=torch.bool, device=v.device)
    return v * off.reshape(1, *off.shape, *(1,) * (v.ndim - 3))
