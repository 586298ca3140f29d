"""One reverse step that several models share, as a function of their weights kappa: what SuperDiff (arXiv 2412.17762)
decides on. A Gaussian field takes the ancestral step, its noise xi drawn before kappa is known, or DDIM's, without any:

    x_s = keep x_t + gain sum_i kappa_i D_i + deviation xi

x_s is linear in kappa, and so is what log q_i gains on the way (`unisci.solvers.ito_density`). A discrete field is
drawn from the posterior of the mixed prediction.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from unisci.guidance.mixture import Mixture, mix
from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import Gaussian
from unisci.processes.process import Process
from unisci.rng import Rng
from unisci.solvers.divergence import Probe, Vectors, divergence, prepare
from unisci.solvers.ito_density import laplacian_field, log_gain, log_prior, preserving
from unisci.solvers.reverse_kernel import Kernel, ancestral, ddim
from unisci.solvers.sample import draw_keys
from unisci.solvers.score import counted, exists, score_of, site_axes, time_for, total
from unisci.state import State, Time, beside, fieldwise

Draw = Callable[[Tensor], Tensor]  # the probabilities (..., K) of a discrete field to its classes


@dataclass(frozen=True)
class JointStep:
    """The step from x at t to s, all models evaluated and the noise drawn; see `joint_step`, which makes it.

    inner: x and the cleans with a graph between them, where the models are to be differentiated. noise: xi of a
    Gaussian field, the `Draw` of a discrete one; None on a path without noise, whose `vectors` give the divergence.
    """

    process: Process | dict[str, Process]
    x: State
    cleans: tuple[State, ...]
    inner: tuple[State, tuple[State, ...]] | None
    t: Time
    s: Time
    noise: Any
    axes: Any
    mask: Tensor | None
    vectors: Vectors | None

    @cached_property
    def count(self) -> State:
        """1 for the entries that count, else 0."""
        return counted(self.x, self.axes, self.mask)

    @cached_property
    def away(self) -> list[State]:
        """D_k - D_1, k = 2, ..., M."""
        return [fieldwise(torch.sub, clean, self.cleans[0]) for clean in self.cleans[1:]]

    @cached_property
    def shifts(self) -> list[State]:
        """v_k = gain (D_k - D_1), k = 2, ..., M: what x_s moves by for a unit of kappa_k taken from kappa_1."""
        return [fieldwise(_shift, d, self.process, self.t, self.s, self.noise is not None) for d in self.away]

    @cached_property
    def laplacians(self) -> Tensor | float:
        """What log q_i loses (B, M) on a path without noise; with noise 0, as Ito's rule cancels it."""
        if self.vectors is None:
            return 0.0
        pull = lambda x, clean: fieldwise(laplacian_field, x, clean, self.process, self.t, self.s)
        return self._traces(pull, prepare(self.vectors, self.x, self.axes, self.mask))

    def prior(self) -> Tensor:
        """log q of x under the process's prior, the same for every model: (B, M) float64."""
        nats = total(fieldwise(log_prior, self.x, self.process, self.t, self.count))
        return nats.double()[:, None].expand(-1, len(self.cleans))

    def end(self, kappa: Tensor) -> State:
        """x_s for the weights kappa (B, M)."""
        clean = mix(self.process, self.cleans, kappa)
        return fieldwise(_land, self.x, clean, self.process, self.t, self.s, self.noise)

    def gains(self, end: State) -> Tensor:
        """log q_s(end) - log q_t(x) of every model: (B, M) float64."""
        gained = lambda clean: fieldwise(log_gain, self.x, end, clean, self.process, self.t, self.s, self.count)
        return torch.stack([total(gained(clean)) for clean in self.cleans], 1).double() - self.laplacians

    def gram(self) -> Tensor:
        """What v_k adds to the gain of log q_j - log q_1: (B, M - 1, M - 1) float64, symmetric up to rounding."""
        entry = lambda d, v: total(fieldwise(_along, v, d, self.process, self.t, self.s, self.count))
        return torch.stack([torch.stack([entry(d, v) for v in self.shifts], 1) for d in self.away], 1).double()

    def second_order(self, inverse: Tensor) -> Tensor:
        """-1/2 sum_jk inverse_jk <v_j, H_i v_k>, H_i the Hessian of log q_i: what log q_i loses where the step has no
        noise along the v_k. inverse: that of `gram`. (B, M) float64, by one backward pass for each v_k and each i."""
        there = fieldwise(lambda v, axes: exists(v, axes, self.mask), self.x, self.axes)
        masked = lambda v, where: fieldwise(torch.mul, v, where)
        duals = [mix(self.process, self.shifts, row) for row in inverse.unbind(1)]
        pairs = zip(duals, self.shifts, strict=True)
        score = lambda x, clean: fieldwise(score_of, clean, x, self.process, self.t)
        return -0.5 * self._traces(score, [Probe(masked(d, there), masked(v, self.count)) for d, v in pairs])

    def _traces(self, field: Callable[[State, State], State], probes: list[Probe]) -> Tensor:
        """The divergence of field(x, D_i) along the probes, for every model: (B, M) float64."""
        x, cleans = self.inner
        with torch.inference_mode(False), torch.enable_grad():
            return torch.stack([divergence(field(x, clean), x, probes) for clean in cleans], 1).double()


def joint_step(
    mixture: Mixture,
    x: State,
    t: Time,
    s: Time,
    rng: Rng | None,
    mask: Tensor | None = None,
    vectors: Vectors | None = None,
    inner: bool = False,
) -> JointStep:
    """Evaluate every model once at x and draw the noise of the step from t to s.

    mask (B, N): the sites that count. vectors: for a path without noise. inner: keep the graph that `second_order`
    needs. Raises ValueError where a model then hides its derivative, and for a dict without a layout.
    """
    axes, keys = site_axes(mixture, x), draw_keys(x, mixture.schema)
    t, s = beside(t, x), beside(s, x)
    noise = fieldwise(_noise, x, mixture.process, keys, rng) if vectors is None else None
    rest = (t, s, noise, axes, mask, vectors)
    if not inner and vectors is None:
        return JointStep(mixture.process, x, mixture.evaluate(x, time_for(t, x)), None, *rest)
    with torch.inference_mode(False), torch.enable_grad():
        leaf = fieldwise(lambda v: v.detach().clone().requires_grad_(), x)
        cleans = mixture.evaluate(leaf, time_for(t, x))
    for i, clean in enumerate(cleans):
        if not any(v.requires_grad for v in (clean.values() if isinstance(clean, dict) else [clean])):
            raise ValueError(f"model {i} is to be differentiated, but detaches its output or runs under no_grad")
    settled = tuple(fieldwise(Tensor.detach, clean) for clean in cleans)
    return JointStep(mixture.process, fieldwise(Tensor.detach, x), settled, (leaf, cleans), *rest)


def _noise(x: Tensor, process: Process, key: tuple[str, int], rng: Rng) -> Tensor | Draw:
    name, axes = key
    if isinstance(process, Categorical):
        return lambda probs: rng.categorical(name, 0, probs, axes)
    return rng.normal(name, 0, tuple(x.shape), axes).to(x.dtype)


def _kernel(process: Gaussian, t: Tensor, s: Tensor, noisy: bool) -> Kernel:
    return ancestral(process, t, s) if noisy else ddim(process, t, s)


def _land(x: Tensor, clean: Tensor, process: Process, t: Tensor, s: Tensor, noise: Tensor | Draw | None) -> Tensor:
    """x_s of one field."""
    if isinstance(process, Categorical):
        return noise(process.posterior(x, process.logits(clean, x).softmax(-1), t, s))
    keep, gain, deviation = _kernel(process, t, s, noise is not None).on(x)
    return keep * x + gain * clean + (0.0 if noise is None else deviation * noise)


def _shift(d: Tensor, process: Gaussian, t: Tensor, s: Tensor, noisy: bool) -> Tensor:
    return _kernel(process, t, s, noisy).on(d).gain * d


def _along(v: Tensor, d: Tensor, process: Gaussian, t: Tensor, s: Tensor, count: Tensor) -> Tensor:
    """The gain, from the shift v, of log q_j - log q_1, where d = D_j - D_1; of each entry, as `log_gain`."""
    (r_t, _), (r_s, _) = preserving(process, t, v), preserving(process, s, v)
    return count * (v / r_s) * (r_t * score_of(d, torch.zeros_like(d), process, t))
