"""Conformers side by side: seen from one side, no mirror images, every atom inside its own cell."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.small_structures import embedded
from unisci.design.structure_drawings import CELL, LEGEND, sheet, turned
from unisci.domains.molecule import Molecule


def test_turned_copies_of_a_conformer_look_the_same():
    molecule = embedded("CC(O)CN", 3)
    other = molecule.with_positions(molecule.positions[0] @ Rotation.random(rng=1).as_matrix() + [3, -2, 8])
    a, b = turned([molecule, other])
    np.testing.assert_allclose(a, b, atol=1e-6)
    lengths = lambda x: np.linalg.norm(x[:, None] - x, axis=-1)
    np.testing.assert_allclose(lengths(a), lengths(molecule.positions[0]), atol=1e-6)


def test_a_conformer_is_seen_from_its_broadest_side_and_is_no_mirror_image():
    molecule = embedded("CC(O)CN", 3)
    (x,) = turned([molecule])
    heavy = np.array([a != "H" for a in molecule.atoms])
    wide, high, deep = x[heavy].std(0)
    assert wide > high > deep
    volume = lambda p: np.linalg.det(p[1:4] - p[0])
    assert volume(x) == pytest.approx(volume(molecule.positions[0]))
    mirrored = molecule.with_positions(molecule.positions[0] * [1, 1, -1])
    assert volume(turned([molecule, mirrored])[1]) == pytest.approx(-volume(x))


def test_other_molecules_have_their_own_side():
    one, two = embedded("CCO", 0), embedded("C#N", 0)
    views = turned([one, two, one])
    assert [len(v) for v in views] == [9, 3, 9]
    np.testing.assert_allclose(views[0], views[2], atol=1e-6)
    assert np.ptp(views[1][:, 0]) > 2 and np.abs(views[1][:, 1:]).max() < 0.1  # a line lies flat


def test_a_sheet_holds_every_atom_in_its_own_cell():
    made = [embedded("CCCCCCO", k) for k in range(3)]
    image = sheet(made, ["a", "b", "c\nd"], columns=2)
    assert image.size == (2 * CELL[0], 2 * (CELL[1] + LEGEND))
    pixels = np.array(image.convert("L"))
    dark = lambda x, y: (pixels[y : y + CELL[1], x : x + CELL[0]] < 250).sum()
    height = CELL[1] + LEGEND
    assert min(dark(0, 0), dark(CELL[0], 0), dark(0, height)) > 500 and dark(CELL[0], height) == 0
    edges = [*pixels[: CELL[1], CELL[0] - 2 : CELL[0] + 2].ravel(), *pixels[0], *pixels[:, 0]]
    assert min(edges) == 255
    reds = np.array(image).astype(int)
    assert ((reds[..., 0] > 200) & (reds[..., 1] < 60) & (reds[..., 2] < 60)).sum() > 3 * 20  # three oxygens


def test_what_has_no_positions_is_refused():
    with pytest.raises(ValueError, match="positions"):
        sheet([Molecule.from_smiles("CO")], ["a"])
    with pytest.raises(ValueError, match="one molecule or more"):
        sheet([], [])
