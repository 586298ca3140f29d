"""What a scenario may state of a horizon, in the user's units: values, totals, means, extremes and limits.

    At                        a known entry, beside those of the past
    Total, Mean               A y + noise of standard deviation `tolerance`, A linear: exact where data are Gaussian
    Highest, Lowest           the same with A the extreme; that of the estimate, so that rare values are not quite met
    Below, Above              log h = sum over steps log Phi((limit - D) / sqrt(tolerance^2 + r^2)): `limits.py`

Statements measured by one number each are one `Observation`, so that their joint law is exact, not only each alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unisci.forecasting.limits import Limit
from unisci.forecasting.prompts import values
from unisci.forecasting.scales import Scaled
from unisci.forecasting.windows import WindowShape
from unisci.guidance.observation import Covariance, Isotropic, Jacobian, Observation
from unisci.guidance.terms import Term, guided
from unisci.solvers.sample import Denoise


@dataclass(frozen=True)
class At:
    """The value at a step of the horizon, 0 the first. channel: its name, None where there is only one. Raises
    ValueError where the value is not finite."""

    step: int
    value: float
    channel: str | None = None

    def __post_init__(self) -> None:
        _check_finite(self, self.value)


@dataclass(frozen=True)
class Measured:
    """A number that steps first..last of the horizon, the last of all where None, have: value, give or take a tolerance
    (a standard deviation, or for limits the width of their edge). Raises ValueError where the value is not finite or
    the tolerance not positive."""

    value: float
    tolerance: float
    channel: str | None = None
    first: int = 0
    last: int | None = None

    def __post_init__(self) -> None:
        _check_finite(self, self.value)
        if not 0 < self.tolerance < math.inf:
            raise ValueError(
                f"{type(self).__name__} needs a tolerance > 0, in units of the series, got {self.tolerance}"
            )

    def measure(self, y: Tensor) -> Tensor:
        """(B,) of the steps y (B, n)."""
        raise NotImplementedError(f"{type(self).__name__} measures no number")


class Total(Measured):
    """The sum of the steps."""

    def measure(self, y: Tensor) -> Tensor:
        return y.sum(1)


class Mean(Measured):
    """The mean of the steps."""

    def measure(self, y: Tensor) -> Tensor:
        return y.mean(1)


class Highest(Measured):
    """The highest of the steps."""

    def measure(self, y: Tensor) -> Tensor:
        return y.amax(1)


class Lowest(Measured):
    """The lowest of the steps."""

    def measure(self, y: Tensor) -> Tensor:
        return y.amin(1)


class Below(Measured):
    """All steps are below the value."""

    sign: ClassVar[int] = 1


class Above(Measured):
    """All steps are above the value."""

    sign: ClassVar[int] = -1


Scenario = At | Total | Mean | Highest | Lowest | Below | Above


def known_entries(
    scenarios: Sequence[Scenario],
    shape: WindowShape,
    y: Tensor,
    known: Tensor,
    channels: Sequence[str] | None = None,
    steps: int | None = None,
) -> tuple[Tensor, Tensor]:
    """y and known, both (B, N), with the values of each `At`, in units of y. What sets the scale stays the past.

    channels: their C names, "0", "1" and so on where None. steps: of the horizon that are asked for, all where None.
    Raises ValueError for a step outside it, an unknown channel, and a step that is stated twice.
    """
    y, known = y.clone(), known.clone()
    stated = set()
    for one in scenarios:
        if isinstance(one, At):
            (site,) = _sites(one, one.step, one.step, shape, channels, steps)
            if site in stated:
                raise ValueError(f"{one} states a step that another At states already")
            stated.add(site)
            y[:, site], known[:, site] = one.value, True
    return y, known


def terms(
    scenarios: Sequence[Scenario],
    shape: WindowShape,
    units: Scaled,
    channels: Sequence[str] | None = None,
    steps: int | None = None,
) -> tuple[Term, ...]:
    """The terms of guidance, for `guided`, of all scenarios but `At`: windows in `units` (B, N), inside or outside of
    `Prompted`. channels, steps and errors as of `known_entries`."""
    found: list[Term] = []
    measured = [(one, _range(one, shape, channels, steps)) for one in scenarios if not isinstance(one, At)]
    limits = [(one, sites) for one, sites in measured if isinstance(one, Below | Above)]
    numbers = [(one, sites) for one, sites in measured if not isinstance(one, Below | Above)]
    # A learned Jacobian is rough where the highest step changes from one to another; entries taken to be independent
    # are not exact, but do not diverge.
    extremes = [(one, sites) for one, sites in numbers if isinstance(one, Highest | Lowest)]
    sums = [(one, sites) for one, sites in numbers if not isinstance(one, Highest | Lowest)]
    for part, covariance in ((sums, Jacobian()), (extremes, Isotropic(through_model=False))):
        if part:
            found.append(_observed(part, units, covariance))
    found += [
        Limit(units=units, sites=sites, value=one.value, tolerance=one.tolerance, sign=one.sign)
        for one, sites in limits
    ]
    return tuple(found)


def _observed(numbers: Sequence[tuple[Measured, Tensor]], units: Scaled, covariance: Covariance) -> Observation:
    """All numbers as one observation. In units of its tolerance each weighs the same in the conjugate gradients: M
    steps solve M numbers."""
    ask = lambda x: [one.measure(units.back(values(x))[:, sites]) / one.tolerance for one, sites in numbers]
    y = torch.tensor([one.value / one.tolerance for one, _ in numbers], dtype=torch.float64)
    operator = lambda x: torch.stack(ask(x), 1)
    return Observation(operator=operator, y=y, sigma_y=1.0, covariance=covariance, iterations=2 * len(numbers) - 1)


def guide_by(
    scenarios: Sequence[Scenario],
    shape: WindowShape,
    channels: Sequence[str] | None = None,
    steps: int | None = None,
) -> Callable[[Denoise, Scaled], Denoise]:
    """The same as `guide` of `WindowModel.complete` takes it."""
    return lambda denoise, units: guided(denoise, *terms(scenarios, shape, units, channels, steps))


def _check_finite(one: Scenario, value: float) -> None:
    if not math.isfinite(value):
        raise ValueError(f"{type(one).__name__} needs a finite value, got {value}")


def _range(one: Measured, shape: WindowShape, channels: Sequence[str] | None, steps: int | None) -> Tensor:
    last = (shape.horizon if steps is None else steps) - 1 if one.last is None else one.last
    return torch.tensor(_sites(one, one.first, last, shape, channels, steps))


def _sites(
    one: Scenario, first: int, last: int, shape: WindowShape, channels: Sequence[str] | None, steps: int | None
) -> list[int]:
    """The sites of steps first..last of the horizon."""
    steps = shape.horizon if steps is None else steps
    channels = [str(c) for c in range(shape.channels)] if channels is None else list(channels)
    if not 0 <= first <= last < steps:
        raise ValueError(f"{one}: steps {first} to {last} are not in the horizon, whose steps are 0 to {steps - 1}")
    if one.channel is None and len(channels) > 1:
        raise ValueError(f"{one}: name the channel, one of {channels}")
    if one.channel is not None and one.channel not in channels:
        raise ValueError(f"{one}: no channel is named {one.channel!r}; there are {channels}")
    begin = (0 if one.channel is None else channels.index(one.channel)) * shape.length + shape.context
    return list(range(begin + first, begin + last + 1))
