"""SuperDiff (Skreta et al., arXiv 2412.17762) for graphs drawn block by block: models superposed by their densities.

A discrete step has one kernel for each model, p_i(x_s | x_t), and is drawn from the mixture sum_i kappa_i p_i, which is
the kernel of the mixed clean predictions. By Bayes' rule log q_i gains log p_i(x_s | x_t) - log q(x_t | x_s) in it, of
which the forward kernel is the same for every model and is left out. With D_ij the divergence KL(p_i || p_j),

    Or:    kappa = softmax_i(T log q_i + l_i)
    And:   log q_1 - log q_2 + kappa_1 D_12 - kappa_2 D_21 = 0,   0 <= kappa_i <= 1,   kappa_1 + kappa_2 = 1

And so has equal densities after the step, in the mean. It is the paper's condition, whose noise is known beforehand
only in Gaussian steps. log q_i goes on from block to block; how large blocks are is one head's choice, for all models.

    guide = beside(told_only(0), told_only(1))           # of `conditions`: told the first number, and told the second
    model.generate(rng, values=values, guide=guide, solver=SuperDiffBlocks(And()))
"""

from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from unisci.autoregression.conditions import Conditions
from unisci.autoregression.generate import Guide
from unisci.autoregression.pard import Pard
from unisci.denoiser import Bound
from unisci.guidance.mixture import Mixture
from unisci.guidance.superdiff import And, Or
from unisci.networks.graph_transformer import CONDITION
from unisci.processes.categorical import Categorical
from unisci.rng import Rng
from unisci.solvers.sample import draw_keys
from unisci.solvers.score import counted, site_axes, total
from unisci.state import State, Time, fieldwise, pad
from unisci.state import beside as times_beside

FLOOR = 1e-8  # nats: kernels that differ by less are one, and kappa = 1/2
TINY = 1e-30  # a class that one kernel excludes costs it 69 nats


def beside(*guides: Guide) -> Guide:
    """The `guide` of `generate` that holds the denoisers of several guides beside one another, as a `Mixture`."""
    return lambda bound: Mixture(tuple(guide(bound) for guide in guides))


def another(model: Pard, conditions: Conditions) -> Guide:
    """A second model of the same noise and atoms, told what the first is told, which has these conditions. It remembers
    no finished blocks."""

    def guide(bound: Bound) -> Bound:
        values = bound.given[CONDITION] * conditions.std + conditions.mean
        given = bound.given | {CONDITION: (values - model.conditions.mean) / model.conditions.std}
        product = model.denoiser.product.to(bound.mask.device)
        return replace(bound, denoiser=model.denoiser, process=product.processes, given=given, cache=None)

    return guide


@dataclass
class SuperDiffBlocks:
    """A Solver of a `Mixture`, the one of `beside`, whose weights the policy decides. A step calls every model once.

    ids (n,), log_q (n, M): what it remembers of the samples drawn, log q_i in nats up to what all models share. Not for
    particles, whose rows go on from others.
    """

    policy: Or | And
    ids: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    log_q: Tensor | None = None

    def step(
        self, denoise: Mixture, x: State, t: Time, s: Time, memory: Tensor | None, rng: Rng | None
    ) -> tuple[State, Tensor]:
        """One step from t to s; memory: log q (B, M). Raises ValueError for a denoiser that is no Mixture of discrete
        fields, And of other than two models or with a bias, an Or with another number of biases, and without rng."""
        if memory is None:
            self._check(denoise, rng)
        t, s = times_beside(t, x), times_beside(s, x)
        log_q = self._begun(t, rng.ids, len(denoise.models)) if memory is None else memory
        kernels = [fieldwise(_kernel, x, clean, denoise.process, t, s) for clean in denoise.evaluate(x, t)]
        count = counted(x, site_axes(denoise, x), None)
        draw = lambda p, key: rng.categorical(key[0], 0, p, key[1])
        mixed = fieldwise(_mixed, kernels[0], self._weights(log_q, kernels, count), *kernels[1:])
        end = fieldwise(draw, mixed, draw_keys(x, denoise.schema))
        log_q = log_q + torch.stack([total(fieldwise(_gain, p, end, count)) for p in kernels], 1)
        self.log_q[-len(log_q) :] = log_q
        return end, log_q

    def followed(self, ids: Tensor) -> Tensor:
        """log q (n, M) of these samples where they are now, 0 of unknown ones."""
        found = (ids[:, None] == self.ids) * torch.arange(1, len(self.ids) + 1, device=ids.device)
        return F.pad(self.log_q, (0, 0, 1, 0))[F.pad(found, (1, 0)).amax(1)]

    def _begun(self, t: Time, ids: Tensor, models: int) -> Tensor:
        """log q (B, M) at the begin of a block: 0 where it is the first, in which no site is finished."""
        if self.log_q is None or self.log_q.shape[1] != models:
            self.ids, self.log_q = ids[:0], torch.zeros(0, models, dtype=torch.float64, device=ids.device)
        times = t.values() if isinstance(t, dict) else ()
        finished = [(v == 0).any(1) for v in times if v.ndim == 2]
        goes_on = torch.stack([torch.zeros_like(ids, dtype=torch.bool), *finished]).any(0)
        log_q = self.followed(ids) * goes_on[:, None]
        others = ~torch.isin(self.ids, ids)
        self.ids, self.log_q = torch.cat([self.ids[others], ids]), torch.cat([self.log_q[others], log_q])
        return log_q

    def _weights(self, log_q: Tensor, kernels: list[State], count: State) -> Tensor:
        """kappa (B, M)."""
        if isinstance(self.policy, Or):
            return self.policy.choose(None, log_q)[0]
        there, back = (total(fieldwise(_divergence, *pair, count)) for pair in (kernels, kernels[::-1]))
        first = (back - log_q[:, 0] + log_q[:, 1]) / (there + back).clamp(min=FLOOR)
        first = torch.where(there + back > FLOOR, first, 0.5).clamp(0, 1)
        return torch.stack([first, 1 - first], 1)

    def _check(self, denoise: Mixture, rng: Rng | None) -> None:
        if not isinstance(denoise, Mixture) or rng is None:
            raise ValueError(f"SuperDiffBlocks draws from a Mixture, see `beside`; got {denoise} and rng = {rng}")
        m, bias = len(denoise.models), self.policy.bias
        if isinstance(self.policy, And) and (m != 2 or bias is not None):
            raise ValueError(f"And superposes two models in blocks, without a bias; got {m} and the bias {bias}")
        if bias is not None and len(bias) != m:
            raise ValueError(f"bias {bias} is not one number for each of {m} models")
        processes = denoise.process.values() if isinstance(denoise.process, dict) else (denoise.process,)
        if not all(isinstance(p, Categorical) for p in processes):
            raise ValueError("SuperDiffBlocks draws discrete fields; take SuperDiff of unisci.guidance.superdiff")


def _kernel(x: Tensor, clean: Tensor, process: Categorical, t: Tensor, s: Tensor) -> Tensor:
    """p(x_s | x_t), (..., states)."""
    return process.posterior(x, process.logits(clean, x).softmax(-1), t, s)


def _mixed(first: Tensor, kappa: Tensor, *others: Tensor) -> Tensor:
    """sum_i kappa_i p_i; where all are one it is that one, bit for bit."""
    weights = kappa[:, 1:].to(first).unbind(1)
    return (first + sum(pad(w, p) * (p - first) for w, p in zip(weights, others, strict=True))).clamp(min=0)


def _log(p: Tensor) -> Tensor:
    return p.double().clamp(min=TINY).log()


def _divergence(p: Tensor, q: Tensor, count: Tensor) -> Tensor:
    """KL(p || q) of each entry, in nats."""
    return count * (p * (_log(p) - _log(q))).sum(-1)


def _gain(p: Tensor, end: Tensor, count: Tensor) -> Tensor:
    """log p(x_s | x_t)."""
    return count * _log(p).gather(-1, end[..., None])[..., 0]
