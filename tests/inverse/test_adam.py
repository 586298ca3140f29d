"""Adam as a function, against torch's."""

import pytest
import torch

from tests.oracles import normal
from unisci.inverse.adam import Adam


def test_is_the_adam_of_torch():
    gradients, start = normal(30, 4, 5), normal(4, 5, seed=1)
    leaf = start.clone().requires_grad_()
    reference = torch.optim.Adam([leaf], lr=0.03, betas=(0.8, 0.95), eps=1e-3)
    x, past = start, None
    for gradient in gradients:
        leaf.grad = gradient
        reference.step()
        x, past = Adam(0.03, (0.8, 0.95), 1e-3).step(x, gradient, past)
    torch.testing.assert_close(x, leaf.detach(), rtol=0, atol=1e-12)
    assert past.steps == 30


def test_fields_have_rates_of_their_own():
    x = {"a": normal(3), "b": normal(2, 2)}
    moved, _ = Adam({"a": 0.1, "b": 0.2}).step(x, {"a": torch.ones(3), "b": -torch.ones(2, 2)}, None)
    torch.testing.assert_close(moved["a"], x["a"] - 0.1, rtol=0, atol=1e-8)
    torch.testing.assert_close(moved["b"], x["b"] + 0.2, rtol=0, atol=1e-8)


@pytest.mark.parametrize("settings", [{"lr": -0.1}, {"lr": {"a": 0.1, "b": -1.0}}, {"betas": (0.9, 1.0)}])
def test_refused(settings):
    with pytest.raises(ValueError, match="Adam needs"):
        Adam(**settings)
