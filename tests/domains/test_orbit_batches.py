"""Orbits in tensors: there and back, the table as text, and what cannot be held."""

import numpy as np
import pytest
import torch

from tests.domains.groups import RECIPES, primitive_cell
from unisci.domains.crystal import CrystalError
from unisci.domains.orbit_batches import MAX_SPECIES, WyckoffTable, batch_of, centring, formula_rows, orbits_of
from unisci.domains.wyckoff import Orbits, Wyckoff

NAMES = sorted(RECIPES.keys() - {"fluorite", "diamond", "MoS2", "hcp", "perovskite"})  # the slow to build


@pytest.fixture(scope="module")
def orbits() -> list[Orbits]:
    return [Orbits.of(primitive_cell(name)) for name in NAMES]


@pytest.fixture(scope="module")
def table(orbits) -> WyckoffTable:
    return WyckoffTable.of(orbits)


def test_there_and_back(orbits, table):
    for o, again in zip(orbits, orbits_of(batch_of(orbits, table), table), strict=True):
        assert again.group == o.group and again.positions == o.positions
        assert again.numbers.tolist() == o.numbers.tolist()
        np.testing.assert_allclose(again.free, o.free, atol=1e-6)
        np.testing.assert_allclose(again.lattice, o.lattice, atol=1e-5)
        assert len(again.crystal) == len(o.crystal)


def test_cells_come_back_with_the_symmetry_of_their_group(orbits, table):
    batch = batch_of(orbits, table)
    rough = batch.replace(cell=batch.state["cell"] + 0.05)
    for o in orbits_of(rough, table):
        assert Orbits.of(o.crystal, symprec=(1e-4,)).group == o.group
    salt = orbits_of(rough, table)[NAMES.index("rock salt")].lattice
    np.testing.assert_allclose(salt, salt[0, 0] * np.eye(3), atol=1e-9)


def test_formulas_are_of_the_primitive_cell(orbits, table):
    batch = batch_of(orbits, table)
    rows = {n: (batch.state["species"][i].tolist(), batch.state["counts"][i].tolist()) for i, n in enumerate(NAMES)}
    pad = [0] * (MAX_SPECIES - 2)
    assert rows["rock salt"] == ([11, 17, *pad], [1, 1, *pad])
    assert rows["anatase"] == ([8, 22, *pad], [4, 2, *pad])
    assert rows["spinel"] == ([8, 12, 13, *pad[1:]], [8, 2, 4, *pad[1:]])
    assert batch.sites.tolist() == [len(o.numbers) for o in orbits]
    assert [centring(g) for g in (221, 12, 166, 227)] == [1, 2, 3, 4]


def test_padding_is_zero_and_a_sample_is_its_own(orbits, table):
    batch = batch_of(orbits, table)
    assert all(float(batch.state[k][~batch.mask].abs().sum()) == 0 for k in ("element", "wyckoff", "free"))
    alone = batch_of(orbits[3:4], table)
    for k, v in alone.state.items():
        whole = batch.state[k][3:4]
        assert torch.equal(v, whole[:, : v.shape[1]] if batch.schema[k].kind == "site" else whole)


def test_the_table_is_text_and_back(orbits, table):
    again = WyckoffTable.from_text(table.text)
    assert again.positions == table.positions and again.rows == table.rows
    assert "225 a 0,0,0" in table.text.splitlines()
    keys = [(p.group, p.letter) for p in table.positions]
    assert keys == sorted(set(keys)) and len(table) == len(keys)
    assert table.multiplicities.tolist() == [p.multiplicity for p in table.positions]
    loose = WyckoffTable((Wyckoff(1, "a", "x, y, z"),))
    assert WyckoffTable.from_text(loose.text).positions == (Wyckoff(1, "a", "x,y,z"),)
    assert torch.equal(batch_of(orbits, again).state["wyckoff"], batch_of(orbits, table).state["wyckoff"])


def test_what_cannot_be_held_is_refused(orbits, table):
    small = WyckoffTable.of(orbits[:2])
    with pytest.raises(CrystalError, match=r"Wyckoff position .* is not in the table"):
        batch_of(orbits, small)
    z, n = formula_rows(np.array([8, 3, 8, *range(20, 28)]))
    assert z.tolist() == [3, 8, *range(20, 28)] and n.tolist() == [1, 2] + [1] * 8
    with pytest.raises(CrystalError, match="formula of 11 elements: at most 10"):
        formula_rows(np.arange(1, 12))
    with pytest.raises(CrystalError, match="65 sites: at most 64"):
        formula_rows(np.ones(65, int))
