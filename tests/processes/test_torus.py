"""The torus against the wrapped normal's own density, and the linear solvers on it against a lattice of images."""

import math
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unisci.lattice import wrap
from unisci.processes.gaussian import EDM, VE, VP
from unisci.processes.torus import UNIFORM_DEVIATION, Torus, TorusFlow, aligned, centred_target
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

TORUS, FLOW = Torus(), TorusFlow()


def log_wrapped(x: torch.Tensor, clean: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """The log density of the wrapped normal, summed over many images."""
    k = torch.arange(-12, 13, dtype=x.dtype)
    return (-(((clean - x)[..., None] + k) ** 2) / (2 * sigma**2)).logsumexp(-1)


@pytest.mark.parametrize("t", [0.05, 0.3, 0.6, 0.9, 1.0])
def test_target_is_tweedie_of_the_wrapped_normal(t):
    t = torch.tensor([t], dtype=torch.float64)
    x = torch.rand(1, 50, 3, dtype=torch.float64, requires_grad=True)
    clean = torch.rand(1, 50, 3, dtype=torch.float64)
    sigma = TORUS.level(t)[1]
    score = torch.autograd.grad(log_wrapped(x, clean, sigma).sum(), x)[0]
    torch.testing.assert_close(TORUS.target(clean, x.detach(), t), x.detach() + sigma**2 * score, atol=1e-9, rtol=0)


@given(st.floats(0, 1, width=32), st.floats(0, 1, width=32), st.integers(-3, 3))
def test_target_does_not_ask_which_image(x, clean, k):
    x, clean = (torch.full((1, 1, 3), v, dtype=torch.float64) for v in (x, clean))
    at = torch.tensor([0.5], dtype=torch.float64)
    if float(wrap(clean - x).abs().max()) > 0.499:  # both images count alike there
        return
    torch.testing.assert_close(TORUS.target(clean + k, x, at), TORUS.target(clean, x, at), atol=1e-9, rtol=0)


def test_small_noise_points_at_the_nearest_image():
    x, clean = torch.tensor([[[0.02, 0.5, 0.98]]]), torch.tensor([[[0.98, 0.52, 0.01]]])
    expected = torch.tensor([[[-0.02, 0.52, 1.01]]])
    torch.testing.assert_close(TORUS.target(clean, x, torch.tensor([0.1])), expected, atol=1e-6, rtol=0)


def test_perturbed_positions_are_wrapped_normal():
    ids = torch.arange(40_000)
    clean = torch.full((len(ids), 1, 1), 0.9)
    for t in (0.2, 0.7):
        x = TORUS.perturb(clean, torch.full((len(ids),), t), Rng(0, ids), axes=1)
        assert float(x.min()) >= 0 and float(x.max()) < 1
        sigma = float(TORUS.level(torch.tensor(t, dtype=torch.float64))[1])
        for k in (1, 2):  # the circular moments: exp(-(2 pi k sigma)^2 / 2) e^(2 pi i k x_0)
            angle = 2 * math.pi * k * (x - 0.9)
            expected = math.exp(-((2 * math.pi * k * sigma) ** 2) / 2)
            assert float(angle.cos().mean()) == pytest.approx(expected, abs=0.015)
            assert float(angle.sin().mean()) == pytest.approx(0, abs=0.015)


def test_time_zero_is_the_clean_value_bit_for_bit():
    clean = torch.rand(4, 5, 3)
    t = torch.tensor([0.0, 0.5, 0.0, 1.0])
    x = TORUS.perturb(clean, t, Rng(0, torch.arange(4)), axes=1)
    assert torch.equal(x[0], clean[0]) and torch.equal(x[2], clean[2])
    assert not torch.equal(x[1], clean[1])


def test_prior_is_what_perturb_ends_in():
    x = TORUS.prior(torch.zeros(20_000, 1, 1), Rng(0, torch.arange(20_000)), axes=1)
    assert float(x.mean()) == pytest.approx(0.5, abs=0.01) and float(x.var()) == pytest.approx(1 / 12, abs=0.002)
    assert float((2 * math.pi * x).cos().mean()) == pytest.approx(0, abs=0.015)


class TwoSites:
    """Exact denoiser of a law on the circle: .3 with weight 1/4, .8 with weight 3/4."""

    process, schema = TORUS, None
    points, weights = torch.tensor([0.3, 0.8], dtype=torch.float64), torch.tensor([0.25, 0.75], dtype=torch.float64)

    def __call__(self, x, t):
        sigma = TORUS.level(t)[1]
        k = torch.arange(-12, 13, dtype=torch.float64)
        images = (self.points[:, None] + k).flatten()
        logits = -((images - x[..., None]) ** 2) / (2 * sigma**2) + self.weights.log().repeat_interleave(len(k))
        return (logits.softmax(-1) * images).sum(-1)


def test_linear_solvers_draw_from_the_law_on_the_circle():
    denoise, ids = TwoSites(), torch.arange(20_000)
    x = TORUS.prior(torch.zeros(len(ids), dtype=torch.float64), Rng(0, ids)).double()
    program = compile_solver(TORUS, grid(TORUS, 30, "lambda", end=1e-3), "dpm++2m")
    out = run(denoise, x, program)
    at_03 = wrap(out - 0.3).abs() < 0.1
    assert float(at_03.double().mean()) == pytest.approx(0.25, abs=0.015)
    assert bool((at_03 | (wrap(out - 0.8).abs() < 0.1)).all())


def test_centred_target_leaves_out_the_shift_of_what_moves_as_a_whole():
    ids, n = torch.arange(3), 4
    clean = torch.rand(3, n, 3)
    exists = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 1]], dtype=torch.bool)
    moving = exists.clone()
    moving[2, 0] = False
    t = torch.full((3,), 0.2)
    x = TORUS.perturb(clean, t, Rng(0, ids), axes=1)
    whole, out = TORUS.target(clean, x, t), centred_target(TORUS, clean, x, t, moving, exists)
    for i in (0, 1):
        shift = (out - x)[i][exists[i]].mean(0)
        torch.testing.assert_close(shift, torch.zeros(3), atol=1e-6, rtol=0)
        difference = (whole - out)[i][exists[i]]
        torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-6, rtol=0)
    assert torch.equal(whole[2], out[2])


@pytest.mark.parametrize(
    "base, what", [(VP(), "shrink"), (VE(0.01, 50.0), "sigma at t = 1"), (EDM(0.01, 0.2), "sigma")]
)
def test_a_base_that_is_no_process_of_the_torus_is_refused(base, what):
    with pytest.raises(ValueError, match=what):
        Torus(base)


@given(st.floats(0, 1), st.integers(0, 1000))
def test_the_flow_is_the_geodesic(t, seed):
    g = torch.Generator().manual_seed(seed)
    clean, noise = torch.rand(2, 1, 4, 3, dtype=torch.float64, generator=g)
    x = FLOW.between(clean, noise, torch.tensor([t], dtype=torch.float64))
    torch.testing.assert_close(wrap(x - clean).norm(dim=-1), t * wrap(noise - clean).norm(dim=-1), atol=1e-9, rtol=0)
    torch.testing.assert_close(wrap(noise - x), (1 - t) * wrap(noise - clean), atol=1e-9, rtol=0)
    assert bool(((x >= 0) & (x < 1)).all())
    gap = FLOW.target(clean, x, torch.tensor([t])) - x
    torch.testing.assert_close(gap, -t * wrap(noise - clean), atol=1e-9, rtol=0)


def test_the_flow_ends_in_the_uniform_law_and_starts_bit_for_bit():
    ids = torch.arange(20_000)
    clean = torch.full((len(ids), 1, 1), 0.7)
    t = torch.ones(len(ids))
    t[:3] = 0
    x = FLOW.perturb(clean, t, Rng(0, ids), axes=1)
    assert torch.equal(x[:3], clean[:3])
    assert float(x[3:].var()) == pytest.approx(UNIFORM_DEVIATION**2, abs=0.002)
    alpha, sigma = FLOW.level(torch.tensor(0.4))
    n = wrap(FLOW.perturb(clean, torch.full((len(ids),), 0.4), Rng(0, ids), axes=1) - clean)
    assert float(alpha) == 1 and float(n.std()) == pytest.approx(float(sigma), rel=0.02)
    assert float(FLOW.time(-sigma.double().log())) == pytest.approx(0.4)


class TwoSitesFlow:
    """Exact denoiser of the flow to .3 with weight 1/4 and .8 with weight 3/4: the images within t / 2 of x."""

    process, schema = FLOW, None
    points, weights = TwoSites.points, TwoSites.weights

    def __call__(self, x, t):
        gap = wrap(self.points - x[..., None])
        weight = self.weights * (gap.abs() <= t / 2 + 1e-9)
        return x + (weight * gap).sum(-1) / weight.sum(-1).clamp(min=1e-9)


def test_linear_solvers_draw_from_the_law_by_the_flow():
    ids = torch.arange(20_000)
    x = FLOW.prior(torch.zeros(len(ids), dtype=torch.float64), Rng(0, ids)).double()
    program = compile_solver(FLOW, torch.linspace(1, 0, 201, dtype=torch.float64), "ddim")
    out = run(TwoSitesFlow(), x, program)
    assert float((wrap(out - 0.3).abs() < 0.02).double().mean()) == pytest.approx(0.25, abs=0.02)
    assert float((wrap(out - 0.8).abs() < 0.02).double().mean()) == pytest.approx(0.75, abs=0.02)


def test_noise_that_is_the_crystal_exchanged_and_shifted_is_aligned_to_it():
    clean = torch.rand(2, 5, 3, dtype=torch.float64)
    kind = torch.tensor([[0, 0, 1, 1, 1], [2, 2, 2, 0, 9]])
    exists = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]], dtype=torch.bool)
    noise = clean[:, [1, 0, 4, 2, 3]].clone()
    noise[1] = clean[1][[2, 0, 1, 3, 4]]
    out = aligned(noise + 0.01, clean, kind, exists)
    assert float(wrap(out - clean)[exists].abs().max()) < 1e-9


def test_alignment_exchanges_only_sites_of_a_kind_and_comes_near_the_best():
    g = torch.Generator().manual_seed(0)
    clean, noise = torch.rand(2, 40, 4, 3, dtype=torch.float64, generator=g)
    kind = torch.tensor([0, 0, 0, 1]).expand(40, 4)
    exists = torch.ones(40, 4, dtype=torch.bool)
    out = aligned(noise, clean, kind, exists)
    costs, best = wrap(out - clean).pow(2).sum((1, 2)), []
    for e, x, o in zip(noise, clean, out, strict=True):
        shapes = [wrap(e[[*p, 3]] - e[3] - (o - o[3])).abs().max() for p in permutations(range(3))]
        assert float(min(shapes)) < 1e-9  # the noise itself, exchanged within the kind and shifted
        shifts = x[3] - e[3] + torch.cartesian_prod(*[torch.linspace(-0.45, 0.45, 10).double()] * 3)[:, None]
        each = [wrap(e[[*p, 3]] + shifts - x).pow(2).sum((1, 2)).min() for p in permutations(range(3))]
        best.append(min(each))
    assert float(costs.mean()) < 1.25 * float(torch.stack(best).mean())
    assert float(costs.mean()) < 0.55 * float(wrap(noise - clean).pow(2).sum((1, 2)).mean())
