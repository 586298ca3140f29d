"""Potentials of the clean estimate: rewards and observations. With D = E[x_0 | x_t], J = dD / dx_t, C = Cov(x_0 | x_t),

    C = (sigma^2 / alpha) J                                                   (Tweedie, second order)

a weight h(x_0) moves D by about C grad log h(D); and an observation y = A(x_0) + noise of variance sigma_y^2 by

    C H^T (H C H^T + sigma_y^2)^-1 (y - A(D)),   H = dA / dx_0 at D

which is exact where data are Gaussian and A is linear. The likelihood of a noised state owns the variance C: leave it
out, as DPS (arXiv 2209.14687) does, and the strength of the data is wrong by the level of noise. With C from J this is
MMPS (Rozet et al., 2405.13712), with C = r^2 and J in front PiGDM (Song et al., ICLR 2023).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from unisci.guidance.terms import Evaluation, Term, lift
from unisci.processes.categorical import Categorical
from unisci.processes.gaussian import level_for
from unisci.solvers.sample import processes
from unisci.state import State, pad, pick

TINY = 1e-30
SLACK = 0.99  # for rounding, where a positive map has an eigenvalue of 0 beside the noise


class Covariance(Protocol):
    """What a term takes for C. `spread` is C inside an observation's own variance, None for 1 in place of all of it;
    `pull` is C in front of the gradient. Both take and return a State by field, of continuous fields."""

    needs_graph: bool

    def spread(self, at: Evaluation, u: State) -> State | None: ...

    def pull(self, at: Evaluation, u: State) -> State: ...


@dataclass(frozen=True)
class Jacobian:
    """C = (sigma^2 / alpha) J, one backward pass through the model for each product: exact for the exact model."""

    needs_graph = True

    def spread(self, at: Evaluation, u: State) -> State:
        return backward(at, u)

    def pull(self, at: Evaluation, u: State) -> State:
        return backward(at, u)


@dataclass(frozen=True)
class Isotropic:
    """C = r^2 = sigma^2 v / (alpha^2 v + sigma^2), v the variance of the data: as if its entries were independent and
    Gaussian. through_model: J in front, as PiGDM; without, no pass backward at all. Raises ValueError where v <= 0."""

    variance: float = 1.0
    through_model: bool = True

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise ValueError(f"the variance of the data must be positive, got {self.variance}")

    @property
    def needs_graph(self) -> bool:
        return self.through_model

    def spread(self, at: Evaluation, u: State) -> State:
        kinds = processes(at.denoise)
        return {k: self._ratio(at, k) * v for k, v in u.items() if not isinstance(kinds[k], Categorical)}

    def pull(self, at: Evaluation, u: State) -> State:
        return backward(at, u) if self.through_model else self.spread(at, u)

    def _ratio(self, at: Evaluation, name: str) -> Tensor:
        x = at.x[name] if isinstance(at.x, dict) else at.x
        alpha, sigma = level_for(processes(at.denoise)[name], pick(at.t, name), x)
        return sigma**2 * self.variance / (alpha**2 * self.variance + sigma**2)


@dataclass(frozen=True)
class Unit:
    """The variance of the likelihood is 1 at every noise, J in front: self-guidance as it is published (TSDiff, arXiv
    2307.11494). The posterior is then wrong by the level of noise, and `scale` a matter of trial."""

    needs_graph = True

    def spread(self, at: Evaluation, u: State) -> None:
        return None

    def pull(self, at: Evaluation, u: State) -> State:
        return backward(at, u)


def backward(at: Evaluation, u: dict[str, Tensor]) -> dict[str, Tensor]:
    """(sigma^2 / alpha) J^T u of the continuous fields; u by field, for a discrete one by its probabilities."""
    x = at.x if isinstance(at.x, dict) else {"x": at.x}
    clean, kinds = estimate(at), processes(at.denoise)
    moving = [k for k in x if not isinstance(kinds[k], Categorical)]
    with torch.enable_grad():
        outputs = [k for k in clean if clean[k].requires_grad and k in u]
        pulled = torch.autograd.grad(
            [clean[k] for k in outputs],
            [x[k] for k in moving],
            [u[k] for k in outputs],
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
        )
    return {k: lift(v, x[k], kinds[k], pick(at.t, k)) for k, v in zip(moving, pulled, strict=True)}


def estimate(at: Evaluation) -> dict[str, Tensor]:
    """The clean estimate by field: E[x_0 | x_t], and for a discrete field the probabilities of its classes."""
    clean, kinds = (at.clean if isinstance(at.clean, dict) else {"x": at.clean}), processes(at.denoise)
    return {k: v.softmax(-1) if isinstance(kinds[k], Categorical) else v for k, v in clean.items()}


@dataclass(frozen=True, kw_only=True)
class Reward(Term):
    """log_h(clean) -> (B,), a differentiable log weight of clean states, taken at the estimate: a reward over its
    temperature, an energy, a penalty. Discrete fields come as probabilities (B, ..., K), whose gradient is added to
    their logits (exact to first order in h, one site at a time).

    Exact for linear log_h and Gaussian data; a target value with a tolerance is rather an `Observation`, whose variance
    counts what the estimate does not know. Source: arXiv 2404.07771, 2302.07121.
    """

    log_h: Callable[[State], Tensor]
    covariance: Covariance = Jacobian()

    @property
    def needs_graph(self) -> bool:
        return self.covariance.needs_graph

    def push(self, at: Evaluation) -> State:
        clean = {k: v.detach().requires_grad_() for k, v in estimate(at).items()}
        with torch.inference_mode(False), torch.enable_grad():
            clean = {k: v.clone() for k, v in clean.items()}
            value = self.log_h(clean if isinstance(at.x, dict) else clean["x"])
            inputs = list(clean.values())
            found = torch.autograd.grad(value.sum(), inputs, allow_unused=True, materialize_grads=True)
            u = dict(zip(clean, found, strict=True))
        return _pushes(self, at, u)


@dataclass(frozen=True, kw_only=True)
class Observation(Term):
    """y = operator(x_0) + noise of standard deviation sigma_y. The operator is any differentiable function of a clean
    state to (B, ...); y broadcasts against its result, sigma_y against y. Discrete fields come to the operator as
    probabilities, so that it is their expectation which is observed.

    H C H^T + sigma_y^2 is inverted by `iterations` steps of conjugate gradients, one pass through the model each with
    `Jacobian`. scale 1 is Bayes. Raises ValueError where sigma_y is not positive, iterations < 1, or, before the first
    step, shapes do not fit.
    """

    operator: Callable[[State], Tensor]
    y: Tensor
    sigma_y: float | Tensor
    covariance: Covariance = Jacobian()
    iterations: int = 16

    def __post_init__(self) -> None:
        super().__post_init__()
        if not bool((torch.as_tensor(self.sigma_y) > 0).all()):
            raise ValueError(f"sigma_y, the measurement's standard deviation, must be positive, got {self.sigma_y}")
        if self.iterations < 1:
            raise ValueError(f"iterations must be at least 1, got {self.iterations}")
        if not bool(self.y.isfinite().all()):
            raise ValueError("y holds values that are not finite; leave them out, by an operator that picks the others")

    @property
    def needs_graph(self) -> bool:
        return self.covariance.needs_graph

    def push(self, at: Evaluation) -> State:
        with torch.inference_mode(False), torch.enable_grad():
            clean = {k: v.detach().clone().requires_grad_() for k, v in estimate(at).items()}
            measured = self.operator(clean if isinstance(at.x, dict) else clean["x"])
            residual = self._residual(measured.detach())
            weights = self._solve(at, residual, Linearised.of(measured, clean))
            u = _pull(measured, clean, weights)
        return _pushes(self, at, u)

    def _residual(self, measured: Tensor) -> Tensor:
        try:
            fits = torch.broadcast_shapes(self.y.shape, measured.shape) == measured.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(f"y has shape {tuple(self.y.shape)}, the operator gives {tuple(measured.shape)}")
        return self.y.to(measured) - measured

    def _solve(self, at: Evaluation, residual: Tensor, h: "Linearised") -> Tensor:
        """(H C H^T + sigma_y^2)^-1 residual by conjugate gradients, for each sample on its own."""
        if self.covariance.spread(at, {k: torch.zeros_like(v) for k, v in h.clean.items()}) is None:
            return residual
        noise = (self.sigma_y.to(residual) if isinstance(self.sigma_y, Tensor) else self.sigma_y) ** 2
        times = lambda v: h.along(self.covariance.spread(at, h.adjoint(v))) + noise * v
        return conjugate_gradients(times, residual, self.iterations, noise)


class Linearised(NamedTuple):
    """H of an operator at a clean state: along(u) = H u, adjoint(v) = H^T v. H u is the gradient by v of H^T v, which
    is linear in v: two passes backward, and no forward mode, whose import takes seconds."""

    measured: Tensor
    clean: dict[str, Tensor]
    v: Tensor
    pulled: dict[str, Tensor]

    @classmethod
    def of(cls, measured: Tensor, clean: dict[str, Tensor]) -> "Linearised":
        v = torch.zeros_like(measured, requires_grad=True)
        return cls(measured, clean, v, _pull(measured, clean, v, create_graph=True))

    def along(self, u: dict[str, Tensor]) -> Tensor:
        moving = [k for k in u if self.pulled[k].requires_grad]
        outputs, vectors = [self.pulled[k] for k in moving], [u[k] for k in moving]
        options = {"retain_graph": True, "allow_unused": True, "materialize_grads": True}
        return torch.autograd.grad(outputs, self.v, vectors, **options)[0]

    def adjoint(self, v: Tensor) -> dict[str, Tensor]:
        return _pull(self.measured, self.clean, v)


def _pull(measured: Tensor, clean: dict[str, Tensor], v: Tensor, create_graph: bool = False) -> dict[str, Tensor]:
    inputs = list(clean.values())
    found = torch.autograd.grad(
        measured, inputs, v, retain_graph=True, create_graph=create_graph, allow_unused=True, materialize_grads=True
    )
    return dict(zip(clean, found, strict=True))


def conjugate_gradients(
    times: Callable[[Tensor], Tensor], b: Tensor, iterations: int, noise: float | Tensor = 0.0
) -> Tensor:
    """The solution v of times(v) = b (B, ...), a symmetric positive map of each sample, by a fixed number of steps.

    noise: what the map is known to hold, times(v) = A v + noise v. The Jacobian A of a trained model may not be
    positive: a sample that meets a direction where it is not takes A for 0 there, and stops (Steihaug 1983).
    """
    inner = lambda a, c: pad((a * c).reshape(len(a), -1).sum(1), a)
    v, r, p = torch.zeros_like(b), b, b
    rr = inner(r, r)
    for _ in range(iterations):
        q = times(p)
        along, least = inner(p, q), inner(p, noise * p)
        bad = along < SLACK * least
        step = rr / torch.where(bad, least, along).clamp(min=TINY)
        v, r = v + step * p, torch.where(bad, 0.0, r - step * q)
        following = inner(r, r)
        p, rr = r + torch.where(bad, 0.0, following / rr.clamp(min=TINY)) * p, following
    return v


def _pushes(term: Reward | Observation, at: Evaluation, u: dict[str, Tensor]) -> State:
    """C u for continuous fields; for discrete ones u itself, to be added to logits."""
    kinds = processes(at.denoise)
    pushes = {k: v.detach() for k, v in term.covariance.pull(at, u).items()}
    pushes |= {k: u[k].detach() for k in u if isinstance(kinds[k], Categorical)}
    if not isinstance(at.x, dict):
        return pushes["x"]
    return {k: v for k, v in pushes.items() if term.changes(k)}
