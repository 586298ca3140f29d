"""Write train.smi and test.smi from the molsets wheel: python datasets/moses/prepare.py --out DIR

The wheel is downloaded with pip but not installed: molsets pins a release of pomegranate that no longer builds.
"""

import gzip
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that the script runs from any folder
from write import folder, write


def download(to: str) -> Path:
    """The molsets 0.3.1 wheel (52 MB) in the folder `to`."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "molsets==0.3.1", "-d", to]
    if subprocess.run(command).returncode:
        raise SystemExit("pip could not download molsets==0.3.1; check that pip reaches PyPI")
    return next(Path(to).glob("molsets-*.whl"))


def column(wheel: Path, split: str) -> list[str]:
    """The SMILES column of one split, in the order of the file."""
    with zipfile.ZipFile(wheel) as archive, archive.open(f"moses/dataset/data/{split}.csv.gz") as packed:
        header, *rows = gzip.decompress(packed.read()).decode().split()
    if header != "SMILES":
        raise SystemExit(f"{split}.csv.gz starts with {header!r}, expected the one column SMILES: not molsets 0.3.1")
    return rows


if __name__ == "__main__":
    out = folder(__doc__)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = download(temporary)
        for split in ("test", "train"):
            write(out / f"{split}.smi", column(wheel, split))
