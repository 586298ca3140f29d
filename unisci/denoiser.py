"""Denoiser: a network with the forward noise it undoes. It predicts the clean value, whatever the network puts out.

For a Gaussian field x_t = alpha x_0 + sigma eps, with the data's scale d (Karras et al., arXiv 2206.00364, for any
alpha, sigma):

    D(x, t) = c_skip x + c_out F(c_in x, t),   v = alpha^2 d^2 + sigma^2
    c_in = v^(-1/2),   c_skip = alpha d^2 / v,   c_out = sigma d v^(-1/2)

and the loss is the squared error of D over c_out^2. On a torus x has no scale and no origin: c_in = c_skip = 1, D is
the mean image near x (`Torus.target`). For a discrete field D is the logits of the clean class, and the loss their
cross entropy at the noised sites.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Batch, Schema
from unisci.order import Order
from unisci.processes.categorical import Categorical
from unisci.processes.process import Process
from unisci.processes.product import Product
from unisci.processes.torus import Torus, TorusFlow, centred_target
from unisci.rng import Rng
from unisci.state import State, Time, pad, pick


class Network(Protocol):
    """Every network's signature: noised fields, their times, which sites exist, conditions, order, and a cache."""

    def __call__(
        self,
        state: dict[str, Tensor],
        t: Time,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Bound:
    """A Denoiser bound to what it is conditioned on; the Denoise that solvers and guidance see."""

    denoiser: "Denoiser"
    process: dict[str, Process]
    schema: Schema
    mask: Tensor
    given: dict[str, Tensor]
    order: Order | None = None
    cache: object | None = None

    def __call__(self, x: State, t: Time) -> State:
        return self.denoiser(x, t, self.mask, self.given, self.order, self.cache)


class Denoiser(nn.Module):
    """network and product of processes; scale: standard deviation of each Gaussian field's data, 1 where not named."""

    def __init__(self, network: nn.Module, product: Product, scale: dict[str, float] | None = None):
        super().__init__()
        self.network, self.product, self.scale = network, product, scale or {}

    def forward(
        self,
        x: dict[str, Tensor],
        t: Time,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """E[clean | x_t] of each Gaussian field, logits (..., K) of each discrete one."""
        t = {k: pick(t, k) for k in x}
        skip, out, inputs = {}, {}, {}
        for k, value in x.items():
            process = self.product.processes[k]
            if isinstance(process, Categorical):
                inputs[k] = value
                continue
            alpha, sigma = (pad(v, value).to(value.dtype) for v in process.level(t[k]))
            d = self.scale.get(k, 1.0)
            v = alpha**2 * d**2 + sigma**2
            torus = isinstance(process, Torus | TorusFlow)
            inputs[k], skip[k] = (value, 1.0) if torus else (value / v.sqrt(), alpha * d**2 / v)
            out[k] = sigma * d / v.sqrt()
        f = self.network(inputs, t, mask, given, order, cache)
        return {k: skip[k] * x[k] + out[k] * f[k] if k in skip else f[k] for k in x}

    def on(self, batch: Batch, order: Order | None = None, cache: object | None = None) -> Bound:
        """Bind the sites that exist, the conditions, the order and what the network remembers of a batch."""
        product = self.product.to(batch.mask.device)
        return Bound(self, product.processes, batch.schema, batch.mask, batch.given, order, cache)

    def loss(
        self,
        batch: Batch,
        rng: Rng,
        t: dict[str, Tensor] | None = None,
        order: Order | None = None,
        noisy: dict[str, Tensor] | None = None,
    ) -> Tensor:
        """Scalar: sum over fields and noised entries (a pair once), mean over samples; t defaults to uniform times,
        noisy to a draw of the product's."""
        product = self.product.to(batch.mask.device)
        t = t or product.times(rng)
        noisy = noisy or product.perturb(batch.state, t, rng)
        noisy = {k: torch.where(pad(batch.exists(k), v), v, batch.state[k]) for k, v in noisy.items()}
        predicted = self(noisy, t, batch.mask, batch.given, order)
        terms = [self._field_loss(k, predicted[k], noisy[k], batch, t[k], product) for k in noisy]
        return torch.stack(terms).sum() / len(batch)

    def _field_loss(
        self, k: str, predicted: Tensor, noisy: Tensor, batch: Batch, t: Tensor, product: Product
    ) -> Tensor:
        process, clean = product.processes[k], batch.state[k]
        counts = batch.exists(k)
        if batch.schema[k].kind == "pair":
            counts = counts.tril(-1)
        if isinstance(process, Categorical):
            counts = counts & process.learnable(noisy, t)
            return F.cross_entropy(predicted[counts], clean[counts], reduction="sum")
        moving = pad(t > 0, counts).expand_as(counts)
        if isinstance(process, Torus | TorusFlow):
            clean = centred_target(process, clean, noisy, t, moving, counts)
        alpha, sigma = (pad(v, clean) for v in process.level(t))
        d = self.scale.get(k, 1.0)
        weight = (alpha**2 * d**2 + sigma**2) / (sigma * d).clamp(min=1e-4) ** 2
        error = weight * (predicted - clean) ** 2
        return (error * pad(counts & moving, error)).sum()
