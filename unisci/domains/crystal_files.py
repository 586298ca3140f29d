"""Crystals from files: a folder of CIFs, one CIF, a table with a column "cif", or an extended xyz file.

What cannot be held is no error of the whole: it is listed with its reason, and the rest is read.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unisci.domains.crystal import Crystal, CrystalError

if TYPE_CHECKING:
    from ase import Atoms
    from pandas import DataFrame

IDS = ("material_id", "id", "name")  # the columns of a table that may name its rows, the first found counts


@dataclass(frozen=True)
class CrystalFile:
    """crystals, as given (not reduced), and their names; rejects: one row ("name", "reason") for each other entry."""

    crystals: tuple[Crystal, ...]
    names: tuple[str, ...]
    rejects: "DataFrame"


def read_crystals(path: str | Path) -> CrystalFile:
    """Read a folder of *.cif, a .cif, a .csv or .parquet with a column "cif", or an .extxyz or .xyz file.

    Raises ValueError where the path does not exist, is of no such kind, or lacks the column.
    """
    from pandas import DataFrame

    crystals, names, rejects = [], [], []
    for name, source in _entries(Path(path)):
        try:
            crystals.append(Crystal.from_cif(source) if isinstance(source, str | Path) else Crystal.from_ase(source))
            names.append(name)
        except CrystalError as error:
            rejects.append((name, str(error)))
    return CrystalFile(tuple(crystals), tuple(names), DataFrame(rejects, columns=["name", "reason"]))


def _entries(path: Path) -> "Iterator[tuple[str, Path | str | Atoms]]":
    """(name, CIF as path or text, or ASE Atoms) of every entry."""
    kind = path.suffix.lower()
    if path.is_dir():
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".cif")
        if not files:
            raise ValueError(f"the folder {path} has no .cif file")
        yield from ((p.stem, p) for p in files)
    elif not path.is_file():
        raise ValueError(f"{path} does not exist: give a folder of CIFs, a .cif, .csv, .parquet or .extxyz file")
    elif kind == ".cif":
        yield path.stem, path
    elif kind in (".csv", ".parquet"):
        yield from _rows(path, kind)
    elif kind in (".extxyz", ".xyz"):
        from ase.io import iread

        yield from ((str(k), atoms) for k, atoms in enumerate(iread(path, format="extxyz")))
    else:
        raise ValueError(
            f"{path} is of kind {kind or 'none'!r}: known are folders, .cif, .csv, .parquet, .extxyz, .xyz"
        )


def _rows(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    import pandas

    table = pandas.read_csv(path) if kind == ".csv" else pandas.read_parquet(path)
    if "cif" not in table:
        raise ValueError(f'{path} has no column "cif" but {sorted(map(str, table.columns))}')
    column = next((c for c in IDS if c in table), None)
    names = table[column].astype(str) if column else table.index.astype(str)
    yield from zip(names, table["cif"].fillna("").astype(str) + "\n", strict=True)
