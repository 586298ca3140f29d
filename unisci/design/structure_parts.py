"""Molecules of which a part is given: the positions of all atoms, whose graph is drawn, or a fragment, which grows."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from unisci.autoregression.structures import StructureModel
from unisci.batch import Batch
from unisci.design.structure_tasks import check, draw, keys
from unisci.domains.molecule import Molecule
from unisci.rng import Rng

Stream = Callable[[torch.Tensor], Rng]  # of ids


def named(model: StructureModel, arrays: Sequence[np.ndarray], n: int, rng: Stream, steps: int) -> list[Molecule]:
    """n molecules of each array of positions (N, 3), with the given coordinates."""
    asked_for = [blank(len(x)).with_positions(x) for x in arrays for _ in range(n)]
    own = [key for x in arrays for key in keys(x.tobytes(), range(n))]
    made = draw(model, asked_for, own, rng, lambda b, r: model.assign(b, r, steps))
    return [m.with_positions(a.positions) for m, a in zip(made, asked_for, strict=True)]


def shapes(positions: np.ndarray | Sequence[np.ndarray], most: int) -> list[np.ndarray]:
    """One array, or several, as positions (N, 3) float64. Raises ValueError where one is no such array or is of more
    than `most` atoms, or there is none."""
    positions = [positions] if isinstance(positions, np.ndarray) and positions.ndim == 2 else list(positions)
    if not positions:
        raise ValueError("no positions: give an array (N, 3) or several")
    return [shape(x, k, most) for k, x in enumerate(positions)]


def grown(
    model: StructureModel, fragment: Molecule, n: int, atoms: int | None, rng: Stream, steps: int
) -> list[Molecule]:
    """n molecules that hold a fragment. Raises MoleculeError where it is not for this model, ValueError where it has no
    positions or no molecule of so many atoms can be drawn."""
    wanted = _sizes(model, fragment, n, atoms, rng)
    k = len(fragment.atoms)

    def solve(batch: Batch, own: Rng) -> Batch:
        first = torch.arange(batch.mask.shape[1], device=batch.mask.device) < k
        return model.grow(batch, first & batch.mask, own, steps)

    made = draw(model, [around(fragment, total) for total in wanted], list(range(n)), rng, solve)
    return [m.with_positions(moved(m.positions[0], fragment.positions[0])) for m in made]


def _sizes(model: StructureModel, fragment: Molecule, n: int, atoms: int | None, rng: Stream) -> list[int]:
    """Atoms of each of n molecules that hold the fragment. Raises as `grown`."""
    k, sizes = len(fragment.atoms), model.sizes
    if not fragment.conformers or not k or not np.isfinite(fragment.positions[0]).all():
        raise ValueError("the fragment needs atoms and finite positions: give some by .with_positions(...)")
    check(fragment, model, room=1)
    if atoms is not None:
        if not k < atoms < len(sizes):
            raise ValueError(f"atoms = {atoms}: the fragment has {k}, and the model draws up to {len(sizes) - 1}")
        return [atoms] * n
    larger = torch.where(torch.arange(len(sizes), device=sizes.device) > k, sizes, 0)
    if not larger.any():
        raise ValueError(f"no training molecule has more than the fragment's {k} atoms: say how many atoms")
    ids = torch.arange(n, device=sizes.device)
    return rng(ids).categorical("sites", 0, larger.expand(n, -1), 0).tolist()


def blank(n: int) -> Molecule:
    """n hydrogens without bonds, to be drawn over."""
    return Molecule(("H",) * n, np.zeros((n, n), np.int8))


def shape(positions: np.ndarray, k: int, most: int) -> np.ndarray:
    """Positions (N, 3) float64. Raises ValueError where they are none, or of more than `most` atoms."""
    x = np.asarray(positions, np.float64)
    if x.ndim != 2 or x.shape[1] != 3 or not 0 < len(x) <= most or not np.isfinite(x).all():
        raise ValueError(f"shape {k}: positions are finite (N, 3) in angstrom of 1 to {most} atoms, got {x.shape}")
    return x


def around(fragment: Molecule, atoms: int) -> Molecule:
    """The fragment's first conformer, and as many sites as are missing, to be drawn over."""
    more = atoms - len(fragment.atoms)
    positions = np.pad(fragment.positions[0], [(0, more), (0, 0)])
    return Molecule((*fragment.atoms, *blank(more).atoms), np.pad(fragment.bonds, (0, more)), positions[None])


def moved(positions: np.ndarray, fragment: np.ndarray) -> np.ndarray:
    """Positions (n, 3) whose first sites lie on those of the fragment, which they differ from by a translation."""
    k = len(fragment)
    return np.concatenate([fragment, positions[k:] + fragment.mean(0) - positions[:k].mean(0)])
