"""Limits of a horizon as a term of guidance: all of some steps are below, or above, a value."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from unisci.forecasting.prompts import values
from unisci.forecasting.scales import Scaled
from unisci.guidance.observation import Isotropic, Jacobian
from unisci.guidance.terms import Evaluation, Term
from unisci.state import State


@dataclass(frozen=True, kw_only=True)
class Limit(Term):
    """Sites of windows are below a value (sign 1), or above it (-1), with an edge of width `tolerance`: with D the
    estimate and r^2 the variance that x_t leaves to data of independent entries of variance 1 in units of the window,

        log h = sum_i log Phi(+-(value - D_i) / sqrt(tolerance^2 + r^2)),   D moves by C grad log h

    Exact for one step of such data. Steps that move together are counted as if they did not, so that paths keep a
    little more distance than the limit asks for; few cross it.
    """

    needs_graph: ClassVar[bool] = True

    units: Scaled
    sites: Tensor
    value: float
    tolerance: float
    sign: int

    def push(self, at: Evaluation) -> State:
        wide = self.units
        with torch.inference_mode(False), torch.enable_grad():
            d = values(at.clean).detach().clone().requires_grad_()
            each = lambda v: v.expand(-1, -1, d.shape[1] // v.shape[1]).flatten(1)[:, self.sites].to(d)
            ones = {"y": torch.ones_like(d)} if isinstance(at.x, dict) else {"x": torch.ones_like(d)}
            (r2,) = Isotropic().spread(at, ones).values()
            edge = ((self.tolerance / each(wide.scale)) ** 2 + r2[:, self.sites]).sqrt()
            gap = (self.value - each(wide.loc)) / each(wide.scale) - d[:, self.sites]
            log_h = torch.special.log_ndtr(self.sign * gap / edge).sum()
            u = dict.fromkeys(ones, torch.autograd.grad(log_h, d)[0])
        pushed = Jacobian().pull(at, u)
        return pushed if isinstance(at.x, dict) else pushed["x"]
