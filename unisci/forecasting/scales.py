"""Windows in units of what is known before the origin (or wherever something is known, where gaps are filled):

    x = (y - last) / s,    s = max(standard deviation of the known values, FLOOR spread)

for each window and channel, last the last known value, spread the standard deviation of the whole series. So a forecast
of a y + b is a times the forecast of y, plus b (a > 0), and the level of a random walk is where it was last seen.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from unisci.forecasting.anchors import Anchors
from unisci.forecasting.prompts import normalise

FLOOR = 0.1  # of the series's own spread, below which a quiet history does not push the scale


class Scaled(NamedTuple):
    """Windows (B, N) float32 in units of their histories; loc and scale (B, C, 1 or L) float64 lead back, to within
    `bounds` (B, C, 2) where there are any."""

    x: Tensor
    loc: Tensor
    scale: Tensor
    bounds: Tensor | None = None

    def back(self, x: Tensor) -> Tensor:
        """x (B, N) in the units of y, float64. Gradients go through the bounds, so that what is guided is pushed on
        beyond them."""
        c = self.loc.shape[1]
        y = x.double().unflatten(1, (c, -1)) * self.scale + self.loc
        if self.bounds is not None:
            y = y.detach().clamp(self.bounds[..., :1], self.bounds[..., 1:]) + (y - y.detach())
        return y.flatten(1)


def scaled(y: Tensor, basis: Tensor, spread: Tensor) -> Scaled:
    """y (B, N) by the entries `basis` (B, N) bool; spread (B, C): of the whole series. Entries outside 1e3 scales,
    which only a broken history has, are cut off there."""
    c = spread.shape[1]
    y, basis = y.unflatten(1, (c, -1)), basis.unflatten(1, (c, -1))
    mean, deviation = normalise(y, basis)
    at = torch.where(basis, torch.arange(y.shape[-1], device=y.device), -1).amax(-1, keepdim=True)
    last = torch.where(at >= 0, y.gather(-1, at.clamp(min=0)), mean)
    scale = torch.maximum(deviation, FLOOR * spread[..., None])
    return Scaled(((y - last) / scale).clamp(-1e3, 1e3).flatten(1).float(), last, scale)


def about(units: Scaled, found: Anchors) -> tuple[Scaled, Tensor]:
    """Windows whose entries count from their anchors (B, C, L) in units of the spread, and the anchors (B, N, 3): value
    and log spread in the old units, change."""
    loc, scale = units.loc + units.scale * found.value, units.scale * found.spread
    x = units.x.unflatten(1, (units.loc.shape[1], -1))
    x = ((x - found.value) / found.spread).clamp(-1e3, 1e3).flatten(1).float()
    told = torch.stack([found.value, found.spread.log(), found.change], -1)
    return units._replace(x=x, loc=loc, scale=scale), told.flatten(1, 2).float()
