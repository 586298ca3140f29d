"""Molecules in space from and to SDF (bonds, charges, properties; four decimals of an angstrom) and XYZ (elements and
positions alone, eight decimals; bonds are perceived, Kim and Kim 2015, DOI 10.1002/bkcs.10334).

What cannot be held is no error of the whole: it is listed with its reason, and the rest is read.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import numpy as np
from rdkit import Chem, rdBase

from unisci.domains.molecule import Molecule, MoleculeError
from unisci.domains.molecule_rdkit import perceive_bonds
from unisci.domains.xyz import Frame, frames

Reject = tuple[int, str, str]  # number of the record in its file from 0 on, name, reason


def read_sdf(path: str | Path) -> tuple[list[Molecule], list[Reject], list[dict[str, str]]]:
    """Molecules of one conformer each, rejects, and the properties of each molecule as the file's texts.

    A record with a hydrogen is read with all of them as sites, those that it lacks placed by RDKit after its own; one
    without has them implicit. An aromatic ring may come back in its other Kekule form. "_Name" is the title of the
    record, if any. Raises ValueError where there is no file.
    """
    molecules, rejects, properties = [], [], []
    records = re.split(r"^\$\$\$\$.*\n?", _text(path), flags=re.MULTILINE)
    supplier = Chem.SDMolSupplier()
    with rdBase.BlockLogs():
        for k, text in enumerate(records):
            if k == len(records) - 1 and not text.strip():  # what follows the last end mark
                break
            supplier.SetData(text, sanitize=False, removeHs=False)
            mol = supplier[0] if len(supplier) else None
            try:
                molecule = _of_record(mol, text)
            except MoleculeError as error:
                rejects.append((k, text.split("\n", 1)[0].strip(), str(error)))
                continue
            molecules.append(molecule)
            name = {"_Name": mol.GetProp("_Name")} if mol.GetProp("_Name") else {}
            properties.append(name | {key: mol.GetProp(key) for key in mol.GetPropNames()})
    return molecules, rejects, properties


def write_sdf(
    file: str | Path | TextIO,
    molecules: Sequence[Molecule],
    properties: Sequence[Mapping[str, object]] | None = None,
    names: Sequence[str] | None = None,
) -> None:
    """One record a conformer, each with the properties and the name (else the property "_Name") of its molecule.

    Raises ValueError for a molecule that is not valid or has no positions, a text that an SDF cannot hold, and lists
    of different lengths.
    """
    records = []
    for k, (molecule, values, name) in enumerate(_zip(molecules, properties, names)):
        values = dict(values or {})
        title = _line(k, str(values.pop("_Name", "") if name is None else name))
        records.append((_placed(molecule, k), title, "".join(_property(k, *item) for item in values.items())))
    with _opened(file) as out:
        for placed, title, tail in records:
            mol = Chem.Mol(placed)
            mol.SetProp("_Name", title)
            for conformer in range(mol.GetNumConformers()):
                out.write(f"{Chem.MolToMolBlock(mol, confId=conformer)}{tail}$$$$\n")


def read_xyz(path: str | Path, charge: int = 0) -> tuple[list[Molecule], list[Reject], list[str]]:
    """Molecules of one conformer each with hydrogens as sites, rejects, and the comment line of each molecule.

    The bonds are those of total charge `charge` (elementary charges, the same for all frames) by which every atom is
    complete; where several Lewis structures fit, such as S=O and [S+][O-], RDKit's choice.
    Raises ValueError where there is no file.
    """
    molecules, rejects, comments = [], [], []
    for k, frame in enumerate(frames(_text(path))):
        try:
            molecules.append(_of_frame(frame, charge))
            comments.append(frame.comment)
        except MoleculeError as error:
            rejects.append((k, frame.comment, str(error)))
    return molecules, rejects, comments


def write_xyz(file: str | Path | TextIO, molecules: Sequence[Molecule], comments: Sequence[str] | None = None) -> None:
    """One frame a conformer. Raises ValueError for a molecule that is not valid, has no positions or has implicit
    hydrogens, a comment of several lines, and lists of different lengths."""
    rows = [(_placed(m, k), _line(k, c or "")) for k, (m, c) in enumerate(_zip(molecules, comments))]
    for k, molecule in enumerate(molecules):
        if not molecule.explicit:
            raise ValueError(f"molecule {k} has implicit hydrogens: take .add_hydrogens() of it")
    with _opened(file) as out:
        for mol, comment in rows:
            symbols = [atom.GetSymbol() for atom in mol.GetAtoms()]
            for conformer in mol.GetConformers():
                out.write(f"{len(symbols)}\n{comment}\n")
                for symbol, (x, y, z) in zip(symbols, conformer.GetPositions(), strict=True):
                    out.write(f"{symbol:2} {x:14.8f} {y:14.8f} {z:14.8f}\n")


def _of_record(mol: Chem.Mol | None, text: str) -> Molecule:
    """Raises MoleculeError with the reason."""
    if mol is None:
        words = {word.lower().lstrip("+-") for word in text.split("M  END")[0].split()}
        raise MoleculeError("a coordinate is not finite" if words & {"nan", "inf"} else "RDKit cannot parse the record")
    if not mol.GetNumAtoms():
        raise MoleculeError("no atoms")
    conformer = mol.GetConformer() if mol.GetNumConformers() else None
    if conformer is None or not conformer.Is3D():
        raise MoleculeError("no positions: the record is drawn in two dimensions or has no coordinates")
    _refuse_positions(conformer.GetPositions())
    return Molecule.from_rdkit(mol, hydrogens=any(a.GetAtomicNum() == 1 for a in mol.GetAtoms()))


def _of_frame(frame: Frame, charge: int) -> Molecule:
    """Raises MoleculeError with the reason."""
    if frame.error:
        raise MoleculeError(frame.error)
    _refuse_positions(frame.positions)
    return Molecule.from_rdkit(perceive_bonds(frame.numbers, frame.positions, charge), hydrogens=True)


def _refuse_positions(positions: np.ndarray) -> None:
    """Raises MoleculeError where these (n, 3) are no geometry."""
    if not np.isfinite(positions).all():
        raise MoleculeError("a coordinate is not finite")
    if len(positions) > 1 and not positions.any():
        raise MoleculeError("no positions: all coordinates are zero")


def _placed(molecule: Molecule, k: int) -> Chem.Mol:
    """Its RDKit molecule. Raises ValueError where it is not valid or has no conformer."""
    if molecule.rdkit is None:
        raise ValueError(f"molecule {k} is not valid: {molecule.reason}")
    if not molecule.conformers:
        raise ValueError(f"molecule {k} has no positions: give it some with .with_positions(...)")
    return molecule.rdkit


def _property(k: int, name: str, value: object) -> str:
    """The lines of one property in an SDF. Raises ValueError where the format cannot hold it."""
    text = str(value)
    lines = text.split("\n")
    if (
        not name
        or name.startswith("_")  # RDKit reads such names as its own, and lists them not
        or set(name) & set("<>\n\r")
        or "\r" in text
        or any(not s.strip() or s.startswith("$$$$") for s in lines)
    ):
        raise ValueError(f"molecule {k}: an SDF cannot hold the property {name!r} = {text!r}")
    return f">  <{name}>\n{text}\n\n"


def _line(k: int, text: str) -> str:
    """The name or comment of a molecule. Raises ValueError where it is more than one line."""
    if len(text.splitlines()) > 1:
        raise ValueError(f"molecule {k}: {text!r} has more than one line")
    return text


def _zip(molecules: Sequence[Molecule], *others: Sequence | None) -> Iterator[tuple]:
    """One row a molecule, None for what is not given. Raises ValueError where the lengths differ."""
    for other in others:
        if other is not None and len(other) != len(molecules):
            raise ValueError(f"{len(other)} names, comments or sets of properties for {len(molecules)} molecules")
    return zip(molecules, *([None] * len(molecules) if other is None else other for other in others), strict=True)


def _text(path: str | Path) -> str:
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist: give a file of molecules")
    return Path(path).read_text(encoding="utf-8", errors="replace")


@contextmanager
def _opened(file: str | Path | TextIO) -> Iterator[TextIO]:
    if isinstance(file, str | Path):
        with open(file, "w", encoding="utf-8", newline="\n") as out:
            yield out
    else:
        yield file
