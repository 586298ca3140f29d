"""Windows to try networks of series on, and small networks of each kind."""

import pytest
import torch
from torch import nn

from tests.laws import Inputs
from tests.space import randomised
from unisci.networks.state_space import WindowStateSpace, WindowStateSpaceConfig
from unisci.networks.window_mlp import WindowMLP, WindowMLPConfig
from unisci.networks.window_transformer import WindowTransformer, WindowTransformerConfig


def mlp(**sizes: int) -> nn.Module:
    return WindowMLP(WindowMLPConfig(width=32, hidden=64, blocks=2, condition=32, **sizes))


def state_space(**sizes: int) -> nn.Module:
    return WindowStateSpace(WindowStateSpaceConfig(width=32, blocks=2, modes=8, **sizes))


def transformer(**sizes: int) -> nn.Module:
    """Patches of 4: lengths that 4 does not divide are padded."""
    return WindowTransformer(WindowTransformerConfig(patch=4, width=32, layers=2, heads=2, hidden=64, **sizes))


each = pytest.mark.parametrize("make", [mlp, state_space, transformer], ids=lambda f: f.__name__)
ALL = {"phases": 4, "covariates": 2, "static": 3}


def built(make, **sizes: int) -> nn.Module:
    """In double precision, with no weight at 0."""
    torch.manual_seed(0)
    return randomised(make(**sizes))


def windows(
    b: int, length: int, channels: int = 1, phases: int = 0, covariates: int = 0, static: int = 0, seed: int = 0
) -> Inputs:
    """Random windows, a fifth of the entries missing, the past known up to a step of each sample's own, at which all
    channels have unknown entries. Some covariates and static numbers are nan."""
    g = torch.Generator().manual_seed(seed)
    rand = lambda *shape: torch.rand(*shape, generator=g, dtype=torch.float64)
    normal = lambda *shape: torch.randn(*shape, generator=g, dtype=torch.float64)
    n = channels * length
    mask = rand(b, n) > 0.2
    known = (torch.arange(length) < length // 2 + torch.arange(b)[:, None] % 3).repeat(1, channels)
    t = {"y": torch.where(known, 0.0, 0.05 + 0.9 * rand(b, 1))}
    given = {}
    if phases:
        given["phase"] = normal(b, phases)
    if covariates:
        given["covariates"] = torch.where(rand(b, n, covariates) < 0.2, torch.nan, normal(b, n, covariates))
    if static:
        given["static"] = torch.where(rand(b, static) < 0.2, torch.nan, normal(b, static))
    return Inputs({"y": normal(b, n)}, t, mask, given)
