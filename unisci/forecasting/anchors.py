"""What an entry of a window is expected to be before a network has seen it, and how far off that is: the known value
at the lag l that changes least, of the lags that reach beyond the nearest known entry,

    a_i = x_{i-l},   r_i^2 = D(l) = mean (x_t - x_{t-l})^2,   l = argmin {D(k) : k >= i - last known entry}

D is the structure function of Kolmogorov (1941), the variogram of geostatistics. What is diffused is (x - a) / r. The
anchor of a random walk is its last value, and r grows as the root of the time since; that of a seasonal series is one
season ago, of noise the mean. Entries before a known one look ahead alike, and take the closer of the two sides.

Lags are chosen by D of the whole series: of one window's alone the least of many is least by chance. r is the window's.
"""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

LAGS = 1024  # of a whole series
LEAST = 4  # pairs of values, of which D may be the mean
POOL = 24.0  # pairs of a window that weigh as much as its whole series, and as a scale of 1
SMALLEST, LARGEST = 0.01, 2.0  # r, in units of the window
FAR = 10.0  # the largest change that a network is told


class Anchors(NamedTuple):
    """value a, spread r and change (..., L): how far, in r, the nearest known entry was from what this lag said of it.
    0, 1 and 0 where an entry is known, or nothing is."""

    value: Tensor
    spread: Tensor
    change: Tensor


class _Side(NamedTuple):
    """Of each entry, looking back: a, D of its lag by the series and by the window, the last known value x, and what
    the lag said of that, x itself where it said nothing."""

    value: Tensor
    cost: Tensor
    square: Tensor
    last: Tensor
    said: Tensor

    def flip(self) -> "_Side":
        return _Side(*(v.flip(-1) for v in self))


def structure(x: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """D (..., L) at the lags 0 to L - 1 of the entries `known` of x (..., L), 0 where there are no pairs of them, and
    how many pairs there are. Float64. x is near 0: far from it, squares lose digits."""
    length, n = x.shape[-1], 2 * x.shape[-1]
    x = torch.where(known, x.double(), 0.0)
    one, first, second = (torch.fft.rfft(v, n) for v in (known.double(), x, x * x))
    pairs = torch.fft.irfft(one.abs().square(), n)[..., :length].round()
    total = torch.fft.irfft(2 * (one.conj() * second).real - 2 * first.abs().square(), n)[..., :length]
    return total.clamp(min=0) / pairs.clamp(min=1), pairs


def series_structure(y: np.ndarray) -> Tensor:
    """D (C, LAGS) of a series y (T, C), nan where missing: larger the fewer its pairs are, inf where too few."""
    values = torch.from_numpy(y.T.copy())
    known = ~values.isnan()
    d, pairs = structure(values - _mean(values, known), known)
    d = torch.where(pairs >= LEAST, d * (1 + POOL / pairs.clamp(min=1)), torch.inf)[:, :LAGS]
    return F.pad(d, (0, LAGS - d.shape[1]), value=torch.inf)


def anchors(x: Tensor, known: Tensor, whole: Tensor) -> Anchors:
    """Anchors of windows x (..., L) in units of their known entries (..., L) bool. whole (..., L): D of their series,
    in the same units."""
    count, mean = known.sum(-1, keepdim=True), _mean(x, known)
    d, pairs = structure(x - mean, known)
    square = (pairs * d + POOL * whole) / (pairs + POOL)
    back = _look_back(x, known, whole, square)
    ahead = _look_back(x.flip(-1), known.flip(-1), whole, square).flip()
    side = _Side(*(torch.where(ahead.cost < back.cost, a, b) for a, b in zip(ahead, back, strict=True)))
    about_mean = (count * _mean((x - mean).square(), known) + POOL) / (count + POOL)
    lagged, free = side.square < about_mean, known | (count == 0)
    r = torch.minimum(side.square, about_mean).sqrt().clamp(SMALLEST, LARGEST)
    value, said = torch.where(lagged, side.value, mean), torch.where(lagged, side.said, mean)
    change = ((side.last - said) / r).clamp(-FAR, FAR)
    return Anchors(torch.where(free, 0.0, value), torch.where(free, 1.0, r), torch.where(free, 0.0, change))


def _look_back(x: Tensor, known: Tensor, whole: Tensor, square: Tensor) -> _Side:
    """The side of what comes before each entry; the cost is inf where nothing does."""
    length = x.shape[-1]
    i = torch.arange(length, device=x.device)
    last = torch.where(known, i, -1).cummax(-1).values
    begun = last >= 0
    best = length - 1 - whole.flip(-1).cummin(-1).indices  # of all lags from one on, the last of equals
    lag = best.flip(-1).gather(-1, i - last.clamp(min=0))
    # Where the best lag meets no known entry, the nearest one stands.
    lag = torch.where(_at(known, i - lag), lag, i - last.clamp(min=0))
    value, newest = _at(x, i - lag), _at(x, last)
    said = torch.where(_at(known, last - lag), _at(x, last - lag), newest)
    cost, own = (torch.where(begun, v.gather(-1, lag), torch.inf) for v in (whole, square))
    return _Side(value, cost, own, newest, said)


def _at(v: Tensor, place: Tensor) -> Tensor:
    """v (..., L) at places (..., L), 0 or False where a place is negative."""
    return torch.where(place >= 0, v.gather(-1, place.clamp(min=0)), torch.zeros_like(v))


def _mean(v: Tensor, known: Tensor) -> Tensor:
    """Of the known entries along the last axis, (..., 1); 0 where there are none."""
    return torch.where(known, v, 0.0).sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
