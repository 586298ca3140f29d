"""What the networks of windows share: what they see of an entry, of its sample and of its time step.

A window of L steps and C channels is a sample of N = C L sites: site c L + l is channel c at step l. Each is known (its
time is 0), noised or does not exist, as the conditional mask of CSDI (arXiv 2107.03502); of site i a network reads

    e_i = (x_i, k_i x_i, k_i, m_i, anchor_i, covariates_i, which of them are told),      k = known, m = exists

so that one network is unconditional (nothing known), forecasts (the past known) and fills gaps. All that is noised in a
window has one time, the largest of its existing entries.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.networks.embedding import NumberEmbedding, TimeEmbedding
from unisci.order import Order
from unisci.state import Time, pick


@dataclass(frozen=True)
class WindowConfig:
    """length L in time steps, channels C, and the sizes of what is given, 0 where it is not: "phase" (B, phases) of the
    calendar at the last step, "covariates" (B, N, covariates), "static" (B, static). anchored: "anchor" (B, N, 3) is
    given, what an entry was expected to be (`unisci.forecasting.anchors`): value, log spread, change. regressed: the
    same, expected by `unisci.forecasting.regression`. Raises ValueError where a size is out of range, and for both.
    """

    length: int
    channels: int = 1
    phases: int = 0
    covariates: int = 0
    static: int = 0
    anchored: bool = False
    regressed: bool = False

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("channels", 1), ("phases", 0), ("covariates", 0), ("static", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more, got {getattr(self, name)}")
        if self.anchored and self.regressed:
            raise ValueError("entries are anchored or regressed, not both")

    @property
    def expects(self) -> bool:
        """Whether anchors are given."""
        return self.anchored or self.regressed

    @property
    def features(self) -> int:
        """Numbers in e_i."""
        return 4 + 3 * self.expects + 2 * self.covariates


class Window(NamedTuple):
    """entries e (B, features, C, L); t (B,), 0 where nothing exists; phase (B, P) and static (B, S), None where the
    config has none."""

    entries: Tensor
    t: Tensor
    phase: Tensor | None
    static: Tensor | None


def read_window(
    config: WindowConfig,
    state: dict[str, Tensor],
    t: Time,
    mask: Tensor,
    given: dict[str, Tensor],
    order: Order | None = None,
    cache: object | None = None,
) -> Window:
    """What a network's arguments say. Values, times and covariates where no entry exists are never read, nan or not.

    Raises ValueError where y is not (B, C L), a field that the config names is missing or of another size, or an order
    or a cache is passed: every entry of a window sees the whole window.
    """
    if order is not None or cache is not None:
        raise ValueError("a network of windows knows no order and keeps no cache: pass None")
    y, c = state["y"], config
    n = c.channels * c.length
    if y.shape != (len(y), n):
        raise ValueError(f"y must be (B, {n}), {c.channels} channels of {c.length} steps, got {tuple(y.shape)}")
    t = pick(t, "y").to(y.dtype)
    t = torch.where(mask, t if t.ndim == 2 else t.reshape(-1, 1), 0.0)
    known = mask & (t == 0)
    x = torch.where(mask, y, 0.0)
    entries = torch.stack([x, torch.where(known, x, 0.0), known.to(x), mask.to(x)], 1)
    if c.expects:
        anchor = torch.where(mask[..., None], _field(given, "anchor", (len(y), n, 3)).to(x), 0.0)
        entries = torch.cat([entries, anchor.transpose(1, 2)], 1)
    if c.covariates:
        covariates = _field(given, "covariates", (len(y), n, c.covariates))
        told = mask[..., None] & ~covariates.isnan()
        covariates = torch.cat([torch.where(told, covariates, 0.0).to(x), told.to(x)], -1)
        entries = torch.cat([entries, covariates.transpose(1, 2)], 1)
    phase = _field(given, "phase", (len(y), c.phases)).to(x) if c.phases else None
    static = _field(given, "static", (len(y), c.static)).to(x) if c.static else None
    return Window(entries.unflatten(2, (c.channels, c.length)), t.amax(1), phase, static)


class SampleCondition(nn.Module):
    """What modulates the layers, (B, width): the noise time, and the static numbers, nan where not told."""

    def __init__(self, config: WindowConfig, width: int):
        super().__init__()
        self.time = TimeEmbedding(width)
        self.static = NumberEmbedding(config.static, width) if config.static else None

    def forward(self, window: Window) -> Tensor:
        c = self.time(window.t)
        return F.silu(c if self.static is None else c + self.static(window.static))


class Places(nn.Module):
    """A vector for each of T places in time, (B or 1, T, width): learned, and linear in the phases at the last step.

    The sine and cosine of a calendar at step l are a rotation of those at the last step by an angle that l alone sets.
    So one matrix for each place reads the whole calendar from the last step's, whatever its periods are.
    """

    def __init__(self, places: int, phases: int, width: int):
        super().__init__()
        self.place = nn.Parameter(0.02 * torch.randn(places, width))
        self.turn = nn.Parameter(0.02 * torch.randn(phases, places, width)) if phases else None

    def forward(self, phase: Tensor | None) -> Tensor:
        if self.turn is None:
            return self.place[None]
        return self.place + (phase @ self.turn.flatten(1)).unflatten(1, self.place.shape)


def normalised(x: Tensor) -> Tensor:
    """x at mean 0 and variance 1 over its last axis: a LayerNorm whose scale and shift are in the map that follows."""
    return F.layer_norm(x, x.shape[-1:])


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer, its weights and biases set to 0."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def _field(given: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in given:
        raise ValueError(f'this network reads "{name}": pass it in given, of shape {shape}')
    if given[name].shape != shape:
        raise ValueError(f'"{name}" must be of shape {shape}, got {tuple(given[name].shape)}')
    return given[name]
