"""The gradient of a Gaussian likelihood, log N(y; A(x), sigma_y^2), which RED-Diff (arXiv 2305.04391) and Langevin
refinement (arXiv 2307.11494) follow.

    grad_x log p(y | x) = A^T (y - A(x)) / sigma_y^2
"""

from collections.abc import Callable

import torch
from torch import Tensor

from unisci.inverse.operators import Operator
from unisci.state import State, pad


def log_likelihood_gradient(operator: Operator, y: Tensor, sigma_y: float | Tensor) -> Callable[[State], State]:
    """The function x -> grad_x log p(y | x). y (B, ...) as A(x); sigma_y in the units of y: a number, (B,), or with
    more leading axes of y; infinite where y tells nothing.

    Raises ValueError for a y that is not finite and a sigma_y <= 0; when called, where A(x) is not shaped as y.
    """
    if not bool(y.isfinite().all()):
        raise ValueError("y must be finite; measure what is there through a Mask, and put 0 into the gaps")
    sigma_y = torch.as_tensor(sigma_y, dtype=y.dtype, device=y.device)
    if not bool((sigma_y > 0).all()):
        raise ValueError(f"sigma_y must be positive, got {sigma_y.tolist()}")
    precision = pad(1 / sigma_y**2, y)

    def gradient(x: State) -> State:
        predicted = operator(x)
        if predicted.shape != y.shape:
            raise ValueError(f"y has shape {tuple(y.shape)}, the operator measures {tuple(predicted.shape)}")
        return operator.adjoint(precision * (y - predicted), x)

    return gradient
