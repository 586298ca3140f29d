"""Write nci.smi from the file that the rdkit wheel ships: python datasets/nci/prepare.py --out DIR"""

import sys
from pathlib import Path

from rdkit import RDConfig

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from any folder
from write import folder, write


def source() -> list[str]:
    """The SMILES column, in the order of the file."""
    path = Path(RDConfig.RDDataDir, "NCI", "first_5K.smi")
    if not path.exists():
        raise SystemExit(f"{path} is missing; install RDKit's wheel, which ships it: pip install rdkit")
    return [line.split()[0] for line in path.read_text().splitlines() if line.strip()]


if __name__ == "__main__":
    write(folder(__doc__) / "nci.smi", source())
