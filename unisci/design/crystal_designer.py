"""CrystalDesigner: structures of a formula, or new crystals, behind one call."""

import time
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystal_prediction import Proposal, draw, refine, surprise
from unisci.autoregression.retrieval import Retriever
from unisci.design.crystal_samples import CrystalSamples
from unisci.design.designer import check_ids
from unisci.domains.charges import unbalanced
from unisci.domains.crystal import ELEMENTS, Crystal, CrystalError, parse_formula, sites_of
from unisci.domains.orbit_batches import formula_rows
from unisci.domains.prototypes import NamedLibrary
from unisci.domains.template_files import load_templates
from unisci.domains.templates import Template
from unisci.rng import Rng

BATCH = 64
PROPOSED = 10  # templates of a formula
Templates = str | Path | Sequence[Crystal] | NamedLibrary | None


class Task(NamedTuple):
    """One sample: its id, the key of its randomness, the formula asked for (None: a new one), its sites' atomic
    numbers, and the template that it starts from, with its name."""

    id: int
    key: int
    composition: str | None
    numbers: np.ndarray
    template: Template | None = None
    name: str | None = None


@dataclass(frozen=True)
class CrystalDesigner:
    """generator: trained networks; hash: of their weights; card: what the weights say of themselves; steps: network
    calls of a draw that the card's numbers were measured at."""

    generator: CrystalGenerator
    hash: str
    card: dict
    steps: int = 10

    def generate(
        self,
        n: int | None = None,
        composition: str | Sequence[str] | None = None,
        seed: int = 0,
        templates: Templates = None,
        spacegroup: int | None = None,
        elements: Sequence[str] | None = None,
        units: int | None = None,
        ids: Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
    ) -> CrystalSamples:
        """n structures of a formula, or of each of several; without a formula n new crystals.

        Even samples of a formula start from its templates, best first, while there are any; all others are drawn.
        templates: a folder of CIFs, a table with a column cif, crystals, or what `load_templates` gave; by default the
        AFLOW prototypes that pymatgen carries; () for none. spacegroup: number of the group to take. elements: symbols
        that a new crystal may have. units: formula units in the primitive cell; by default drawn for each sample by how
        likely the model finds them where the formula is in lowest terms, else 1. ids: which samples, instead of the
        first n. A sample depends on the weights, (seed, id), its formula, templates and steps, not on n or batch_size.

        Raises CrystalError for a formula that is none or not for this model, ValueError for other arguments that make
        no sense, before any compute. Warns where no common charges make a formula neutral.
        """
        parts = self.stream(n, composition, seed, templates, spacegroup, elements, units, ids, steps, batch_size)
        return CrystalSamples.join(list(parts))

    def stream(
        self,
        n: int | None = None,
        composition: str | Sequence[str] | None = None,
        seed: int = 0,
        templates: Templates = None,
        spacegroup: int | None = None,
        elements: Sequence[str] | None = None,
        units: int | None = None,
        ids: Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
    ) -> Iterator[CrystalSamples]:
        """The same, batch by batch."""
        ids = check_ids(n, ids)
        steps = self.steps if steps is None else steps
        for name, value in (("steps", steps), ("batch_size", batch_size), ("units", units)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        Rng(seed, torch.zeros(0))  # refuses a bad seed
        groups = self._groups(spacegroup)
        if composition is None:
            allowed = self._elements(elements)
            return self._run(self._new(ids, seed, allowed, batch_size), seed, groups, steps, batch_size)
        if elements is not None:
            raise ValueError("elements are for new crystals: a composition names its own")
        formulas = [composition] if isinstance(composition, str) else list(composition)
        counts = [self.check(f, units) for f in formulas]
        library = _library(templates, spacegroup)
        tasks = (t for f, c in zip(formulas, counts, strict=True) for t in self._of(f, c, ids, seed, library, units))
        return self._run(tasks, seed, groups, steps, batch_size)

    def check(self, formula: str, units: int | None = None) -> dict[int, int]:
        """Atomic number -> count of a formula. Raises CrystalError where the model cannot make it; warns where no
        common charges make it neutral."""
        counts, g = parse_formula(formula), self.generator
        total = sum(counts.values()) * (units or 1)
        if total > g.most_sites:
            raise CrystalError(
                f"{formula} has {total} atoms in a primitive cell, this model makes at most {g.most_sites}"
            )
        if unknown := [ELEMENTS[z - 1] for z in counts if z not in g.elements]:
            raise CrystalError(f"{formula}: this model never saw {', '.join(unknown)}")
        if reason := unbalanced(sites_of(counts)):
            warnings.warn(reason, stacklevel=2)
        return counts

    def _of(
        self,
        formula: str,
        counts: dict[int, int],
        ids: Sequence[int],
        seed: int,
        library: NamedLibrary | None,
        units: int | None,
    ) -> Iterator[Task]:
        """The tasks of one formula."""
        key = zlib.crc32(formula.encode())
        keys = [(key + i) % 2**32 for i in ids]
        choices = [units] if units else self._units(counts)
        numbers = [sites_of({z: k * n for z, n in counts.items()}) for k in choices]
        surprises = self.generator.orbits.formula_surprise(*self._rows(numbers)).double()
        odds = (-surprises).softmax(0)
        which = Rng(seed, torch.tensor(keys)).categorical("units", 0, odds.cpu().expand(len(keys), -1), 0)
        found = _templates(library, numbers, odds.tolist(), self.generator)
        for i, k, w in zip(ids, keys, which.tolist(), strict=True):
            if i % 2 == 0 and i // 2 < len(found):
                template, name = found[i // 2]
                yield Task(i, k, formula, template.crystal.numbers, template, name)
            else:
                yield Task(i, k, formula, numbers[w])

    def _units(self, counts: dict[int, int]) -> list[int]:
        if gcd(*counts.values()) > 1:
            return [1]
        return list(range(1, self.generator.most_sites // sum(counts.values()) + 1))

    def _rows(self, numbers: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        device = self.generator.orbits.rules.multiplicity.device
        rows = [formula_rows(x) for x in numbers]
        return tuple(torch.from_numpy(np.stack(x)).to(device) for x in zip(*rows, strict=True))

    def _new(self, ids: Sequence[int], seed: int, elements: Tensor | None, size: int) -> Iterator[Task]:
        """Tasks of new formulas."""
        device = self.generator.orbits.rules.multiplicity.device
        for first in range(0, len(ids), size):
            part = list(ids[first : first + size])
            rng = Rng(seed, torch.tensor(part, device=device)).at(1)
            species, counts = self.generator.orbits.draw_formulas(rng, self.generator.most_sites, elements=elements)
            for i, z, c in zip(part, species.tolist(), counts.tolist(), strict=True):
                yield Task(i, i, None, sites_of({a: b for a, b in zip(z, c, strict=True) if a}))

    def _run(
        self, tasks: Iterator[Task], seed: int, groups: Tensor | None, steps: int, size: int
    ) -> Iterator[CrystalSamples]:
        part: list[Task] = []
        for task in tasks:
            part.append(task)
            if len(part) == size:
                yield self._made(part, seed, groups, steps)
                part = []
        if part:
            yield self._made(part, seed, groups, steps)

    def _made(self, tasks: list[Task], seed: int, groups: Tensor | None, steps: int) -> CrystalSamples:
        began, g = time.perf_counter(), self.generator
        device = g.orbits.rules.multiplicity.device
        rng = Rng(seed, torch.tensor([t.key for t in tasks], device=device)).at(2)
        free = [i for i, t in enumerate(tasks) if t.template is None]
        proposals: list[Proposal] = [
            Proposal(t.template.crystal, 0.0, t.template) if t.template else None for t in tasks
        ]
        if free:
            own = rng[torch.tensor(free, device=device)]
            for i, p in zip(free, draw(g, [tasks[i].numbers for i in free], own, steps, groups=groups), strict=True):
                proposals[i] = p
        crystals = refine(g, proposals, rng.at(0))
        table = pd.DataFrame(
            {
                "composition": pd.Series([t.composition for t in tasks], dtype="object"),
                "source": ["draw" if t.template is None else "template" for t in tasks],
                "template": pd.Series([t.name for t in tasks], dtype="object"),
                "template_distance": [np.nan if t.template is None else t.template.distance for t in tasks],
                "score": (-surprise(g, [p.crystal for p in proposals])).tolist(),
            }
        )
        seconds = (time.perf_counter() - began) / len(tasks)
        return CrystalSamples.of(crystals, [t.id for t in tasks], seconds, self.hash, seed, table)

    def _groups(self, spacegroup: int | None) -> Tensor | None:
        if spacegroup is None:
            return None
        known = sorted(set(self.generator.orbits.rules.of_group.tolist()))
        if spacegroup not in known:
            raise ValueError(
                f"spacegroup {spacegroup} is none of the {len(known)} that this model knows, from 1 to 230"
            )
        device = self.generator.orbits.rules.multiplicity.device
        return torch.arange(231, device=device) == spacegroup

    def _elements(self, symbols: Sequence[str] | None) -> Tensor | None:
        if symbols is None:
            return None
        numbers = [ELEMENTS.index(s) + 1 if s in ELEMENTS else s for s in symbols]
        unknown = [s for s, z in zip(symbols, numbers, strict=True) if z not in self.generator.elements]
        if unknown or not numbers:
            raise ValueError(f"elements: this model knows no {', '.join(map(str, unknown)) or 'crystal without any'}")
        allowed = torch.zeros(101, dtype=torch.bool, device=self.generator.orbits.rules.multiplicity.device)
        allowed[numbers] = True
        return allowed

    def to(self, device: torch.device | str) -> "CrystalDesigner":
        """The same designer with its networks moved to a device."""
        return replace(self, generator=self.generator.to(device))


def _library(templates: Templates, spacegroup: int | None) -> NamedLibrary | None:
    """What the user named, parsed once; None where there are no templates."""
    if isinstance(templates, NamedLibrary):
        library = templates
    elif isinstance(templates, str | Path | None):
        library = _parsed(None if templates is None else str(templates))
    else:
        library = load_templates(templates) if len(templates) else None
    if library is None or spacegroup is None:
        return library
    rows = library.library.spacegroups() == spacegroup
    return library.select(rows) if rows.any() else None


@lru_cache(maxsize=4)
def _parsed(path: str | None) -> NamedLibrary:
    return load_templates(path)


def _templates(
    library: NamedLibrary | None, numbers: list[np.ndarray], odds: list[float], generator: CrystalGenerator
) -> list[tuple[Template, str]]:
    """Templates of a formula in several sizes, best first by the rankers' probability times the size's."""
    if library is None:
        return []
    found = []
    for formula, odd in zip(numbers, odds, strict=True):
        retrieved = Retriever(library.library, generator.rankers).retrieve([formula], PROPOSED)[0]
        found += [(odd / (k + 1), template) for k, template in enumerate(retrieved)]
    found.sort(key=lambda x: -x[0])
    return [(t, library.names[t.row]) for _, t in found[:PROPOSED]]
