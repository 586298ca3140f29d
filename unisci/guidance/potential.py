"""Potentials: weights h on what is sampled, p(x_0) h(x_0) / Z. The noised state then has the law p_t(x) h_t(x) / Z with

    h_t(x) = E[h(x_0) | x_t = x]                                        (Doob's h-transform)

so that a Gaussian field's score gains grad log h_t, and site i of a discrete field, whose clean class the model gives
logits l_i, gains log h of the state whose site i alone is clean and of class k:

    l_i(k) += log E[h(x_0) | the other sites of x_t, x_0^i = k]

which is the Bayes rule for every kernel, and needs a potential that takes a time for each site. Its first-order form is
one gradient at one-hot states (Gibbs-with-gradients, arXiv 2102.04509; DiGress, 2209.14734). h of the noised state
itself, in place of h_t, is a heuristic; so is a network that was trained on clean data.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.guidance.terms import Evaluation, Term, lift
from unisci.processes.categorical import Categorical
from unisci.solvers.sample import processes
from unisci.state import State, Time, pad, pick

LogPotential = Callable[[State, Time], Tensor]  # (x, t) -> log h_t(x), (B,)


class Sites(Protocol):
    """How log h becomes pushes (B, ..., K) of the logits of discrete fields, given with their processes."""

    def __call__(
        self, log_h: LogPotential, x: dict[str, Tensor], t: Time, discrete: dict[str, Categorical]
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Exact:
    """Every single-site change at once: as many evaluations of h as noised sites times classes, at most `rows` states
    in one call of log_h.

    log_h is called with the batch r times over, row b + r B being sample b, and with a time for each site of the field;
    what it holds of the samples (masks, conditions) it must repeat likewise. Sites that are clean are left alone. A
    pair of sites is one site, changed on both sides of the diagonal. Raises ValueError where rows < 1.
    """

    rows: int = 4096

    def __post_init__(self) -> None:
        if self.rows < 1:
            raise ValueError(f"Exact needs rows >= 1, got {self.rows}")

    def __call__(
        self, log_h: LogPotential, x: dict[str, Tensor], t: Time, discrete: dict[str, Categorical]
    ) -> dict[str, Tensor]:
        return {name: self._field(log_h, x, t, name, process) for name, process in discrete.items()}

    def _field(self, log_h: LogPotential, x: dict[str, Tensor], t: Time, name: str, process: Categorical) -> Tensor:
        field, (b, k) = x[name], (len(x[name]), process.classes)
        times = pad(pick(t, name), field).expand(field.shape)
        spots = (times > 0).any(0).nonzero()  # reading it waits for the device, which has much to do here anyway
        is_pair = is_pair_field(field)
        spots = spots[spots[:, 0] > spots[:, 1]] if is_pair else spots
        every = torch.arange(len(spots) * k, device=field.device)
        out = torch.zeros(*field.shape, k, device=field.device)
        for part in every.split(max(1, self.rows // b)):
            at, new = spots[part // k], part % k
            value = _changed(field, at, new, is_pair)
            now = _changed(times, at, torch.zeros_like(new), is_pair)
            state = {n: value if n == name else v.repeat(len(part), *(1,) * (v.ndim - 1)) for n, v in x.items()}
            clock = {n: now if n == name else _repeat(pick(t, n), len(part)) for n in x}
            log_ratio = log_h(state, clock).reshape(len(part), b).to(out)
            for place in (at, at.flip(1)) if is_pair else (at,):
                out[(slice(None), *place.unbind(1), new)] = log_ratio.T
        return out


@dataclass(frozen=True)
class FirstOrder:
    """One gradient of log h by one-hot states (B, ..., states): what changing each site alone would do, to first order.

    log_h is called with float one-hot vectors in place of all discrete fields' indices. Approximate, and cheap.
    """

    def __call__(
        self, log_h: LogPotential, x: dict[str, Tensor], t: Time, discrete: dict[str, Categorical]
    ) -> dict[str, Tensor]:
        with torch.inference_mode(False), torch.enable_grad():
            soft = {k: F.one_hot(x[k], p.states).float().requires_grad_() for k, p in discrete.items()}
            gradients = torch.autograd.grad(log_h(x | soft, t).sum(), list(soft.values()))
        out = {}
        for (k, process), gradient in zip(discrete.items(), gradients, strict=True):
            both = gradient + gradient.transpose(1, 2) if is_pair_field(x[k]) else gradient
            out[k] = both[..., : process.classes]
        return out


@dataclass(frozen=True, kw_only=True)
class Potential(Term):
    """log_h(x, t) -> (B,): the log weight of noised states, ideally log h_t. sites: how discrete fields are tilted.

    A bare discrete state of tokens is passed to log_h as it is. Gradients go by x through log_h alone, not through
    the model.
    """

    log_h: LogPotential
    sites: Sites = Exact()

    def push(self, at: Evaluation) -> State:
        x = at.x if isinstance(at.x, dict) else {"x": at.x}
        log_h = self.log_h if isinstance(at.x, dict) else _bare(self.log_h)
        kinds = {k: p for k, p in processes(at.denoise).items() if self.changes(k)}
        out = self._gradients(log_h, x, at.t, {k: p for k, p in kinds.items() if not isinstance(p, Categorical)})
        with torch.no_grad():
            discrete = {k: p for k, p in kinds.items() if isinstance(p, Categorical)}
            out |= self.sites(log_h, x, at.t, discrete) if discrete else {}
        return out if isinstance(at.x, dict) else out["x"]

    @staticmethod
    def _gradients(log_h: LogPotential, x: dict[str, Tensor], t: Time, continuous: dict) -> dict[str, Tensor]:
        if not continuous:
            return {}
        with torch.inference_mode(False), torch.enable_grad():
            moving = {k: x[k].detach().clone().requires_grad_() for k in continuous}
            value = log_h(x | moving, t).sum()
            scores = torch.autograd.grad(value, list(moving.values()))
        return {k: lift(s, x[k], p, pick(t, k)) for (k, p), s in zip(continuous.items(), scores, strict=True)}


def is_pair_field(field: Tensor) -> bool:
    """Whether a discrete field (B, ...) is of pairs of sites: two equal axes after the first."""
    return field.ndim == 3 and field.shape[1] == field.shape[2]


def _changed(field: Tensor, at: Tensor, new: Tensor, is_pair: bool) -> Tensor:
    """The field (B, ...) once for each row of `at` (R, axes), the entry there set to new (R,): (R B, ...)."""
    out = field.repeat(len(at), *(1,) * field.ndim).reshape(len(at), *field.shape)
    row = torch.arange(len(at), device=field.device)
    for place in (at, at.flip(1)) if is_pair else (at,):
        out[(row, slice(None), *place.unbind(1))] = new[:, None].to(out.dtype)
    return out.reshape(-1, *field.shape[1:])


def _repeat(t: Tensor, times: int) -> Tensor:
    return t if t.ndim == 0 else t.repeat(times, *(1,) * (t.ndim - 1))


def _bare(log_h: LogPotential) -> LogPotential:
    return lambda x, t: log_h(x["x"], t["x"] if isinstance(t, dict) else t)
