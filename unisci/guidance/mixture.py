"""One denoiser from several: the weighted sum of their predictions, as in SuperDiff (Skreta et al., arXiv 2412.17762).

    D(x, t) = sum_i kappa_i D_i(x, t),     sum_i kappa_i = 1

for a continuous field; for a discrete one the logits log sum_i kappa_i softmax(l_i). Where kappa_i is proportional to
q_i(x_t), the density of model i at x_t, D is exactly the denoiser of the mixture of the models' laws.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from unisci.batch import Schema
from unisci.processes.categorical import Categorical
from unisci.processes.process import Process
from unisci.solvers.sample import Denoise
from unisci.state import State, Time, pad, pick

# (x, t, the models' clean estimates) -> kappa (B, M), decided for each sample on its own
Weights = Callable[[State, Time, tuple[State, ...]], Tensor]


def equal(x: State, t: Time, cleans: tuple[State, ...]) -> Tensor:
    """kappa = 1 / M, (B, M)."""
    like = next(iter(cleans[0].values())) if isinstance(cleans[0], dict) else cleans[0]
    return like.new_full((len(like), len(cleans)), 1 / len(cleans))


@dataclass(frozen=True)
class Mixture:
    """M denoisers as one, itself a Denoise. The weights sum to 1; those of discrete fields must not be negative.

    It has the process and the schema of the first model. Raises ValueError where there is no model, and where their
    processes or schemas differ.
    """

    models: tuple[Denoise, ...]
    weights: Weights = equal

    def __post_init__(self) -> None:
        if len(self.models) < 1:
            raise ValueError("a Mixture needs at least one model, got none")
        first = self.models[0]
        for i, model in enumerate(self.models[1:], 1):
            if not _same(model.process, first.process):
                raise ValueError(
                    f"model {i} has the process {model.process}, model 0 {first.process}; a Mixture needs one process "
                    "for all, as the score of one noise says nothing at another"
                )
            if model.schema != first.schema:
                raise ValueError(f"model {i} has the schema {model.schema}, model 0 {first.schema}; give all the same")

    @property
    def process(self) -> Process | dict[str, Process]:
        """That of every model."""
        return self.models[0].process

    @property
    def schema(self) -> Schema | None:
        """That of every model."""
        return self.models[0].schema

    def evaluate(self, x: State, t: Time) -> tuple[State, ...]:
        """The prediction of each model, M evaluations."""
        return tuple(model(x, t) for model in self.models)

    def __call__(self, x: State, t: Time) -> State:
        cleans = self.evaluate(x, t)
        return mix(self.process, cleans, self.weights(x, t, cleans))


def mix(process: Any, cleans: Sequence[State], kappa: Tensor) -> State:
    """The prediction of the mixture from those of the models and their weights kappa (B, M)."""
    if isinstance(cleans[0], dict):
        return {k: mix(pick(process, k), [clean[k] for clean in cleans], kappa) for k in cleans[0]}
    kappa = kappa.to(cleans[0].dtype).unbind(1)
    if isinstance(process, Categorical):
        logs = [pad(w.log(), logits) + logits.log_softmax(-1) for w, logits in zip(kappa, cleans, strict=True)]
        return reduce(torch.logaddexp, logs)
    return sum(pad(w, clean) * clean for w, clean in zip(kappa, cleans, strict=True))


def _same(p: Any, q: Any) -> bool:
    """Whether two processes, or two by field, are the same noise."""
    if isinstance(p, dict) and isinstance(q, dict):
        return p.keys() == q.keys() and all(_same(p[k], q[k]) for k in p)
    if p is q or not (isinstance(p, Categorical) and isinstance(q, Categorical)):
        return p is q or p == q
    t = torch.linspace(0, 1, 9, dtype=torch.float64)  # two Categoricals are compared by what they do
    levels = zip(p.level(t), q.level(t), strict=True)
    return torch.equal(p.m.cpu(), q.m.cpu()) and all(torch.allclose(a, b) for a, b in levels)
