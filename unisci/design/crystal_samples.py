"""CrystalSamples: generated crystals with one table row each; nothing is dropped unless asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import pandas as pd

from unisci.design import view3d
from unisci.design.crystal_scores import Known, Reference, above, measures, novel, ranks, smact, standardised
from unisci.design.potentials import Potential, chgnet, potential_of
from unisci.design.relaxation import relax
from unisci.domains.crystal import Crystal
from unisci.metrics.cells import cell
from unisci.metrics.structure_groups import group
from unisci.metrics.structure_match import prepare
from unisci.metrics.workers import Workers

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

OWN = ("id", "formula", "sites", "volume", "density", "valid", "reason", "seconds", "model", "seed")
ARRAYS = ("numbers", "fractional", "lattice")  # columns that only the parquet file has


@dataclass(frozen=True, eq=False)
class CrystalSamples(Sequence[Crystal]):
    """crystals, and a table of as many rows: id, formula, sites, volume (A^3), density (g/cm^3), valid (no two sites
    within 0.5 A), reason, seconds, model, seed, then what the model told of each, then what the methods add."""

    crystals: tuple[Crystal, ...]
    table: pd.DataFrame

    def __post_init__(self) -> None:
        if len(self.crystals) != len(self.table):
            raise ValueError(f"{len(self.crystals)} crystals, but {len(self.table)} rows in the table")

    @classmethod
    def of(
        cls,
        crystals: Sequence[Crystal],
        ids: Sequence[int],
        seconds: float,
        model: str,
        seed: int,
        extra: pd.DataFrame | None = None,
    ) -> CrystalSamples:
        """Samples fresh from a model: `seconds` is the time that each took, `model` the hash of its weights.

        extra: more columns, one row a crystal. Raises ValueError where the numbers of crystals, ids and rows differ,
        or a column of extra has a name of the table's own.
        """
        extra = pd.DataFrame(index=range(len(crystals))) if extra is None else extra.reset_index(drop=True)
        if not len(crystals) == len(ids) == len(extra):
            raise ValueError(f"{len(crystals)} crystals, {len(ids)} ids and {len(extra)} extra rows: give one to each")
        if taken := sorted({*extra.columns} & {*OWN, *ARRAYS}):
            raise ValueError(f"the extra columns {taken} have names of the table's own: choose others")
        rows = pd.DataFrame({"id": list(ids)}).join(measures(crystals))
        return cls(tuple(crystals), rows.assign(seconds=seconds, model=model, seed=seed).join(extra))

    @classmethod
    def join(cls, parts: Sequence[CrystalSamples]) -> CrystalSamples:
        """One CrystalSamples of several, in their order."""
        if not parts:
            raise ValueError("no samples to join")
        tables = [p.table for p in parts]
        return cls(tuple(c for p in parts for c in p.crystals), pd.concat(tables, ignore_index=True))

    @classmethod
    def from_parquet(cls, path: str | Path) -> CrystalSamples:
        """Read what `to_parquet` wrote."""
        table = pd.read_parquet(path)
        shaped = ((n, np.reshape(x, (-1, 3)), np.reshape(h, (3, 3))) for n, x, h in table[[*ARRAYS]].to_numpy())
        for column in table.columns:
            if column.endswith("reason"):
                table[column] = table[column].astype("object").where(table[column].notna(), None)
        return cls(tuple(Crystal(*arrays) for arrays in shaped), table.drop(columns=[*ARRAYS]))

    def __len__(self) -> int:
        return len(self.crystals)

    @overload
    def __getitem__(self, index: int) -> Crystal: ...
    @overload
    def __getitem__(self, index: slice) -> CrystalSamples: ...
    def __getitem__(self, index: Any) -> Any:
        return self.keep(range(len(self))[index]) if isinstance(index, slice) else self.crystals[index]

    def __iter__(self) -> Iterator[Crystal]:
        return iter(self.crystals)

    def keep(self, rows: Sequence[int]) -> CrystalSamples:
        """The samples at the positions `rows`, in that order."""
        table = self.table.iloc[list(rows)].reset_index(drop=True)
        return replace(self, crystals=tuple(self.crystals[i] for i in rows), table=table)

    def valid(self) -> CrystalSamples:
        """The valid samples."""
        return self.keep(np.flatnonzero(self.table["valid"]).tolist())

    def dedupe(self, workers: int = 2) -> CrystalSamples:
        """The valid samples, the first of each group that StructureMatcher (ltol .3, stol .5, angle_tol 10) takes for
        one structure. A comparison that fails or takes over 10 seconds counts as different."""
        valid = self.valid()
        with Workers(workers, prepare=prepare) as pool:
            first, _ = group([cell(c) for c in valid], pool)
        return valid.keep(np.unique(first).tolist())

    def symmetrize(self, symprec: float = 0.01) -> CrystalSamples:
        """Each crystal in the standardised conventional cell of its space group, as moyopy finds it within symprec (A).

        Adds spacegroup (number), spacegroup_symbol, symprec, symmetrize_reason; where moyopy fails, the crystal stays.
        """
        crystals, found = standardised(self.crystals, symprec)
        return self._changed(crystals, found)

    def relax(
        self, calculator: Potential | BaseCalculator | None = None, fmax: float = 0.05, steps: int = 300
    ) -> CrystalSamples:
        """Each crystal at a minimum of the energy, atoms and cell together, without pressure: see relaxation.relax.

        calculator: a potential, or an ASE calculator with stresses; CHGNet where not given. Adds energy_per_atom (eV),
        converged, relax_steps, relax_fmax (eV/A), relax_reason; where relaxing failed, the crystal stays.
        """
        found = relax(self.crystals, chgnet() if calculator is None else potential_of(calculator), fmax, steps)
        columns = {
            "energy_per_atom": [r.energy_per_atom for r in found],
            "converged": [r.converged for r in found],
            "relax_steps": [r.steps for r in found],
            "relax_fmax": [r.fmax for r in found],
            "relax_reason": pd.Series([r.reason for r in found], dtype="object"),
        }
        return self._changed([r.crystal for r in found], pd.DataFrame(columns))

    def _changed(self, crystals: Sequence[Crystal], found: pd.DataFrame) -> CrystalSamples:
        """Other crystals with what is measured of them, and the columns `found`."""
        table = self.table.assign(**{name: new for t in (measures(crystals), found) for name, new in t.items()})
        return replace(self, crystals=tuple(crystals), table=table)

    def score(self, reference: Reference | None = None, known: Known | None = None) -> CrystalSamples:
        """Add smact and smact_reason; with a reference energy_above_reference (eV an atom) and its reason; with known
        crystals, or a path for read_crystals, novel. Raises ValueError for a reference before `relax`."""
        if reference is not None and "energy_per_atom" not in self.table:
            raise ValueError("a reference needs energies: call relax first, with the reference's potential")
        found = smact(self.crystals)
        if reference is not None:
            found = found.join(above(reference, self.table["formula"], self.table["energy_per_atom"]))
        if known is not None:
            found["novel"] = novel(self.crystals, known)
        return replace(self, table=self.table.assign(**dict(found.items())))

    def rank(self, by: str | None = None, largest: bool | None = None) -> CrystalSamples:
        """The samples in the order of a column, ties as they are, no value last; and a column rank, from 1 on, counted
        within each composition.

        by: energy_above_reference where not given, else energy_per_atom (sorted within each formula only, for energies
        of two formulas are not comparable), else score. largest: whether large is good; only for score if not given.
        """
        order, rank = ranks(self.table, by, largest)
        return replace(self, table=self.table.assign(rank=rank)).keep(order)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.table.copy()

    def to_parquet(self, path: str | Path) -> None:
        """Write the table, one row a sample, with the crystals' arrays."""
        text = {c: "string" for c in self.table.columns if c.endswith("reason")}  # also where all are None
        arrays = {name: [getattr(c, name).ravel() for c in self.crystals] for name in ARRAYS}
        self.table.astype(text).assign(**arrays).to_parquet(path, index=False)

    def to_cif(self, folder: str | Path) -> list[Path]:
        """Write {formula}_{id}.cif for each crystal into the folder, which is made where missing; their paths."""
        return view3d.write_cifs(self.crystals, self.table, Path(folder))

    def to_extxyz(self, path: str | Path) -> None:
        """Write an extended xyz file, the columns of the table in its comment lines."""
        from ase.io import write

        write(path, view3d.with_info(self.crystals, self.table), format="extxyz")

    def to_ase_db(self, path: str | Path) -> None:
        """Write an ASE database (.db, .json), over one that is there: numbers as keys to select by, which are called
        sample_{column} where ASE keeps the name for itself, and the whole row as data."""
        view3d.write_database(view3d.with_info(self.crystals, self.table), path)

    def view(self, index: int) -> Any:
        """A py3Dmol view of one crystal, which loads its script from the network; `view3d.html` needs none."""
        return view3d.view(self.crystals[index])

    def _repr_html_(self) -> str:
        head = f"<p>{len(self)} crystals, {int(self.table['valid'].sum())} valid</p>"
        return head + self.table.head(12).to_html(index=False, max_cols=14, float_format="{:.4g}".format)

    def __repr__(self) -> str:
        return f"CrystalSamples({len(self)} crystals, {int(self.table['valid'].sum())} valid)"
