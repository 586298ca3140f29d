"""The diagonal state space against its own recurrence and sums, and the residual block of TSDiff's network."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks.windows import windows
from tests.oracles import normal
from tests.space import randomised
from unisci.networks.state_space import Block, StateSpace, WindowStateSpace, WindowStateSpaceConfig
from unisci.networks.window_inputs import normalised


def space(features: int = 3, modes: int = 4, causal: bool = True) -> StateSpace:
    torch.manual_seed(0)
    return randomised(StateSpace(features, modes, causal), 0.2)


def recurrence(s: StateSpace, u: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
    """2 Re C x[k], x[k] = exp(dt A) x[k - 1] + (exp(dt A) - 1) / A u[k], one step after the other."""
    a = torch.complex(-s.log_decay.exp(), s.frequency)
    step = torch.exp(s.log_dt.exp()[:, None] * a)
    x, out = torch.zeros_like(step).expand(len(u), -1, -1), []
    for k in range(u.shape[1]):
        x = step * x + (step - 1) / a * u[:, k, :, None]
        out.append(2 * (torch.view_as_complex(c) * x).sum(-1).real)
    return torch.stack(out, 1)


@given(length=st.integers(1, 70), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_convolution_is_the_recurrence(length, seed):
    s, u = space(), normal(2, length, 3, seed=seed)
    torch.testing.assert_close(s(u), recurrence(s, u, s.c[0]) + s.d * u, rtol=0, atol=1e-10)


@pytest.mark.parametrize("length", [1, 2, 31, 64])
def test_both_sides_are_two_recurrences(length):
    """The second runs from the right, and ends a step before the output: no step is counted twice."""
    s, u = space(causal=False), normal(2, length, 3)
    ahead = recurrence(s, u.flip(1), s.c[1]).flip(1)[:, 1:]
    expected = recurrence(s, u, s.c[0]) + s.d * u + torch.cat([ahead, torch.zeros(2, 1, 3)], 1)
    torch.testing.assert_close(s(u), expected, rtol=0, atol=1e-10)


def test_the_first_state_space_is_s4d_lin():
    """A_n = -1/2 + i pi n, steps dt within 0.001 and 0.1, and their kernel in single precision."""
    torch.manual_seed(0)
    s = StateSpace(64, 32)
    z, gain = s.discrete()
    a = torch.complex(torch.full((32,), -0.5), torch.pi * torch.arange(32))
    torch.testing.assert_close(z, s.log_dt.exp()[:, None] * a, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gain, (z.to(torch.complex128).exp().sub(1) / a).to(gain), rtol=1e-4, atol=1e-7)
    assert 1e-3 <= float(s.log_dt.detach().exp().min()) < 2e-3 and 5e-2 < float(s.log_dt.detach().exp().max()) <= 1e-1
    torch.testing.assert_close(s.kernel(300).double(), s.double().kernel(300), rtol=0, atol=2e-3)


def test_half_the_step_with_every_input_twice_is_the_same_system():
    """Exact for inputs that are constant over a step, which no other discretisation is."""
    s, u = space(), normal(2, 20, 3)
    whole = s(u)
    with torch.no_grad():
        s.log_dt -= torch.log(torch.tensor(2.0).double())
    twice = s(u.repeat_interleave(2, 1))
    torch.testing.assert_close(twice[:, 1::2], whole, rtol=0, atol=1e-10)


def test_the_causal_form_is_shift_equivariant_and_sees_no_future():
    s, u = space(), normal(2, 40, 3)
    later = torch.cat([torch.zeros(2, 7, 3), u], 1)
    torch.testing.assert_close(s(later)[:, 7:], s(u), rtol=0, atol=1e-10)
    for length in (1, 13, 39):
        torch.testing.assert_close(s(u[:, :length]), s(u)[:, :length], rtol=0, atol=1e-10)


def test_each_side_is_seen():
    u = normal(1, 12, 3)
    grad = torch.autograd.functional.jacobian(lambda v: space(causal=False)(v)[0, 6], u)[:, 0]
    own = torch.stack([grad[h, :, h] for h in range(3)])
    assert float(own.abs().min()) > 1e-6
    assert float((grad - torch.einsum("hl,hk->hlk", own, torch.eye(3).double())).abs().max()) < 1e-12
    causal = torch.autograd.functional.jacobian(lambda v: space()(v)[0, 6], u)[:, 0]
    assert float(causal[:, 7:].abs().max()) < 1e-12 and float(causal[0, :7, 0].abs().min()) > 1e-6


def test_a_block_is_its_equations():
    torch.manual_seed(0)
    block, h, c = randomised(Block(4, 3)), normal(2, 7, 4), normal(2, 4, seed=1)
    u = h + block.condition(c)[:, None]
    u = u + block.space(normalised(u))
    a = u @ block.gate.weight.T + block.gate.bias
    z = a[..., :4].tanh() * a[..., 4:].sigmoid()
    out = z @ block.out.weight.T + block.out.bias
    got = block(h, c)
    torch.testing.assert_close(got[0], h + out[..., :4], rtol=0, atol=1e-12)
    torch.testing.assert_close(got[1], out[..., 4:], rtol=0, atol=1e-12)


def test_skips_are_summed_and_steps_are_told_apart():
    """Each block reads the residual of the one before, the head the sum of skips, step by step."""
    inputs, c = windows(2, 9, 2), WindowStateSpaceConfig(9, 2, width=8, blocks=2, modes=4)
    net = randomised(WindowStateSpace(c))
    seen, said = [], []
    net.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for block in net.blocks:
        block.register_forward_hook(lambda module, args, out: said.append((args[0], out)))
    out = net(*inputs)["y"].unflatten(1, (2, 9))
    torch.testing.assert_close(out.transpose(1, 2), net.head[2](net.head[0](seen[0]).relu()), rtol=0, atol=1e-12)
    torch.testing.assert_close(seen[0], said[0][1][1] + said[1][1][1], rtol=0, atol=1e-12)
    torch.testing.assert_close(said[1][0], said[0][1][0], rtol=0, atol=0)
    same = torch.zeros(1, 18).double()
    net({"y": same}, torch.ones(()), torch.ones(1, 18, dtype=torch.bool), {})
    first = said[2][0][0]
    assert float(torch.pdist(first.detach()).min()) > 1e-3
