"""Training examples of a refiner: known crystals, each beside the templates that a formula of its kind would be given.

A template is laid over the crystal that it stands for (`unisci.domains.alignment`), since the refiner learns the way
from the one to the other; never is a crystal its own template.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from unisci.autoregression.crystals import TEMPLATE_FIELDS
from unisci.batch import Batch
from unisci.domains.alignment import align
from unisci.domains.crystal import CRYSTAL_FIELDS, Crystal
from unisci.domains.prototypes import Map
from unisci.domains.templates import TemplateLibrary
from unisci.lattice import cell_numbers

PART = 200  # crystals aligned by one call of a worker


def beside_templates(crystals: Sequence[Crystal], library: TemplateLibrary, k: int, map: Map = map) -> Batch:
    """The reduced crystals that the library holds, in its order, with the k templates nearest to each, as
    `unisci.autoregression.crystals.templates` reads them. map: such as that of a process pool."""
    ranges = [range(a, min(a + PART, len(library))) for a in range(0, len(library), PART)]
    parts = zip(*map(partial(_aligned, library, k), ranges), strict=True)
    given = (torch.from_numpy(np.concatenate(part)) for part in parts)
    batch = Crystal.batch(crystals)
    fields = {name: f._replace(shape=(k, *f.shape)) for name, f in TEMPLATE_FIELDS.items()}
    return Batch(CRYSTAL_FIELDS | fields, batch.state, batch.mask, dict(zip(fields, given, strict=True)), batch.ids)


def _aligned(library: TemplateLibrary, k: int, rows: range) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the crystals `rows` the templates' positions (R, N, k, 3), cells (R, k, 6), distances (R, k), -1 for none."""
    most = int(np.diff(library.offsets).max())
    position, cell = np.zeros((len(rows), most, k, 3), np.float32), np.zeros((len(rows), k, 6), np.float32)
    distance = np.full((len(rows), k), -1, np.float32)
    for i, row in enumerate(rows):
        crystal = library[row]
        for j, template in enumerate(library.retrieve(crystal.numbers, k, [row])):
            placed = align(template.crystal, crystal)
            position[i, : len(crystal), j], distance[i, j] = placed.fractional, template.distance
            cell[i, j] = cell_numbers(torch.from_numpy(placed.lattice)[None], torch.tensor([len(crystal)]))[0]
    return position, cell, distance
