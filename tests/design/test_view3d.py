import json
import re

import numpy as np
import pandas as pd
import pytest
from ase.build import bulk
from ase.db import connect

from tests.small_structures import embedded
from unisci.design import view3d
from unisci.domains.crystal import Crystal
from unisci.domains.molecule import Molecule

SALT = Crystal.from_ase(bulk("NaCl", "rocksalt", a=5.6, cubic=True))
SKEWED = Crystal(np.array([26, 8]), np.array([[0.2, 0.3, 0.4], [0.7, 0.9999, 0.1]]), np.eye(3) * 4 + np.eye(3, k=-1))


def drawn(crystal: Crystal) -> dict:
    return json.loads(re.search(r"size} = (\{.*\}), canvas", view3d.html(crystal)).group(1))


def test_the_page_loads_nothing():
    page = view3d.html(SALT)
    assert "NaCl" in page and page.count("<script>") == 1 and page.count("</script>") == 1
    assert not re.search(r"https?:|src=|import\(|fetch\(", page)
    assert "DATA" not in page and "TITLE" not in page


def test_sites_on_faces_are_drawn_on_both():
    """A face-centred cube: 8 corners + 6 faces of sodium, 12 edges + 1 centre of chlorine."""
    symbols = [s["symbol"] for s in drawn(SALT)["sites"]]
    assert (symbols.count("Na"), symbols.count("Cl")) == (14, 13)
    skewed = [s["symbol"] for s in drawn(SKEWED)["sites"]]
    assert (skewed.count("Fe"), skewed.count("O")) == (1, 2)  # y = 0.9999 is on a face


def test_sites_and_edges_are_where_they_are():
    data, centre = drawn(SKEWED), SKEWED.lattice.sum(0) / 2
    np.testing.assert_allclose(data["sites"][0]["p"], SKEWED.fractional[0] @ SKEWED.lattice - centre, atol=1e-4)
    edges = np.array(data["edges"])
    assert edges.shape == (12, 2, 3)
    vectors = np.unique((edges[:, 1] - edges[:, 0]).round(3), axis=0)
    np.testing.assert_allclose(vectors, np.unique(SKEWED.lattice.round(3), axis=0), atol=1e-3)
    assert data["size"] >= np.abs(edges).max() - 1e-3


def test_colours_are_those_of_the_elements():
    colors = {s["symbol"]: s["color"] for s in drawn(SALT)["sites"]}
    assert colors == {"Na": "#ab5cf2", "Cl": "#1ff01f"}


def test_the_py3dmol_view_has_the_crystal():
    pytest.importorskip("py3Dmol")
    text = view3d.view(SALT)._make_html()
    assert "addUnitCell" in text and "_cell_length_a" in text


def test_without_py3dmol_the_name_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "py3Dmol", None)
    with pytest.raises(ImportError, match="pip install py3Dmol"):
        view3d.view(SALT)


def test_cifs_stay_in_the_folder(tmp_path):
    table = pd.DataFrame({"formula": ["NaCl", "FeO", "FeO"], "id": [3, "../../up", "a b/c"]})
    paths = view3d.write_cifs([SALT, SKEWED, SKEWED], table, tmp_path / "new" / "folder")
    assert [p.name for p in paths] == ["NaCl_3.cif", "FeO_.._.._up.cif", "FeO_a_b_c.cif"]
    assert sorted(tmp_path.rglob("*.cif")) == sorted(paths)
    np.testing.assert_allclose(Crystal.from_cif(paths[1]).volume, SKEWED.volume)


def test_two_of_one_name_are_refused_before_writing(tmp_path):
    table = pd.DataFrame({"formula": ["NaCl", "NaCl"], "id": ["a/b", "a b"]})
    with pytest.raises(ValueError, match="two samples are called NaCl_a_b"):
        view3d.write_cifs([SALT, SALT], table, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_database_has_keys_and_rows(tmp_path):
    table = pd.DataFrame(
        {
            "id": [7, 8],
            "formula": ["NaCl", "FeO"],
            "density g": [2.2, np.nan],
            "valid": [True, False],
            "reason": pd.Series([None, "distance"], dtype="object"),
            "model": ["12", "13"],
        }
    )
    for _ in range(2):  # the second takes the place of the first
        view3d.write_database(view3d.with_info([SALT, SKEWED], table), tmp_path / "out.db")
    with connect(tmp_path / "out.db") as database:
        assert len(database) == 2
        row = database.get(sample_id=7)
        assert row.formula == "Na4Cl4" and row.key_value_pairs == {"sample_id": 7, "density_g": 2.2, "valid": True}
        assert row.data == {"id": 7, "formula": "NaCl", "density g": 2.2, "valid": True, "model": "12"}
        np.testing.assert_allclose(database.get(sample_id=8).toatoms().cell.array, SKEWED.lattice)
        assert database.get(sample_id=8).data["reason"] == "distance"


# ---- molecules -------------------------------------------------------------------------------------


def test_a_molecule_is_drawn_with_its_bonds():
    molecule = embedded("C=O")
    page = view3d.molecule_html(molecule.with_positions(molecule.positions + 9), "DATA of a & b")
    data = json.loads(re.search(r"size} = (\{.*\}), canvas", page).group(1))
    assert [s["symbol"] for s in data["sites"]] == ["C", "O", "H", "H"]
    np.testing.assert_allclose(
        [s["p"] for s in data["sites"]], molecule.positions[0] - molecule.positions[0].mean(0), atol=1e-4
    )
    assert sorted(data["bonds"]) == [[0, 1, 2], [0, 2, 1], [0, 3, 1]] and data["edges"] == []
    assert data["size"] >= np.linalg.norm([s["p"] for s in data["sites"]], axis=1).max() - 1e-3
    assert "<title>DATA of a &amp; b</title>" in page and "<h3>DATA of a &amp; b</h3>" in page
    assert not re.search(r"https?:|src=|import\(|fetch\(", page)


def test_a_charged_atom_is_drawn_as_its_element():
    molecule = Molecule(("N+1",), np.zeros((1, 1), np.int8), np.zeros((1, 1, 3)))
    assert '"symbol": "N"' in view3d.molecule_html(molecule, "ion")


def test_a_molecule_without_positions_is_refused():
    with pytest.raises(ValueError, match="no positions"):
        view3d.molecule_html(Molecule.from_smiles("C"), "flat")
