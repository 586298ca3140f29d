"""Crystals as orbits: there and back, whatever the cell they come in; orbits are orbits of their group."""

import logging
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from moyopy import Cell, MoyoDataset, operations_from_number
from pymatgen.analysis.structure_matcher import StructureMatcher

from tests.domains.groups import RECIPES, disguised, primitive_cell
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.space_groups import centrings, operations, primitive, symmetric
from unisci.domains.wyckoff import _FORMS, Orbits, Wyckoff

# International Tables for Crystallography, A: sites in the conventional cell over centring vectors
KNOWN = {
    (225, "0,0,0"): 1,
    (225, "1/4,1/4,1/4"): 2,
    (225, "x,0,0"): 6,
    (225, "x,y,z"): 48,
    (227, "1/8,1/8,1/8"): 2,
    (227, "x,x,x"): 8,
    (221, "0,1/2,1/2"): 3,
    (194, "1/3,2/3,1/4"): 2,
    (194, "x,2x,1/4"): 6,
    (166, "0,0,z"): 2,
    (166, "x,-x,1/2"): 6,
    (141, "0,1/4,z"): 4,
    (62, "x,1/4,z"): 4,
    (14, "x,y,z"): 4,
    (12, "x,0,z"): 2,
    (47, "x,y,z"): 8,
    (2, "x,y,z"): 2,
    (1, "x,y,z"): 1,
}


@cache
def orbits(name: str) -> Orbits:
    return Orbits.of(primitive_cell(name))


def group_of(crystal: Crystal, symprec: float = 1e-3) -> int:
    cell = Cell(crystal.lattice.tolist(), crystal.fractional.tolist(), crystal.numbers.tolist())
    return MoyoDataset(cell, symprec=symprec).number


def signature(o: Orbits) -> Counter:
    return Counter((int(z), p.multiplicity) for z, p in zip(o.numbers, o.positions, strict=True))


def rms(a: Crystal, b: Crystal) -> float:
    close = StructureMatcher(ltol=0.02, stol=0.1, angle_tol=0.5, primitive_cell=False, scale=False)  # wider is slower
    found = close.get_rms_dist(a.structure, b.structure)
    return np.inf if found is None else found[0]


@pytest.mark.parametrize("name", RECIPES)
def test_there_and_back(name):
    crystal, o = primitive_cell(name), orbits(name)
    again = o.crystal
    assert o.group == RECIPES[name][0] == group_of(again)
    assert sorted(again.numbers) == sorted(crystal.numbers)
    assert again.volume == pytest.approx(crystal.volume, rel=1e-6) and np.linalg.det(again.lattice) > 0
    assert rms(crystal, again) < 1e-3
    keys = [(z, p.letter, *u) for z, p, u in zip(o.numbers, o.positions, o.free, strict=True)]
    assert keys == sorted(keys)
    free = np.array([p.free for p in o.positions])
    assert ((o.free >= 0) & (o.free < 1)).all() and (o.free[~free] == 0).all()


@pytest.mark.parametrize("name", RECIPES)
def test_neither_basis_nor_frame_nor_order_matters(name):
    crystal, o = primitive_cell(name), orbits(name)
    for seed in range(2):
        other = Orbits.of(disguised(crystal, seed))
        assert other.group == o.group and signature(other) == signature(o)
        assert rms(other.crystal, crystal) < 1e-3


def test_what_is_written_is_read_again():
    assert [(p.letter, p.form) for p in orbits("rock salt").positions] == [("a", "0,0,0"), ("b", "1/2,1/2,1/2")]
    assert orbits("general").positions[0].letter == "A"  # behind z
    spinel = orbits("spinel")
    assert spinel.positions[0].form == "x,x,x" and spinel.free[0] == pytest.approx([0.2623, 0, 0], abs=1e-4)  # 8 O


def test_handedness_is_kept():
    assert orbits("quartz").group == 154
    crystal = primitive_cell("quartz")
    mirrored = Crystal(crystal.numbers, -crystal.fractional, crystal.lattice)
    assert Orbits.of(mirrored).group == 152
    for sign in (1, -1):
        c = primitive_cell("P1")
        c = Crystal(c.numbers, sign * c.fractional, c.lattice)
        assert chirality(Orbits.of(c).crystal) == pytest.approx(chirality(c), rel=1e-4)
    left = Crystal(c.numbers, c.fractional, -c.lattice)
    assert chirality(Orbits.of(left).crystal) == pytest.approx(-chirality(c), rel=1e-4)


def chirality(c: Crystal) -> float:
    """Signed volume of the shortest vectors from K to Na, Cl and Br."""
    steps = np.array(np.meshgrid(*[[-2, -1, 0, 1, 2]] * 3)).reshape(3, -1).T
    at = dict(zip(c.numbers.tolist(), c.fractional, strict=True))
    rows = []
    for z in (11, 17, 35):
        d = (at[z] - at[19] + steps) @ c.lattice
        rows.append(d[np.linalg.norm(d, axis=1).argmin()])
    return float(np.linalg.det(rows))


def test_rough_crystals_move_to_their_places():
    c = primitive_cell("perovskite")
    rough = Crystal(c.numbers, c.fractional + 0.003 * np.random.default_rng(0).normal(size=(5, 3)), c.lattice)
    o = Orbits.of(rough)
    assert o.group == 221 and group_of(o.crystal, 1e-5) == 221
    assert Orbits.of(rough, symprec=(1e-4,)).group == 1


def test_forms_do_not_hang_on_what_came_before():
    """moyopy refuses a rough cell's tolerance when asked for forms, which another crystal may have left behind."""
    before = dict(_FORMS)
    _FORMS.clear()
    c = primitive_cell("Bi2Te3")
    for seed in range(3):
        noise = 0.004 * np.random.default_rng(seed).normal(size=(len(c), 3))
        assert Orbits.of(Crystal(c.numbers, c.fractional + noise, c.lattice)).group == 166
    assert all(before.get(key, form) == form for key, form in _FORMS.items())
    _FORMS.update(before)


def test_supercells_are_refused_in_silence(caplog):
    c = primitive_cell("rock salt")
    double = np.diag([3, 1, 1])
    sites = np.concatenate([(c.fractional + np.array([k, 0, 0])) @ np.linalg.inv(double) for k in range(3)])
    with caplog.at_level(logging.WARNING), pytest.raises(CrystalError, match="is it a primitive cell"):
        Orbits.of(Crystal(np.tile(c.numbers, 3), sites, double @ c.lattice))
    assert caplog.records == []
    logging.getLogger("moyo").warning("Another")
    assert [r.getMessage() for r in caplog.records] == ["Another"]


def test_sites_on_top_of_one_another_are_refused():
    with pytest.raises(CrystalError, match="no symmetry"):
        Orbits.of(Crystal([11, 11], [[0.1] * 3, [0.1] * 3], np.eye(3) * 4))


@pytest.mark.parametrize("group, form", KNOWN)
def test_multiplicities_are_those_of_the_tables(group, form):
    position = Wyckoff(group, "?", form)
    rotations, translations = position.maps
    assert position.multiplicity == len(rotations) == len(translations) == KNOWN[group, form]
    assert (rotations[0] == np.eye(3)).all() and (translations[0] == 0).all()


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(KNOWN)), st.tuples(*[st.floats(0.01, 0.99)] * 3))
def test_an_orbit_is_an_orbit(key, u):
    """Every operation of the group maps the sites of the conventional cell onto themselves, and no two coincide."""
    position = Wyckoff(key[0], "?", key[1])
    a, b = position.affine
    rotations, translations = position.maps
    sites = rotations @ (a @ np.array(u) + b) + translations
    cell = (sites[:, None] + centrings(position.group)).reshape(-1, 3)
    for rotation, translation in zip(*operations(position.group), strict=True):
        assert (gap(cell @ rotation.T + translation, cell).min(1) < 1e-6).all()
    generic = np.array([0.0231, 0.1557, 0.3919]) + 5e-4 * np.array(u)  # near no element of higher symmetry
    sites = rotations @ (a @ generic + b) + translations
    cell = (sites[:, None] + centrings(position.group)).reshape(-1, 3)
    assert (gap(cell, cell) + np.eye(len(cell))).min() > 1e-4


def gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    d = x[:, None] - y
    return np.abs(d - d.round()).max(-1)


def test_cells_of_all_groups():
    for group in range(1, 231):
        basis, translations = primitive(group), centrings(group)
        assert np.linalg.det(basis) == pytest.approx(1 / len(translations))
        inside = np.concatenate([translations, np.eye(3)]) @ np.linalg.inv(basis)
        np.testing.assert_allclose(inside, inside.round(), atol=1e-6)
        assert len(operations(group)[0]) == len(operations_from_number(group).rotations)
    assert {g: len(centrings(g)) for g in (1, 12, 22, 62, 139, 166, 168, 225, 230)} == {
        **{1: 1, 12: 2, 22: 4, 62: 1, 139: 2, 166: 3, 168: 1, 225: 4, 230: 2}
    }


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 230), st.integers(0, 10**6))
def test_metrics_become_the_groups_own(group, seed):
    lattice = np.random.default_rng(seed).normal(size=(3, 3)) + 4 * np.eye(3)
    own = symmetric(lattice, group)
    assert (np.triu(own, 1) == 0).all() and (np.diag(own) > 0).all()
    metric = own @ own.T
    for rotation in operations(group)[0]:
        np.testing.assert_allclose(rotation.T @ metric @ rotation, metric, atol=1e-9)
    np.testing.assert_allclose(symmetric(own, group), own, atol=1e-9)
    assert group > 2 or np.allclose(metric, lattice @ lattice.T)


def test_forms_are_affine():
    a, b = Wyckoff(194, "h", "x,2x,1/4").affine
    assert a.tolist() == [[1, 0, 0], [2, 0, 0], [0, 0, 0]] and b.tolist() == [0, 0, 0.25]
    a, b = Wyckoff(5, "?", "-x+1/2, y-z, z").affine
    assert a.tolist() == [[-1, 0, 0], [0, 1, -1], [0, 0, 1]] and b.tolist() == [0.5, 0, 0]
    assert Wyckoff(1, "?", "1,-1/3,x-3/4").affine[1].tolist() == [1, -1 / 3, -0.75]
    assert Wyckoff(194, "h", "x,2x,1/4").free.tolist() == [True, False, False]


@pytest.mark.parametrize(
    "form", ["x,y", "x,y,z,x", "x,,z", "x,q,z", "x,y,1/0", "xy,0,0", "x2,0,0", "x,y--z,0", "1/2x,0,0", ""]
)
def test_nonsense_is_no_form(form):
    with pytest.raises(ValueError, match="no form of a site"):
        _ = Wyckoff(1, "a", form).affine
