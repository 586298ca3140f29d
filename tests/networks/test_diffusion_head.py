"""The diffusion head: it learns conditional laws that are known, one vector by itself, with free leading axes."""

import dataclasses
import math

import pytest
import torch

from tests.oracles import normal
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.networks.diffusion_head import DiffusionHead, DiffusionHeadConfig
from unisci.processes.gaussian import Cosine
from unisci.processes.product import Product
from unisci.processes.torus import UNIFORM_DEVIATION, Torus
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.sample import sample

SCHEMA = {"value": Field("whole", (3,)), "context": Field("whole", (2,))}
SMALL = DiffusionHeadConfig(context=2, width=16, depth=2)


def head(config: DiffusionHeadConfig = SMALL) -> DiffusionHead:
    torch.manual_seed(0)
    net = DiffusionHead(config).double()
    for p in net.parameters():  # the last maps start at zero, which would hide what they read
        torch.nn.init.normal_(p, std=0.3)
    return net


def call(net: DiffusionHead, x, t, z):
    return net({"value": x}, {"value": t}, None, {"context": z})["value"]


PERIODIC = dataclasses.replace(SMALL, frequencies=3)


@torch.no_grad()
@pytest.mark.parametrize("config", [SMALL, PERIODIC], ids=["line", "circle"])
def test_leading_axes_are_free_and_broadcast(config):
    net, x, t, z = head(config), normal(4, 5, 3), torch.rand(4, 5, dtype=torch.float64), normal(4, 1, 2)
    out = call(net, x, t, z)
    for i in range(4):
        for j in range(5):
            torch.testing.assert_close(out[i, j], call(net, x[i, j], t[i, j], z[i, 0]), rtol=0, atol=1e-12)


@torch.no_grad()
def test_it_reads_value_time_and_context():
    net, x, t, z = head(), normal(4, 3), torch.full((4,), 0.4, dtype=torch.float64), normal(4, 2)
    out = call(net, x, t, z)
    for other in ((x + 0.1, t, z), (x, t + 0.1, z), (x, t, z + 0.1)):
        assert float((call(net, *other) - out).abs().min()) > 1e-4


@torch.no_grad()
def test_frequencies_make_it_periodic():
    periodic = head(PERIODIC)
    x, t, z = normal(4, 3), torch.full((4,), 0.4, dtype=torch.float64), normal(4, 2)
    shift = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(call(periodic, x + shift, t, z), call(periodic, x, t, z))
    assert float((call(periodic, x + shift / 2, t, z) - call(periodic, x, t, z)).abs().max()) > 1e-3
    assert float((call(head(), x + shift, t, z) - call(head(), x, t, z)).abs().max()) > 1e-3


@torch.no_grad()
def test_a_pull_to_a_point_of_a_circle_is_linear_in_the_last_state():
    """With the last map's biases alone, sin(2 pi (m - x)) of one axis, m = .2, and nothing on the others."""
    net, x = head(PERIODIC), normal(6, 3)
    net.out.weight.zero_()
    net.out.bias.zero_()
    coefficients = net.out.bias[3:].view(2, 3, 3)  # of sines and cosines, axis, k
    coefficients[0, 1, 0], coefficients[1, 1, 0] = -math.cos(0.4 * math.pi), math.sin(0.4 * math.pi)
    out = call(net, x, torch.full((6,), 0.4, dtype=torch.float64), normal(6, 2))
    expected = torch.zeros(6, 3, dtype=torch.float64)
    expected[:, 1] = torch.sin(2 * math.pi * (0.2 - x[:, 1]))
    torch.testing.assert_close(out, expected)


def test_it_starts_at_zero_and_every_weight_learns():
    torch.manual_seed(0)
    net = DiffusionHead(SMALL).double()
    x, t, z = normal(4, 3), torch.rand(4, dtype=torch.float64), normal(4, 2)
    assert float(call(net, x, t, z).abs().max()) == 0
    net = head()
    call(net, x, t, z).square().sum().backward()
    assert [k for k, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


MEANS = torch.tensor([[1.0, -0.5, 0.0], [-0.5, 0.5, 1.0]])
FACTORS = torch.tensor([[[0.8, 0, 0], [0.4, 0.5, 0], [0, 0.3, 0.4]], [[0.3, 0, 0], [0, 0.9, 0], [-0.3, 0.2, 0.6]]])
STEPS, ROWS = 500, 256


def trained(draw, process, scale, config: DiffusionHeadConfig) -> Denoiser:
    """draw(k, generator) -> clean (ROWS, 3) given classes k (ROWS,), which the head is told as unit vectors."""
    torch.manual_seed(0)
    denoiser = Denoiser(DiffusionHead(config), Product({"value": process}, SCHEMA), {"value": scale})
    optimiser = torch.optim.Adam(denoiser.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    generator = torch.Generator().manual_seed(0)
    t = torch.rand(STEPS, ROWS, generator=generator) * (1 - 1e-3) + 1e-3
    for step in range(STEPS):
        k = torch.randint(2, (ROWS,), generator=generator)
        clean, time = draw(k, generator), t[step]
        rng = Rng(0, torch.arange(ROWS)).at(step)
        noisy = process.perturb(clean, time, rng)
        predicted = denoiser({"value": noisy}, {"value": time}, None, {"context": torch.eye(2)[k]})["value"]
        target = process.target(clean, noisy, time) if isinstance(process, Torus) else clean
        alpha, sigma = process.level(time[:, None])
        weight = (alpha**2 * scale**2 + sigma**2) / (sigma * scale) ** 2
        optimiser.zero_grad()
        (weight * (predicted - target) ** 2).mean().backward()
        optimiser.step()
        schedule.step()
    return denoiser.eval()


@torch.no_grad()
def drawn(denoiser: Denoiser, k: int, n: int, steps: int = 20) -> torch.Tensor:
    context = torch.eye(2)[torch.full((n,), k)]
    batch = Batch(SCHEMA, {"value": torch.zeros(n, 3)}, torch.ones(n, 1, dtype=torch.bool), {"context": context})
    process, rng = denoiser.product.processes["value"], Rng(1, torch.arange(n))
    program = compile_solver(process, torch.linspace(1, 0, steps + 1), "dpm++2m")
    return sample(denoiser.on(batch), {"value": process.prior(batch.state["value"], rng)}, program.times, program)[
        "value"
    ]


def energy_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    mean = lambda a, b: float(torch.cdist(a, b).mean())
    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def test_it_learns_gaussians_given_a_class():
    """Mean within .05, covariance within 10 % (S04, check 1); the other class's law is far away."""
    law = lambda k, g: MEANS[k] + (FACTORS[k] @ torch.randn(len(k), 3, 1, generator=g))[..., 0]
    denoiser = trained(law, Cosine(), 1.0, DiffusionHeadConfig(context=2, width=64, depth=2))
    for k in (0, 1):
        x, covariance = drawn(denoiser, k, 4000), FACTORS[k] @ FACTORS[k].T
        assert float((x.mean(0) - MEANS[k]).abs().max()) < 0.05
        assert float((x.T.cov() - covariance).norm() / covariance.norm()) < 0.1
        truth = [law(torch.full((2000,), c), torch.Generator().manual_seed(9)) for c in (k, 1 - k)]
        assert energy_distance(x[:2000], truth[0]) < 0.02
        assert energy_distance(x[:2000], truth[1]) > 0.2


@pytest.mark.slow
def test_it_learns_two_points_across_the_edge_of_a_circle():
    """Given a class, half at .98 and half at .04 of each axis, or at .5: near 0 the circle closes."""
    points = torch.tensor([[0.98, 0.04], [0.5, 0.5]])

    def law(k, g):
        which = torch.randint(2, (len(k), 3), generator=g)
        return (points[k[:, None], which] + 0.005 * torch.randn(len(k), 3, generator=g)) % 1

    config = DiffusionHeadConfig(context=2, width=64, depth=2, frequencies=6)
    denoiser = trained(law, Torus(), UNIFORM_DEVIATION, config)
    x = drawn(denoiser, 0, 2000)
    near = lambda p: ((x - p + 0.5) % 1 - 0.5).abs() < 0.025
    assert float((near(0.98) | near(0.04)).float().mean()) > 0.9
    assert float(near(0.98).float().mean()) == pytest.approx(0.5, abs=0.06)
    y = drawn(denoiser, 1, 2000)
    assert float(((y - 0.5) % 1).minimum((0.5 - y) % 1).square().mean().sqrt()) < 0.03
