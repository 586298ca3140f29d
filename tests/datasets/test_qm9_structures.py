"""QM9's geometries made into a batch, from tables as the package has them and from an .npz of the same."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem

from unisci.domains.molecule import Molecule
from unisci.training.data import load_batch, widen

SCRIPT = Path(__file__).parents[2] / "datasets/qm9/prepare.py"
spec = importlib.util.spec_from_file_location("structures", SCRIPT.with_name("structures.py"))
structures = importlib.util.module_from_spec(spec)
spec.loader.exec_module(structures)
SMILES = ["C", "N#CC=O", "c1cc[nH]c1", "O=C([O-])C[NH3+]", "OCC(F)F"]
NAMES = ["A", "B", "C", "mu", "alpha", "homo", "lumo", "gap", "r2", "zpve", "U0", "U", "H", "G", "Cv"]


@pytest.fixture(scope="module")
def rows() -> list[tuple]:
    """(index, SMILES, elements, positions, values): five that fit, then each way of not fitting."""
    rows = []
    for k, smiles in enumerate(SMILES):
        mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
        AllChem.EmbedMolecule(mol, randomSeed=1)
        elements = [a.GetSymbol() for a in mol.GetAtoms()]
        rows.append((10 + k, smiles, elements, mol.GetConformer().GetPositions(), 100.0 * k + np.arange(15) + 1e-9))
    _, smiles, elements, xyz, values = rows[1]
    rows.append((90, "C1CC", elements, xyz, values))
    rows.append((91, smiles, elements[::-1], xyz, values))
    rows.append((92, smiles, elements[:-1], xyz[:-1], values))
    rows.append((93, smiles, elements, xyz * [1, 1, np.nan], values))
    rows.append((94, smiles, elements, xyz * 1.5, values))
    return rows


def as_npz(rows: list[tuple], path: Path, order: list[int]) -> None:
    table = Chem.GetPeriodicTable()
    np.savez(
        path,
        pos=np.concatenate([r[3] for r in rows]).astype(np.float32),
        z=np.array([table.GetAtomicNumber(s) for r in rows for s in r[2]], np.uint8),
        n_atoms=np.array([len(r[2]) for r in rows], np.uint8),
        gdb_index=np.array([r[0] for r in rows], np.int32),
        props=np.stack([r[4] for r in rows])[:, order],
        prop_names=np.array([NAMES[k] for k in order]),
        smiles=np.frombuffer("\n".join(r[1] for r in rows).encode(), np.uint8),
    )


def as_package(rows: list[tuple], folder: Path) -> None:
    """Three tables of the package's form; it names the values in full and has more columns."""
    columns = [f"Rot{axis}_GHz" for axis in "ABC"]
    columns += ["Dipole_debye", "Polarizability_bohr3", "HOMO_au", "LUMO_au", "HOMO_LUMO_gap_au", "R2_bohr2", "ZPVE_au"]
    columns += ["InternalEnergy_0K_au", "InternalEnergy_298K_au", "Enthalphy_298K_au", "GibbsFreeEnergy_298K_au"]
    columns += ["Heatcapacity_Cv_cal_mol_K"]
    (folder / "qm9pack/data").mkdir(parents=True)
    (folder / "qm9pack/__init__.py").write_text("raise ImportError('not to be imported')\n")
    for part in range(3):
        table = [
            {"XYZ_file": "x", "Index": r[0], "SMILES": r[1], "Elements": str(r[2]).replace(" ", "")}
            | {"XYZ_Ang": str(r[3].tolist()).replace(" ", "")}
            | dict(zip(columns, r[4], strict=True))
            for r in rows[part::3]
        ]
        pd.DataFrame(table).to_csv(folder / f"qm9pack/data/qm9_part{part + 1}.csv", index=False)


def prepare(out: Path, *arguments: str | Path, path: Path | None = None) -> subprocess.CompletedProcess:
    environment = os.environ | ({"PYTHONPATH": str(path)} if path else {})
    command = [sys.executable, SCRIPT, "--out", out, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def check(out: Path, rows: list[tuple], tolerance: float) -> None:
    batch = load_batch(out / "qm9_3d.safetensors")
    ids = batch.ids.tolist()
    assert sorted(ids) == [10, 11, 12, 13, 14]
    assert {k: v.dtype for k, v in batch.state.items()} == {
        "atom": torch.int8,
        "bond": torch.int8,
        "position": torch.float32,
    }
    assert batch.schema["properties"] == ("whole", (15,), None)
    for index, molecule, values in zip(ids, Molecule.unbatch(widen(batch)), batch.given["properties"], strict=True):
        _, smiles, elements, xyz, expected = rows[index - 10]
        assert molecule.reason is None and molecule.smiles == Chem.CanonSmiles(smiles)
        assert [a.GetSymbol() for a in molecule.rdkit.GetAtoms()] == elements
        assert np.abs(molecule.positions[0] - xyz + xyz.mean(0)).max() < tolerance
        assert np.array_equal(values.numpy(), expected), "energies need more digits than float32 has"
    facts = json.loads((out / "qm9_3d.json").read_text())
    assert facts["properties"] == NAMES and facts["units"]["gap"] == "hartree" and facts["units"]["alpha"] == "bohr^3"
    assert facts["rows"] == 5 and sum(facts["rejected"].values()) == 5
    with (out / "rejects_3d.csv").open(newline="") as file:
        reasons = {int(row["index"]): row["reason"] for row in csv.DictReader(file)}
    assert sorted(reasons) == [90, 91, 92, 93, 94]
    expected = ["cannot parse", "atoms differ", "atoms differ", "not finite", "bond is longer than 1.3 times"]
    assert all(said in reasons[90 + k] for k, said in enumerate(expected)), reasons


def test_an_npz_becomes_a_batch(rows, tmp_path, capsys):
    as_npz(rows, tmp_path / "a.npz", order=list(range(15))[::-1])
    structures.write_structures(tmp_path, structures.rows_of_npz(tmp_path / "a.npz"))
    assert "5 rows of at most 10 atoms" in capsys.readouterr().out
    check(tmp_path, rows, 1e-5)
    as_npz(rows[5:], tmp_path / "bad.npz", order=list(range(15)))
    with pytest.raises(SystemExit, match="no row is left"):
        structures.write_structures(tmp_path, structures.rows_of_npz(tmp_path / "bad.npz"))


def test_an_npz_whose_arrays_do_not_fit_is_refused(rows, tmp_path):
    as_npz(rows, tmp_path / "a.npz", order=list(range(15)))
    data = dict(np.load(tmp_path / "a.npz"))
    for broken in ({"pos": data["pos"][1:]}, {"props": data["props"][1:]}, {"prop_names": data["prop_names"][1:]}):
        np.savez(tmp_path / "b.npz", **data | broken)
        with pytest.raises(ValueError, match=r"b\.npz: the "):
            next(structures.rows_of_npz(tmp_path / "b.npz"))


def test_the_tables_of_the_package_become_the_same_batch(rows, tmp_path):
    as_package(rows, tmp_path)
    as_npz(rows, tmp_path / "a.npz", order=list(range(15)))
    done = prepare(tmp_path / "npz", "--structures", "--npz", tmp_path / "a.npz")
    assert done.returncode == 0, done.stderr
    check(tmp_path / "npz", rows, 1e-5)
    done = prepare(tmp_path / "out", "--structures", path=tmp_path)
    assert done.returncode == 0, done.stderr
    check(tmp_path / "out", rows, 1e-5)
    done = prepare(tmp_path / "flat", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "flat/qm9.smi").read_text().split() == sorted(map(Chem.CanonSmiles, SMILES))


def test_wrong_arguments_are_named(tmp_path):
    done = prepare(tmp_path, "--npz", tmp_path / "a.npz")
    assert done.returncode and "give --structures, too" in done.stderr
    done = prepare(tmp_path, "--structures", "--npz", tmp_path / "none.npz")
    assert done.returncode and "none.npz does not exist" in done.stderr
