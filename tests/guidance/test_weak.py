"""Weak networks: what they see, and how their outputs move with sites, frames and conditions (S39, check 5)."""

import pytest
import torch
from torch import nn

from tests.oracles import normal
from unisci.guidance.weak import WeakNet, WeakVectors, seen
from unisci.processes.categorical import uniform
from unisci.processes.gaussian import VE

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)


def bent(*sizes, kind=WeakNet, **named):
    """A weak network with a last layer that is not 0, the same at each call."""
    torch.manual_seed(1)
    net = kind(*sizes, **named)
    nn.init.normal_(net.residual.leave.weight, std=0.5)
    return net


def test_networks_permute_with_sites():
    """Times by site, a condition, and samples that do not see each other."""
    net, (b, n) = bent(3, condition=2).double(), (4, 6)
    clean, x, t, condition = normal(b, n, 3), normal(b, n, 3, seed=1), torch.rand(b, n).double(), normal(b, 2, seed=2)
    out, index = net(clean, x, t, condition), torch.randperm(n)
    assert (out - clean).abs().mean() > 0.01
    torch.testing.assert_close(net(clean[:, index], x[:, index], t[:, index], condition), out[:, index])
    torch.testing.assert_close(net(clean[:2], x[:2], t[:2], condition[:2]), out[:2])
    assert (net(clean, x, t, condition + 1) - out).abs().max() > 1e-3
    assert (net(clean, x, 1 - t, condition) - out).abs().max() > 1e-3
    torch.testing.assert_close(net(clean, x, T, condition), net(clean, x, T.expand(b), condition))


def test_states_of_another_size_look_alike():
    x = VE().level(torch.ones(()).double())[1] * normal(500, 3)
    assert seen(x, VE(), torch.ones(()).double()).std() == pytest.approx(1, abs=0.05)
    tokens = torch.randint(3, (4, 2))
    both = seen({"x": x, "k": tokens}, {"x": VE(), "k": uniform(3)}, {"x": T, "k": T})
    assert torch.equal(both["k"], tokens) and not torch.equal(both["x"], x)


def test_the_time_shifts_and_scales():
    net, x = bent(3).double(), normal(4, 3)
    for hidden in net.residual.hidden:
        nn.init.zeros_(hidden.weight)
        nn.init.zeros_(hidden.bias)
    assert (net(x, x, T) - net(x, x, T / 2)).abs().max() > 1e-3  # by the shift alone


@pytest.mark.parametrize("d", [2, 3])
def test_weak_vectors_turn_with_the_frame(d):
    """S39, check 5: also by permutations and reflections; zero before training."""
    net, clean, x, c = bent(1, kind=WeakVectors).double(), normal(4, 6, d), normal(4, 6, d, seed=1), normal(4, 1)
    turn, index, out = torch.linalg.qr(normal(d, d, seed=2)).Q, torch.randperm(6), net(clean, x, T, c)
    assert (out - clean).abs().mean() > 0.05
    torch.testing.assert_close(net(clean @ turn, x @ turn, T, c), out @ turn, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(net(clean[:, index], x[:, index], T, c), out[:, index])
    assert (net(clean, 2 * x, T, c) - out).abs().max() > 0.01 and (net(clean, -x, T, c) - out).abs().max() > 0.01
    assert not net(0 * clean, 0 * x, T, c).any() and net(0 * clean, x, T, c).abs().min() > 0
    both = net(clean, x, T, c) + net(clean, -x, T, c)  # along clean, were the angle's sign not told
    assert torch.linalg.matrix_rank(torch.stack([both, clean], -1), tol=1e-3).float().mean() > 1.9
    assert torch.equal(WeakVectors()(clean, x, T), clean)


def test_conditions_of_another_size_are_refused():
    for net, condition in ((WeakNet(3), normal(2, 1)), (WeakNet(3, 2), None), (WeakNet(3, 2), normal(2, 1))):
        with pytest.raises(ValueError, match="takes conditions"):
            net(normal(2, 3), normal(2, 3), T, condition)
