"""Write qm9.smi, or with --structures the geometries, from the installed package qm9pack.

python datasets/qm9/prepare.py --out DIR [--structures [--npz FILE]]
"""

import argparse
import importlib.util
import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from any folder
sys.path.insert(0, str(Path(__file__).parent))


def tables() -> list[Path]:
    """The package's three tables."""
    # The package's own reader needs pkg_resources, which new setuptools lack: read its files without importing it.
    spec = importlib.util.find_spec("qm9pack")
    if spec is None:
        raise SystemExit("qm9pack is not installed; run: pip install qm9pack==1.0.3")
    parts = sorted(Path(spec.origin).parent.glob("data/qm9_part*.csv"))
    if len(parts) != 3:
        raise SystemExit(f"qm9pack has {len(parts)} tables, not 3; run: pip install --force-reinstall qm9pack==1.0.3")
    return parts


def source() -> list[str]:
    """The SMILES column of the tables, in the order of QM9's index."""
    return [s for part in tables() for s in pd.read_csv(part, usecols=["SMILES"])["SMILES"]]


def arguments() -> argparse.Namespace:
    """The arguments of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    parser.add_argument("--structures", action="store_true", help="write qm9_3d.safetensors in place of qm9.smi")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="read the structures from here, see structures.py")
    given = parser.parse_args()
    if given.npz and not given.structures:
        parser.error("--npz holds structures: give --structures, too")
    if given.npz and not given.npz.is_file():
        parser.error(f"{given.npz} does not exist")
    return given


if __name__ == "__main__":
    given = arguments()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.structures:
        from structures import rows_of_npz, rows_of_tables, write_structures

        write_structures(given.out, rows_of_npz(given.npz) if given.npz else rows_of_tables(tables()))
    else:
        from write import write

        write(given.out / "qm9.smi", source())
