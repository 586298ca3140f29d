"""The table of samples, one row each: what its columns say, and the shares of rows that meet what was wanted."""

from collections.abc import Sequence

import pandas as pd

from unisci.design.properties import measure
from unisci.design.targets import Interval, Maximize
from unisci.design.wants import Wants
from unisci.domains.molecule import Molecule
from unisci.metrics.intervals import proportion

OWN = ("id", "smiles", "valid", "reason", "seconds", "model", "seed", "atoms", "bonds")  # what a sample is


def with_met(table: pd.DataFrame, molecules: Sequence[Molecule], where: Wants) -> pd.DataFrame:
    """The table of these molecules with the values of the wants' properties, "meets <want>" for each, and "meets" for
    all at once. A property that RDKit cannot measure is the prediction of a model, and its columns say so: see
    `unisci.design.predicted`."""
    table = table.copy()
    for want in where.parts:
        if isinstance(want, Interval | Maximize):
            table[f"{want.name} value" if want.name in OWN else want.name] = measure(want.property, molecules)
        table[f"meets {want}"] = (want.gap(molecules) == 0) & table["valid"].to_numpy(bool)
    table["meets"] = table[[f"meets {want}" for want in where.parts]].all(axis=1)
    return table


def met_columns(columns: Sequence[str]) -> list[str]:
    """Those of the columns that say what is met."""
    return [c for c in columns if c == "meets" or c.startswith("meets ")]


def hit_rates(table: pd.DataFrame) -> pd.DataFrame:
    """The share of all rows, invalid ones included, that meets each want, and all of them at once, with its 95 %
    interval. Raises ValueError where nothing was wanted."""
    names, rows, n = met_columns(table.columns), [], len(table)
    if not names:
        raise ValueError("these samples were drawn without wants: call meets(where) first")
    for name in names:
        hits = int(table[name].sum())
        low, high = proportion(hits, n)
        rows.append((name.removeprefix("meets").strip() or "all", hits / n, low, high, n))
    return pd.DataFrame(rows, columns=["want", "share", "low", "high", "n"])
