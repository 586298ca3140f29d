"""Wants of properties, joined by `&` with others (`unisci.design.atoms`):

    Between("logp", 1, 2) & Target("tpsa", 40, tolerance=5) & Maximize("qed", temperature=0.05)
    Above(f, 3)                                    f(list of Molecule) -> values: any Python function of yours

A property is a name (see `unisci.design.properties`), or one that a model of properties knows, or a function of a list
of valid molecules to as many values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from unisci.design.properties import Property, measure, name_of, same
from unisci.design.wants import Want, both
from unisci.domains.molecule import Molecule


@dataclass(frozen=True)
class Interval(Want):
    """low <= property <= high, both ends included. Raises ValueError for an empty interval or NaN."""

    property: str | Property
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        name_of(self.property)
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"no value of {self.name} lies in {self.low:g}..{self.high:g}")

    @property
    def name(self) -> str:
        """The property's, in lower case, or its function's."""
        return name_of(self.property)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        """In the property's unit."""
        values = measure(self.property, molecules)
        return np.maximum(np.maximum(self.low - values, values - self.high), 0.0)

    def clash(self, other: Want) -> str | None:
        if not isinstance(other, Interval | Maximize) or not same(self.property, other.property):
            return None
        apart = isinstance(other, Interval) and max(self.low, other.low) > min(self.high, other.high)
        return both(self, other) if apart else None

    def __str__(self) -> str:
        if self.low == -math.inf:
            return f"{self.name} <= {self.high:g}"
        return f"{self.name} >= {self.low:g}" if self.high == math.inf else f"{self.name} {self.low:g}..{self.high:g}"


def Between(prop: str | Property, low: float, high: float) -> Interval:
    """low <= property <= high."""
    return Interval(prop, low, high)


def Below(prop: str | Property, value: float) -> Interval:
    """property <= value."""
    return Interval(prop, high=value)


def Above(prop: str | Property, value: float) -> Interval:
    """property >= value."""
    return Interval(prop, low=value)


def Target(prop: str | Property, value: float, tolerance: float) -> Interval:
    """value - tolerance <= property <= value + tolerance. Raises ValueError where the tolerance is negative."""
    if not tolerance >= 0:
        raise ValueError(f"a tolerance is 0 or more, got {tolerance}")
    return Interval(prop, value - tolerance, value + tolerance)


@dataclass(frozen=True)
class Maximize(Want):
    """The larger the property the better: molecules are weighed by exp(value / temperature), in the property's unit.

    It is met by every valid molecule. Raises ValueError where temperature <= 0.
    """

    property: str | Property
    temperature: float

    def __post_init__(self) -> None:
        name_of(self.property)
        if not self.temperature > 0:
            raise ValueError(f"a temperature is positive, got {self.temperature}")

    @property
    def name(self) -> str:
        return name_of(self.property)

    def gap(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return np.where(np.isnan(self.values(molecules)), np.nan, 0.0)

    def values(self, molecules: Sequence[Molecule]) -> np.ndarray:
        return measure(self.property, molecules)

    def clash(self, other: Want) -> str | None:
        if isinstance(other, Interval | Maximize):
            same(self.property, other.property)
        return None

    def __str__(self) -> str:
        return f"large {self.name}"
