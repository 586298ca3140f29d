"""What each sample of a designer of crystals is: a formula in a size, and a template or none."""

import zlib
from collections.abc import Sequence
from functools import lru_cache
from math import gcd
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.crystal_generator import CrystalGenerator
from unisci.autoregression.crystal_prediction import TRIES
from unisci.autoregression.retrieval import Retriever
from unisci.domains.crystal import Crystal, CrystalError, sites_of
from unisci.domains.orbit_batches import formula_rows
from unisci.domains.prototypes import NamedLibrary
from unisci.domains.template_files import load_templates
from unisci.domains.templates import Template
from unisci.rng import Rng

PROPOSED = 10  # templates of a formula
SHARPNESS = 0.7  # temperature of new formulas: below 1 more of them have a neutral choice of charges
SURE = 2  # samples of a formula that are the likeliest of several draws; all others are one draw, for variety
Templates = str | Path | Sequence[Crystal] | NamedLibrary | None


class Task(NamedTuple):
    """One sample: its id, the key of its randomness, the formula asked for (None: a new one), its sites' atomic
    numbers, of how many draws of words the likeliest counts, and the template that it starts from, with its name."""

    id: int
    key: int
    composition: str | None
    numbers: np.ndarray
    tries: int = 1
    template: Template | None = None
    name: str | None = None


class Formula(NamedTuple):
    """A formula that is asked for, its sites' atomic numbers in each size, the sizes' odds, and its named templates."""

    text: str
    numbers: list[np.ndarray]
    odds: Tensor
    templates: list[tuple[Template, str]]


class Sizes(NamedTuple):
    """A formula in each size that is allowed: its sites' atomic numbers, and whether draws can hold them (bool)."""

    numbers: list[np.ndarray]
    drawable: Tensor


def sizes(
    generator: CrystalGenerator,
    text: str,
    counts: dict[int, int],
    units: int | None,
    spacegroup: int | None,
    library: NamedLibrary | None,
) -> Sizes:
    """counts: of the formula, by atomic number; units: in the primitive cell, None: all that the model can hold where
    the formula is in lowest terms, else 1. Raises CrystalError where neither the Wyckoff positions of the space group
    (None: of any) give the counts in some size, nor a template does."""
    most = generator.most_sites // sum(counts.values())
    choices = [units] if units else range(1, (1 if gcd(*counts.values()) > 1 else most) + 1)
    numbers = [sites_of({z: k * n for z, n in counts.items()}) for k in choices]
    drawable = torch.tensor([_holds(generator, counts, k, spacegroup) for k in choices])
    known = library is not None and any(library.library.nearest(z, 1) for z in numbers)
    if not known and not drawable.any():
        others = [k for k in range(1, most + 1) if k not in choices and _holds(generator, counts, k, spacegroup)]
        where = "any space group" if spacegroup is None else f"spacegroup {spacegroup}"
        size = choices[0] if len(choices) == 1 else f"{choices[0]} to {choices[-1]}"
        instead = f"units={' or '.join(map(str, others))}" if others else "another spacegroup or formula"
        raise CrystalError(
            f"{text}: no choice of the Wyckoff positions that this model knows in {where} gives it with {size} formula "
            f"units in the primitive cell; ask for {instead}"
        )
    return Sizes(numbers, drawable)


def _holds(generator: CrystalGenerator, counts: dict[int, int], units: int, spacegroup: int | None) -> bool:
    rules = generator.orbits.rules
    groups = rules.of_group.unique().tolist() if spacegroup is None else [spacegroup]
    return any(rules.holds(g, [units * n for n in counts.values()]) for g in groups)


def formula(generator: CrystalGenerator, text: str, found: Sizes, library: NamedLibrary | None) -> Formula:
    """Sizes have odds by how likely the model finds them, those that no draw can hold none where one can."""
    rows = zip(*map(formula_rows, found.numbers), strict=True)
    device = generator.orbits.rules.multiplicity.device
    surprise = generator.orbits.formula_surprise(*(torch.from_numpy(np.stack(x)).to(device) for x in rows))
    surprise = surprise.double().cpu()
    if found.drawable.any():
        surprise = surprise.masked_fill(~found.drawable, torch.inf)
    odds = (-surprise).softmax(0)
    return Formula(text, found.numbers, odds, _templates(generator, library, found.numbers, odds.tolist()))


def formula_tasks(asked: Formula, ids: Sequence[int], seed: int, drawn: bool = False) -> list[Task]:
    """Even samples take the templates, best first, while there are any, unless all are to be drawn."""
    keys = [(zlib.crc32(asked.text.encode()) + i) % 2**32 for i in ids]
    which = Rng(seed, torch.tensor(keys)).categorical("units", 0, asked.odds.expand(len(keys), -1), 0)
    out = []
    for i, key, w in zip(ids, keys, which.tolist(), strict=True):
        if not drawn and i % 2 == 0 and i // 2 < len(asked.templates):
            template, name = asked.templates[i // 2]
            out.append(Task(i, key, asked.text, template.crystal.numbers, 1, template, name))
        else:
            out.append(Task(i, key, asked.text, asked.numbers[w], TRIES if i < SURE else 1))
    return out


def new_tasks(
    generator: CrystalGenerator, ids: Sequence[int], seed: int, elements: Tensor | None, stream: int
) -> list[Task]:
    """Formulas that the model makes of the elements (101,) bool."""
    device = generator.orbits.rules.multiplicity.device
    rng = Rng(seed, torch.tensor(list(ids), device=device)).at(1).at(stream)
    species, counts = generator.orbits.draw_formulas(rng, generator.most_sites, SHARPNESS, elements)
    rows = zip(ids, species.tolist(), counts.tolist(), strict=True)
    return [Task(i, i, None, sites_of({a: b for a, b in zip(z, n, strict=True) if a})) for i, z, n in rows]


def library_of(templates: Templates, spacegroup: int | None) -> NamedLibrary | None:
    """What the user named, parsed once; None where there are no templates, or none of the space group."""
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
    generator: CrystalGenerator, library: NamedLibrary | None, numbers: list[np.ndarray], odds: list[float]
) -> list[tuple[Template, str]]:
    """Templates of a formula in several sizes, best first: by the odds of the size over the place among its own."""
    if library is None:
        return []
    found = []
    retriever = Retriever(library.library, generator.rankers)
    for odd, retrieved in zip(odds, retriever.retrieve(numbers, PROPOSED), strict=True):
        found += [(odd / (k + 1), template) for k, template in enumerate(retrieved)]
    found.sort(key=lambda x: -x[0])
    return [(t, library.names[t.row]) for _, t in found[:PROPOSED]]
