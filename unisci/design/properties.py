"""Properties of molecules by name, or by any function of yours: what targets, scores and property models speak of."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors

from unisci.domains.molecule import Molecule
from unisci.metrics.descriptors import VALUES

# Of valid molecules to as many values.
Property = Callable[[list[Molecule]], Sequence[float]]


@cache
def known() -> dict[str, Callable[[Chem.Mol], float]]:
    """Every property with a name, in lower case: qed, logp, sa, mass (g/mol), and RDKit's descriptors."""
    return {name.lower(): f for name, f in Descriptors.descList} | VALUES | {"mass": Descriptors.MolWt}


def named(name: str) -> Callable[[Chem.Mol], float]:
    """The function of a name, upper and lower case alike. Raises ValueError for an unknown one, with what is near."""
    found = known().get(name.lower())
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), known(), 3) or ["qed", "logp", "sa", "mass"]
        raise ValueError(f"unknown property {name!r}; near are {', '.join(near)}; or pass a function of molecules")
    return found


def name_of(prop: str | Property) -> str:
    """A property's name in lower case, or its function's. Raises ValueError for an unknown one, and what is neither."""
    if isinstance(prop, str):
        named(prop)
        return prop.lower()
    if not callable(prop):
        raise ValueError(f"a property is a name or a function of molecules, got {prop!r}")
    return getattr(prop, "__name__", type(prop).__name__)


def same(a: str | Property, b: str | Property) -> bool:
    """Whether two are one property. Raises ValueError where they are not, but have one name."""
    name = name_of(a)
    if name != name_of(b):
        return False
    if a != b and not (isinstance(a, str) and isinstance(b, str)):
        raise ValueError(f"two properties have the name {name!r}: give your function another one")
    return True


def measure(prop: str | Property, molecules: Sequence[Molecule]) -> np.ndarray:
    """The values (n,) of a property, NaN where a molecule is invalid or RDKit cannot tell. Raises ValueError where your
    function gives another number of values, or anything but numbers."""
    rows = [i for i, m in enumerate(molecules) if m.reason is None]
    valid = [molecules[i] for i in rows]
    out = np.full(len(molecules), np.nan)
    if not valid:
        return out
    if isinstance(prop, str):
        f = named(prop)
        out[rows] = [f(m.rdkit) for m in valid]
        return out
    values = np.asarray(prop(valid), float)
    if values.shape != (len(valid),):
        raise ValueError(f"the property function gave shape {values.shape} for {len(valid)} molecules")
    out[rows] = values
    return out
