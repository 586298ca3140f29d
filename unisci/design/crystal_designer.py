"""CrystalDesigner: structures of a formula, or new crystals, behind one call."""

import inspect
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import ParamSpec

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystal_prediction import Proposal, draw, refined, surprise
from unisci.design.crystal_samples import CrystalSamples
from unisci.design.crystal_tasks import Formula, Task, Templates, formula, formula_tasks, library_of, new_tasks, sizes
from unisci.design.crystal_wants import better, check_wants, with_wants
from unisci.design.designer import check_ids
from unisci.design.wants import Want, Wants, wants
from unisci.domains.charges import unbalanced
from unisci.domains.crystal import ELEMENTS, CrystalError, parse_formula, sites_of
from unisci.rng import Rng

BATCH = 64
Arguments = ParamSpec("Arguments")


@dataclass(frozen=True, eq=False)
class _Request:
    """What all samples of a call have in common, checked. groups (231,) bool, elements (101,) bool: those to choose
    from, None for all; tries: samples of which each is the best by what is wanted."""

    seed: int
    groups: Tensor | None
    elements: Tensor | None
    steps: int
    wanted: Wants | None
    tries: int


def _joined(stream: Callable[Arguments, Iterator[CrystalSamples]]) -> Callable[Arguments, CrystalSamples]:
    """The method of the same arguments that gives all batches as one."""

    def generate(*args: Arguments.args, **kwargs: Arguments.kwargs) -> CrystalSamples:
        return CrystalSamples.join(list(stream(*args, **kwargs)))

    generate.__doc__ = stream.__doc__
    generate.__signature__ = inspect.signature(stream).replace(return_annotation=CrystalSamples)
    return generate


@dataclass(frozen=True)
class CrystalDesigner:
    """generator: trained networks; hash: of their weights; card: what the weights say of themselves; steps: network
    calls of a draw that the card's numbers were measured at."""

    generator: CrystalGenerator
    hash: str
    card: dict
    steps: int = 10

    def stream(
        self,
        n: int | None = None,
        composition: str | Sequence[str] | None = None,
        seed: int = 0,
        templates: Templates = None,
        spacegroup: int | None = None,
        elements: Sequence[str] | None = None,
        units: int | None = None,
        where: Want | Wants | Sequence[Want] | None = None,
        particles: int = 4,
        ids: Sequence[int] | None = None,
        steps: int | None = None,
        batch_size: int = BATCH,
    ) -> Iterator[CrystalSamples]:
        """n structures of a formula, or of each of several; without a formula n new crystals; `generate` gives all
        batches joined.

        Even samples of a formula start from its templates, best first, while there are any; all others are drawn, the
        first two each as the likeliest of several draws.
        templates: a folder of CIFs, a table with a column cif, crystals, or what `load_templates` gave; by default the
        AFLOW prototypes that pymatgen carries; () for none. spacegroup: number of the group to take. elements: symbols
        that a new crystal may have. units: formula units in the primitive cell; by default drawn for each sample by how
        likely the model finds them where the formula is in lowest terms, else 1. where: what is wanted, such as
        Between("density", 2, 4) (see `unisci.design.crystal_properties`) or Above(function of crystals, 3); each sample
        is then the best of so many `particles`. ids: which samples, instead of the first n. A sample depends on the
        weights, (seed, id), its formula and these settings, not on n or batch_size.

        The column source says template, draw, or "draw without symmetry": the last resort where no draw came to an end.

        Raises CrystalError for a formula that is none, not for this model, or more than the space group can hold in
        the units allowed, ValueError for other arguments that make no sense, before any compute. Warns where no common
        charges make a formula neutral.
        """
        ids = check_ids(n, ids)
        steps = self.steps if steps is None else steps
        least = {"steps": steps, "batch_size": batch_size, "units": units, "particles": particles}
        for name, value in least.items():
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        Rng(seed, torch.zeros(0))  # refuses a bad seed
        wanted = None if where is None else check_wants(wants(where))
        tries = 1 if wanted is None else particles
        request = _Request(seed, self._groups(spacegroup), self._elements(elements), steps, wanted, tries)
        asked: list[Formula | None] = [None]
        if composition is not None:
            if elements is not None:
                raise ValueError("elements are for new crystals: a composition names its own")
            texts = [composition] if isinstance(composition, str) else list(composition)
            counts = [self.check(text, units) for text in texts]
            g, library = self.generator, library_of(templates, spacegroup)
            found = [sizes(g, t, c, units, spacegroup, library) for t, c in zip(texts, counts, strict=True)]
            asked = [formula(g, t, f, library) for t, f in zip(texts, found, strict=True)]
        parts = [ids[k : k + batch_size] for k in range(0, len(ids), batch_size)]
        return (self._made(request, f, part) for f, part in product(asked, parts))

    generate = _joined(stream)

    def check(self, text: str, units: int | None = None) -> dict[int, int]:
        """Atomic number -> count of a formula. Raises CrystalError where the model cannot make it; warns where no
        common charges make it neutral."""
        counts, g = parse_formula(text), self.generator
        total = sum(counts.values()) * (units or 1)
        if total > g.most_sites:
            raise CrystalError(f"{text} has {total} atoms in a primitive cell, this model makes at most {g.most_sites}")
        if unknown := [ELEMENTS[z - 1] for z in counts if z not in g.elements]:
            raise CrystalError(f"{text}: this model never saw {', '.join(unknown)}")
        if reason := unbalanced(sites_of(counts)):
            warnings.warn(reason, stacklevel=2)
        return counts

    def _made(self, request: _Request, asked: Formula | None, ids: Sequence[int]) -> CrystalSamples:
        """One batch of samples of a formula, or of new crystals, each the best of so many tries."""
        seed, wanted = request.seed, request.wanted
        best: CrystalSamples | None = None
        began = time.perf_counter()
        for k in range(request.tries):
            if asked is None:
                tasks = new_tasks(self.generator, ids, seed, request.elements, k)
            else:
                tasks = formula_tasks(asked, ids, seed, drawn=k > 0)
            made = self._once(request, tasks, k)
            best = made if best is None else better(wanted, best, made)
        best = replace(best, table=best.table.assign(seconds=(time.perf_counter() - began) / len(best)))
        return best if wanted is None else with_wants(best, wanted)

    def _once(self, request: _Request, tasks: list[Task], stream: int) -> CrystalSamples:
        g = self.generator
        device = g.orbits.rules.multiplicity.device
        rng = Rng(request.seed, torch.tensor([t.key for t in tasks], device=device)).at(2).at(stream)
        drawn: dict[int, Proposal] = {}
        for tries in {t.tries for t in tasks if t.template is None}:
            free = [i for i, t in enumerate(tasks) if t.template is None and t.tries == tries]
            own, numbers = rng[torch.tensor(free, device=device)].at(0), [tasks[i].numbers for i in free]
            made = draw(g, numbers, own, request.steps, tries=tries, groups=request.groups)
            drawn |= dict(zip(free, made, strict=True))
        proposals = [drawn.get(i) or Proposal(t.template.crystal, 0.0, t.template) for i, t in enumerate(tasks)]
        crystals = refined(g, proposals, rng.at(1))
        columns = {
            "composition": pd.Series([t.composition for t in tasks], dtype="object"),
            "source": [_source(p) for p in proposals],
            "template": pd.Series([t.name for t in tasks], dtype="object"),
            "template_distance": [np.nan if t.template is None else t.template.distance for t in tasks],
            "score": (-surprise(g, [p.crystal for p in proposals])).tolist(),
        }
        return CrystalSamples.of(crystals, [t.id for t in tasks], 0.0, self.hash, request.seed, pd.DataFrame(columns))

    def _groups(self, spacegroup: int | None) -> Tensor | None:
        if spacegroup is None:
            return None
        of_group = self.generator.orbits.rules.of_group
        known = set(of_group.tolist())
        if spacegroup not in known:
            raise ValueError(f"spacegroup {spacegroup} is none of the {len(known)} that this model knows, 1 to 230")
        return torch.arange(231, device=of_group.device) == spacegroup

    def _elements(self, symbols: Sequence[str] | None) -> Tensor | None:
        if symbols is None:
            return None
        numbers = [ELEMENTS.index(s) + 1 if s in ELEMENTS else 0 for s in symbols]
        unknown = [str(s) for s, z in zip(symbols, numbers, strict=True) if z not in self.generator.elements]
        if unknown or not numbers:
            raise ValueError(f"elements: this model knows no {', '.join(unknown) or 'crystal without any'}")
        allowed = torch.zeros(101, dtype=torch.bool, device=self.generator.orbits.rules.multiplicity.device)
        allowed[numbers] = True
        return allowed

    def to(self, device: torch.device | str) -> "CrystalDesigner":
        """The same designer with its networks moved to a device."""
        return replace(self, generator=self.generator.to(device))


def _source(proposal: Proposal) -> str:
    if proposal.template is not None:
        return "template"
    return "draw" if np.isfinite(proposal.log_probability) else "draw without symmetry"
