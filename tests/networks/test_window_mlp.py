"""GPD's stacked blocks: their equations, the linear skip, and what a window costs."""

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from tests.networks.windows import ALL, built, mlp, windows
from tests.oracles import normal
from tests.space import randomised
from unisci.networks.window_mlp import Block, WindowMLP, WindowMLPConfig


def test_a_block_is_its_equations():
    block, h, c = randomised(Block(WindowMLPConfig(5, width=6, hidden=10, condition=4))), normal(3, 6), normal(3, 4)
    m = block.modulation(c)
    n = (h - h.mean(1, keepdim=True)) / (h.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    inside = F.gelu((n * (1 + m[:, :6]) + m[:, 6:]) @ block.up.weight.T + block.up.bias, approximate="tanh")
    torch.testing.assert_close(block(h, c), h + inside @ block.down.weight.T + block.down.bias, rtol=0, atol=1e-12)


def test_the_network_is_its_equations():
    inputs, net = windows(3, 5, 2, **ALL), built(mlp, length=5, channels=2, **ALL)
    seen = []
    net.entries.register_forward_hook(lambda module, args, out: seen.append(out))
    net.blocks[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net.blocks[-1].register_forward_hook(lambda module, args, out: seen.append(out))
    got = net(*inputs)["y"]
    entries, first, last = seen
    torch.testing.assert_close(first, entries + inputs.given["phase"] @ net.phase.weight.T, rtol=0, atol=1e-12)
    x = torch.where(inputs.mask, inputs.state["y"], 0.0).unflatten(1, (2, 5))
    known = (inputs.mask & (inputs.t["y"] == 0)).unflatten(1, (2, 5))
    skip = torch.cat([x, torch.where(known, x, 0.0)], -1) @ net.skip.weight.T + net.skip.bias
    expected = net.out(F.layer_norm(last, (32,))) + skip.flatten(1)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_to_copy_the_last_known_value_is_one_linear_map():
    """Weights of 1 on k x at step 3 of 8, for steps 4 to 7 of each of two channels."""
    net = WindowMLP(WindowMLPConfig(8, 2, width=32, hidden=32, blocks=1)).double()
    with torch.no_grad():
        net.skip.weight[4:, 8 + 3] = 1
    y, mask = normal(4, 16), torch.ones(4, 16, dtype=torch.bool)
    t = torch.where(torch.arange(8) < 4, 0.0, 0.7).repeat(4, 2)
    out = net({"y": y}, {"y": t}, mask, {})["y"].unflatten(1, (2, 8))
    expected = y.unflatten(1, (2, 8))[..., 3:4].expand(-1, -1, 4)
    torch.testing.assert_close(out[..., 4:], expected, rtol=0, atol=0)
    assert not bool(out[..., :4].any())


def test_a_window_of_192_steps_costs_about_three_million_operations():
    net, mask = WindowMLP(WindowMLPConfig(192)), torch.ones(10, 192, dtype=torch.bool)
    with FlopCounterMode(display=False) as count:
        net({"y": torch.zeros(10, 192)}, {"y": torch.ones(10, 192)}, mask, {})
    assert 2.5e6 < count.get_total_flops() / 10 < 3.1e6


def test_dropout_is_for_training_alone():
    net = WindowMLP(WindowMLPConfig(8, width=32, hidden=64, blocks=2, dropout=0.5))
    net, inputs = randomised(net), windows(3, 8)
    ask = lambda: net(*inputs)["y"]
    assert torch.equal(ask(), ask())
    net.train()
    assert not torch.equal(ask(), ask())
