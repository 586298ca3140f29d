"""Crystals: what goes in comes out, whatever the cell, the origin and the format."""

import numpy as np
import pytest
import torch
from ase.build import bulk
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.analysis.structure_matcher import StructureMatcher
from pymatgen.core import Lattice, Structure

from unisci.domains.crystal import ELEMENTS, MAX_SITES, Crystal, CrystalError, parse_formula, sites_of

MATCHER = StructureMatcher(ltol=0.3, stol=0.5, angle_tol=10)
ROCK_SALT = Structure.from_spacegroup("Fm-3m", Lattice.cubic(5.64), ["Na", "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])
PEROVSKITE = Structure(
    Lattice.cubic(3.905), ["Sr", "Ti", "O", "O", "O"], [[0] * 3, [0.5] * 3, [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
)


def some_crystal(seed: int) -> Crystal:
    """A random cell, not too flat, with random sites."""
    rng = np.random.default_rng(seed)
    angles = rng.uniform(55, 125, 3)
    while (
        Lattice.from_parameters(1, 1, 1, *angles).volume < 0.3
        or not np.isfinite(Lattice.from_parameters(1, 1, 1, *angles).matrix).all()
    ):
        angles = rng.uniform(55, 125, 3)
    lattice = Lattice.from_parameters(*rng.uniform(3, 9, 3), *angles)
    n = int(rng.integers(1, 9))
    return Crystal(rng.integers(1, 95, n), rng.random((n, 3)), lattice.matrix)


def same(a: Crystal, b: Crystal) -> float:
    """The largest distance of a site from itself, angstrom; inf where elements or cells differ."""
    if not np.array_equal(a.numbers, b.numbers) or not np.allclose(a.lattice, b.lattice, atol=1e-6):
        return np.inf
    gap = a.fractional - b.fractional
    return float(np.abs((gap - gap.round()) @ a.lattice).max())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_pymatgen_ase_and_cif_give_back_what_they_got(seed):
    crystal = some_crystal(seed)
    assert same(Crystal.from_structure(crystal.structure), crystal) < 1e-9
    assert same(Crystal.from_ase(crystal.atoms), crystal) < 1e-9
    back = Crystal.from_cif(crystal.cif)  # a CIF keeps lengths and angles, not the orientation
    assert np.allclose(back.lattice @ back.lattice.T, crystal.lattice @ crystal.lattice.T, atol=1e-5)
    order, sites = np.argsort(crystal.numbers, kind="stable"), np.argsort(back.numbers, kind="stable")  # nor the order
    sorted_crystal = Crystal(crystal.numbers[order], crystal.fractional[order], crystal.lattice)
    assert same(Crystal(back.numbers[sites], back.fractional[sites], crystal.lattice), sorted_crystal) < 1e-6


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_a_batch_gives_back_the_reduced_cells(seed):
    crystals = [some_crystal(seed + k).niggli() for k in range(3)]
    for back, crystal in zip(Crystal.unbatch(Crystal.batch(crystals)), crystals, strict=True):
        assert np.array_equal(back.numbers, crystal.numbers)
        assert np.abs(back.lattice - crystal.lattice).max() < 1e-5  # a batch is float32
        gap = back.fractional - crystal.fractional
        assert np.abs((gap - gap.round()) @ crystal.lattice).max() < 1e-5


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10_000))
def test_reduction_keeps_the_crystal(seed):
    crystal = some_crystal(seed)
    reduced = crystal.niggli()
    assert np.abs(np.triu(reduced.lattice, 1)).max() < 1e-9 and np.diag(reduced.lattice).min() > 0
    assert reduced.volume == pytest.approx(crystal.volume, rel=1e-9)
    a, b, c = np.linalg.norm(reduced.lattice, axis=1)
    assert a <= b + 1e-6 and b <= c + 1e-6
    rms = MATCHER.get_rms_dist(reduced.structure, crystal.structure)
    assert rms is not None and rms[0] < 1e-6


def test_a_supercell_is_reduced_to_its_primitive_cell():
    reduced = Crystal.from_structure(ROCK_SALT).reduced()
    assert len(reduced) == 2 and reduced.volume == pytest.approx(5.64**3 / 4)
    assert len(Crystal.from_structure(PEROVSKITE * [2, 1, 1]).reduced()) == 5
    assert MATCHER.fit(reduced.structure, ROCK_SALT)


def test_formula_volume_and_density():
    crystal = Crystal.from_structure(PEROVSKITE)
    assert crystal.formula == "SrTiO3" and crystal.volume == pytest.approx(3.905**3)
    assert crystal.density == pytest.approx(5.12, abs=0.02) and len(crystal) == 5
    assert repr(crystal) == "Crystal(SrTiO3, 5 sites, 59.5 A^3)"


def test_elements_are_those_of_pymatgen():
    from pymatgen.core import Element

    assert [Element.from_Z(z).symbol for z in range(1, 101)] == list(ELEMENTS)


def test_cif_from_a_path(tmp_path):
    (tmp_path / "a.cif").write_text(Crystal.from_structure(PEROVSKITE).cif)
    for path in (tmp_path / "a.cif", str(tmp_path / "a.cif")):
        assert Crystal.from_cif(path).formula == "SrTiO3"


PARTIAL = Structure(Lattice.cubic(4), [{"Na": 0.5, "K": 0.5}, "Cl"], [[0, 0, 0], [0.5, 0.5, 0.5]])


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Crystal.from_structure(PARTIAL), "occupied"),
        (lambda: Crystal.from_cif("data_x\nloop_\n"), "not a CIF"),
        (lambda: Crystal.from_ase(bulk("Cu").__class__("Cu", pbc=True)), "no volume"),
        (lambda: Crystal.from_ase(bulk("Cu").__class__("Cu", cell=np.eye(3), pbc=[1, 1, 0])), "all three axes"),
        (lambda: Crystal([11], [[0, 0, 0]], np.zeros((3, 3))), "volume of 0 "),
        (lambda: Crystal([11], [[0, 0, 0]], np.diag([5, 5, 1e-3])), "for 1 sites"),
        (lambda: Crystal([0], [[0, 0, 0]], np.eye(3) * 4), "from 0 to 0"),
        (lambda: Crystal([101], [[0, 0, 0]], np.eye(3) * 4), "from 101 to 101"),
        (lambda: Crystal([11], [[0, np.nan, 0]], np.eye(3) * 4), "not finite"),
        (lambda: Crystal([], np.zeros((0, 3)), np.eye(3) * 4), "shapes"),
        (lambda: Crystal([11, 12], [[0, 0, 0]], np.eye(3) * 4), "shapes"),
        (lambda: Crystal.batch([Crystal([11], [[0, 0, 0]], np.eye(3) * 4 + 0.1)]), "crystal 0 is not lower"),
        (lambda: Crystal.batch([Crystal([11] * 65, np.random.rand(65, 3), np.eye(3) * 9)]), f"limit is {MAX_SITES}"),
    ],
)  # fmt: skip
def test_what_is_no_crystal_is_refused_with_its_reason(make, message):
    with pytest.raises(CrystalError, match=message):
        make()


def test_formulas():
    assert parse_formula("SrTiO3") == {38: 1, 22: 1, 8: 3} and parse_formula("Ca(OH)2") == {20: 1, 8: 2, 1: 2}
    assert sites_of(parse_formula("TiO2")).tolist() == [22, 8, 8]


@pytest.mark.parametrize(
    "formula, message",
    [
        ("Xx2O", "not a formula"),
        ("", "not a formula"),
        ("Fe0.5O", "whole numbers"),
        ("Md2O", "'Md'"),
        ("C60H10", "70 atoms"),
        ("Sr-1O", "not a formula|whole"),
    ],
)
def test_impossible_formulas_are_refused(formula, message):
    with pytest.raises(CrystalError, match=message):
        parse_formula(formula)


def test_batch_fields():
    batch = Crystal.batch([Crystal.from_structure(PEROVSKITE).reduced(), Crystal.from_structure(ROCK_SALT).reduced()])
    assert batch.state["atom"].dtype == torch.long and batch.sites.tolist() == [5, 2]
    assert batch.state["atom"][1, :2].tolist() == [10, 16]  # Z - 1
