"""Reference sets by name or file: what generated molecules are compared with, and what a model can be trained on."""

import csv
import gzip
import lzma
import zlib
from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import RDConfig

from unisci.jobs.config import ConfigError
from unisci.metrics.chemnet import Statistics
from unisci.metrics.molecules import Reference

SHIPPED = Path(str(files("unisci") / "references"))
EMBEDDED = {
    "qm9": SHIPPED / "qm9.smi.xz",  # 120,831 rows of QM9, see datasets/qm9/card.md
    "nci": Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi",  # carried by RDKit, see datasets/nci/card.md
}
DAMAGED = (UnicodeDecodeError, EOFError, csv.Error, gzip.BadGzipFile, lzma.LZMAError, zlib.error, pa.ArrowInvalid)


def read_smiles(source: str, column: str | None = None) -> Iterator[tuple[int, str]]:
    """(line number, SMILES) of a .smi file (first word of each line), a .csv file (`column`, else "smiles"), plain,
    .gz or .xz, a .parquet file (its row number), or of an embedded set by name. Raises ConfigError where the file or
    the column is missing, or the file is damaged."""
    yield from ((line, smiles) for line, smiles, _ in read_values(source, column, ()))


def read_values(
    source: str, column: str | None, names: tuple[str, ...]
) -> Iterator[tuple[int, str, tuple[str | float | None, ...]]]:
    """(line number, SMILES, cells of the columns `names`) of a table, as `read_smiles`; names must be its columns'."""
    path = find_smiles(source)
    try:
        if path.suffix == ".parquet":
            smiles = _smiles_column(path, column, table_columns(source))
            table = pq.read_table(path, columns=list(dict.fromkeys((smiles, *names))))
            cells = zip(*(table[name].to_pylist() for name in (smiles, *names)), strict=True)
            yield from ((k, row[0] or "", row[1:]) for k, row in enumerate(cells, 1))
            return
        with _open(path) as file:
            if ".csv" in path.suffixes:
                rows = csv.DictReader(file)
                smiles = _smiles_column(path, column, rows.fieldnames or [])
                yield from ((rows.line_num, row[smiles] or "", tuple(row[n] for n in names)) for row in rows)
            else:
                yield from ((k, line.split()[0], ()) for k, line in enumerate(file, 1) if line.strip())
    except DAMAGED as error:
        raise ConfigError(f"{path} is damaged or not a text file: {error}") from error


def table_columns(source: str) -> tuple[str, ...]:
    """The names of the columns of a .csv or .parquet file, none of any other. Raises ConfigError as `read_smiles`."""
    if not {".csv", ".parquet"} & set(Path(source).suffixes):
        return ()
    path = find_smiles(source)
    try:
        if path.suffix == ".parquet":
            return tuple(pq.read_schema(path).names)
        with _open(path) as file:
            return tuple(csv.DictReader(file).fieldnames or ())
    except DAMAGED as error:
        raise ConfigError(f"{path} is damaged or not a text file: {error}") from error


def _smiles_column(path: Path, column: str | None, names: Sequence[str]) -> str:
    name = column or next((n for n in names if n.lower() == "smiles"), None)
    if name not in names:
        raise ConfigError(f"{path} has no column {name or 'smiles'!r}; its columns are {', '.join(names)}")
    return name


def find_smiles(source: str) -> Path:
    """The file of an embedded set or of a path. Raises ConfigError where there is none."""
    path = EMBEDDED.get(source, Path(source))
    if not path.is_file():
        raise ConfigError(
            f"no file {source!r} with SMILES: give a .smi, .csv or .parquet file, or one of {sorted(EMBEDDED)}"
        )
    return path


def reference(source: str) -> Reference:
    """The set to compare with. Embedded QM9 is canonical already; RDKit reads anything else, about 7,000 a second."""
    smiles = [s for _, s in read_smiles(source)]
    return Reference(source, tuple(sorted(set(smiles)))) if source == "qm9" else Reference.from_smiles(source, smiles)


def chemnet_statistics(source: str, found: Reference) -> Statistics:
    """ChemNet's mean and covariance of a reference: shipped for qm9, else of about `found.limit` molecules."""
    path = SHIPPED / f"{source}-chemnet.npz"
    if path.is_file():
        return Statistics.load(path)
    step = max(1, len(found.smiles) // found.limit)
    return Statistics.from_smiles(found.name, found.smiles[::step])


def _open(path: Path) -> TextIO:
    opened = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opened(path, "rt", encoding="utf-8-sig")  # spreadsheets begin a file with a byte order mark
