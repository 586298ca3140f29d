"""The data set that needs nothing extra: prepared, its card's numbers still hold."""

import hashlib
import subprocess
import sys
from pathlib import Path

from rdkit.rdBase import rdkitVersion

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
