"""How wants act while molecules are drawn block by block: a twisted sequential Monte Carlo (arXiv 2306.17775) whose
twist, log h, tells from a beginning how likely its end meets them.

    Without            logits of the element's classes fall to nothing
    Keep               the scaffold is the first blocks of every molecule
    a property that the model of properties knows
                       log P(value in interval | beginning): its first-order gradient pushes the logits within a block,
                       and particles are weighed by it between blocks
    a property that the generator is told
                       the middle of its range, where it has two ends
    any other property, your function too, Contains, Formula, Composition
                       particles alone, by what their beginnings measure

Particles belong to one sample: P are grown for it, drawn again from one another between blocks by how their weights
changed, and one is kept at the end by the exact weights of finished molecules. Within blocks the push is not weighed
against: it changes which of the molecules that meet the wants are drawn, not whether they do.
"""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.generate import fill_group
from unisci.autoregression.property_model import PropertyModel
from unisci.batch import Batch
from unisci.denoiser import Bound
from unisci.design.atoms import Keep, Without
from unisci.design.predicted import spoken_name
from unisci.design.properties import measure, named
from unisci.design.targets import Interval, Maximize
from unisci.design.twists import Twist, hint, log_weights
from unisci.design.wants import Want, Wants
from unisci.domains.molecule import Molecule, parse_class
from unisci.guidance.particles import choose, group_rng, resample
from unisci.guidance.potential import FirstOrder, Potential
from unisci.guidance.terms import Evaluation, Term, guided
from unisci.order import Order
from unisci.rng import Rng
from unisci.solvers.sample import Denoise
from unisci.state import State

NEVER = -1e4  # what a forbidden class's logit falls by
RESAMPLED = 0.5  # particles are drawn again where their effective number falls below this share


@dataclass(frozen=True)
class Steering:
    """wants; particles: P for each sample; model: of properties, or None; classes, room: the generator's atoms, and how
    many a molecule of it has at most; scale: of the push within blocks, 0 for particles alone; told: what the generator
    is told, in the order of its conditions. Raises ValueError where a want has nothing to act by or to be measured by,
    or the generator cannot draw what it needs."""

    wants: Wants
    particles: int
    model: PropertyModel | None
    classes: tuple[str, ...]
    room: int
    scale: float = 1.0
    told: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.particles < 1:
            raise ValueError(f"particles must be at least 1, got {self.particles}")
        if not math.isfinite(self.scale):
            raise ValueError(f"push must be finite, got {self.scale}")
        if self._elements() <= self._banned():
            raise ValueError(f"{self.wants}: this generator draws {', '.join(sorted(self._elements()))}, nothing else")
        for want in self.wants.parts:
            self._check_acts(want)
            self._check_drawn(want)
            _probe(want)

    def _check_acts(self, want: Want) -> None:
        acts = (self.scale and self._knows(want)) or self._middle(want) is not None
        if self.particles == 1 and not acts and not isinstance(want, Without | Keep):
            known = () if self.model is None else self.model.names
            raise ValueError(
                f"nothing can steer towards {want}: the model of properties knows {', '.join(known) or 'none'}; "
                "pass particles=16 or so, or train one (configs/properties_qm9.yaml)"
            )

    def _check_drawn(self, want: Want) -> None:
        least = want.needs.total()
        if least > self.room:
            raise ValueError(f"{want}: that takes {least} heavy atoms, this generator draws at most {self.room}")
        exact = isinstance(want, Keep)  # whose atoms have their charges
        drawn = set(self.classes) if exact else self._elements()
        absent = set(want.molecule.atoms if exact else want.needs) - drawn
        if absent:
            raise ValueError(f"{want}: this generator draws {', '.join(sorted(drawn))}, not {sorted(absent)}")

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

    @property
    def values(self) -> Tensor | None:
        """(1, C): what the generator is to be told, nan where nothing; None where nothing at all."""
        at = {spoken_name(w): self._middle(w) for w in self.wants.parts if self._middle(w) is not None}
        row = [at.get(name.lower(), math.nan) for name in self.told]
        return torch.tensor([row]) if at else None

    def _middle(self, want: Want) -> float | None:
        """Of the range of a property that the generator is told."""
        if spoken_name(want) not in {name.lower() for name in self.told} or not isinstance(want, Interval):
            return None
        middle = (want.low + want.high) / 2
        return middle if math.isfinite(middle) else None

    def _elements(self) -> set[str]:
        return {parse_class(c)[0] for c in self.classes}

    def _banned(self) -> set[str]:
        return {w.element for w in self.wants.parts if isinstance(w, Without)}

    def _knows(self, want: Want) -> bool:
        """Whether the model of properties tells this one. A function of yours is your own, whatever its name."""
        return self.model is not None and spoken_name(want) in self.model.names

    def _known(self) -> tuple[Interval | Maximize, ...]:
        return tuple(w for w in self.wants.parts if self._knows(w))

    def select(
        self, batch: Batch, order: Order, growing: Tensor, block: int, rng: Rng, memory: "Followed | None"
    ) -> tuple[Tensor, "Followed"]:
        """From which row each particle goes on: resampled within its group where weights have spread, and at the end
        all from the one that is kept. See `unisci.autoregression.generate.Select`."""
        p, n = self.particles, len(batch) // self.particles
        memory = memory or Followed.even(n, p)
        done = ~growing.cpu()
        ended = done & ~memory.finished
        log_h = torch.where(done, memory.log_h, self._beginnings(batch, order, block))
        log_h[ended] = log_weights(self.wants, Molecule.unbatch(batch[ended.to(batch.mask.device)]), self._unit)
        gain = torch.where(memory.finished, 0.0, log_h - memory.log_h)  # -inf stays -inf
        weights = memory.weights + gain.reshape(n, p)
        group = group_rng(replace(rng, ids=batch.ids.cpu()), p)
        over = done.reshape(n, p).all(1, keepdim=True)  # such a group waits as it is, however long its batch goes on
        rows, even = resample(torch.where(over, 0.0, weights), group, RESAMPLED)
        weights = torch.where(over, weights, even)
        if bool(done[rows].all()):  # drawn by a key without the block, which is the batch's last and not the sample's
            rows = rows[choose(weights, Rng(rng.seed, group.ids))].repeat_interleave(p)
        return rows.to(growing.device), Followed(weights, log_h[rows], done[rows])

    def _unit(self, want: Want) -> float:
        """What a gap is measured in: the spread of the property in the data where it is known."""
        if isinstance(want, Interval) and self._knows(want):
            return float(self.model.std[self.model.names.index(spoken_name(want))])
        return 1.0

    def _beginnings(self, batch: Batch, order: Order, block: int) -> Tensor:
        """Log twists (B,) of what is finished of each row."""
        out = torch.zeros(len(batch), dtype=torch.float64)
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
                out += torch.from_numpy(hint(want, molecules, self.particles))
        return out


class Followed(NamedTuple):
    """What `Steering.select` carries from block to block, float64: log weights (n, P), the last log h (n P,), and which
    rows are finished (n P,)."""

    weights: Tensor
    log_h: Tensor
    finished: Tensor

    @classmethod
    def even(cls, n: int, particles: int) -> "Followed":
        """Before the first block."""
        zeros = torch.zeros(n * particles, dtype=torch.float64)
        return cls(zeros.reshape(n, particles), zeros, zeros.bool())


@dataclass(frozen=True, kw_only=True)
class Forbid(Term):
    """The classes of atoms that must not be drawn, as bools: their logits fall to nothing."""

    classes: tuple[bool, ...]

    def push(self, at: Evaluation) -> State:
        banned = torch.tensor(self.classes, device=at.clean["atom"].device)
        return {"atom": torch.where(banned, NEVER, 0.0).expand_as(at.clean["atom"])}


def _probe(want: Want) -> None:
    """Ask a function of the user's once, before anything is drawn. Raises ValueError where it fails or gives NaN, and
    for a name that nothing can measure."""
    if not isinstance(want, Interval | Maximize) or spoken_name(want) is not None:
        if isinstance(getattr(want, "property", None), str):
            named(want.property)
        return
    molecules = [Molecule.from_smiles(s) for s in ("CCO", "c1ccccc1N")]
    try:
        values = measure(want.property, molecules)
    except Exception as error:
        raise ValueError(f"the property function {want.name} fails on ethanol and aniline: {error}") from error
    if np.isnan(values).any():
        raise ValueError(f"the property function {want.name} gives {values.tolist()} for ethanol and aniline")
