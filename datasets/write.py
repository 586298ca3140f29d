"""Shared by the prepare.py of each molecule set: the folder argument, and writing one canonical SMILES a line."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from unisci.metrics.molecules import Reference


def folder(description: str) -> Path:
    """The folder of `--out DIR`, made where it does not exist."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write into")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    return out


def write(path: Path, smiles: Sequence[str]) -> Reference:
    """Write the distinct valid molecules, sorted, and print all counts and the sha256.

    The form is that of Reference, so the sha256 of the file is also the hash that every metric against it reports.
    """
    reference = Reference.from_smiles(path.stem, smiles)
    path.write_text("".join(f"{s}\n" for s in reference.smiles), encoding="ascii", newline="\n")
    rows, invalid = len(reference.smiles), sum(reference.failures.values())
    print(f"{path}: {len(smiles)} source rows, {invalid} invalid {reference.failures or ''}")
    print(f"{len(smiles) - invalid - rows} repeats left out, {rows} rows, sha256 {reference.sha256}")
    return reference
