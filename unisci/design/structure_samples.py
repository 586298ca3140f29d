"""StructureSamples: molecules in space, one conformer and one table row each; nothing is dropped unless asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, TextIO

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rdkit import Chem

from unisci.autoregression.property_model import PropertyModel
from unisci.design import view3d
from unisci.design.samples import Samples
from unisci.design.stereo import isomer
from unisci.design.structure_drawings import sheet
from unisci.design.structure_scores import energy, mmff
from unisci.design.wants import Want, Wants
from unisci.domains.molecule import Molecule
from unisci.domains.molecule_files import write_sdf, write_xyz

POSITIONS = "positions"  # the column of files and frames; the table itself leaves them to the molecules
SHOWN = 12  # molecules on a page
TOLD = ("smiles", "reason", "isomer", "strain_reason")  # texts that may be missing


@dataclass(frozen=True)
class StructureSamples(Samples):
    """molecules with all hydrogens as sites and one conformer each, and a table of as many rows: id, smiles, valid (the
    graph is, and there are positions), reason, seconds, model, seed, atoms, bonds as `Samples` has them, isomer (SMILES
    with the stereochemistry that the positions show), then what the designer told, then what the methods add."""

    @classmethod
    def of(
        cls,
        molecules: Sequence[Molecule],
        ids: Sequence[int],
        seconds: float | pd.Series,
        model: str,
        seed: int,
        reasons: Sequence[str | None] | None = None,
        extra: pd.DataFrame | None = None,
    ) -> Self:
        """Samples fresh from a model: `seconds` is the time that each took, `model` the hash of its weights.

        reasons: why there are no positions, where the molecules do not say it. extra: more columns, one row a molecule.
        """
        table = Samples.of(molecules, ids, seconds, model, seed).table
        told = [None] * len(molecules) if reasons is None else reasons
        own = [m.reason or (None if m.conformers else "no positions") for m in molecules]
        reason = [r or o for r, o in zip(told, own, strict=True)]
        table["reason"], table["valid"] = pd.Series(reason, dtype="object"), [r is None for r in reason]
        found = [isomer(m.rdkit) if r is None else None for m, r in zip(molecules, reason, strict=True)]
        table["isomer"] = pd.Series(found, dtype="object")
        return cls(tuple(molecules), table if extra is None else table.join(extra.reset_index(drop=True)))

    @classmethod
    def from_parquet(cls, path: str | Path) -> Self:
        """Read what `to_parquet` wrote."""
        read = super().from_parquet(path)
        table = read.table.drop(columns=POSITIONS)
        for column in set(TOLD) & set(table.columns):
            table[column] = _texts(table[column])
        placed = (
            m.with_positions(None if x is None else np.reshape(x, (-1, 3)))
            for m, x in zip(read.molecules, read.table[POSITIONS], strict=True)
        )
        return cls(tuple(placed), table)

    def dedupe(self) -> Self:
        """The valid samples, the first of each canonical SMILES; the stereochemistry does not count."""
        valid = self.valid()
        return valid.keep(valid.table.index[~valid.table["smiles"].duplicated()].tolist())

    def score(
        self,
        function: Callable[[list[Chem.Mol]], Sequence[float]] | None = None,
        name: str = "score",
        workers: int = 2,
    ) -> Self:
        """Add qed, logp, sa, mass (g/mol), energy and strain by MMFF94 (kcal/mol; strain: above the minimum that the
        conformer falls into), strain_rmsd (angstrom to it, heavy atoms) and strain_reason; or the column `name` by your
        function of the valid molecules, which have their hydrogens and conformers.

        Invalid samples get NaN. workers: processes for the strain. Raises ValueError where the function gives another
        number of values, or `name` is a column that says what a sample is.
        """
        if name in (POSITIONS, "isomer"):
            raise ValueError(f"the column {name!r} says what a sample is and cannot hold a score: choose another name")
        valid = self.valid()
        if function is not None:
            found = Samples.score(valid, function, name).table[[name]]
        else:
            found = valid._graphs().score().table[["qed", "logp", "sa", "mass"]].join(mmff(valid.molecules, workers))
        found = found.set_axis(np.flatnonzero(self.table["valid"])).reindex(range(len(self)))
        if "strain_reason" in found:
            found["strain_reason"] = _texts(found["strain_reason"])
        return replace(self, table=self.table.assign(**dict(found.items())))

    def meets(self, where: Want | Wants | Sequence[Want], properties: PropertyModel | None = None) -> Self:
        """As `Samples.meets`, of the molecules with implicit hydrogens."""
        return replace(self, table=self._graphs().meets(where, properties).table)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table with a column `positions`: (N, 3) in angstrom of the atoms in `atoms`, or None."""
        rows = [m.positions[0] if m.conformers else None for m in self.molecules]
        return self.table.assign(**{POSITIONS: pd.Series(rows, dtype="object")})

    def to_parquet(self, path: str | Path) -> None:
        """Write the table, one row a sample, with the positions as lists x, y, z, x, ... in angstrom."""
        # As strings also where all are None, so that the tables of two runs have the same columns.
        frame = self.table.astype({c: "string" for c in TOLD if c in self.table})
        rows = [m.positions[0].ravel() if m.conformers else None for m in self.molecules]
        table = pa.Table.from_pandas(frame, preserve_index=False)
        pq.write_table(table.append_column(POSITIONS, pa.array(rows, pa.list_(pa.float64()))), path)

    def write_sdf(self, file: TextIO) -> None:
        """The valid samples as an SDF with their positions, and the table's columns as properties."""
        valid = self.valid()
        rows = valid.table.drop(columns=["id", "valid", "reason"]).to_dict("records")
        told = [{str(k): v for k, v in row.items() if v is not None and v == v and v != ""} for row in rows]
        write_sdf(file, valid.molecules, told, [str(i) for i in valid.table["id"]])

    def to_xyz(self, path: str | Path) -> None:
        """Write the valid samples as frames of an XYZ file, their ids and isomers as comments."""
        with Path(path).open("w") as file:
            self.write_xyz(file)

    def write_xyz(self, file: TextIO) -> None:
        """The frames of `to_xyz`, to an open file."""
        valid = self.valid()
        comments = [f"{i} {s}" for i, s in zip(valid.table["id"], valid.table["isomer"], strict=True)]
        write_xyz(file, valid.molecules, comments)

    def page(self, most: int = SHOWN) -> str:
        """A web page with the first valid samples, to turn and zoom with the mouse; nothing is loaded from anywhere."""
        shown = self.valid()[:most]
        titles = (f"{row.isomer}, sample {row.id}" for row in shown.table.itertuples())
        return "\n".join(view3d.molecule_html(m, title) for m, title in zip(shown, titles, strict=True))

    def draw(self, most: int = 24, columns: int = 6) -> Any:
        """A picture (PIL) of the graphs of the first valid samples, their ids below."""
        return self.valid()[:most]._graphs().draw(most, columns)

    def draw_conformers(self, most: int = 24, columns: int = 6) -> Any:
        """A picture (PIL) of the first valid samples in space, those of one graph turned onto the first of them. Below
        each its id and, in kcal/mol, its energy by MMFF94 above the lowest of the same graph that is drawn."""
        shown = self.valid()[:most]
        energies = pd.Series([energy(m.rdkit) for m in shown.molecules], dtype=float)
        above = energies - energies.groupby(shown.table["smiles"].to_numpy()).transform("min")
        told = ["" if np.isnan(e) else f": +{e:.1f} kcal/mol" for e in above]
        several = shown.table["smiles"].nunique() > 1
        rows = zip(shown.table["id"], told, shown.table["isomer"], strict=True)
        legends = [f"{i}{text}\n{isomer}" if several else f"{i}{text}" for i, text, isomer in rows]
        return sheet(shown.molecules, legends, columns)

    def _graphs(self) -> Samples:
        """The same rows as molecules with implicit hydrogens and no positions."""
        return Samples(tuple(m.heavy().with_positions(None) for m in self.molecules), self.table)

    def _repr_html_(self) -> str:
        return self._graphs()._repr_html_()

    def __repr__(self) -> str:
        return f"StructureSamples({len(self)} molecules, {int(self.table['valid'].sum())} valid)"


def _texts(column: pd.Series) -> pd.Series:
    """Texts as objects, so that None stays None."""
    return column.astype("object").where(column.notna(), None)
