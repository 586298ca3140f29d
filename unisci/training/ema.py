"""Exponential moving average of a model's weights."""

import copy

import torch
from torch import nn


class Ema:
    """`model` holds the average; its decay min(decay, (step + 1) / (step + 10)) lets the first steps fade soon."""

    def __init__(self, model: nn.Module, decay: float):
        self.model, self.decay = copy.deepcopy(model).eval().requires_grad_(False), decay

    @torch.no_grad()
    def update(self, model: nn.Module, step: int) -> None:
        """Move the average towards the weights after step number `step`."""
        weight = 1 - min(self.decay, (step + 1) / (step + 10))
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), weight)
