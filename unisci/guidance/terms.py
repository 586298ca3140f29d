"""Guidance as terms added to a prediction: `guided(denoise, term, term, ...)` is again a Denoise, which any solver and
the block loop take, and no model is retrained (classifier guidance, Dhariwal & Nichol, arXiv 2105.05233;
classifier-free guidance, Ho & Salimans, 2207.12598; composition, Liu et al., 2206.01714).

For a Gaussian field x_t = alpha x_0 + sigma eps, adding g to the score adds (sigma^2 / alpha) g to the clean estimate.
For a discrete field a term adds to the logits of the clean class. All terms see the prediction of the model alone, so
their order does not matter.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import level_for
from unisci.rng import Rng
from unisci.solvers.sample import Denoise, draw_keys, perturbed, processes
from unisci.state import State, Time, beside, fieldwise, pad

Scale = float | Tensor | Callable[[Tensor], Tensor]  # one, one for each sample (B,), or a function of the time
FLOOR = -50.0  # log probability below which a contrast of logits no longer grows: two impossible classes do not differ


class Evaluation(NamedTuple):
    """What a term may know: the model, the noised state, its time, and the model's prediction there."""

    denoise: Denoise
    x: State
    t: Time
    clean: State


@dataclass(frozen=True, kw_only=True)
class Term:
    """What all terms share. scale: 0 is the term's absence, bit for bit, without a call; interval: the times at which
    it acts, both ends included, elsewhere absent likewise; fields: those it may change, all where None.

    Raises ValueError where the scale is not finite or the interval is not within 0 <= low <= high <= 1. On an
    accelerator a time is not read back: there a term is evaluated outside its interval too, and left out of the sum.
    """

    scale: Scale = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    fields: tuple[str, ...] | None = None
    needs_graph: ClassVar[bool] = False  # whether `push` differentiates the prediction by x

    def __post_init__(self) -> None:
        low, high = self.interval
        if not 0 <= low <= high <= 1:
            raise ValueError(f"interval must hold two times 0 <= low <= high <= 1, got {self.interval}")
        if not callable(self.scale) and not bool(torch.as_tensor(self.scale).isfinite().all()):
            raise ValueError(f"scale must be finite, got {self.scale}")

    def push(self, at: Evaluation) -> State:
        """What scale 1 adds to the clean estimate, or to the logits, of the fields it changes."""
        raise NotImplementedError(f"{type(self).__name__} does not define push(evaluation)")

    def strength(self, now: Tensor) -> Tensor:
        """The scale at times `now`, () or (B,), 0 outside the interval."""
        scale = self.scale(now) if callable(self.scale) else self.scale
        if not isinstance(scale, Tensor):
            scale = torch.full((), scale, dtype=now.dtype, device=now.device)
        inside = (now >= self.interval[0]) & (now <= self.interval[1])
        return torch.where(inside, scale.to(now), 0.0)

    def changes(self, name: str) -> bool:
        """Whether the field may be changed."""
        return self.fields is None or name in self.fields


@dataclass(frozen=True)
class Guided:
    """A Denoise with terms; see `guided`."""

    denoise: Denoise
    terms: tuple[Term, ...]

    @property
    def process(self) -> Any:
        return self.denoise.process

    @property
    def schema(self) -> Schema | None:
        return self.denoise.schema

    def __call__(self, x: State, t: Time) -> State:
        now = latest(t)
        active = [(term, strength) for term in self.terms if _acts(strength := term.strength(now))]
        if not active:
            return self.denoise(x, t)
        with _graph(any(term.needs_graph for term, _ in active), x) as x:
            clean = self.denoise(x, t)
            pushes = [(term.push(Evaluation(self.denoise, x, t, clean)), strength) for term, strength in active]
        return fieldwise(_add, clean, _by_field(pushes, clean))


def guided(denoise: Denoise, *terms: Term) -> Denoise:
    """`denoise` with each term's push added to its prediction; without terms `denoise` itself. Terms of a model that is
    guided already join those that it has."""
    if isinstance(denoise, Guided):
        return Guided(denoise.denoise, denoise.terms + terms)
    return Guided(denoise, terms) if terms else denoise


def latest(t: Time) -> Tensor:
    """The largest time of each sample, (B,), or () where all share one: sites that are done (t = 0) do not count."""
    times = list(t.values()) if isinstance(t, dict) else [t]
    flat = [v if v.ndim < 2 else v.flatten(1).amax(1) for v in times]
    return torch.stack(torch.broadcast_tensors(*flat)).amax(0)


def _acts(strength: Tensor) -> bool:
    return strength.device.type != "cpu" or bool((strength != 0).any())


@contextlib.contextmanager
def _graph(needed: bool, x: State) -> Iterator[State]:
    """x, to be differentiated by where that is needed, whatever the caller's mode."""
    if not needed:
        with torch.no_grad():
            yield x
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield fieldwise(lambda v: v.detach().clone().requires_grad_(v.is_floating_point()), x)


def _by_field(pushes: list[tuple[State, Tensor]], clean: State) -> Any:
    """The (push, strength) pairs that concern each field."""
    if not isinstance(clean, dict):
        return pushes
    return {name: [(push[name], s) for push, s in pushes if name in push] for name in clean}


def _add(clean: Tensor, pushes: list[tuple[Tensor, Tensor]]) -> Tensor:
    """clean + sum of strength push; where a strength is 0 the push is not even multiplied, so that clean stays."""
    clean = clean.detach()
    if not pushes:
        return clean
    parts = [torch.where(pad(s, clean) != 0, pad(s, clean).to(clean) * push.detach(), 0.0) for push, s in pushes]
    acts = torch.stack(torch.broadcast_tensors(*(s != 0 for _, s in pushes))).any(0)
    return torch.where(pad(acts, clean), clean + sum(parts[1:], start=parts[0]), clean)


@dataclass(frozen=True, kw_only=True)
class Contrast(Term):
    """scale (strong - weak), two predictions at one x and t; either is the guided model itself where it is None.

    Classifier-free guidance of weight w: guided(conditional, Contrast(weak=unconditional, scale=w - 1)); autoguidance
    (arXiv 2406.02507): weak = a worse model; several conditions: guided(unconditional, Contrast(strong=a, scale=w_a),
    Contrast(strong=b, scale=w_b)). One call for each prediction named. Raises ValueError where neither is.
    """

    strong: Denoise | None = None
    weak: Denoise | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.strong is None and self.weak is None:
            raise ValueError("Contrast needs a strong or a weak prediction beside the model's own")

    def push(self, at: Evaluation) -> State:
        with torch.no_grad():
            strong, weak = (at.clean if model is None else model(at.x, at.t) for model in (self.strong, self.weak))
            discrete = {k: isinstance(p, Categorical) for k, p in processes(at.denoise).items()}
            discrete = discrete if isinstance(at.x, dict) else discrete["x"]
            return self.select(fieldwise(_difference, strong, weak, discrete))

    def select(self, push: State) -> State:
        return {k: v for k, v in push.items() if self.changes(k)} if isinstance(push, dict) else push


def _difference(strong: Tensor, weak: Tensor, discrete: bool) -> Tensor:
    if not discrete:
        return strong - weak
    return strong.log_softmax(-1).clamp(min=FLOOR) - weak.log_softmax(-1).clamp(min=FLOOR)


def lift(score: Tensor, x: Tensor, process: Any, t: Tensor) -> Tensor:
    """(sigma^2 / alpha) score: by how much the clean estimate moves. 0 where alpha is 0, which says nothing of x_0."""
    alpha, sigma = level_for(process, t, x)
    return torch.where(alpha > 0, sigma**2 / torch.where(alpha > 0, alpha, 1.0), 0.0) * score


@dataclass(frozen=True)
class Pin:
    """Holds entries at known values, for `after` of `sample` and `run`: each step ends with them noised to its time.

    known: clean values, as the state; where: bool, True at entries to hold, broadcasting against each field; process
    and schema as of the Denoise. The noise of a held entry is one draw, kept from step to step, so that it walks a path
    of the process (and the replacement method's seams are those of arXiv 2201.09865). For a model whose times may
    differ by site, give held sites t = 0 instead: that conditions exactly. Raises ValueError where shapes do not match.
    """

    known: State
    where: State
    process: Any
    rng: Rng
    schema: Schema | None = None

    def __post_init__(self) -> None:
        fieldwise(_check_broadcast, self.known, self.where)

    def __call__(self, x: State, s: Time) -> State:
        """x with the held entries replaced by their noised values at time s."""
        keys = draw_keys(x, self.schema)
        return fieldwise(self._hold, x, self.known, self.where, self.process, beside(s, x), keys)

    def _hold(self, x: Tensor, known: Tensor, where: Tensor, process: Any, s: Tensor, key: tuple[str, int]) -> Tensor:
        return torch.where(where, process.perturb(known, s, self.rng, *key).to(x.dtype), x)


def _check_broadcast(known: Tensor, where: Tensor) -> None:
    if where.dtype != torch.bool:
        raise ValueError(f"where must be bool, got {where.dtype}")
    try:
        whole = torch.broadcast_shapes(known.shape, where.shape)
    except RuntimeError:
        whole = None
    if whole != known.shape:
        raise ValueError(f"where of shape {tuple(where.shape)} does not broadcast to known {tuple(known.shape)}")


@dataclass(frozen=True)
class Start:
    """Begins at known values noised to time t, in place of pure noise (SDEdit, arXiv 2108.01073): a small t keeps much
    of them. Raises ValueError unless 0 < t <= 1."""

    known: State
    t: float

    def __post_init__(self) -> None:
        if not 0 < self.t <= 1:
            raise ValueError(f"a start lies at 0 < t <= 1, got {self.t}")

    def state(self, denoise: Denoise, rng: Rng) -> State:
        """x_t, to solve from on `times`."""
        return perturbed(denoise, self.known, torch.tensor(self.t, dtype=torch.float64), rng)

    def times(self, grid: Tensor) -> Tensor:
        """The part of a decreasing grid that is below t, with t before it."""
        return torch.cat([grid.new_tensor([self.t]), grid[grid < self.t - 1e-12]])
