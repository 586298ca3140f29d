"""What a process is: the forward noise of one field. `name` and `axes` key the draws, see `unisci.rng`."""

from typing import Protocol

import torch
from torch import Tensor

from unisci.rng import Rng


class Process(Protocol):
    """Forward noise of one field, t in [0, 1] with the field's leading axes or fewer."""

    def perturb(self, clean: Tensor, t: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_t given the clean value; x_0 is the clean value itself."""

    def prior(self, like: Tensor, rng: Rng, name: str = "x", axes: int = 0) -> Tensor:
        """A draw of x_1, shaped as `like`."""

    def to(self, device: torch.device | str) -> "Process":
        """The same process with its tensors, if it has any, on another device."""
