"""Adam (Kingma & Ba, arXiv 1412.6980) as a function, each sample on its own.

    m <- b1 m + (1 - b1) g,   v <- b2 v + (1 - b2) g^2,   x <- x - lr m_hat / (sqrt(v_hat) + eps)

torch.optim fuses these products and sums, and rounds the lanes of a vector unlike its tail: there a sample would depend
on its batch in the last bit.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unisci.state import State, fieldwise


class Moments(NamedTuple):
    """Steps taken, and m and v shaped as the state."""

    steps: int
    m: State
    v: State


@dataclass(frozen=True)
class Adam:
    """lr: in units of the state, a number or one by field. Raises ValueError for lr < 0 or betas not in [0, 1)."""

    lr: float | dict[str, float] = 0.1
    betas: tuple[float, float] = (0.9, 0.99)
    eps: float = 1e-8

    def __post_init__(self) -> None:
        rates = self.lr.values() if isinstance(self.lr, dict) else (self.lr,)
        if not all(rate >= 0 for rate in rates) or not all(0 <= b < 1 for b in self.betas):
            raise ValueError(f"Adam needs lr >= 0 and betas in [0, 1), got lr = {self.lr}, betas = {self.betas}")

    def step(self, x: State, gradient: State, past: Moments | None) -> tuple[State, Moments]:
        """x one step down the gradient, and the moments to pass on; `past` None at first."""
        b1, b2 = self.betas
        zero = fieldwise(torch.zeros_like, x)
        k, m, v = past or Moments(0, zero, zero)
        k = k + 1
        m = fieldwise(lambda m, g: b1 * m + (1 - b1) * g, m, gradient)
        v = fieldwise(lambda v, g: b2 * v + (1 - b2) * g**2, v, gradient)

        def moved(x: Tensor, m: Tensor, v: Tensor, lr: float) -> Tensor:
            return x - lr * (m / (1 - b1**k)) / ((v / (1 - b2**k)).sqrt() + self.eps)

        return fieldwise(moved, x, m, v, self.lr), Moments(k, m, v)
