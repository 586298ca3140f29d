"""Predictions without a model. A match rate says little without these beside it.

On Perov-5 random coordinates in a mean cell match two compounds of five, and on MP-20 a training crystal of the same
stoichiometry, with its elements exchanged, one of three.
"""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from unisci.metrics.cells import Cell, cells

Baseline = Callable[[np.ndarray], Any]  # atomic numbers (n,) of a compound -> a crystal, or None where it has no answer


def floors(training: Sequence[Any], seed: int = 0) -> dict[str, Baseline]:
    """The two baselines that need training crystals only, by name: random_coordinates and random_template."""
    training = cells(training, "training")
    return {
        "random_coordinates": random_coordinates(training, seed),
        "random_template": random_template(training, seed),
    }


def random_coordinates(training: Sequence[Cell], seed: int = 0) -> Baseline:
    """Uniform coordinates in the training set's mean cell: edges (mean of edge / N^(1/3)) N^(1/3), mean angles."""
    from pymatgen.core import Lattice

    shapes = []
    for c in training:
        lattice = Lattice(c.lattice)
        shapes.append((*(np.array(lattice.abc) / len(c.numbers) ** (1 / 3)), *lattice.angles))
    mean = np.mean(shapes, 0)

    def predict(numbers: np.ndarray) -> Cell:
        lattice = Lattice.from_parameters(*(mean[:3] * len(numbers) ** (1 / 3)), *mean[3:]).matrix
        return Cell(lattice, np.asarray(numbers), _generator(seed, numbers).random((len(numbers), 3)))

    return predict


def random_template(training: Sequence[Cell], seed: int = 0) -> Baseline:
    """A random training crystal with the same numbers of sites for each element, its elements exchanged.

    Among elements with equal numbers of sites the order of electronegativity is kept. Cells are not rescaled: the
    matcher does not look at volumes. None where the training set has no such crystal.
    """
    templates = defaultdict(list)
    for c in training:
        templates[tuple(sorted(count for _, count in c.counts))].append(c)

    def predict(numbers: np.ndarray) -> Cell | None:
        target = Cell(np.eye(3), np.asarray(numbers), np.zeros((len(numbers), 3)))
        choices = templates.get(tuple(sorted(count for _, count in target.counts)))
        if not choices:
            return None
        template = choices[_generator(seed, numbers).integers(len(choices))]
        exchange = dict(zip(_ordered(template), _ordered(target), strict=True))
        return template._replace(numbers=np.array([exchange[z] for z in template.numbers.tolist()]))

    return predict


def _ordered(cell: Cell) -> list[int]:
    """Elements by number of sites, then by electronegativity (unknown ones last)."""
    from pymatgen.core import Element

    def place(item: tuple[int, int]) -> tuple[int, float]:
        z, count = item
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # noble gases have none
            x = Element.from_Z(z).X
        return count, x if x == x else np.inf

    return [z for z, _ in sorted(cell.counts, key=place)]


def _generator(seed: int, numbers: np.ndarray) -> np.random.Generator:
    """Depends on the compound alone, so that a prediction is the same in any set and order of compounds."""
    return np.random.default_rng([seed, *sorted(int(z) for z in numbers)])
