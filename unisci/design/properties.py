"""Properties of molecules and crystals by name, or by any function of yours: what targets, scores and property models
speak of."""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
from rdkit import Chem
from rdkit.Chem import Descriptors

from unisci.design import crystal_properties
from unisci.domains.crystal import Crystal
from unisci.domains.molecule import Molecule
from unisci.metrics.descriptors import VALUES

# Of valid molecules, or of crystals, to as many values.
Property = Callable[[list[Molecule]], Sequence[float]] | Callable[[list[Crystal]], Sequence[float]]


@cache
def known() -> dict[str, Callable[[Chem.Mol], float]]:
    """Every property with a name, in lower case: qed, logp, sa, mass (g/mol), and RDKit's descriptors."""
    return {name.lower(): f for name, f in Descriptors.descList} | VALUES | {"mass": Descriptors.MolWt}


def named(name: str) -> Callable[[Chem.Mol], float]:
    """The function of a name, upper and lower case alike. Raises ValueError for an unknown one, with what is near."""
    found = known().get(name.lower())
    if found is None and name.lower() in crystal_properties.VALUES:
        raise ValueError(f"{name!r} is a property of crystals, not of molecules")
    if found is None:
        from difflib import get_close_matches

        near = get_close_matches(name.lower(), known(), 3) or ["qed", "logp", "sa", "mass"]
        raise ValueError(
            f"unknown property {name!r}; near are {', '.join(near)}; or pass a function of molecules, or a model of "
            "properties that knows it"
        )
    return found


def name_of(prop: str | Property) -> str:
    """A property's name in lower case, or its function's. Raises ValueError for what is neither. Who knows the name,
    RDKit or a model of properties, is asked where it is measured or steered by."""
    if isinstance(prop, str):
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


def measure(prop: str | Property, objects: Sequence[Molecule] | Sequence[Crystal]) -> np.ndarray:
    """The values (n,) of a property, NaN where a molecule is invalid or RDKit cannot tell. Raises ValueError where your
    function gives another number of values, or anything but numbers."""
    rows = [i for i, x in enumerate(objects) if getattr(x, "reason", None) is None]
    valid = [objects[i] for i in rows]
    out = np.full(len(objects), np.nan)
    if not valid:
        return out
    if isinstance(prop, str):
        f = _named_crystal(prop) if isinstance(valid[0], Crystal) else named(prop)
        out[rows] = [f(x if isinstance(x, Crystal) else x.rdkit) for x in valid]
        return out
    values = np.asarray(prop(valid), float)
    if values.shape != (len(valid),):
        kind = "crystals" if isinstance(valid[0], Crystal) else "molecules"
        raise ValueError(f"the property function gave shape {values.shape} for {len(valid)} {kind}")
    out[rows] = values
    return out


def _named_crystal(name: str) -> Callable[[Crystal], float]:
    found = crystal_properties.VALUES.get(name.lower())
    if found is None:
        known = ", ".join(crystal_properties.VALUES)
        raise ValueError(f"{name!r} is no property of crystals; known are {known}; or pass a function of crystals")
    return found
