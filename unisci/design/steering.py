"""How wants act while molecules are drawn block by block: a twisted sequential Monte Carlo (arXiv 2306.17775) whose
twist, log h, tells from a beginning how likely its end meets them.

    Without            logits of the element's classes fall to nothing
    Keep               the scaffold is the first blocks of every molecule
    a property that the model of properties knows
                       log P(value in interval | beginning): its first-order gradient pushes the logits within a block,
                       and particles are weighed by it between blocks
    any other property, your function too, Contains, Formula, Composition
                       particles alone, by what their beginnings measure

Particles belong to one sample: P are grown for it, drawn again from one another between blocks by how their weights
changed, and one is kept at the end by the exact weights of finished molecules. Within blocks the push is not weighed
against: it changes which of the molecules that meet the wants are drawn, not whether they do.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.generate import fill_group
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.denoiser import Bound
from unisci.design.properties import measure
from unisci.design.targets import (
    Composition,
    Contains,
    Formula,
    Interval,
    Keep,
    Maximize,
    Want,
    Wants,
    Without,
    elements,
    heavy_atoms,
)
from unisci.domains.molecule import Molecule, parse_class
from unisci.guidance.particles import choose, group_rng, resample
from unisci.guidance.potential import FirstOrder, Potential
from unisci.guidance.terms import Evaluation, Term, guided
from unisci.order import Order
from unisci.rng import Rng
from unisci.solvers.sample import Denoise
from unisci.state import State, Time

MISSED = -20.0  # log weight of a finished molecule that misses a want by nearly nothing
LEAST = -500.0  # and the least of all, of an invalid one
NEVER = -1e4  # what a forbidden class's logit falls by
FAR = 1e3  # standard deviations to an end that is not there, or as good as
RESAMPLED = 0.5  # particles are drawn again where their effective number falls below this share


@dataclass(frozen=True)
class Steering:
    """wants; particles: P for each sample; model: of properties, or None; classes: of the generator's atoms; scale: of
    the push within blocks, 0 for particles alone. Raises ValueError where a want has nothing to act by."""

    wants: Wants
    particles: int
    model: PropertyModel | None
    classes: tuple[str, ...]
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")
        known = () if self.model is None else self.model.names
        drawn = {parse_class(c)[0] for c in self.classes}
        if drawn <= self._banned():
            raise ValueError(f"{self.wants}: this generator draws {', '.join(sorted(drawn))} and nothing else")
        for want in self.wants.parts:
            by_model = self.scale and self._knows(want)
            if self.particles == 1 and not by_model and not isinstance(want, Without | Keep):
                raise ValueError(
                    f"nothing can steer towards {want}: the model of properties knows {', '.join(known) or 'none'}; "
                    "pass particles=16 or so, or train one (configs/properties_qm9.yaml)"
                )
            absent = elements(want) - drawn
            if absent:
                raise ValueError(f"{want}: this generator draws {', '.join(sorted(drawn))}, not {sorted(absent)}")
            _probe(want)

    @property
    def keep(self) -> Molecule | None:
        """The scaffold to begin with."""
        return next((w.molecule for w in self.wants.parts if isinstance(w, Keep)), None)

    def guide(self, bound: Bound) -> Denoise:
        """The denoiser of a block with the terms of these wants."""
        terms: list[Term] = []
        banned = self._banned()
        if banned:
            terms.append(Forbid(classes=tuple(parse_class(c)[0] in banned for c in self.classes)))
        known = self._known()
        if known and self.scale:
            twist = Twist(self.model, bound.mask, bound.given, bound.order, known)
            terms.append(Potential(log_h=twist, sites=FirstOrder(), scale=self.scale))
        return guided(bound, *terms)

    def _banned(self) -> set[str]:
        return {w.element for w in self.wants.parts if isinstance(w, Without)}

    def _knows(self, want: Want) -> bool:
        """Whether the model of properties tells this one. A function of yours is your own, whatever its name."""
        named = isinstance(want, Interval | Maximize) and isinstance(want.property, str)
        return named and self.model is not None and want.name in self.model.names

    def _known(self) -> tuple[Interval | Maximize, ...]:
        return tuple(w for w in self.wants.parts if self._knows(w))

    def select(
        self, batch: Batch, order: Order, growing: Tensor, block: int, rng: Rng, memory: "Followed | None"
    ) -> tuple[Tensor, "Followed"]:
        """From which row each particle goes on: resampled within its group where weights have spread, and at the end
        all from the one that is kept. See `unisci.autoregression.generate.Select`."""
        p, n = self.particles, len(batch) // self.particles
        memory = memory or Followed(torch.zeros(n, p), torch.zeros(n * p), torch.zeros(n * p, dtype=torch.bool))
        done = ~growing.cpu()
        ended = done & ~memory.finished
        log_h = torch.where(done, memory.log_h, self._beginnings(batch, order, block))
        log_h[ended] = self._ends(Molecule.unbatch(batch[ended.to(batch.mask.device)]))
        weights = memory.weights + (log_h - memory.log_h).reshape(n, p)
        group = group_rng(replace(rng, ids=batch.ids.cpu()), p)
        over = done.reshape(n, p).all(1, keepdim=True)  # such a group waits as it is, however long its batch goes on
        rows, even = resample(torch.where(over, 0.0, weights), group, RESAMPLED)
        weights = torch.where(over, weights, even)
        if bool(done[rows].all()):  # drawn by a key without the block, which is the batch's last and not the sample's
            rows = rows[choose(weights, Rng(rng.seed, group.ids))].repeat_interleave(p)
        return rows.to(growing.device), Followed(weights, log_h[rows], done[rows])

    def _ends(self, molecules: Sequence[Molecule]) -> Tensor:
        """Log weights (n,) of finished molecules: 0 where all wants are met, far below where one is missed, the more
        so the farther."""
        out = np.zeros(len(molecules))
        for want in self.wants.parts:
            gap = want.gap(molecules) / self._unit(want)
            out += np.where(gap == 0, 0.0, MISSED - gap)
            if isinstance(want, Maximize):
                out += want.values(molecules) / want.temperature
        valid = np.array([m.reason is None for m in molecules], bool) & ~np.isnan(out)
        return torch.from_numpy(np.where(valid, out.clip(LEAST), 2 * LEAST)).float()

    def _unit(self, want: Want) -> float:
        """What a gap is measured in: the spread of the property in the data where it is known."""
        if isinstance(want, Interval) and self._knows(want):
            return float(self.model.std[self.model.names.index(want.name)])
        return 1.0

    def _beginnings(self, batch: Batch, order: Order, block: int) -> Tensor:
        """Log twists (B,) of what is finished of each row."""
        out = torch.zeros(len(batch))
        finished = (order.rank >= 0) & (order.rank < block)
        known = self._known()
        if known:
            rows = fill_group(torch.arange(len(batch), device=batch.mask.device))
            part, rank = batch[rows], torch.where(finished, order.rank, -1)[rows]
            twist = Twist(self.model, finished[rows], part.given, Order(rank), known)
            out += twist(part.state, None)[: len(batch)].cpu()
        others = [w for w in self.wants.parts if w not in known and not isinstance(w, Without | Keep)]
        if others:
            molecules = Molecule.unbatch(replace(batch, mask=finished))
            for want in others:
                out += torch.from_numpy(self._hint(want, molecules)).float()
        return out

    def _hint(self, want: Want, molecules: Sequence[Molecule]) -> np.ndarray:
        """The log twist of a want that no model knows, from what beginnings measure already."""
        if isinstance(want, Contains):
            return -0.5 * want.gap(molecules)
        if isinstance(want, Formula):
            over = [sum((heavy_atoms(m) - want.heavy).values()) for m in molecules]
            return MISSED * np.array(over, float)
        if isinstance(want, Composition):
            return -0.5 * want.gap(molecules)
        if isinstance(want, Maximize):  # beginnings compete with ends, of log weight value / T: so they have that level
            values = want.values(molecules) / want.temperature
            return _scores(values, self.particles) + _means(values, self.particles)
        return _scores(-want.gap(molecules), self.particles)


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


class Followed(NamedTuple):
    """What `Steering.select` carries from block to block: log weights (n, P), the last log h (n P,), and which rows
    are finished (n P,)."""

    weights: Tensor
    log_h: Tensor
    finished: Tensor


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
            k = self.model.names.index(want.name)
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


@dataclass(frozen=True, kw_only=True)
class Forbid(Term):
    """The classes of atoms that must not be drawn, as bools: their logits fall to nothing."""

    classes: tuple[bool, ...]

    def push(self, at: Evaluation) -> State:
        banned = torch.tensor(self.classes, device=at.clean["atom"].device)
        return {"atom": torch.where(banned, NEVER, 0.0).expand_as(at.clean["atom"])}


def _probe(want: Want) -> None:
    """Ask a function of the user's once, before anything is drawn. Raises ValueError where it fails or gives NaN."""
    if not isinstance(want, Interval | Maximize) or isinstance(want.property, str):
        return
    molecules = [Molecule.from_smiles(s) for s in ("CCO", "c1ccccc1N")]
    try:
        values = measure(want.property, molecules)
    except Exception as error:
        raise ValueError(f"the property function {want.name} fails on ethanol and aniline: {error}") from error
    if np.isnan(values).any():
        raise ValueError(f"the property function {want.name} gives {values.tolist()} for ethanol and aniline")
