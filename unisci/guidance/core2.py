"""CoRe^2, collect, reflect, refine (arXiv 2503.09662): guided sampling at half the calls, and then better.

With D_c, D_u the predictions with and without conditions, D_s = D_u + w (D_c - D_u) the strong one of classifier-free
guidance, and g a small weak network that never sees D_u:

    collect   (x_t, t, D_c, D_s) at the states that guided sampling visits
    reflect   min_g E |g(D_c, x_t, t, c) - D_s|^2
    fast      D = g                             one call of the big network a step, in place of two
    refine    D = g + omega (D_s - g)           omega > 1 sharpens what g could not learn, as autoguidance does

    fast = Fast(conditional, WeakNet(features=3))
    reflect(fast.weak, collect(fast, unconditional, w, x, program.times, program, rng), 2000, Rng(0, torch.arange(256)))
    run(fast, x, program), run(WeakToStrong(fast, unconditional, w), x, program)

For a discrete field D are logits, and g is fitted by the divergence KL(D_s || g). g is right at the states of one w,
solver and grid: draw w for each sample and put it into the condition, mix grids, and collect a second round with
follow=fast, at whose states g will be asked.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Schema
from unisci.guidance.conditional import classifier_free
from unisci.guidance.terms import FLOOR, Contrast, Scale, guided
from unisci.guidance.weak import Fast, seen
from unisci.rng import Rng
from unisci.solvers.known import Known
from unisci.solvers.sample import Denoise, Solver, sample
from unisci.state import State, Time, fieldwise


@dataclass(frozen=True)
class Trajectories:
    """n states of guided trajectories. x (n, ...), as `seen` scales it; t (n, ...); clean: D_c; strong: D_s; condition
    and where (n, ...), as those of `Fast`, or None; key (n,), uniform draws of which the smallest stay."""

    x: State
    t: Time
    clean: State
    strong: State
    condition: State | None
    where: State | None
    key: Tensor

    def __len__(self) -> int:
        return len(self.key)

    def __getitem__(self, rows: Tensor) -> "Trajectories":
        """The states `rows`, an index tensor."""
        take = lambda v: None if v is None else fieldwise(lambda v: v[rows], v)
        return Trajectories(*(take(getattr(self, f.name)) for f in fields(self)))

    def joined(self, other: "Trajectories", keep: int) -> "Trajectories":
        """A uniform choice of `keep` states of both, without replacement."""
        join = lambda a, b: None if a is None else fieldwise(lambda a, b: torch.cat([a, b]), a, b)
        both = Trajectories(*(join(getattr(self, f.name), getattr(other, f.name)) for f in fields(self)))
        return both.thinned(keep)

    def thinned(self, keep: int) -> "Trajectories":
        """A uniform choice of `keep` states, all where there are no more."""
        return self if len(self) <= keep else self[self.key.topk(keep, largest=False).indices]


@dataclass(frozen=True)
class WeakToStrong:
    """A Denoise that refines: g + omega (D_s - g) at times >= until, two calls, and g below, one call.

    omega = 1 is classifier-free guidance whatever g, omega = 0 is `fast`. On an accelerator, where a time is not read
    back, steps below `until` cost two calls as well: there sample in two parts, the second with `fast`. Raises
    ValueError where omega is not finite or until not in [0, 1].
    """

    fast: Fast
    unconditional: Denoise
    weight: Scale
    omega: Scale = 1.5
    until: float = 0.0

    def __post_init__(self) -> None:
        self._term(self.unconditional)

    @property
    def process(self) -> Any:
        return self.fast.process

    @property
    def schema(self) -> Schema | None:
        return self.fast.schema

    @torch.no_grad()
    def __call__(self, x: State, t: Time) -> State:
        clean = self.fast.conditional(x, t)
        weak = Known.of(self, self.fast.lift(clean, x, t))
        strong = classifier_free(Known.of(self, clean), self.unconditional, self.weight)
        return guided(weak, self._term(strong))(x, t)

    def _term(self, strong: Denoise) -> Contrast:
        return Contrast(strong=strong, scale=self.omega, interval=(self.until, 1.0))


@torch.no_grad()
def collect(
    fast: Fast,
    unconditional: Denoise,
    weight: Scale,
    x: State,
    times: Sequence[Time],
    solver: Solver,
    rng: Rng,
    follow: Denoise | None = None,
    keep: int = 8192,
) -> Trajectories:
    """Sample from x with classifier-free guidance, as `sample` does, and keep a uniform choice of the states visited.

    fast: the conditional model, and what its weak network will be told; the network itself is not asked. x, times,
    solver, rng as for `sample` (of a program: program.times, program). follow: walk the path of another Denoise, such
    as `fast`, and ask there what guidance would have said; the states of both rounds are then `joined`, the second with
    another rng. Holds at most keep + B states. Raises ValueError where keep < 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1 state, got {keep}")
    recorder = Recorder(fast, unconditional, weight, follow, keep, rng)
    sample(recorder, x, times, solver, rng)
    return recorder.kept


@dataclass
class Recorder:
    """The Denoise that `collect` samples with, whose arguments these are; kept: what it has kept so far."""

    fast: Fast
    unconditional: Denoise
    weight: Scale
    follow: Denoise | None
    keep: int
    rng: Rng
    kept: Trajectories | None = None
    calls: int = 0

    def __post_init__(self) -> None:
        self.process, self.schema = self.fast.process, self.fast.schema

    def __call__(self, x: State, t: Time) -> State:
        clean, b = self.fast.conditional(x, t), len(self.rng.ids)
        strong = classifier_free(Known.of(self, clean), self.unconditional, self.weight)(x, t)
        key = self.rng.uniform("reservoir", self.calls, (b,), 0)
        now = fieldwise(lambda t: t.expand(b) if t.ndim == 0 else t, t)
        told = self.fast.condition, self.fast.where
        new = Trajectories(seen(x, self.process, t), now, clean, strong, *told, key)
        self.kept = new.thinned(self.keep) if self.kept is None else self.kept.joined(new, self.keep)
        self.calls += 1
        return strong if self.follow is None else self.follow(x, t)


def reflect(weak: nn.Module, trajectories: Trajectories, steps: int, rng: Rng, lr: float = 1e-3) -> Tensor:
    """Train the weak network in place by AdamW, lr falling to 0 on a cosine; the losses (steps,).

    rng: one id for each row of a minibatch, Rng(seed, torch.arange(256)); step k draws its rows from rng.at(k). Raises
    ValueError where steps < 1 and FloatingPointError where a loss is not finite.
    """
    if steps < 1:
        raise ValueError(f"steps must be at least 1, got {steps}")
    optimiser, losses = torch.optim.AdamW(weak.parameters(), lr), []
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    with torch.inference_mode(False), torch.enable_grad():
        for step in range(steps):
            part = trajectories[rng.at(step).words("rows", 0, (len(rng.ids),), 0) % len(trajectories)]
            losses.append(_loss(weak(part.clean, part.x, part.t, part.condition), part))
            optimiser.zero_grad(set_to_none=True)
            losses[-1].backward()
            optimiser.step()
            schedule.step()
            losses[-1] = losses[-1].detach()
    losses = torch.stack(losses)
    if not bool(losses.isfinite().all()):
        raise FloatingPointError(f"a loss of the weak network is not finite; lower lr ({lr}) or look at the data")
    return losses


def _loss(weak: State, part: Trajectories) -> Tensor:
    """Mean squared error, or the divergence KL(strong || weak) where x is of indices; summed over fields."""

    def error(weak: Tensor, strong: Tensor, x: Tensor, where: Tensor | None) -> Tensor:
        weak, strong = (weak, strong) if where is None else (weak[where], strong[where])
        if x.is_floating_point():
            return F.mse_loss(weak, strong)
        p, q = (v.log_softmax(-1).clamp(min=FLOOR) for v in (strong, weak))
        return (p.exp() * (p - q)).sum(-1).mean()

    losses = fieldwise(error, weak, part.strong, part.x, part.where)
    return sum(losses.values()) if isinstance(losses, dict) else losses
