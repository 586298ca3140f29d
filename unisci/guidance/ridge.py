"""A reward fitted to few labels: ridge regression in closed form, and what it says of how far it can be believed.

    theta = (Phi^T Phi + Lambda)^-1 Phi^T y,    f^(x) = theta . phi(x)
    leverage(x) = phi(x)^T (Phi^T Phi + Lambda)^-1 phi(x)                   variance of f^(x) over that of a label

The first step of reward-directed generation (arXiv 2404.07771, 2307.07055): it labels the data without labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from unisci.rng import Rng
from unisci.state import State

RewardFunction = Callable[[State], Tensor]  # clean states -> rewards (B,)


@dataclass(frozen=True, eq=False)
class Ridge:
    """The linear reward f^(x) = theta . [1, features(x)], a differentiable function of clean states, (B,); see
    `fit_reward`. theta (1 + F,); inverse (1 + F, 1 + F) of the regularised Gram matrix; error: root mean square of the
    left-out errors; leverages (n,) of the labelled states."""

    features: Callable[[State], Tensor]
    theta: Tensor
    inverse: Tensor
    error: float
    leverages: Tensor

    def __call__(self, clean: State) -> Tensor:
        rows = _with_one(self.features(clean))
        return rows @ self.theta.to(rows)

    def leverage(self, clean: State) -> Tensor:
        """How far states lie from the labelled ones as the fit sees it, (B,): the variance of f^ there over that of a
        label's noise. Its mean over the labelled states is at most (1 + F) / n."""
        rows = _with_one(self.features(clean)).double()
        return _quadratic(rows, self.inverse.to(rows))


@torch.no_grad()
def fit_reward(features: Callable[[State], Tensor], x: State, y: Tensor, regularisation: float = 1e-3) -> Ridge:
    """Ridge regression of labels y (n,) on features(x) (n, F), in float64 and closed form.

    Lambda = n regularisation diag(0, s^2), s the features' standard deviations: of no unit, and the constant is free; a
    feature that does not vary gets theta = 0. `error` is that of leave-one-out, e_i / (1 - leverage_i), without
    refitting. Raises ValueError where shapes disagree, values are not finite, regularisation is not positive, or there
    are fewer than 3 labels.
    """
    phi, y = features(x).double(), y.double()
    if phi.ndim != 2 or y.shape != phi.shape[:1] or len(y) < 3:
        raise ValueError(
            f"features (n, F) and labels (n,) with n >= 3 expected, got {tuple(phi.shape)}, {tuple(y.shape)}"
        )
    if not regularisation > 0 or not bool(phi.isfinite().all() and y.isfinite().all()):
        raise ValueError(f"regularisation must be positive, got {regularisation}, and features and labels be finite")
    rows, change = _with_one(phi), _standard(phi)
    z = rows @ change
    penalty = torch.eye(len(change)).to(z)
    penalty[0, 0] = 0
    inverse = torch.linalg.inv(z.T @ z + len(y) * regularisation * penalty)
    theta, leverages = change @ inverse @ z.T @ y, _quadratic(z, inverse)
    left_out = (y - rows @ theta) / (1 - leverages)
    return Ridge(features, theta, change @ inverse @ change.T, float(left_out.square().mean().sqrt()), leverages)


def _standard(phi: Tensor) -> Tensor:
    """The matrix that makes rows [1, phi] into [1, (phi - mean) / s]: units and origins then cost no digits."""
    mean, s = phi.mean(0), phi.std(0, correction=0)
    s = torch.where(s > 1e-9 * phi.abs().amax(0), s, 1.0)
    change = torch.diag(torch.cat([s.new_ones(1), 1 / s]))
    change[0, 1:] = -mean / s
    return change


def _with_one(phi: Tensor) -> Tensor:
    return torch.cat([torch.ones_like(phi[:, :1]), phi], 1)


def _quadratic(rows: Tensor, inverse: Tensor) -> Tensor:
    return (rows @ inverse * rows).sum(1)


def pseudo_label(reward: RewardFunction, x: State, noise: float, rng: Rng) -> Tensor:
    """y^ = f^(x) + noise xi (n,), to train a conditional model on. noise: nu, in the units of the reward, at least the
    left-out error of f^: a model conditioned on sharper labels believes f^ where f^ errs. Raises ValueError if < 0."""
    if noise < 0:
        raise ValueError(f"noise must not be negative, got {noise}")
    with torch.no_grad():
        y = reward(x)
        return y + noise * rng.normal("pseudo label", 0, tuple(y.shape), 0).to(y)


@dataclass(frozen=True)
class Extrapolation:
    """How far a target and its samples lie beyond the labels: `target`, standard deviations of the labels above the
    highest (below 0 within them); `leverage`, the samples' mean over that of the labelled states; `outside`, the share
    of samples of more leverage than any labelled state. All near 0, 1 and 0 where the fit is to be believed."""

    target: float
    leverage: float
    outside: float


@torch.no_grad()
def extrapolation(fit: Ridge, labels: Tensor, target: float, samples: State) -> Extrapolation:
    """The diagnostics of samples made for a target, of a fit to labels (n,). They need no further label."""
    own, known = fit.leverage(samples), fit.leverages
    beyond = (target - labels.max()) / labels.std()
    return Extrapolation(float(beyond), float(own.mean() / known.mean()), float((own > known.max()).double().mean()))
