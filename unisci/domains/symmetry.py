"""Space groups of crystals, and their standard cells, by moyo (the successor of spglib, in Rust).

A crystal has the symmetry (W, w) where every site x finds its image, |W x + w - x'| <= symprec (angstrom), x' of the
same element. On some needles and sheets moyo's search never ends: seen from symprec * longest / shortest^2 = 0.35 on,
longest and shortest (height) of the reduced cell in angstrom. Those are refused; crystals have about 0.01 there.
"""

import logging
from typing import TYPE_CHECKING

import numpy as np

from unisci.domains.crystal import Crystal, CrystalError

if TYPE_CHECKING:
    from moyopy import MoyoDataset

SYMPREC = 0.01  # angstrom
FLATTEST = 0.25  # symprec * longest / shortest^2


def spacegroup(crystal: Crystal, symprec: float = SYMPREC) -> int:
    """The number of the space group, 1 to 230; 0 where none is found. Raises ValueError where symprec <= 0."""
    _check(symprec)
    try:
        return dataset(crystal, symprec).number
    except CrystalError:
        return 0


def standardized(crystal: Crystal, symprec: float = SYMPREC) -> tuple[Crystal, int, str]:
    """The conventional cell in the standard setting, its sites and axes moved (by about symprec) to where the symmetry
    has them; the number of its space group; the Hermann-Mauguin symbol, such as "Fm-3m".

    Raises CrystalError where no symmetry is found, ValueError where symprec <= 0.
    """
    _check(symprec)
    from moyopy import SpaceGroupType

    found = dataset(crystal, symprec)
    cell = found.std_cell
    symbol = SpaceGroupType(found.number).hm_short.replace(" ", "")
    return Crystal(np.array(cell.numbers), np.array(cell.positions), np.array(cell.basis)), found.number, symbol


def _check(symprec: float) -> None:
    if not symprec > 0:
        raise ValueError(f"symprec is {symprec}: give a distance above 0 angstrom, such as {SYMPREC}")


def dataset(crystal: Crystal, symprec: float) -> "MoyoDataset":
    """All that moyo finds. Raises CrystalError where the cell is too flat for it, the tolerance too large or small."""
    from moyopy import Cell, MoyoDataset, niggli_reduce

    lattice = crystal.lattice.tolist()
    log, quiet = logging.getLogger("moyo"), lambda record: "Omitted" not in record.getMessage()
    log.addFilter(quiet)  # of operations that a cell which is not primitive lacks: no caller needs them
    try:
        reduced = np.array(niggli_reduce(lattice)[0])
        heights = 1 / np.linalg.norm(np.linalg.inv(reduced), axis=0)  # no period of the lattice is shorter
        if symprec * np.linalg.norm(reduced, axis=1).max() > FLATTEST * heights.min() ** 2:
            raise ValueError(f"the cell is too flat, {heights.min():.3g} angstrom")
        return MoyoDataset(Cell(lattice, crystal.fractional.tolist(), crystal.numbers.tolist()), symprec=symprec)
    except ValueError as error:
        raise CrystalError(f"no space group within {symprec:g} angstrom: {error}") from error
    finally:
        log.removeFilter(quiet)


def symmetrized_like(moved: Crystal, like: Crystal, symprec: float = SYMPREC) -> Crystal:
    """`moved`, whose sites and cell are those of `like` a little displaced, with the symmetry that `like` has.

    Displacements d are averaged over the operations (W, w), which take site i to p(i), and so is the metric G:
    d_j <- mean of W d_i over p(i) = j,   G <- mean of W^T G W. Without a symmetry `moved` is given back. Raises
    ValueError where the two have other elements.
    """
    if not np.array_equal(moved.numbers, like.numbers):
        raise ValueError(f"{moved!r} and {like!r} differ in more than places: give the same sites in the same order")
    try:
        found = dataset(like, symprec).operations
    except CrystalError:
        return moved
    turns, shifts = np.array(found.rotations, float), np.array(found.translations)
    images = np.einsum("kab,ib->kia", turns, like.fractional) + shifts[:, None]
    gaps = images[:, :, None] - like.fractional
    far = np.linalg.norm((gaps - gaps.round()) @ like.lattice, axis=-1)
    target = (far + 1e6 * (like.numbers[:, None] != like.numbers)).argmin(2)  # (K, n): p
    d = moved.fractional - like.fractional
    turned = np.einsum("kab,ib->kia", turns, d - d.round())
    mean, count = np.zeros_like(d), np.zeros(len(d))
    np.add.at(mean, target, turned)
    np.add.at(count, target, 1)
    metric = np.einsum("kca,cd,kdb->ab", turns, moved.lattice @ moved.lattice.T, turns) / len(turns)
    fractional = like.fractional + mean / count[:, None]
    return Crystal(moved.numbers, fractional - np.floor(fractional), np.linalg.cholesky(metric))
