"""Patches as tokens: the layer's equations, where a window is padded, and which patches are seen."""

import pytest
import torch
import torch.nn.functional as F

from tests.networks.windows import ALL, built, transformer, windows
from tests.oracles import normal
from tests.space import randomised
from unisci.networks.window_transformer import Layer, WindowTransformerConfig


def test_a_layer_is_its_equations():
    """Head by head, over the tokens that are seen."""
    torch.manual_seed(0)
    layer, h, c = randomised(Layer(8, 2, 12)), normal(2, 5, 8), normal(2, 1, 8, seed=1)
    seen = torch.tensor([[True, False, True, True, False], [True] * 5])
    got = layer(h, c, seen[:, None, None])
    norm = lambda x: (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    for b in range(2):
        m = layer.modulation(c[b]).chunk(6, -1)
        q, k, v = layer.qkv(norm(h[b]) * (1 + m[1]) + m[0]).chunk(3, -1)
        parts = [slice(0, 4), slice(4, 8)]
        a = [(q[:, p] @ k[seen[b]][:, p].T / 2).softmax(-1) @ v[seen[b]][:, p] for p in parts]
        y = h[b] + (1 + m[2]) * layer.out(torch.cat(a, -1))
        inside = F.gelu(layer.feed[0](norm(y) * (1 + m[4]) + m[3]), approximate="tanh")
        torch.testing.assert_close(got[b], y + (1 + m[5]) * layer.feed[2](inside), rtol=0, atol=1e-10)


def test_a_window_is_padded_at_its_beginning():
    """10 steps in patches of 4 are 12 steps of which the first two do not exist. A whole patch is missing too."""
    inputs = windows(3, 10, 2, **ALL)
    inputs.mask[:, 2:6] = False
    short, long = (built(transformer, length=n, channels=2, **ALL) for n in (10, 12))
    longer = lambda v, fill: torch.stack([F.pad(x.float(), (2, 0), value=fill) for x in v.chunk(2, 1)], 1).flatten(1)
    put = lambda v, fill: longer(v, fill).to(v.dtype)
    covariates = torch.stack([put(v, 5.0) for v in inputs.given["covariates"].unbind(-1)], -1)
    got = long.float()(
        {"y": put(inputs.state["y"], 9.0).float()},
        {"y": put(inputs.t["y"], 0.99).float()},
        put(inputs.mask, False),
        {k: v.float() for k, v in (inputs.given | {"covariates": covariates}).items()},
    )["y"]
    single = lambda fields: {k: v.float() for k, v in fields.items()}
    expected = short.float()(single(inputs.state), single(inputs.t), inputs.mask, single(inputs.given))["y"]
    torch.testing.assert_close(got.unflatten(1, (2, 12))[..., 2:].flatten(1), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_a_patch_of_which_nothing_exists_is_not_seen():
    """Its place could be anything; with one entry that exists, it matters."""
    inputs, net = windows(2, 12, 2), built(transformer, length=12, channels=2)
    there = torch.ones(2, 2, 12, dtype=torch.bool)
    there[:, :, 4:8] = False
    other = normal(32)
    ask = lambda: net(*inputs._replace(mask=there.flatten(1)))["y"].unflatten(1, (2, 12))
    out = ask()
    net.places.place[1] += other
    others = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(ask()[..., others], out[..., others])
    there[0, 1, 5] = True
    out = ask()
    net.places.place[1] += other
    change = (ask() - out)[..., others].abs().amax((1, 2))
    assert float(change[0]) > 1e-6 and float(change[1]) == 0


def test_tokens_of_all_channels_and_places_are_told_apart():
    net = built(transformer, length=12, channels=2)
    seen = []
    net.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    net({"y": torch.zeros(1, 24).double()}, torch.ones(()), torch.ones(1, 24, dtype=torch.bool), {})
    assert seen[0].shape == (1, 6, 32) and float(torch.pdist(seen[0][0].detach()).min()) > 1e-2


def test_a_window_of_nothing_sees_itself():
    """An attention to nothing is nan on some devices."""
    net, seen = built(transformer, length=12), []
    net.layers[0].register_forward_pre_hook(lambda module, args: seen.append(args[2]))
    mask = torch.arange(12) >= torch.tensor([12, 5, 0])[:, None]
    net({"y": torch.zeros(3, 12).double()}, torch.ones(()), mask, {})
    assert seen[0][:, 0, 0].tolist() == [[True] * 3, [False, True, True], [True] * 3]


def test_sizes():
    assert [WindowTransformerConfig(n, patch=4).patches for n in (1, 4, 5, 192)] == [1, 1, 2, 48]
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        WindowTransformerConfig(8, width=10, heads=4)
    with pytest.raises(ValueError, match="patch must be 1 or more, got 0"):
        WindowTransformerConfig(8, patch=0)
