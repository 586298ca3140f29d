"""Conditional generation. Classifier-free guidance (Ho & Salimans, arXiv 2207.12598) by one network that was trained
with its conditions dropped now and then, D_y = E[x_0 | x_t, y] and D_0 = E[x_0 | x_t]:

    D_w = D_0 + w (D_y - D_0)

w = 1 samples p(x | y), w > 1 sharper. Samples of another w than 0 and 1 do not follow p(x) p(y | x)^w: that law,
noised, has another score. A classifier of noised states turns D_0 into D_y (Dhariwal & Nichol, 2105.05233), and the
quantile loss steers D_0 to observed values (TSDiff, 2307.11494).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unisci.batch import Batch, Schema
from unisci.denoiser import Bound
from unisci.guidance.potential import LogPotential, Potential
from unisci.guidance.terms import Contrast, Scale, guided
from unisci.order import Order
from unisci.rng import Rng
from unisci.solvers.known import Known
from unisci.solvers.sample import Denoise
from unisci.state import State, Time, fieldwise, pad, place


def classifier_free(conditional: Denoise, unconditional: Denoise, weight: Scale) -> Denoise:
    """D_0 + w (D_y - D_0), the difference taken in logits where a field is discrete; two calls.

    weight w: one number, one for each sample (B,), or a function of the time. w = 1 is `conditional` itself and w = 0
    `unconditional` itself, one call. Raises ValueError where w is not finite.
    """
    if callable(weight):
        return guided(conditional, Contrast(weak=unconditional, scale=lambda t: weight(t) - 1))
    if isinstance(weight, Tensor) and weight.ndim:
        return guided(conditional, Contrast(weak=unconditional, scale=weight - 1))
    if float(weight) in (0.0, 1.0):
        return conditional if weight else unconditional
    return guided(conditional, Contrast(weak=unconditional, scale=float(weight) - 1))


@dataclass(frozen=True)
class Paired:
    """`classifier_free` of one Denoiser bound twice, with and without conditions, as one forward pass of 2B rows, which
    is sooner than two of B where a pass is short. Counts as two calls whatever w.

    Raises ValueError where the two belong to different denoisers, hold a cache, or name different conditions.
    """

    conditional: Bound
    unconditional: Bound
    weight: Scale

    def __post_init__(self) -> None:
        a, b = self.conditional, self.unconditional
        if a.denoiser is not b.denoiser:
            raise ValueError("Paired needs one denoiser bound twice; use classifier_free for two denoisers")
        if a.cache is not None or b.cache is not None or (a.order is None) != (b.order is None):
            raise ValueError("Paired needs two bindings without a cache, and an order for both or none")
        if a.given.keys() != b.given.keys():
            raise ValueError(
                f"Paired needs the same conditions twice, got {sorted(a.given)} and {sorted(b.given)}; give the null "
                "value of a condition that is to be absent"
            )

    @property
    def process(self) -> Any:
        return self.conditional.process

    @property
    def schema(self) -> Schema:
        return self.conditional.schema

    @cached_property
    def _both(self) -> Bound:
        a, b = self.conditional, self.unconditional
        given = {k: torch.cat([v, b.given[k]]) for k, v in a.given.items()}
        order = None if a.order is None else _stacked(a.order, b.order)
        return replace(a, mask=torch.cat([a.mask, b.mask]), given=given, order=order)

    def __call__(self, x: State, t: Time) -> State:
        twice = lambda v: torch.cat([v, v]) if v.ndim else v
        clean = self._both(fieldwise(twice, x), fieldwise(twice, t))
        rows = len(self.conditional.mask)
        strong = Known.of(self.conditional, fieldwise(lambda v: v[:rows], clean))
        weak = Known.of(self.conditional, fieldwise(lambda v: v[rows:], clean))
        return classifier_free(strong, weak, self.weight)(x, t)


def _stacked(a: Order, b: Order) -> Order:
    noisy = None if a.noisy is None else torch.cat([a.noisy, b.noisy])
    return Order(torch.cat([a.rank, b.rank]), noisy)


def drop_conditions(
    batch: Batch, rng: Rng, probability: float | Mapping[str, float], null: Mapping[str, Tensor | float]
) -> Batch:
    """The batch with each condition that `null` names set, in some samples, to its null value: for training, as
    `prepare` of `unisci.training.fit.fit`.

    probability: of a drop, or one by condition; .1 to .2 is usual. Each condition of each sample is dropped on its own,
    so that the model learns every subset of several properties. null: values that broadcast to a sample's condition,
    and that no data have (an extra class, 0 beside a flag that says "given"). Raises ValueError for conditions that the
    batch lacks, and a probability outside [0, 1].
    """
    chances = dict(probability) if isinstance(probability, Mapping) else dict.fromkeys(null, probability)
    if not null.keys() <= batch.given.keys() or chances.keys() != null.keys():
        raise ValueError(
            f"null values for {sorted(null)} and chances for {sorted(chances)} must be of the same "
            f"conditions, out of the batch's {sorted(batch.given)}"
        )
    given = dict(batch.given)
    for name, chance in chances.items():
        if not 0 <= chance <= 1:
            raise ValueError(f"the probability of dropping {name!r} must lie in [0, 1], got {chance}")
        dropped = rng.uniform(f"drop {name}", 0, (len(batch),), 0) < chance
        value = torch.as_tensor(null[name]).to(given[name])
        given[name] = torch.where(pad(dropped, given[name]), value, given[name])
    return replace(batch, given=given)


def classifier(
    log_probability: LogPotential,
    scale: Scale = 1.0,
    interval: tuple[float, float] = (0.0, 1.0),
    fields: tuple[str, ...] | None = None,
) -> Potential:
    """Classifier guidance: the score gains scale grad log p(y | x_t, t); scale 1 is Bayes.

    log_probability(x, t) -> (B,): log p(y | x_t, t) of each sample's own y, by a classifier or regressor that was
    trained on noised states x_t, all t included, with the data's noise process, and with x_t as the solver passes it
    (indices for discrete fields). One trained on clean data means nothing at high noise: take `Reward`, which asks it
    at E[x_0 | x_t] instead. For a regressor with mean mu(x_t, t) and variance v(t), give its Gaussian log density,
    whose v falls with t.
    """
    return Potential(log_h=log_probability, scale=scale, interval=interval, fields=fields)


def quantile(y: Tensor, level: float | Tensor, where: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    """log h(x) (B,) = -sum max(k (y - x), (k - 1) (y - x)), the asymmetric Laplace law whose k-quantile is y.

    guided(denoise, Reward(log_h=quantile(y, k, where), scale=s)) is TSDiff's self-guidance of strength s. y broadcasts
    against x (B, ...); level k: one, or one for each sample (B,), k_j = j / (S + 1) for the j-th of S paths; where,
    bool: which entries are observed, all where None; y may be nan elsewhere. The gradient does not depend on the
    distance: the strength has no units, but does not diverge, and near t = 0 x jitters about y. Raises ValueError where
    a level is not within (0, 1).
    """
    k = torch.as_tensor(level)
    if not bool(((k > 0) & (k < 1)).all()):
        raise ValueError(f"the level of a quantile must lie in (0, 1), got {level}")

    def log_h(x: Tensor) -> Tensor:
        k_x, error = place(k, x), y.to(x) - x
        error = error if where is None else torch.where(where, error, 0.0)
        return -torch.maximum(k_x * error, (k_x - 1) * error).flatten(1).sum(1)

    return log_h
