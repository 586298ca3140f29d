"""Baselines: what they know (a formula and training crystals), and that they give the same answer each time."""

import numpy as np
import pytest
from pymatgen.core import Lattice, Structure

from tests.metrics.crystals import caesium_chloride, perovskite, rock_salt, triclinic
from unisci.metrics.cells import cells
from unisci.metrics.crystal_baselines import floors, random_coordinates, random_template


def test_random_coordinates_in_the_mean_cell():
    one = Structure(Lattice.orthorhombic(2, 4, 6), ["Fe"], [[0, 0, 0]])
    eight = Structure(Lattice.from_parameters(8, 8, 8, 60, 80, 90), ["Fe"] * 8, np.random.default_rng(0).random((8, 3)))
    predict = random_coordinates(cells([one, eight], "x"))
    cell = predict(np.array([3] * 27))
    lattice = Lattice(cell.lattice)
    # edges over N^(1/3): (2, 4, 6) and (4, 4, 4), mean (3, 4, 5), times 3
    np.testing.assert_allclose(lattice.abc, [9, 12, 15])
    np.testing.assert_allclose(lattice.angles, [75, 85, 90])
    assert cell.numbers.tolist() == [3] * 27 and cell.fractional.shape == (27, 3)
    assert cell.fractional.min() >= 0 and cell.fractional.max() < 1 and cell.fractional.std() > 0.2


def test_a_template_with_its_elements_exchanged():
    """Ca, Zr take the places of Sr, Ti in the order of electronegativity (1.00, 1.33 for 0.95, 1.54), F that of O."""
    predict = random_template(cells([perovskite(), caesium_chloride()], "x"))
    cell = predict(np.array([9, 40, 9, 20, 9]))
    assert cell.numbers.tolist() == [20, 40, 9, 9, 9]
    np.testing.assert_allclose(cell.fractional, perovskite().frac_coords)
    np.testing.assert_allclose(cell.lattice, perovskite().lattice.matrix)
    assert predict(np.array([17, 55])).numbers.tolist() == [55, 17]
    assert predict(np.array([17, 17, 55])) is None


def test_templates_are_drawn_evenly():
    predict = random_template(cells([caesium_chloride(a) for a in (3.0, 4.0, 5.0)], "x"))
    edges = [round(predict(np.array([a, b])).lattice[0, 0]) for a in range(1, 31) for b in range(31, 41)]
    assert all(60 < edges.count(a) < 140 for a in (3, 4, 5))


def test_a_draw_belongs_to_the_compound_and_the_seed():
    training = [perovskite(), rock_salt(), triclinic(), *(caesium_chloride(a) for a in np.linspace(3, 5, 50))]
    numbers = np.array([19, 35])
    for name, predict in floors(training).items():
        predict(np.array([3, 9]))
        again = floors(training)[name](numbers[::-1])
        for field, other in zip(predict(numbers)[::2], again[::2], strict=True):
            np.testing.assert_array_equal(field, other)
        assert not np.array_equal(predict(numbers).lattice, floors(training, 1)[name](numbers).lattice) or not (
            np.array_equal(predict(numbers).fractional, floors(training, 1)[name](numbers).fractional)
        )


def test_floors_refuse_an_unsound_training_set():
    with pytest.raises(ValueError, match=r"training\[0\] is no crystal"):
        floors([None])
