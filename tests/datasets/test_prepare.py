"""The data set that needs nothing extra: prepared, its card's numbers still hold; and what others are made into."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from rdkit.rdBase import rdkitVersion

from unisci.domains.crystal import Crystal
from unisci.domains.template_files import load_templates

ROOT = Path(__file__).parents[2] / "datasets"


def test_nci_is_as_its_card_says(tmp_path):
    subprocess.run([sys.executable, ROOT / "nci/prepare.py", "--out", tmp_path], check=True)
    written = (tmp_path / "nci.smi").read_bytes()
    card = (ROOT / "nci/card.md").read_text()
    assert written.count(b"\n") == 4756 and "4,756" in card
    if rdkitVersion in card:  # another release may write some SMILES differently
        assert hashlib.sha256(written).hexdigest() in card


def test_a_missing_package_is_named(tmp_path):
    code = "import sys; sys.modules['qm9pack'] = None; sys.argv = ['prepare', '--out', sys.argv[1]]; "
    code += f"import runpy; runpy.run_path({str(ROOT / 'qm9/prepare.py')!r}, run_name='__main__')"
    run = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    assert run.returncode and "qm9pack" in run.stderr and "Traceback" not in run.stderr


def test_packed_crystals_become_templates_with_their_ids(tmp_path):
    lattice = np.array([[4.0, 4, 4, 60, 60, 60], [3.9, 3.9, 3.9, 90, 90, 90], [4.2, 4.2, 4.2, 60, 60, 60]])
    salt, cube = [[0, 0, 0], [0.5, 0.5, 0.5]], [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0.5, 0], [0.5, 0, 0.5], [0, 0.5, 0.5]]
    np.savez(
        tmp_path / "packed.npz",
        frac=np.array([*salt, *cube, *salt], np.float32),
        z=np.array([11, 17, 38, 22, 8, 8, 8, 19, 17], np.uint8),
        n_atoms=np.array([2, 5, 2], np.uint8),
        lattice=lattice,
        split=np.array([0, 1, 0], np.uint8),
        ids=np.frombuffer(b"mp-1\nmp-2\nmp-3", np.uint8),
    )
    command = [sys.executable, ROOT / "mp20/prepare.py", tmp_path / "packed.npz", "--out", tmp_path / "out"]
    subprocess.run(command, check=True, capture_output=True)
    train, held = (load_templates(tmp_path / "out" / f"{k}.npz") for k in ("train", "validation"))
    assert train.names == ("mp-1", "mp-3") and held.names == ("mp-2",)
    assert [train.library[i].formula for i in range(2)] == ["NaCl", "KCl"] and held.library[0].formula == "SrTiO3"
    assert train.library.spacegroups().tolist() == [225, 225] and held.library.spacegroups().tolist() == [221]
    assert train.library.volumes.tolist() == pytest.approx([4.0**3 / 2**0.5, 4.2**3 / 2**0.5])
    Crystal.batch([train.library[0], held.library[0]])  # lower triangular, as networks want them
