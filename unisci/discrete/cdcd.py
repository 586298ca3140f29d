"""Continuous diffusion for categorical data (CDCD, Dieleman et al., arXiv 2211.15089): classes as points c_k of a
number space, noised as numbers, denoised as classes.

    x_t = alpha c + sigma eps,    E[x_0 | x_t] = sum_k p(k | x_t) c_k,    loss = -log p(k | x_t)

A class predicted by a softmax has this mean exactly, and the cross entropy has its minimum there, as the squared error
has. What an entry says of itself is known in closed form,

    e_k = log pi_k + (alpha <x, c_k> - alpha^2 |c_k|^2 / 2) / sigma^2,    pi the frequencies of the classes

The network sees softmax(e), which is bounded at every noise level (as in Bayesian flow networks, Graves et al., arXiv
2308.07037), and its output is added to e: what the others say of the entry.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unisci.batch import Batch
from unisci.denoiser import Bound
from unisci.order import Order
from unisci.processes.gaussian import Gaussian, level_for
from unisci.processes.graph_sdes import Alphabets, encode
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.state import Time, pad, pick

SHARPEST = 1e-3  # below this sigma the evidence is a certainty anyway


class Cdcd(nn.Module):
    """A Denoiser of fields of classes in a system of Gaussian processes.

    network: (state, t, mask, given, order, cache) of class weights (B, ..., K) by field, t (B,) or (), to logits
    (B, ..., K) by field; frequencies: pi of each field (K,), positive. Every field must be in `alphabets`.
    """

    def __init__(self, network: nn.Module, product: Product, alphabets: Alphabets, frequencies: dict[str, Tensor]):
        super().__init__()
        self.network, self.product, self.alphabets = network, product, alphabets
        for k, pi in frequencies.items():
            if len(pi) != len(alphabets[k].classes) or bool((pi <= 0).any()):
                raise ValueError(f"field {k!r} needs a positive frequency for each of its classes, got {pi.tolist()}")
            self.register_buffer(f"log_{k}", (pi / pi.sum()).log().float())

    def logits(
        self,
        x: dict[str, Tensor],
        t: Time,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """log p(k | x_t) + const. of noised points x (B, ..., *shape) by field: (B, ..., K)."""
        t = {k: pick(t, k) for k in x}
        evidence = {k: self._evidence(k, v, t[k]) for k, v in x.items()}
        there = {k: Batch(self.product.schema, {}, mask).exists(k) for k in x}
        weights = {k: e.softmax(-1) * there[k][..., None] for k, e in evidence.items()}
        out = self.network(weights, t, mask, given, order, cache)
        return {k: e + out[k] for k, e in evidence.items()}

    def _evidence(self, k: str, x: Tensor, t: Tensor) -> Tensor:
        process, points = self.product.processes[k], self.alphabets[k].points(x)
        assert isinstance(process, Gaussian)
        alpha, sigma = level_for(process, t, x if points.ndim == 2 else x[..., None])
        inner = x @ points.T if points.ndim == 2 else x[..., None] * points
        square = points.square().sum(-1) if points.ndim == 2 else points.square()
        fit = (alpha * inner - alpha**2 * square / 2) / sigma.clamp(min=SHARPEST) ** 2
        return getattr(self, f"log_{k}").to(x) + fit

    def forward(
        self,
        x: dict[str, Tensor],
        t: Time,
        mask: Tensor,
        given: dict[str, Tensor],
        order: Order | None = None,
        cache: object | None = None,
    ) -> dict[str, Tensor]:
        """E[x_0 | x_t] by field, in the shapes of x; 0 where there is no site or pair."""
        out, there = {}, Batch(self.product.schema, {}, mask)
        for k, logits in self.logits(x, t, mask, given, order, cache).items():
            out[k] = logits.softmax(-1) @ self.alphabets[k].points(x[k])
            out[k] = out[k] * pad(there.exists(k), out[k])
        return out

    def on(self, batch: Batch, order: Order | None = None, cache: object | None = None) -> Bound:
        """Bind the sites that exist and the conditions of a batch; the Denoise that solvers see."""
        return Bound(self, self.product.processes, self.product.schema, batch.mask, batch.given, order, cache)

    def loss(self, batch: Batch, rng: Rng, t: dict[str, Tensor] | None = None, order: Order | None = None) -> Tensor:
        """Scalar, nats: cross entropy of the classes, summed over the entries that exist (a pair once), mean over
        samples. batch: fields of class indices; t defaults to uniform times."""
        t = t or self.product.times(rng)
        noisy = self.product.perturb(encode(batch, self.alphabets).state, t, rng)
        total = torch.zeros((), device=batch.mask.device)
        for k, logits in self.logits(noisy, t, batch.mask, batch.given, order).items():
            counts = batch.exists(k).tril(-1) if batch.schema[k].kind == "pair" else batch.exists(k)
            total = total + F.cross_entropy(logits[counts], batch.state[k][counts], reduction="sum")
        return total / len(batch)
