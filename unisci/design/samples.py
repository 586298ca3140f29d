"""Samples: generated molecules with one table row each; nothing is dropped unless asked."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TextIO, overload

import pandas as pd
from rdkit import Chem
from rdkit.Chem import Descriptors, rdDepictor

from unisci.autoregression.property_model import PropertyModel
from unisci.design.predicted import with_predictions
from unisci.design.table import OWN, hit_rates, with_met
from unisci.design.wants import Want, Wants, wants
from unisci.domains.molecule import Molecule
from unisci.metrics.descriptors import VALUES


@dataclass(frozen=True)
class Samples(Sequence[Molecule]):
    """molecules, and a table of as many rows: id, smiles, valid, reason, seconds, model,
    seed, the graph as text (atoms, bonds), then what `score` adds."""

    molecules: tuple[Molecule, ...]
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if len(self.molecules) != len(self.table):
            raise ValueError(f"{len(self.molecules)} molecules, but {len(self.table)} rows in the table")

    @classmethod
    def of(cls, molecules: Sequence[Molecule], ids: Sequence[int], seconds: float, model: str, seed: int) -> Self:
        """Samples fresh from a model: `seconds` is the time that each took, `model` the hash of its weights."""
        atoms, bonds = zip(*(m.to_text() for m in molecules), strict=True)
        rows = {
            "id": list(ids),
            "smiles": pd.Series([m.smiles for m in molecules], dtype="object"),  # as objects, so that None stays None
            "valid": [m.reason is None for m in molecules],
            "reason": pd.Series([m.reason for m in molecules], dtype="object"),
            "seconds": seconds,
            "model": model,
            "seed": seed,
            "atoms": atoms,
            "bonds": bonds,
        }
        return cls(tuple(molecules), pd.DataFrame(rows))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """One Samples of several, in their order."""
        if not parts:
            raise ValueError("no samples to join")
        tables = [p.table for p in parts]
        return cls(tuple(m for p in parts for m in p.molecules), pd.concat(tables, ignore_index=True))

    @classmethod
    def from_parquet(cls, path: str | Path) -> Self:
        """Read what `to_parquet` wrote."""
        table = pd.read_parquet(path)
        for column in ("smiles", "reason"):
            table[column] = table[column].astype("object").where(table[column].notna(), None)
        graphs = zip(table["atoms"], table["bonds"], strict=True)
        return cls(tuple(Molecule.from_text(atoms, bonds) for atoms, bonds in graphs), table)

    def __len__(self) -> int:
        return len(self.molecules)

    @overload
    def __getitem__(self, index: int) -> Molecule: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return replace(self, molecules=self.molecules[index], table=self.table.iloc[index].reset_index(drop=True))
        return self.molecules[index]

    def __iter__(self) -> Iterator[Molecule]:
        return iter(self.molecules)

    @property
    def smiles(self) -> list[str | None]:
        """Canonical SMILES, None where invalid."""
        return [m.smiles for m in self.molecules]

    def keep(self, rows: Sequence[int]) -> Self:
        """The samples at the positions `rows`, in that order."""
        table = self.table.iloc[list(rows)].reset_index(drop=True)
        return replace(self, molecules=tuple(self.molecules[i] for i in rows), table=table)

    def valid(self) -> Self:
        """The valid samples."""
        return self.keep([i for i, valid in enumerate(self.table["valid"]) if valid])

    def dedupe(self) -> Self:
        """The valid samples, the first of each canonical SMILES."""
        first: dict[str, int] = {}
        for i, smiles in enumerate(self.smiles):
            if smiles is not None:
                first.setdefault(smiles, i)
        return self.keep(list(first.values()))

    def score(self, function: Callable[[list[Chem.Mol]], Sequence[float]] | None = None, name: str = "score") -> Self:
        """Add columns qed, logp, sa and mass (g/mol), or the column `name` by your function of the valid molecules.

        Invalid samples get NaN. Raises ValueError where the function gives another number of values, or `name` is a
        column that says what a sample is.
        """
        if name in OWN:
            raise ValueError(f"the column {name!r} says what a sample is and cannot hold a score: choose another name")
        mols = [m.rdkit for m in self.molecules if m.rdkit is not None]
        if function is None:
            columns = {k: [f(m) for m in mols] for k, f in (VALUES | {"mass": Descriptors.MolWt}).items()}
        else:
            columns = {name: list(function(mols))}
        rows = [i for i, m in enumerate(self.molecules) if m.rdkit is not None]
        table = self.table.copy()
        for column, values in columns.items():
            if len(values) != len(rows):
                raise ValueError(f"the function gave {len(values)} values for {len(rows)} molecules")
            table[column] = pd.Series(values, index=rows, dtype="float64").reindex(range(len(self)))
        return replace(self, table=table)

    def meets(self, where: Want | Wants | Sequence[Want], properties: PropertyModel | None = None) -> Self:
        """Add columns: the values of the wants' properties, "meets <want>" for each, and "meets" for all at once.

        properties: a model for properties that RDKit cannot measure, whose predictions are named so. Raises ValueError
        for a property that nothing can measure."""
        where = with_predictions(wants(where), properties)
        return replace(self, table=with_met(self.table, self.molecules, where))

    def hit_rates(self) -> pd.DataFrame:
        """The share of all samples, invalid ones included, that meets each want, and all of them at once, with its 95 %
        interval. Raises ValueError where nothing was wanted: see `meets`."""
        return hit_rates(self.table)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def to_parquet(self, path: str | Path) -> None:
        """Write the table, one row a sample."""
        # As strings also where all are None, so that the tables of two runs have the same columns.
        self.table.astype({"smiles": "string", "reason": "string"}).to_parquet(path, index=False)

    def to_smi(self, path: str | Path) -> None:
        """Write the valid samples as lines of SMILES and id."""
        with Path(path).open("w") as file:
            self.write_smi(file)

    def write_smi(self, file: TextIO) -> None:
        """The lines of `to_smi`, to an open file."""
        for smiles, i in zip(self.smiles, self.table["id"], strict=True):
            if smiles is not None:
                file.write(f"{smiles}\t{i}\n")

    def to_sdf(self, path: str | Path) -> None:
        """Write the valid samples as an SDF with drawn 2D coordinates and the table's columns as properties."""
        with Path(path).open("w") as file:
            self.write_sdf(file)

    def write_sdf(self, file: TextIO) -> None:
        """The records of `to_sdf`, to an open file."""
        with Chem.SDWriter(file) as writer:
            for m, row in zip(self.molecules, self.table.to_dict("records"), strict=True):
                if m.rdkit is None:
                    continue
                mol = Chem.Mol(m.rdkit)
                rdDepictor.Compute2DCoords(mol)
                mol.SetProp("_Name", str(row["id"]))
                for column, value in row.items():
                    if value is not None and value == value:
                        mol.SetProp(column, str(value))
                writer.write(mol)

    def draw(self, most: int = 24, columns: int = 6) -> Any:
        """A picture (PIL) of the first valid samples, their ids below."""
        return _grid(self, most, columns, svg=False)

    def _repr_html_(self) -> str:
        head = f"<p>{len(self)} samples, {int(self.table['valid'].sum())} valid</p>"
        return head + (str(_grid(self, 12, 6, svg=True)) if self.table["valid"].any() else "")

    def __repr__(self) -> str:
        return f"Samples({len(self)} molecules, {int(self.table['valid'].sum())} valid)"


def _grid(samples: Samples, most: int, columns: int, svg: bool) -> Any:
    from rdkit.Chem import Draw

    shown = samples.valid()[:most]
    if not len(shown):
        raise ValueError("there is no valid sample to draw")
    legends = [str(i) for i in shown.table["id"]]
    mols = [m.rdkit for m in shown]
    image = Draw.MolsToGridImage(
        mols, molsPerRow=columns, subImgSize=(180, 140), legends=legends, useSVG=svg, returnPNG=False
    )
    return image
