"""unisci: generate molecules by permutation-invariant autoregressive diffusion.

designer = unisci.load("molecules-qm9")
samples = designer.generate(1000, seed=0)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from unisci.autoregression.generate import generate
    from unisci.autoregression.pard import Pard
    from unisci.batch import Batch, Field
    from unisci.design.atoms import Composition, Contains, Formula, Keep, Without
    from unisci.design.designer import Designer
    from unisci.design.samples import Samples
    from unisci.design.targets import Above, Below, Between, Maximize, Target
    from unisci.domains.molecule import Molecule
    from unisci.jobs.models import load, shipped
    from unisci.order import Order, structural_order
    from unisci.rng import Rng
    from unisci.solvers.sample import Together, sample

_HOMES = {
    "Above": "design.targets",
    "Batch": "batch",
    "Below": "design.targets",
    "Between": "design.targets",
    "Composition": "design.atoms",
    "Contains": "design.atoms",
    "Designer": "design.designer",
    "Field": "batch",
    "Formula": "design.atoms",
    "Keep": "design.atoms",
    "Maximize": "design.targets",
    "Molecule": "domains.molecule",
    "Order": "order",
    "Pard": "autoregression.pard",
    "Rng": "rng",
    "Samples": "design.samples",
    "Target": "design.targets",
    "Together": "solvers.sample",
    "Without": "design.atoms",
    "generate": "autoregression.generate",
    "load": "jobs.models",
    "sample": "solvers.sample",
    "shipped": "jobs.models",
    "structural_order": "order",
}

__all__ = [
    "Above",
    "Batch",
    "Below",
    "Between",
    "Composition",
    "Contains",
    "Designer",
    "Field",
    "Formula",
    "Keep",
    "Maximize",
    "Molecule",
    "Order",
    "Pard",
    "Rng",
    "Samples",
    "Target",
    "Together",
    "Without",
    "generate",
    "load",
    "sample",
    "shipped",
    "structural_order",
]


def __getattr__(name: str) -> Any:
    # Names are imported at first use, so that `import unisci` costs next to nothing.
    if name not in _HOMES:
        raise AttributeError(f"module 'unisci' has no attribute {name!r}")
    return getattr(import_module(f"unisci.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
