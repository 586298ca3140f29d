"""One diffusion model of windows, whatever is known of them. Known entries are at time 0, clean; the others at one time
t:

    loss = E mean (D(x_t; known) - x_0)^2 over the entries that are not known, weighted by 1 / c_out(t)^2

Which entries are known is drawn for each training example: the past (a forecast), all but a few gaps, or nothing (the
unconditional model of TSDiff, arXiv 2307.11494, which self-guidance needs). As CSDI (2107.03502) with its tasks mixed.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from unisci.batch import Batch, Schema
from unisci.denoiser import Denoiser
from unisci.forecasting.anchors import Anchors, anchors
from unisci.forecasting.gpd import CLEAN, Clean, Conditioner
from unisci.forecasting.regression import Regression
from unisci.forecasting.scales import Scaled, about, scaled
from unisci.forecasting.windows import WindowShape
from unisci.processes.gaussian import Cosine, Gaussian
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import Program, compile_solver
from unisci.solvers.sample import Denoise

LARGEST = 20.0  # training leaves out entries that are so many scales away from the last known value
START = 0.999  # alpha is 0 at t = 1
SPANS = 2  # gaps in a training example


@dataclass(frozen=True)
class Patterns:
    """Shares of training examples: `gaps` to fill, `nothing` known, the rest forecasts. shorter: the share of forecasts
    whose history is cut to a random part. splits: forecasts begin anywhere in the second half of the window, in place
    of at the end of its context. by_window: windows weigh alike in the loss, in place of entries. Raises ValueError
    where shares are no shares."""

    gaps: float = 0.1
    nothing: float = 0.1
    shorter: float = 0.1
    splits: bool = False
    by_window: bool = False

    def __post_init__(self) -> None:
        if min(self.gaps, self.nothing, self.shorter, 1 - self.gaps - self.nothing, 1 - self.shorter) < 0:
            raise ValueError(f"gaps + nothing and shorter must be shares between 0 and 1, got {self}")


PATTERNS = Patterns()
COSINE = Cosine()


class WindowModel(nn.Module):
    """A network of windows (unisci.networks.window_*) of a shape, with the noise that it undoes. anchored: entries that
    are not known count from their anchor, in units of its spread, see `unisci.forecasting.anchors`."""

    def __init__(
        self,
        network: nn.Module,
        shape: WindowShape,
        schema: Schema,
        patterns: Patterns = PATTERNS,
        anchored: bool = False,
        regression: Regression | None = None,
        process: Gaussian = COSINE,
    ):
        super().__init__()
        self.denoiser = Denoiser(network, Product({"y": process}, {"y": schema["y"]}))
        self.shape, self.schema, self.patterns, self.anchored = shape, schema, patterns, anchored
        self.regression = regression

    def loss(self, batch: Batch, rng: Rng) -> Tensor:
        """The mean over entries to predict; batch as of `Source.cut`. Channels without a scale are left out."""
        basis, known, exists = self.prompt(batch, rng)
        has_scale = basis.unflatten(1, (self.shape.channels, -1)).any(-1)
        exists = exists & has_scale.repeat_interleave(self.shape.length, 1)
        windows, _ = self.windows(batch, basis, known, exists)
        within = windows.state["y"].abs() < LARGEST
        windows = replace(windows, mask=windows.mask & within)
        t = self.denoiser.product.times(rng)["y"]
        t = torch.where(known, 0.0, t[:, None])
        x, wanted = windows.state["y"], windows.mask & ~known
        product = self.denoiser.product.to(t.device)
        noisy = product.perturb(windows.state, {"y": t}, rng)["y"]
        noisy = torch.where(windows.mask, noisy, x)
        clean = self.denoiser({"y": noisy}, {"y": t}, windows.mask, windows.given)["y"]
        alpha, sigma = product.processes["y"].level(t)
        weight = (alpha**2 + sigma**2) / sigma.clamp(min=1e-4) ** 2
        error = torch.where(wanted, weight * (clean - x) ** 2, 0.0)
        if not self.patterns.by_window:
            return error.sum() / wanted.sum().clamp(min=1)
        count = wanted.sum(1)
        return (error.sum(1) / count.clamp(min=1)).sum() / (count > 0).sum().clamp(min=1)

    def prompt(self, batch: Batch, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Of training examples, the entries that set the scale, those that are known, and those that exist: what comes
        before a shorter history does not. All (B, N) bool."""
        p, shape, b, device = self.patterns, self.shape, len(batch), batch.mask.device
        observed, step = batch.given["observed"], shape.steps(device)
        u = rng.uniform("pattern", 0, (b, 5), 0)
        half = shape.length // 2
        fixed = torch.full((b,), shape.context, device=device)
        origin = half + ((shape.length - half) * u[:, 1]).long() if p.splits else fixed
        start = torch.where(u[:, 2] < p.shorter, origin * u[:, 3], 0.0).long()
        start = torch.minimum(start, (origin - shape.horizon).clamp(min=0))
        after = observed & (step >= start[:, None])
        past = after & (step < origin[:, None])
        left = observed & ~self._gaps(b, rng)
        filling, nothing = (u[:, 0] < p.gaps)[:, None], (u[:, 0] > 1 - p.nothing)[:, None]
        exists = torch.where(filling | nothing, observed, after)
        return torch.where(filling, left, past), torch.where(filling, left, past & ~nothing), exists

    def _gaps(self, b: int, rng: Rng) -> Tensor:
        """(B, N): spans of up to a third of the window, in some of the channels."""
        shape, step = self.shape, torch.arange(self.shape.length, device=rng.ids.device)
        u = rng.uniform("gap", 0, (b, shape.channels, SPANS, 3), 0)
        begin, size = u[..., :1] * shape.length, u[..., 1:2] * shape.length / 3
        span = (step >= begin) & (step < begin + size) & ((u[..., 2:] < 0.7) | (shape.channels == 1))
        return span.any(2).flatten(1)

    def windows(self, batch: Batch, basis: Tensor, known: Tensor, exists: Tensor) -> tuple[Batch, Scaled]:
        """The batch in units of `basis` (B, N), anchored at what the network will see as known (B, N), with the entries
        `exists` (B, N) as its sites, and the way back."""
        units = scaled(batch.state["y"], basis, batch.given["spread"])._replace(bounds=batch.given["bounds"])
        given = {k: v for k, v in batch.given.items() if k in ("phase", "static", "covariates")}
        if self.anchored or self.regression is not None:
            units, given["anchor"] = about(units, self._expected(units, known, batch))
        x = torch.where(exists, units.x, 0.0)
        return Batch(self.schema, {"y": x}, exists, given, batch.ids), units

    def _expected(self, units: Scaled, known: Tensor, batch: Batch) -> Anchors:
        """Anchors (B, C, L) of the entries that are not `known` (B, N)."""
        each = lambda v: v.unflatten(1, (self.shape.channels, -1))
        if self.regression is not None:
            return self.regression(each(units.x), each(known), batch.given.get("phase"))
        return anchors(each(units.x), each(known), each(batch.given["structure"]) / units.scale.square())

    @torch.no_grad()
    def complete(
        self,
        batch: Batch,
        known: Tensor,
        wanted: Tensor,
        program: Program,
        rng: Rng,
        conditioner: Conditioner = CLEAN,
        basis: Tensor | None = None,
        guide: Callable[[Denoise, Scaled], Denoise] = lambda denoise, units: denoise,
    ) -> Tensor:
        """Draw the entries `wanted` (B, N) given those `known`, both bool: (B, N) float64 in the units of y, 0 where
        neither. basis: what sets the scale, the known entries where None. guide: adds terms of guidance, with the way
        back to units of y. Raises ValueError where a row knows nothing and no basis is given."""
        basis = known if basis is None else basis
        per_channel = basis.unflatten(1, (self.shape.channels, -1)).any(-1)
        if not bool(per_channel.all()):
            raise ValueError("every channel of a window needs a known value, which sets its scale")
        clean = known if isinstance(conditioner, Clean) else torch.zeros_like(known)
        windows, units = self.windows(batch, basis, clean, known | wanted)
        denoise = guide(self.denoiser.on(windows), units)
        drawn = conditioner(denoise, windows.state, known, program, rng)["y"]
        return torch.where(known, batch.state["y"], torch.where(wanted, units.back(drawn), 0.0))

    def program(self, steps: int, scheme: str | None = None) -> Program:
        """A solver of so many calls, at times even in t from START.

        Ancestral steps, 10 of which draw a Gaussian at .82 of its spread: what trained models make too wide they make
        right. A regression's spread is right already, so that its models take "dpm++2m", which draws it at .98. Compare
        the schemes by `benchmarks.samplers`.
        """
        process = self.denoiser.product.processes["y"]
        scheme = scheme or ("ancestral" if self.regression is None else "dpm++2m")
        return compile_solver(process, grid(process, steps, "time", START), scheme)
