"""Crystals as orbits in tensors: a table of Wyckoff positions, the layout of a batch, and the way there and back.

A site of the batch is an orbit. Formulas are written by primitive cells: species with their numbers of sites.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from unisci.batch import Batch, Field, Schema
from unisci.domains.crystal import MAX_SITES, CrystalError
from unisci.domains.space_groups import centrings, symmetric
from unisci.domains.wyckoff import Orbits, Wyckoff
from unisci.lattice import cell_matrix, cell_numbers

MAX_SPECIES = 10

ORBIT_FIELDS: Schema = {
    "element": Field("site"),  # atomic number
    "wyckoff": Field("site"),  # row of the table
    "free": Field("site", (3,)),  # u, 0 where not free
    "cell": Field("whole", (6,)),  # of the conventional cell, see unisci.lattice
    "group": Field("whole"),  # space group, 1 to 230
    "species": Field("whole", (MAX_SPECIES,)),  # atomic numbers, ascending, 0 behind the last
    "counts": Field("whole", (MAX_SPECIES,)),  # their numbers of sites
}


@dataclass(frozen=True, eq=False)
class WyckoffTable:
    """The positions that a model knows, sorted by group and letter."""

    positions: tuple[Wyckoff, ...]

    @classmethod
    def of(cls, orbits: Iterable[Orbits]) -> "WyckoffTable":
        """The positions that occur."""
        return cls(tuple(sorted({p for o in orbits for p in o.positions}, key=lambda p: (p.group, p.letter))))

    @classmethod
    def from_text(cls, text: str) -> "WyckoffTable":
        """The inverse of `text`."""
        rows = (line.split(" ") for line in text.splitlines())
        return cls(tuple(Wyckoff(int(group), letter, form) for group, letter, form in rows))

    @property
    def text(self) -> str:
        """A line "group letter form" for each position."""
        return "\n".join(f"{p.group} {p.letter} {p.form.replace(' ', '')}" for p in self.positions)

    def __len__(self) -> int:
        return len(self.positions)

    @cached_property
    def rows(self) -> dict[Wyckoff, int]:
        """Position -> row."""
        return {p: i for i, p in enumerate(self.positions)}

    @cached_property
    def multiplicities(self) -> np.ndarray:
        """(V,): sites in the primitive cell."""
        return np.array([p.multiplicity for p in self.positions])


def batch_of(orbits: Sequence[Orbits], table: WyckoffTable) -> Batch:
    """A batch of ORBIT_FIELDS. Raises CrystalError where a position is not in the table, and for too many sites or
    species."""
    b, m = len(orbits), max((len(o.numbers) for o in orbits), default=0)
    element, wyckoff = np.zeros((2, b, m), np.int64)
    free, mask = np.zeros((b, m, 3), np.float32), np.zeros((b, m), bool)
    kinds, counts = np.zeros((2, b, MAX_SPECIES), np.int64)
    for i, o in enumerate(orbits):
        n = len(o.numbers)
        if missing := [p for p in o.positions if p not in table.rows]:
            raise CrystalError(f"the Wyckoff position {missing[0].group}{missing[0].letter} is not in the table")
        element[i, :n], free[i, :n], mask[i, :n] = o.numbers, o.free, True
        wyckoff[i, :n] = [table.rows[p] for p in o.positions]
        kinds[i], counts[i] = formula_rows(np.repeat(o.numbers, [p.multiplicity for p in o.positions]))
    lattice = torch.from_numpy(np.stack([o.lattice for o in orbits]))
    conventional = torch.from_numpy(counts.sum(1)) * torch.tensor([centring(o.group) for o in orbits])
    state = {
        "element": torch.from_numpy(element),
        "wyckoff": torch.from_numpy(wyckoff),
        "free": torch.from_numpy(free),
        "cell": cell_numbers(lattice, conventional).float(),
        "group": torch.tensor([o.group for o in orbits]),
        "species": torch.from_numpy(kinds),
        "counts": torch.from_numpy(counts),
    }
    return Batch(ORBIT_FIELDS, state, torch.from_numpy(mask))


def formula_rows(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """species, counts (MAX_SPECIES,) of the sites' atomic numbers (n,). Raises CrystalError for too many of either."""
    z, n = np.unique(numbers, return_counts=True)
    if len(numbers) > MAX_SITES:
        raise CrystalError(f"{len(numbers)} sites: at most {MAX_SITES} are held")
    if len(z) > MAX_SPECIES:
        raise CrystalError(f"a formula of {len(z)} elements: at most {MAX_SPECIES} are held")
    pad = MAX_SPECIES - len(z)
    return np.pad(z, (0, pad)), np.pad(n, (0, pad))


def orbits_of(batch: Batch, table: WyckoffTable) -> list[Orbits]:
    """The inverse of `batch_of`; cells are made their group's own."""
    batch = batch.to("cpu")
    sites = batch.state["counts"].sum(1)
    conventional = sites * torch.tensor([centring(g) for g in batch.state["group"].tolist()])
    lattices = cell_matrix(batch.state["cell"].double(), conventional).numpy()
    out = []
    for i, lattice in enumerate(lattices):
        here = batch.mask[i].numpy()
        positions = tuple(table.positions[k] for k in batch.state["wyckoff"][i].numpy()[here])
        group, u = int(batch.state["group"][i]), batch.state["free"][i].double().numpy()[here]
        out.append(Orbits(group, batch.state["element"][i].numpy()[here], positions, u, symmetric(lattice, group)))
    return out


def centring(group: int) -> int:
    """Primitive cells in the conventional one."""
    return len(centrings(group))
