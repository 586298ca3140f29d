"""Wants of crystals: which of two samples is nearer to them, and what the table says. See `unisci.design.targets`."""

from dataclasses import replace

import numpy as np

from unisci.design.crystal_properties import VALUES
from unisci.design.crystal_samples import OWN, CrystalSamples
from unisci.design.properties import measure
from unisci.design.targets import Interval, Maximize
from unisci.design.wants import Wants


def check_wants(where: Wants) -> Wants:
    """The wants. Raises ValueError for one that is no range or maximum of a property of crystals."""
    for want in where.parts:
        if not isinstance(want, Interval | Maximize):
            raise ValueError(f"{want} is wanted of molecules: of crystals Between, Above, Below, Target and Maximize")
        if isinstance(want.property, str) and want.name not in VALUES:
            raise ValueError(f"{want.name!r} is no property of crystals; known are {', '.join(VALUES)}; or a function")
    return where


def distance(where: Wants, samples: CrystalSamples) -> np.ndarray:
    """(n,): how far each sample is from what is wanted, inf where it is invalid: the gaps over their ranges' sizes,
    less what is to be large over its temperature."""
    total = np.where(samples.table["valid"], 0.0, np.inf)
    for want in where.parts:
        if isinstance(want, Interval):
            ends = [abs(x) for x in (want.low, want.high) if np.isfinite(x)]
            gap = want.gap(list(samples)) / max([1e-9, *ends])
            total = total + np.where(np.isnan(gap), np.inf, gap + (gap > 0))  # one more unmet is worse than any gap
        else:
            value = want.values(list(samples)) / want.temperature
            total = total - np.where(np.isnan(value), -np.inf, value)
    return total


def better(where: Wants, a: CrystalSamples, b: CrystalSamples) -> CrystalSamples:
    """Of each pair of samples the one that is nearer to what is wanted, the first of equals."""
    take = distance(where, b) < distance(where, a)
    both = CrystalSamples.join([a, b])
    return both.keep([len(a) + i if t else i for i, t in enumerate(take)])


def with_wants(samples: CrystalSamples, where: Wants) -> CrystalSamples:
    """The samples with columns: the wanted properties, "meets <want>" for each, and "meets" for all at once."""
    table, crystals = samples.table.copy(), list(samples)
    for want in where.parts:
        table[f"{want.name} value" if want.name in OWN else want.name] = measure(want.property, crystals)
        table[f"meets {want}"] = (want.gap(crystals) == 0) & table["valid"].to_numpy(bool)
    table["meets"] = table[[f"meets {want}" for want in where.parts]].all(axis=1)
    return replace(samples, table=table)
