"""What a forecast is expected to be by regression on its past, and how far off that is: ridge regression (Hoerl and
Kennard, 1970; one linear layer forecasts well, DLinear, arXiv 2205.13504) of the values, and of the logarithms of its
squared errors (Harvey, 1976, DOI 10.2307/1913974),

    a_j = sum_i W_ij u_i,       u = (x_past, phases, 1),                W = (U^T U + k n)^-1 U^T X
    log r_j^2 = sum_i V_ij g_i + c_j,   g = (log mean squares of the past's changes, phases, 1)

over n training windows, in units of each window's past. What is diffused is (x_j - a_j) / r_j, so that a model that is
not yet trained draws N(a_j, r_j^2), a forecast already, and training adds what is joint, curved and uneven. k and c are
those of windows kept from a first fit, the later ones of each series: c so that 80 % of them are within 1.28 r. The
same W and V serve all channels.
"""

import torch
from torch import Tensor, nn

from unisci.batch import Batch
from unisci.forecasting.anchors import SMALLEST, Anchors
from unisci.forecasting.scales import scaled
from unisci.forecasting.windows import Source, WindowShape, at_places, places

WINDOWS = 12_000  # to regress on
PENALTIES = (1e-3, 0.01, 0.1, 1.0, 10.0, 100.0, 1e3)  # k
KEPT = 0.2  # the share of windows that k and c are chosen on
FARTHEST = 20.0  # windows whose horizon goes so many scales away are left out
LEAST = 1e-4  # mean square, added to all before its logarithm
WIDEST = 4.0  # r, in units of the past
RECENT = 6  # steps
ACTIVITIES = 4  # of a past, in g


class Regression(nn.Module):
    """weight W (context + phases + 1, horizon) and noise V (ACTIVITIES + phases + 1, horizon), c within its last row: 0
    before `fit`, a = 0 and r = 1."""

    def __init__(self, shape: WindowShape, phases: int):
        super().__init__()
        self.shape = shape
        self.register_buffer("weight", torch.zeros(shape.context + phases + 1, shape.horizon))
        self.register_buffer("noise", torch.zeros(ACTIVITIES + phases + 1, shape.horizon))

    def fit(self, source: Source, seed: int) -> "Regression":
        """Regress on windows of the source, WINDOWS of them at most, drawn by the seed. Nothing changes where too few
        are whole."""
        where = places(source, self.shape)
        where = where[torch.randperm(len(where), generator=torch.Generator().manual_seed(seed))[:WINDOWS]]
        u, g, x = self._rows(source, where)
        late = self._late(source, where).repeat_interleave(self.shape.channels)
        good = x.isfinite().all(1) & (x.abs() < FARTHEST).all(1)
        early, late = good & ~late, good & late
        if min(int(early.sum()), int(late.sum())) < 2:
            return self
        found = {k: ridge(u[early], x[early], k) for k in PENALTIES}
        best = min(PENALTIES, key=lambda k: float((x[late] - u[late] @ found[k]).square().mean()))
        self.weight.copy_(ridge(u[good], x[good], best))
        error = lambda rows: x[rows] - u[rows] @ found[best]
        noise = ridge(g[early], (error(early).square() + LEAST).log(), LEAST)
        beyond = torch.quantile((error(late) / (g[late] @ noise / 2).exp()).abs(), 0.8, dim=0) / 1.2816
        noise[-1] += 2 * beyond.clamp(min=SMALLEST).log()
        self.noise.copy_(noise)
        return self

    def forward(self, x: Tensor, known: Tensor, phase: Tensor | None) -> Anchors:
        """Anchors (B, C, L) of windows x (B, C, L) in units of what is known (B, C, L) bool: of the horizons of which
        nothing is known while something of their past is. Of all else 0, 1 and 0. Unknown steps of a past count as the
        last known value, 0."""
        context = self.shape.context
        rows = known[..., :context].flatten(1).any(1) & ~known[..., context:].flatten(1).any(1)
        u, g = inputs(torch.where(known, x, 0.0)[..., :context], phase), self.activity(x, known, phase)
        r = (g @ self.noise.to(g) / 2).exp().clamp(SMALLEST, WIDEST)
        value, spread = torch.zeros_like(x), torch.ones_like(x)
        value[..., context:] = torch.where(rows[:, None, None], u @ self.weight.to(u), 0.0)
        spread[..., context:] = torch.where(rows[:, None, None], r, 1.0)
        return Anchors(value, spread, torch.zeros_like(x))

    def activity(self, x: Tensor, known: Tensor, phase: Tensor | None) -> Tensor:
        """g (B, C, ACTIVITIES + P + 1): of the known changes from step to step, all of them, those of the
        last horizon's length and of the last RECENT; and of the values of that length about their mean."""
        context, h = self.shape.context, min(self.shape.horizon, self.shape.context)
        x, known = torch.where(known, x, 0.0)[..., :context], known[..., :context]
        both, change = known[..., 1:] & known[..., :-1], x.diff(dim=-1)
        mean = x[..., -h:].sum(-1, keepdim=True) / known[..., -h:].sum(-1, keepdim=True).clamp(min=1)
        parts = [(change[..., -n:], both[..., -n:]) for n in (context, h, RECENT)]
        parts.append((x[..., -h:] - mean, known[..., -h:]))
        return inputs(torch.cat([_log_square(v, k) for v, k in parts], -1), phase)

    def _rows(self, source: Source, where: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """u, g and x (n C, horizon), nan where not observed."""
        shape, batch = self.shape, at_places(source, self.shape, where)
        observed, phase = batch.given["observed"], batch.given.get("phase")
        known = observed & (shape.steps() < shape.context)
        units = scaled(batch.state["y"], known, batch.given["spread"])
        each = lambda v: v.unflatten(1, (shape.channels, -1))
        x, known = each(torch.where(observed, units.x, torch.nan).double()), each(known)
        u, g = inputs(x[..., : shape.context].nan_to_num(0.0), phase), self.activity(x, known, phase)
        return u.flatten(0, 1), g.flatten(0, 1), x[..., shape.context :].flatten(0, 1)

    def _late(self, source: Source, where: Batch) -> Tensor:
        """Which windows are of the last part of their series, (n,) bool."""
        last = (source.end - source.first)[where.given["series"]] - self.shape.horizon
        return where.given["origin"] > (1 - KEPT) * last


def inputs(past: Tensor, phase: Tensor | None) -> Tensor:
    """(B, C, K + P + 1) of numbers of pasts (B, C, K) and phases (B, P)."""
    one = torch.ones_like(past[..., :1])
    phase = one[..., :0] if phase is None else phase.to(past)[:, None].expand(-1, past.shape[1], -1)
    return torch.cat([past, phase, one], -1)


def ridge(u: Tensor, x: Tensor, k: float) -> Tensor:
    """W (K, h) of rows u (n, K) and x (n, h)."""
    return torch.linalg.solve(u.T @ u + k * len(u) * torch.eye(u.shape[1]).to(u), u.T @ x)


def _log_square(v: Tensor, known: Tensor) -> Tensor:
    """log of the mean square of what is known along the last axis, (..., 1)."""
    square = torch.where(known, v, 0.0).square().sum(-1, keepdim=True) / known.sum(-1, keepdim=True).clamp(min=1)
    return (square + LEAST).log()
