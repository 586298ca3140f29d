"""Properties of crystals by name, for wants such as Between("density", 2, 4)."""

from collections.abc import Callable

from unisci.domains.crystal import Crystal

VALUES: dict[str, Callable[[Crystal], float]] = {
    "density": lambda c: c.density,  # g/cm^3
    "volume": lambda c: c.volume / len(c),  # cubic angstrom a site
    "sites": lambda c: float(len(c)),  # of the primitive cell
    "species": lambda c: float(len(set(c.numbers.tolist()))),
}
