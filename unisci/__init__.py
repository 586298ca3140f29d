"""unisci: generate molecules and crystals by permutation-invariant autoregressive diffusion, and forecast time series.

designer = unisci.load("molecules-qm9")
samples = designer.generate(1000, seed=0)

forecaster = unisci.Forecaster(horizon=24).fit(df, freq="h")
forecast = forecaster.predict(24)
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
    from unisci.domains.series_frames import melt_wide, read_frame
    from unisci.forecasting.forecast import Forecast
    from unisci.forecasting.forecaster import Forecaster
    from unisci.forecasting.scenarios import At, Highest, Lowest, Mean, Total
    from unisci.jobs.models import load, save, shipped
    from unisci.order import Order, structural_order
    from unisci.rng import Rng
    from unisci.solvers.sample import Together, sample

_HOMES = {
    "Above": "design.targets",
    "At": "forecasting.scenarios",
    "Batch": "batch",
    "Below": "design.targets",
    "Between": "design.targets",
    "Composition": "design.atoms",
    "Contains": "design.atoms",
    "Designer": "design.designer",
    "Field": "batch",
    "Forecast": "forecasting.forecast",
    "Forecaster": "forecasting.forecaster",
    "Formula": "design.atoms",
    "Highest": "forecasting.scenarios",
    "Keep": "design.atoms",
    "Lowest": "forecasting.scenarios",
    "Maximize": "design.targets",
    "Mean": "forecasting.scenarios",
    "Molecule": "domains.molecule",
    "Order": "order",
    "Pard": "autoregression.pard",
    "Rng": "rng",
    "Samples": "design.samples",
    "Target": "design.targets",
    "Together": "solvers.sample",
    "Total": "forecasting.scenarios",
    "Without": "design.atoms",
    "generate": "autoregression.generate",
    "load": "jobs.models",
    "melt_wide": "domains.series_frames",
    "read_frame": "domains.series_frames",
    "sample": "solvers.sample",
    "save": "jobs.models",
    "shipped": "jobs.models",
    "structural_order": "order",
}

__all__ = [
    "Above",
    "At",
    "Batch",
    "Below",
    "Between",
    "Composition",
    "Contains",
    "Designer",
    "Field",
    "Forecast",
    "Forecaster",
    "Formula",
    "Highest",
    "Keep",
    "Lowest",
    "Maximize",
    "Mean",
    "Molecule",
    "Order",
    "Pard",
    "Rng",
    "Samples",
    "Target",
    "Together",
    "Total",
    "Without",
    "generate",
    "load",
    "melt_wide",
    "read_frame",
    "sample",
    "save",
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
