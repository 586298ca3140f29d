"""Tracing: a formula run on linear forms writes the rows of a table (see `unisci.solvers.program`)."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.processes.gaussian import Gaussian, time
from unisci.solvers.level import Level, levels

SINGULAR = "this scheme is singular where alpha is 0; start the grid below 1, say at 0.999"


@dataclass(frozen=True)
class Form:
    """A linear form: coefficients by symbol, ("x", i) a point, ("clean", i) a denoiser output, ("noise", i) a draw."""

    terms: dict[tuple[str, int], float]

    def __add__(self, other: "Form") -> "Form":
        return Form({k: self.terms.get(k, 0.0) + other.terms.get(k, 0.0) for k in self.terms | other.terms})

    def __mul__(self, c: float) -> "Form":
        return Form({k: c * v for k, v in self.terms.items()})

    __rmul__ = __mul__

    def __sub__(self, other: "Form") -> "Form":
        return self + -1.0 * other

    def __truediv__(self, c: float) -> "Form":
        return Form({k: v / c for k, v in self.terms.items()})


Number = float | Tensor  # a tensor (B,) holds one for each sample


class Row(NamedTuple):
    """One new point. First evaluate the denoiser at the newest point and this time, unless it is None; then sum the
    terms (how many points or outputs ago, coefficient), and add `noise` times a fresh draw, unless it is None."""

    time: Number | None
    points: tuple[tuple[int, Number], ...]
    cleans: tuple[tuple[int, Number], ...]
    noise: Number | None


class Tape:
    """What a formula sees while it is traced: it returns forms and writes down rows."""

    def __init__(self, process: Gaussian):
        self.process = process
        self.rows: list[Row] = []
        self.time: float | None = None
        self.points, self.cleans, self.noises, self.drawn = 1, 0, 0, 0

    def clean(self, x: Form, t: Level) -> Form:
        """The denoiser's output at x, which becomes a point of its own if it is not the newest already."""
        if x.terms != {("x", self.points - 1): 1.0} or self.time is not None:
            self.land(x)
        self.time = t.time
        self.cleans += 1
        return Form({("clean", self.cleans - 1): 1.0})

    def point(self, x: Form) -> Form:
        """x as a point of its own, which later rows may start from."""
        return self.land(x)

    def noise(self) -> Form:
        """A fresh standard normal; it may enter the next point only."""
        self.noises += 1
        return Form({("noise", self.noises - 1): 1.0})

    def level(self, at: float) -> Level:
        """The level at which lam is `at`."""
        return levels(self.process, time(self.process, torch.tensor([at], dtype=torch.float64)))[0]

    def land(self, x: Form) -> Form:
        """Write the row that computes x, the new newest point. Raises ValueError where the row would not be finite."""
        terms = {k: c for k, c in x.terms.items() if c != 0}
        if not all(math.isfinite(c) for c in terms.values()):
            raise ValueError(SINGULAR)
        xi = [i for kind, i in terms if kind == "noise"]
        if len(xi) > 1 or any(i < self.drawn for i in xi):
            raise ValueError("a row takes one draw of noise, and a draw enters one row")
        back = lambda kind, count: tuple((count - 1 - i, c) for (k, i), c in terms.items() if k == kind)
        noise = terms["noise", xi[0]] if xi else None
        self.rows.append(Row(self.time, back("x", self.points), back("clean", self.cleans), noise))
        self.time, self.drawn = None, self.noises
        self.points += 1
        return Form({("x", self.points - 1): 1.0})
