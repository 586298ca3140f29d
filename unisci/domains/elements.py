"""How near two elements are in chemistry, from pymatgen's tables."""

from functools import cache

import numpy as np

# Divided by these, a step of 1 in any property is about as telling as in another.
SCALES = {"electronegativity": 0.5, "radius": 0.3, "group": 6.0, "row": 2.0, "mendeleev": 20.0}
UNKNOWN_ELECTRONEGATIVITY = 2.0  # noble gases, on Pauling's scale
UNKNOWN_RADIUS = 1.4  # angstrom


@cache
def element_features() -> np.ndarray:
    """(101, 5), row = atomic number (0 unused): Pauling electronegativity, atomic radius (angstrom), group, row and
    Mendeleev number of the elements, each over its entry of SCALES."""
    from pymatgen.core import Element

    out = np.zeros((101, len(SCALES)))
    for z in range(1, 101):
        e = Element.from_Z(z)
        radius = e.atomic_radius
        values = (
            e.data.get("Electronegativity", e.data.get("X")) or UNKNOWN_ELECTRONEGATIVITY,
            float(radius) if radius else UNKNOWN_RADIUS,
            e.group,
            e.row,
            e.mendeleev_no or 0,
        )
        out[z] = np.array(values, float) / np.array(list(SCALES.values()))
    return out


def radii() -> np.ndarray:
    """(101,): atomic radii in angstrom."""
    return element_features()[:, list(SCALES).index("radius")] * SCALES["radius"]


def distances() -> np.ndarray:
    """(101, 101): the L1 distance of every two elements' features."""
    f = element_features()
    return np.abs(f[:, None] - f[None]).sum(-1)
