"""What particles are weighed by: the exact log weights of finished molecules, and the log twists of beginnings, which
tell how likely their ends meet the wants (arXiv 2306.17775). Twists decide how many particles it takes, not where they
tend to: by the end they have cancelled.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.property_model import PropertyModel
from unisci.design.atoms import Composition, Contains, Formula
from unisci.design.formulas import heavy_atoms
from unisci.design.predicted import spoken_name
from unisci.design.targets import Interval, Maximize
from unisci.design.wants import Want, Wants
from unisci.domains.molecule import Molecule
from unisci.order import Order
from unisci.state import State, Time

MISSED = -20.0  # log weight of a finished molecule that misses a want by nearly nothing
FAR = 1e3  # standard deviations to an end that is not there, or as good as


def log_weights(where: Wants, molecules: Sequence[Molecule], unit: Callable[[Want], float]) -> Tensor:
    """Of finished molecules, (n,) float64: the sum over wants of 0 where met, MISSED - gap / unit(want) where not, and
    value / temperature of what is maximized; -inf where a molecule is invalid or has no finite value."""
    out = np.zeros(len(molecules))
    for want in where.parts:
        gap = want.gap(molecules) / unit(want)
        out += np.where(gap == 0, 0.0, MISSED - gap)
        if isinstance(want, Maximize):
            out += want.values(molecules) / want.temperature
    valid = np.array([m.reason is None for m in molecules], bool) & np.isfinite(out)
    return torch.from_numpy(np.where(valid, out, -np.inf))


def hint(want: Want, molecules: Sequence[Molecule], particles: int) -> np.ndarray:
    """The log twists (n P,) of a want that no model knows, from what beginnings measure already. Finished particles of
    a group stand among them, for its mean and spread."""
    match want:
        case Contains() | Composition():
            return -0.5 * want.gap(molecules)
        case Formula():
            return MISSED * np.array([sum((heavy_atoms(m) - want.needs).values()) for m in molecules], float)
        case Maximize():  # beginnings compete with ends, of log weight value / temperature: so they have that level
            values = want.values(molecules) / want.temperature
            return _scores(values, particles) + _means(values, particles)
    return _scores(-want.gap(molecules), particles)


def _means(values: np.ndarray, particles: int) -> np.ndarray:
    """Each row's mean over its group's finite values, 0 where it has none."""
    there = np.isfinite(values)
    total = np.where(there, values, 0.0).reshape(-1, particles).sum(1)
    return np.repeat(total / np.maximum(there.reshape(-1, particles).sum(1), 1), particles)


def _scores(values: np.ndarray, particles: int) -> np.ndarray:
    """Log twists, -2 to 0, of beginnings by their values, in the spread of their own group, so that no other sample
    matters; -0.5 where there is no value."""
    there = np.isfinite(values)
    groups = np.where(there, values, _means(values, particles)).reshape(-1, particles)
    score = (groups - groups.max(1, keepdims=True)) / (groups.std(1, keepdims=True) + 1e-9)
    return np.where(there, 0.5 * score.clip(-4).flatten(), -0.5)


@dataclass(frozen=True)
class Twist:
    """log h_t of a batch's beginnings: the sum over wants of log P(value in interval), by the model of properties.

    mask, given, order: of the samples. As a potential it takes one-hot states too.
    """

    model: PropertyModel
    mask: Tensor
    given: dict[str, Tensor]
    order: Order
    known: tuple[Interval | Maximize, ...]

    def __call__(self, x: State, t: Time | None) -> Tensor:
        """(B,)."""
        mean, std = self.model(x, t, self.mask, self.given, self.order)
        terms = []
        for want in self.known:
            k = self.model.names.index(spoken_name(want))
            if isinstance(want, Maximize):  # log E[exp(v / T)] of a normal v
                z = std[:, k] / want.temperature
                terms.append(mean[:, k] / want.temperature + z**2 / 2)
            else:
                terms.append(log_probability(mean[:, k], std[:, k], want.low, want.high))
        return sum(terms)


def log_probability(mean: Tensor, std: Tensor, low: float, high: float) -> Tensor:
    """log P(low <= v <= high) of v ~ N(mean, std^2), stable far outside too: log Phi(b) + log(1 - Phi(a) / Phi(b)), by
    the tail in which the interval lies."""
    a, b = _deviations(low, mean, std), _deviations(high, mean, std)
    right = a + b > 0  # the mean is below the middle: mirrored, both ends lie in the tail that has no cancellation
    a, b = torch.where(right, -b, a), torch.where(right, -a, b)
    upper, lower = torch.special.log_ndtr(b), torch.special.log_ndtr(a)
    return upper + torch.log(-torch.expm1((lower - upper).clamp(max=-1e-6)))


def _deviations(end: float, mean: Tensor, std: Tensor) -> Tensor:
    """How many deviations the end lies above the mean, at most FAR: beyond, and at infinity, it has no gradient."""
    return math.copysign(FAR, end) + 0 * mean if math.isinf(end) else ((end - mean) / std).clamp(-FAR, FAR)
