"""QM9 in space: the graphs with all hydrogens, their DFT geometries and properties, as one batch for training.

Rows come from the three tables of qm9pack, or from one .npz of the same: `pos` (A, 3) angstrom and `z` (A,) of all
atoms one after another, `n_atoms` (N,), `gdb_index` (N,) from 1 on, `props` (N, 15) with `prop_names`, and `smiles`,
the lines of a text as bytes.
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from rdkit import Chem

from unisci.batch import Batch, Field
from unisci.domains.molecule import Molecule, MoleculeError, atom_classes, parse_class
from unisci.training.data import save_batch

COLUMNS = {  # of the package: name and unit here
    "RotA_GHz": ("A", "GHz"),
    "RotB_GHz": ("B", "GHz"),
    "RotC_GHz": ("C", "GHz"),
    "Dipole_debye": ("mu", "debye"),
    "Polarizability_bohr3": ("alpha", "bohr^3"),
    "HOMO_au": ("homo", "hartree"),
    "LUMO_au": ("lumo", "hartree"),
    "HOMO_LUMO_gap_au": ("gap", "hartree"),
    "R2_bohr2": ("r2", "bohr^2"),
    "ZPVE_au": ("zpve", "hartree"),
    "InternalEnergy_0K_au": ("U0", "hartree"),
    "InternalEnergy_298K_au": ("U", "hartree"),
    "Enthalphy_298K_au": ("H", "hartree"),
    "GibbsFreeEnergy_298K_au": ("G", "hartree"),
    "Heatcapacity_Cv_cal_mol_K": ("Cv", "cal/(mol K)"),
}
UNITS = dict(COLUMNS.values())
STRETCH = 1.3  # a bond is at most this times the sum of the covalent radii
PART = 2000  # molecules collated at once


class Row(NamedTuple):
    """index: that of QM9, from 1 on; numbers (n,): atomic numbers; positions (n, 3) angstrom; values (15,) as UNITS."""

    index: int
    smiles: str
    numbers: np.ndarray
    positions: np.ndarray
    values: np.ndarray


def rows_of_tables(paths: Iterable[Path]) -> Iterator[Row]:
    """The rows of the package's tables."""
    table = Chem.GetPeriodicTable()
    for path in paths:
        frame = pd.read_csv(path, usecols=["Index", "SMILES", "Elements", "XYZ_Ang", *COLUMNS])
        values = frame[list(COLUMNS)].to_numpy(np.float64)
        texts = zip(frame["Index"], frame["SMILES"], frame["Elements"], frame["XYZ_Ang"], values, strict=True)
        for index, smiles, elements, xyz, value in texts:
            numbers = np.array([table.GetAtomicNumber(s) for s in re.findall("[A-Z][a-z]?", elements)])
            positions = np.array(re.sub(r"[\[\]\s]", "", xyz).split(","), np.float64).reshape(-1, 3)
            yield Row(int(index), smiles, numbers, positions, value)


def rows_of_npz(path: Path) -> Iterator[Row]:
    """The rows of a .npz of the layout above. Raises ValueError where its arrays do not fit each other."""
    with np.load(path) as file:
        data = {k: file[k] for k in ("pos", "z", "n_atoms", "gdb_index", "props", "prop_names", "smiles")}
    smiles = data["smiles"].tobytes().decode().split("\n")
    ends = np.cumsum(data["n_atoms"].astype(np.int64))
    names = data["prop_names"].tolist()
    if not len(smiles) == len(ends) == len(data["gdb_index"]) == len(data["props"]) or ends[-1] != len(data["pos"]):
        raise ValueError(f"{path}: the numbers of rows or of atoms of its arrays differ")
    if sorted(names) != sorted(UNITS):
        raise ValueError(f"{path}: the properties are {names}, expected {list(UNITS)}")
    values = data["props"][:, [names.index(k) for k in UNITS]]
    for k, text in enumerate(smiles):
        atoms = slice(ends[k] - data["n_atoms"][k], ends[k])
        yield Row(int(data["gdb_index"][k]), text, data["z"][atoms], data["pos"][atoms].astype(np.float64), values[k])


def molecule_of(row: Row) -> Molecule:
    """The molecule of a row with its geometry. Raises MoleculeError with the reason where they do not fit."""
    molecule = Molecule.from_smiles(row.smiles, hydrogens=True)
    table = Chem.GetPeriodicTable()
    numbers = [table.GetAtomicNumber(parse_class(name)[0]) for name in molecule.atoms]
    if numbers != row.numbers.tolist():
        raise MoleculeError("the atoms differ from those of the geometry")
    if not np.isfinite(row.positions).all():
        raise MoleculeError("a coordinate is not finite")
    i, j = np.nonzero(np.triu(molecule.bonds))
    radii = np.array([table.GetRcovalent(z) for z in numbers])
    if (np.linalg.norm(row.positions[i] - row.positions[j], axis=1) > STRETCH * (radii[i] + radii[j])).any():
        raise MoleculeError(f"a bond is longer than {STRETCH} times the sum of the covalent radii")
    return molecule.with_positions(row.positions)


def collate(molecules: list[Molecule], values: np.ndarray, ids: list[int]) -> Batch:
    """Fields "atom", "bond" as int8 and "position" as float32, centred; given "properties" (B, 15) as float64."""
    classes, sites = atom_classes(molecules), max(len(m.atoms) for m in molecules)
    starts = range(0, len(molecules), PART)
    parts = [Molecule.batch(molecules[k : k + PART], classes, sites) for k in starts]
    join = lambda name, dtype: torch.cat([part.state[name].to(dtype) for part in parts])
    dtypes = {"atom": torch.int8, "bond": torch.int8, "position": torch.float32}
    state = {name: join(name, dtype) for name, dtype in dtypes.items()}
    schema = parts[0].schema | {"properties": Field("whole", (values.shape[1],))}
    mask = torch.cat([part.mask for part in parts])
    return Batch(schema, state, mask, {"properties": torch.from_numpy(values)}, torch.tensor(ids))


def write_structures(out: Path, rows: Iterable[Row]) -> None:
    """Write qm9_3d.safetensors, the names, units and counts in qm9_3d.json, and rejects_3d.csv; print the counts."""
    molecules, values, ids, rejects = [], [], [], []
    for row in rows:
        try:
            molecules.append(molecule_of(row))
        except MoleculeError as error:
            rejects.append((row.index, row.smiles, str(error)))
            continue
        values.append(row.values)
        ids.append(row.index)
    with (out / "rejects_3d.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("index", "smiles", "reason"), *rejects])
    reasons = dict(Counter(reason for _, _, reason in rejects).most_common())
    if not molecules:
        raise SystemExit(f"no row is left, see {out / 'rejects_3d.csv'}: {reasons}")
    batch = collate(molecules, np.stack(values), ids)
    save_batch(batch, out / "qm9_3d.safetensors")
    facts = {"properties": list(UNITS), "units": UNITS, "rows": len(batch), "rejected": reasons}
    (out / "qm9_3d.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(f"{out / 'qm9_3d.safetensors'}: {len(batch)} rows of at most {batch.mask.shape[1]} atoms, rejected {reasons}")
