"""Write qm9.smi from the installed package qm9pack: python datasets/qm9/prepare.py --out DIR"""

import importlib.util
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from any folder
from write import folder, write


def source() -> list[str]:
    """The SMILES column of the package's three tables, in the order of QM9's index."""
    # The package's own reader needs pkg_resources, which new setuptools lack: read its files without importing it.
    spec = importlib.util.find_spec("qm9pack")
    if spec is None:
        raise SystemExit("qm9pack is not installed; run: pip install qm9pack==1.0.3")
    parts = sorted(Path(spec.origin).parent.glob("data/qm9_part*.csv"))
    if len(parts) != 3:
        raise SystemExit(f"qm9pack has {len(parts)} tables, not 3; run: pip install --force-reinstall qm9pack==1.0.3")
    return [s for part in parts for s in pd.read_csv(part, usecols=["SMILES"])["SMILES"]]


if __name__ == "__main__":
    write(folder(__doc__) / "qm9.smi", source())
