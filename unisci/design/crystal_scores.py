"""Scores of crystals: is the composition likely, is the crystal stable, is it new?

Stability is the energy above the convex hull (pymatgen's PhaseDiagram, Chem. Mater. 20, 1798 (2008)) of a Reference:
    e_above(x, e) = e - min { sum_k w_k e_k : sum_k w_k x_k = x, w_k >= 0, sum_k w_k = 1 }   (eV an atom)
over known phases k of composition x_k. Energies count only against those of the same potential: e_k and e must both
come from it. Below zero means more stable than every mixture of what the reference holds, no more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from unisci.design.potentials import ABSENT, Potential
from unisci.design.relaxation import relax
from unisci.domains.crystal import ELEMENTS, Crystal, CrystalError
from unisci.domains.crystal_files import read_crystals
from unisci.domains.symmetry import standardized
from unisci.metrics.cells import cell, cells
from unisci.metrics.crystal_validity import faults, structure_fault
from unisci.metrics.crystals import prepare
from unisci.metrics.structure_groups import known as known_cells
from unisci.metrics.workers import Workers

if TYPE_CHECKING:
    from pymatgen.analysis.phase_diagram import PhaseDiagram

Known = str | Path | Sequence[Crystal]  # a file or folder for read_crystals, or crystals


@dataclass(frozen=True)
class Reference:
    """Known phases: formulas of whole cells such as "Ti2O4", and their energies in eV an atom, all of one potential."""

    formulas: tuple[str, ...]
    energies: tuple[float, ...]
    rejects: tuple[tuple[str, str], ...] = ()  # (formula, reason) of each crystal that the potential failed on

    @classmethod
    def of(
        cls, crystals: Known, potential: Potential, relaxed: bool = False, fmax: float = 0.05, steps: int = 300
    ) -> Reference:
        """Energies of known crystals by the potential; relaxed: they are its minima already, as given.

        Otherwise each is relaxed first, as `relax` does; those that fail or do not converge are in `rejects`.
        Raises ValueError where no crystal is left.
        """
        crystals = crystals_of(crystals)
        formulas = [c.structure.composition.formula.replace(" ", "") for c in crystals]
        if relaxed:
            found = potential([c.atoms for c in crystals])
            found = [(e.energy / len(c), e.reason) for c, e in zip(crystals, found, strict=True)]
        else:
            found = [(r.energy_per_atom, r.reason) for r in relax(crystals, potential, fmax, steps)]
        kept = [(f, e) for f, (e, reason) in zip(formulas, found, strict=True) if reason is None]
        rejects = tuple((f, reason) for f, (_, reason) in zip(formulas, found, strict=True) if reason is not None)
        if not kept:
            raise ValueError(f"the potential gave no energy of any of the {len(crystals)} crystals: {rejects[:3]}")
        return cls(*map(tuple, zip(*kept, strict=True)), rejects)

    @cached_property
    def elements(self) -> frozenset[str]:
        """Those that have a phase of their own here."""
        return frozenset(c.elements[0].symbol for c in self._compositions if len(c.elements) == 1)

    @cached_property
    def _compositions(self) -> list:
        from pymatgen.core import Composition

        return [Composition(f) for f in self.formulas]

    @cached_property
    def _hulls(self) -> dict[frozenset[str], PhaseDiagram]:
        return {}  # by chemical system: a hull of all elements at once would not end

    def _hull(self, symbols: frozenset[str]) -> PhaseDiagram:
        from pymatgen.analysis.phase_diagram import PDEntry, PhaseDiagram

        if symbols not in self._hulls:
            phases = zip(self._compositions, self.energies, strict=True)
            self._hulls[symbols] = PhaseDiagram(
                [PDEntry(c, e * c.num_atoms) for c, e in phases if {x.symbol for x in c.elements} <= symbols]
            )
        return self._hulls[symbols]

    def above(self, formula: str, energy_per_atom: float) -> tuple[float, str | None]:
        """(energy above the hull of the known phases in eV an atom, None), or (NaN, why there is none).

        Negative below the hull. There is none where an element of the formula has no phase of its own here.
        """
        from pymatgen.core import Composition

        composition = Composition(formula)
        symbols = frozenset(e.symbol for e in composition.elements)
        missing = sorted(symbols - self.elements, key=ELEMENTS.index)
        if missing:
            return np.nan, f"the reference has no phase of {', '.join(missing)} alone"
        if not np.isfinite(energy_per_atom):
            return np.nan, "no energy"
        return float(energy_per_atom - self._hull(symbols).get_hull_energy_per_atom(composition)), None


def crystals_of(source: Known) -> list[Crystal]:
    """Crystals, read with read_crystals where a path is given. Raises ValueError where there is none."""
    crystals = list(read_crystals(source).crystals if isinstance(source, str | Path) else source)
    if not crystals:
        raise ValueError("no known crystal to compare with: give a path for read_crystals, or crystals")
    return crystals


def measures(crystals: Sequence[Crystal]) -> pd.DataFrame:
    """The columns formula, sites, volume, density, valid and reason."""
    reasons = [structure_fault(cell(c)) for c in crystals]
    columns = {
        "formula": [c.formula for c in crystals],
        "sites": [len(c) for c in crystals],
        "volume": [c.volume for c in crystals],
        "density": [c.density for c in crystals],
        "valid": [r is None for r in reasons],
        "reason": pd.Series(reasons, dtype="object"),
    }
    return pd.DataFrame(columns)


def smact(crystals: Sequence[Crystal], workers: int = 2) -> pd.DataFrame:
    """Columns smact (is some choice of oxidation states neutral, with sensible electronegativities?) and smact_reason.

    The rule is that of unisci.metrics.crystal_validity. Raises ImportError where smact is not installed.
    """
    try:
        import smact as _
    except ImportError as error:
        raise ImportError(ABSENT.format("smact")) from error
    with Workers(workers, prepare=prepare) as pool:
        _, reasons = faults([cell(c) for c in crystals], pool)
    return pd.DataFrame({"smact": [r is None for r in reasons], "smact_reason": pd.Series(reasons, dtype="object")})


def novel(crystals: Sequence[Crystal], known: Known, workers: int = 2) -> np.ndarray:
    """(n,) bool: StructureMatcher takes the crystal for none of the known ones of its formula. A comparison that fails
    or takes over 10 seconds counts as different."""
    reference = cells(crystals_of(known), "known")
    with Workers(workers, prepare=prepare) as pool:
        seen, _ = known_cells(cells(crystals, "crystals"), reference, pool)
    return ~seen


def above(reference: Reference, formulas: Sequence[str], energies: Sequence[float]) -> pd.DataFrame:
    """Columns energy_above_reference (eV an atom, NaN where there is none) and above_reason."""
    found = [reference.above(f, e) for f, e in zip(formulas, energies, strict=True)]
    values, reasons = zip(*found, strict=True) if found else ((), ())
    return pd.DataFrame(
        {"energy_above_reference": np.array(values, float), "above_reason": pd.Series(reasons, dtype="object")}
    )


def standardised(crystals: Sequence[Crystal], symprec: float) -> tuple[list[Crystal], pd.DataFrame]:
    """The conventional cells of the space groups found within symprec (A), and columns spacegroup, spacegroup_symbol,
    symprec, symmetrize_reason. Raises ValueError where symprec <= 0."""
    out, rows = [], []
    for c in crystals:
        try:
            standard, number, symbol = standardized(c, symprec)
            rows.append((number, symbol, None))
        except CrystalError as error:
            standard = c
            rows.append((None, None, str(error)))
        out.append(standard)
    types = {"spacegroup": "Int64", "spacegroup_symbol": "str", "symmetrize_reason": "object"}
    columns = {name: pd.Series([row[k] for row in rows], dtype=types[name]) for k, name in enumerate(types)}
    return out, pd.DataFrame(columns | {"symprec": pd.Series(float(symprec), index=range(len(out)))})


def ranks(table: pd.DataFrame, by: str | None, largest: bool | None) -> tuple[list[int], pd.Series]:
    """Row numbers in the order of a column, and each row's place within its composition, from 1 on (none without a
    value): see CrystalSamples.rank. Raises ValueError where there is no such column."""
    defaults = ("energy_above_reference", "energy_per_atom", "score")
    if by is None:
        by = next((c for c in defaults if c in table), None)
    if by is None or by not in table:
        raise ValueError(f"no column {by or ' or '.join(defaults)} to rank by: call relax or score first, or name one")
    largest = by == "score" if largest is None else largest
    values = table[by].astype("float64") * (-1 if largest else 1)
    keys = pd.DataFrame({"formula": pd.factorize(table["formula"])[0], "value": values})
    order = keys.sort_values(["formula", "value"] if by == "energy_per_atom" else "value", kind="stable").index
    place = keys.loc[order].groupby("formula").cumcount() + 1
    return order.tolist(), place.reindex(keys.index).astype("Int64").mask(values.isna())
