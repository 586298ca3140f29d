"""Molecules in space by UniGenX (arXiv 2503.06687): everything, everything of a property, or conformers of molecules.

v ~ p(v) or given,    w ~ p(w | v),    x_i ~ p(x_i | v, w, x_1, ..., x_i-1)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unisci.autoregression.unigenx_molecules import MoleculeUniGenX
from unisci.autoregression.word_drawing import nucleus
from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.smiles_words import canonical_order, read, respell, spell
from unisci.rng import Rng


@dataclass(frozen=True, eq=False)
class Drawn:
    """words: of the SMILES, as far as they go; values: of the properties, in their order; molecule: None where `reason`
    says why the words are none, else with one conformer."""

    words: tuple[str, ...]
    values: tuple[float, ...]
    molecule: Molecule | None = None
    reason: str | None = None


def generate(
    model: MoleculeUniGenX,
    rng: Rng,
    values: np.ndarray | None = None,
    hydrogens: bool = True,
    limit: int = 64,
    law: Callable[[Tensor], Tensor] = nucleus,
    steps: int = 20,
    solver: str = "dpm++2m",
) -> list[Drawn]:
    """One for each of rng.ids, none left out.

    values (B, k): of the first k properties, in their units; the others are drawn. hydrogens: as in the training data.
    law: of the words, such as `functools.partial(nucleus, temperature=0.8, top_p=0.95)`; limit: of their number.
    steps: calls of a head for each vector. Raises ValueError where there are not as many rows of values as samples.
    """
    values = np.zeros((len(rng.ids), 0)) if values is None else np.asarray(values, float)
    if values.ndim != 2 or len(values) != len(rng.ids):
        raise ValueError(f"values of shape {values.shape} for {len(rng.ids)} samples: give one row for each")
    values = model.draw_values(values, rng.at(0), steps, solver)
    rows = [_read(w, hydrogens, limit) for w in model.draw_words(values, rng.at(1), limit, law)]
    rows = [(*row, tuple(v)) for row, v in zip(rows, values.tolist(), strict=True)]
    good = [i for i, (_, molecule, *_) in enumerate(rows) if molecule is not None]
    spellings = [respell(rows[i][0], rows[i][1]) for i in good]
    keep = torch.tensor(good, dtype=torch.long, device=rng.ids.device)
    placed = dict(zip(good, model.draw_positions(spellings, values[good], rng[keep].at(2), steps, solver), strict=True))
    return [
        Drawn(words, v, molecule and molecule.with_positions(placed[i]), reason)
        for i, (words, molecule, reason, v) in enumerate(rows)
    ]


def conformers(
    model: MoleculeUniGenX,
    molecules: Sequence[Molecule],
    rng: Rng,
    values: np.ndarray | None = None,
    steps: int = 20,
    solver: str = "dpm++2m",
) -> list[Molecule]:
    """The molecules, one for each of rng.ids, with one conformer, sites as they were; those they have are not read.

    values (B, P): of all properties, if the model knows any. Raises MoleculeError for one that is not valid, and
    ValueError where numbers differ, or a molecule is spelt in words that the model does not know.
    """
    if len(molecules) != len(rng.ids):
        raise ValueError(f"{len(molecules)} molecules for {len(rng.ids)} samples: rng.ids names one for each")
    spellings = [spell(m) for m in molecules]
    values = np.zeros((len(molecules), 0)) if values is None else np.asarray(values, float)
    drawn = model.draw_positions(spellings, values, rng.at(2), steps, solver)
    return [m.with_positions(x[canonical_order(m)[1].argsort()]) for m, x in zip(molecules, drawn, strict=True)]


def _read(
    words: tuple[str, ...] | None, hydrogens: bool, limit: int
) -> tuple[tuple[str, ...], Molecule | None, str | None]:
    if words is None:
        return (), None, f"unfinished after {limit} words"
    try:
        return words, read(words, hydrogens), None
    except MoleculeError as error:
        return words, None, str(error)
