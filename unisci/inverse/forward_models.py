"""Diffusion with forward models (Tewari et al., arXiv 2306.11719): a denoiser of hidden signals S, trained from
measurements O = F(S) alone. The network puts out the signal, F renders it; only observations are noised and compared:

    O_t = alpha O + sigma eps,     S = network(O_t, t, F, context),     E[O | O_t, context] = F(S)
    loss = min(alpha^2 / sigma^2, 5) |F(S) - O|^2 + w |F_n(S) - O_n|^2,     w >= 1

F, with its setting (view, mask, wavelength), differs from object to object, and so does that of the novel observation
O_n: where all objects share one setting, nothing ever says what S is in the null space of F, and it stays as the
network was initialised.

Dispersion: a sample is S = E[S | context, O], so the directions that neither context nor target sees are filled by
their mean, and the spread lost is Cov(S | context, O). For S ~ N(0, I_4), one row of context and two of target, the
samples have a variance of 2 in all, the truth 3. `unisci.inverse.unseen` counts these directions, `sample_in_turn`
covers them.

Observations are standardised, of about unit variance: the noise is added in their units.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from unisci.inverse.operators import Operator
from unisci.processes.gaussian import Gaussian, level_for
from unisci.rng import Rng
from unisci.solvers.program import Program, run
from unisci.solvers.sample import Denoise
from unisci.solvers.score import total
from unisci.state import State, pad

CAP = 5.0  # of the weight: at low noise the target says next to nothing about the signal
EARLIEST = 1e-3  # of the times of training


class View(NamedTuple):
    """An observation (B, ...) and the forward model, in its setting, that it was made by."""

    operator: Operator
    observed: Tensor


class SignalNetwork(Protocol):
    """noised (B, ...) at time t, () or (B,), of the observation that `operator` makes; context: other observations of
    the same object; seen (B,) bool: False where the context was dropped, its observations being 0 there. Returns the
    signal."""

    def __call__(
        self, noised: Tensor, t: Tensor, operator: Operator, context: tuple[View, ...], seen: Tensor
    ) -> State: ...


@dataclass(frozen=True, eq=False)
class ForwardDenoise:
    """A `Denoise` of the observation that `operator` makes, by way of the signal. seen (B,) bool: whose context counts,
    all where None. Raises ValueError for a process that is not Gaussian, and a context that holds the target's own
    operator."""

    schema: ClassVar[None] = None

    network: SignalNetwork
    process: Gaussian
    operator: Operator
    context: tuple[View, ...] = ()
    seen: Tensor | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.process, Gaussian):
            raise ValueError(f"observations are noised by a Gaussian process, as VP(), not by {self.process}")
        if any(view.operator is self.operator for view in self.context):
            raise ValueError("the context holds the target's own operator; context and target need different settings")

    def signal(self, x: Tensor, t: Tensor) -> State:
        """E[S | x_t, context], for the exact network."""
        seen = torch.ones(len(x), dtype=torch.bool, device=x.device) if self.seen is None else self.seen
        hidden = tuple(View(o, torch.where(pad(seen, v), v, 0.0)) for o, v in self.context)
        return self.network(x, t, self.operator, hidden, seen)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        return self.operator(self.signal(x, t))

    def blind(self) -> "ForwardDenoise":
        """The same with all context dropped: the weak side of classifier-free guidance. Raises ValueError where there
        is no context to drop."""
        if not self.context:
            raise ValueError("there is no context to drop; guidance by context needs a View or more")
        observed = self.context[0].observed
        seen = torch.zeros(len(observed), dtype=torch.bool, device=observed.device)
        return ForwardDenoise(self.network, self.process, self.operator, self.context, seen)


def forward_loss(
    denoise: ForwardDenoise,
    observed: Tensor,
    rng: Rng,
    novel: View | None = None,
    novel_weight: float = 1.0,
    drop: float = 0.0,
    penalty: Callable[[State], Tensor] | None = None,
    t: Tensor | None = None,
) -> Tensor:
    """Scalar: squared errors summed over entries, mean over samples. observed (B, ...): what denoise.operator made.

    novel: a third observation of the same objects in another setting. Without it a network can copy the target into
    the signal and leave the rest. drop: the chance that a sample's context is dropped, for classifier-free guidance.
    penalty(signal) -> (B,) is added. t (B,): uniform where None. Raises ValueError for novel_weight < 1, drop outside
    [0, 1), and a novel setting that is the target's own.
    """
    if novel_weight < 1:
        raise ValueError(f"novel_weight must be 1 or more, got {novel_weight}: less, and the target is copied")
    if not 0 <= drop < 1:
        raise ValueError(f"drop must lie in [0, 1), got {drop}")
    if novel is not None and novel.operator is denoise.operator:
        raise ValueError("the novel observation has the target's own operator, which tests nothing; take another")
    b = len(observed)
    if t is None:
        t = EARLIEST + (1 - EARLIEST) * rng.uniform("time", 0, (b,), 0)
    seen = rng.uniform("drop", 0, (b,), 0) >= drop
    seen = seen if denoise.seen is None else seen & denoise.seen
    signal = replace(denoise, seen=seen).signal(denoise.process.perturb(observed, t, rng), t)
    alpha, sigma = level_for(denoise.process, t, observed)
    loss = total((alpha / sigma).square().clamp(max=CAP) * (denoise.operator(signal) - observed).square())
    if novel is not None:
        loss = loss + novel_weight * total((novel.operator(signal) - novel.observed).square())
    if penalty is not None:
        loss = loss + penalty(signal)
    return loss.mean()


@dataclass(frozen=True, eq=False)
class _Recording(ForwardDenoise):
    """Keeps the signal of its last call."""

    last: list[State] = field(default_factory=list)

    def signal(self, x: Tensor, t: Tensor) -> State:
        self.last[:] = [super().signal(x, t)]
        return self.last[0]


def sample_signal(
    denoise: ForwardDenoise,
    x: Tensor,
    program: Program,
    rng: Rng | None = None,
    guide: Callable[[ForwardDenoise], Denoise] = lambda denoise: denoise,
) -> tuple[State, Tensor]:
    """The signal of the program's last call, and the observation that the program ends with.

    x: the target observation at the program's first time, as process.prior(like, rng). The observation is that of the
    signal where the program steps to t = 0. guide: adds guidance, say classifier-free, by a contrast with
    denoise.blind(). Raises as `run`.
    """
    recording = _Recording(denoise.network, denoise.process, denoise.operator, denoise.context, denoise.seen)
    observed = run(guide(recording), x, program, rng)
    return recording.last[0], observed


def sample_in_turn(
    denoise: ForwardDenoise,
    starts: Sequence[tuple[Operator, Tensor]],
    program: Program,
    rng: Rng | None = None,
    guide: Callable[[ForwardDenoise], Denoise] = lambda denoise: denoise,
) -> tuple[State, tuple[View, ...]]:
    """Observation after observation, each with those before it in its context; the last signal, and all views.

    starts: the forward models to cover, each with its observation at the program's first time; they take the place of
    denoise.operator. Turn k draws from rng.at(k). Raises ValueError where starts is empty, and as `run`.
    """
    if not starts:
        raise ValueError("starts is empty; name one forward model or more, with the noise to start from")
    views, signal = denoise.context, None
    for k, (operator, x) in enumerate(starts):
        turn = replace(denoise, operator=operator, context=views)
        signal, observed = sample_signal(turn, x, program, None if rng is None else rng.at(k), guide)
        views = (*views, View(operator, observed))
    return signal, views
