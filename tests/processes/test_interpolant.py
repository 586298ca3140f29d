"""Stochastic interpolants against the paper's formulas and against the exact fields of bridged mixtures (S11)."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP, drift_diffusion, lam
from unisci.processes.interpolant import (
    ENCODING_DECODING,
    LINEAR,
    MIRROR,
    NO_GAMMA,
    QUADRATIC,
    SINE_SQUARED,
    Gamma,
    Interpolant,
    OneSided,
    Path,
    b_target,
    brownian,
    eta_target,
    paired_loss,
    path_of,
    s_target,
    trig,
    v_target,
)
from unisci.rng import Rng

F64 = torch.float64
PATHS = {
    "linear": LINEAR,
    "trig": trig(),
    "trig-brownian": trig(brownian(2.0)),
    "trig-quadratic": trig(QUADRATIC),
    "encoding-decoding": ENCODING_DECODING,
    "mirror": MIRROR,
}
GAMMAS = {"brownian": brownian(), "brownian 2": brownian(2.0), "quadratic": QUADRATIC, "sine": SINE_SQUARED}
inside = torch.linspace(0.004, 0.996, 201, dtype=F64)


class MixtureBridge:
    """Independent x_0 and x_1, each a mixture of Gaussians on the line (means, variances, weights): x_t is a mixture
    over pairs, whose fields are closed forms."""

    def __init__(self, interpolant: Interpolant, data: tuple[Tensor, ...], start: tuple[Tensor, ...]):
        self.interpolant = interpolant
        over = lambda k: torch.broadcast_tensors(data[k][:, None], start[k][None])
        (self.m0, self.m1), (self.v0, self.v1), weights = (tuple(a.flatten() for a in over(k)) for k in range(3))
        self.logw = (weights[0] * weights[1]).log()

    def parts(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        """v, b, s, eta at x (B,), t () or (B,), and the log density."""
        t = t.reshape(-1, 1).to(x.dtype)
        (a, b), (da, db) = self.interpolant.path.level(t), self.interpolant.path.slope(t)
        gamma = self.interpolant.gamma
        mean, variance = a * self.m0 + b * self.m1, a**2 * self.v0 + b**2 * self.v1 + gamma.level(t) ** 2
        logp = self.logw - (x[:, None] - mean) ** 2 / (2 * variance) - (2 * math.pi * variance).log() / 2
        r, away = logp.softmax(1), (x[:, None] - mean) / variance
        moving, own = da * self.m0 + db * self.m1, a * da * self.v0 + b * db * self.v1
        s = -(r * away).sum(1)
        return {
            "v": (r * (moving + own * away)).sum(1),
            "b": (r * (moving + (own + gamma.product(t)) * away)).sum(1),
            "s": s,
            "eta": -gamma.level(t)[:, 0] * s,
            "logp": logp.logsumexp(1),
        }

    def field(self, name: str):
        return lambda x, t: self.parts(x, t)[name]


def mixture(*components: tuple[float, float, float]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(c, dtype=F64) for c in zip(*components, strict=True))


DATA = mixture((-1.0, 0.05, 0.2), (0.0, 0.1, 0.5), (3.0, 0.2, 0.3))
START = mixture((-2.0, 0.1, 0.5), (2.0, 0.1, 0.5))
BRIDGE = MixtureBridge(Interpolant(LINEAR, brownian(2.0)), DATA, START)


def draws(law: tuple[Tensor, ...], n: int, seed: int) -> Tensor:
    """n draws of a mixture on the line, (n,)."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.multinomial(law[2], n, replacement=True, generator=generator)
    return law[0][k] + law[1][k].sqrt() * torch.randn(n, generator=generator, dtype=F64)


def derivative(f, t: Tensor) -> Tensor:
    t = t.clone().requires_grad_()
    return torch.autograd.grad((f(t) + 0 * t).sum(), t)[0]


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_slopes_of_paths(path):
    for i in (0, 1):
        torch.testing.assert_close(path.slope(inside)[i], derivative(lambda t, i=i: path.level(t)[i], inside))


@pytest.mark.parametrize("gamma", [*GAMMAS.values(), NO_GAMMA], ids=[*GAMMAS, "none"])
def test_slopes_and_products_of_gammas(gamma):
    torch.testing.assert_close(gamma.slope(inside), derivative(gamma.level, inside))
    torch.testing.assert_close(gamma.product(inside), derivative(lambda t: gamma.level(t) ** 2 / 2, inside))
    ends = torch.tensor([0.0, 1.0], dtype=F64)
    assert gamma.product(ends).isfinite().all() and torch.equal(gamma.level(ends), torch.zeros(2, dtype=F64))
    assert (gamma.level(inside) > 0).all() or gamma is NO_GAMMA


def test_published_paths_run_backwards_here():
    """x at the paper's time 1 - t, from its x_0, our x_1, to its x_1, our x_0."""
    x_0, x_1, z, t = torch.tensor(2.0, dtype=F64), torch.tensor(-3.0, dtype=F64), torch.tensor(0.7, dtype=F64), inside
    u, g = 1 - t, (2 * t * (1 - t)).sqrt()
    r, early, late = (1 - g**2).sqrt(), (u <= 0.5).to(F64), (u > 0.5).to(F64)
    cos2 = torch.cos(math.pi * u) ** 2
    paper = {
        LINEAR: (1 - u) * x_1 + u * x_0,
        trig(brownian(2.0)): r * torch.cos(math.pi * u / 2) * x_1 + r * torch.sin(math.pi * u / 2) * x_0,
        ENCODING_DECODING: early * cos2 * x_1 + late * cos2 * x_0,
        MIRROR: x_0 + 0 * u,
    }
    for path, mean in paper.items():
        ours = Interpolant(path, brownian(2.0)).point(x_0.expand(201), x_1.expand(201), z.expand(201), t)
        torch.testing.assert_close(ours, mean + g * z, rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("gamma", GAMMAS.values(), ids=GAMMAS)
@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
def test_ends_are_exact(path, gamma, dtype):
    """x_0 at t = 0 and x_1 at t = 1 bit for bit, for a time of each row (S11, check 2)."""
    x_0, x_1, z = (1e3 * torch.randn(4, 3, dtype=dtype, generator=torch.Generator().manual_seed(k)) for k in range(3))
    t = torch.tensor([0.0, 1.0, 0.5, 0.0], dtype=F64)
    x = Interpolant(path, gamma).point(x_0, x_1, z, t)
    assert torch.equal(x[[0, 3]], x_0[[0, 3]]) and x.dtype == dtype
    assert torch.equal(x[1], x_0[1] if path is MIRROR else x_1[1])
    assert not torch.equal(x[2], x_0[2])


def test_trig_keeps_unit_variance():
    alpha, beta = trig(QUADRATIC).level(inside)
    torch.testing.assert_close(alpha**2 + beta**2 + QUADRATIC.level(inside) ** 2, torch.ones_like(inside))


@settings(max_examples=25, deadline=None)
@given(t=st.floats(0.01, 0.99), seed=st.integers(0, 99))
@pytest.mark.parametrize("gamma", GAMMAS.values(), ids=GAMMAS)
def test_fields_agree(gamma, t, seed):
    """b = v - gamma gamma' s = v + gamma' eta, and s is the gradient of the log density (S11, check 2)."""
    law, t = MixtureBridge(Interpolant(LINEAR, gamma), DATA, START), torch.tensor(t, dtype=F64)
    x = 3 * torch.randn(9, dtype=F64, generator=torch.Generator().manual_seed(seed))
    f = law.parts(x, t)
    torch.testing.assert_close(f["b"], f["v"] - gamma.product(t) * f["s"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f["b"], f["v"] + gamma.slope(t) * f["eta"], rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(f["s"], derivative(lambda x: law.parts(x, t)["logp"], x), rtol=1e-9, atol=1e-9)


TARGETS = {"b": b_target, "v": v_target, "eta": eta_target, "s": s_target}


@pytest.mark.parametrize("name", TARGETS)
def test_exact_fields_minimise_their_losses(name):
    """Below the same field scaled by .9 and 1.1 or moved by .1, by 4 standard errors at 50000 draws (S11, check 3)."""
    n = 50_000
    rng, x_0, x_1 = Rng(1, torch.arange(n)), draws(DATA, n, 0), draws(START, n, 1)
    t = 0.01 + 0.98 * rng.uniform("t", 0, (n,), 0).to(F64)
    exact = BRIDGE.field(name)
    loss = lambda f: paired_loss(f, TARGETS[name], BRIDGE.interpolant, x_0, x_1, t, rng)
    best = loss(exact)
    assert best.shape == (n,)
    for other in (lambda x, t: 0.9 * exact(x, t), lambda x, t: 1.1 * exact(x, t), lambda x, t: exact(x, t) + 0.1):
        excess = loss(other) - best
        assert excess.mean() > 4 * excess.std() / math.sqrt(n)


def test_pairs_tame_the_gradient_at_the_ends():
    """The variance of the gradient of L_b over the bias and the slope of a field w_0 + w_1 x, for normal ends: without
    the pair it grows as 1 / t, with it it stays, 50 times below at t = 1e-3 for the bias (S11, check 4)."""
    n = 20_000
    rng = Rng(2, torch.arange(n))
    x_0, x_1, z = (rng.normal(name, 0, (n,), 0).to(F64) for name in ("x_0", "x_1", "x"))
    interpolant, variances = Interpolant(LINEAR, brownian()), {}
    for at in (1e-3, 1e-4):
        t, w = torch.tensor(at, dtype=F64), torch.zeros(2, n, dtype=F64, requires_grad=True)
        field = lambda x, t, w=w: w[0] + w[1] * x
        paired = paired_loss(field, b_target, interpolant, x_0, x_1, t, rng)
        f = field(interpolant.point(x_0, x_1, z, t), t)
        plain = f**2 / 2 - b_target(interpolant, x_0, x_1, z, t) * f
        gradients = [torch.autograd.grad(loss.sum(), w)[0] for loss in (plain, paired)]
        variances[at] = torch.stack([g.var(1) for g in gradients])
    ratio = variances[1e-3][0] / variances[1e-3][1]
    assert ratio[0] > 50 and ratio[1] > 20
    plain, paired = variances[1e-4] / variances[1e-3]
    assert plain.tolist() == pytest.approx([10, 10], rel=0.1) and paired.tolist() == pytest.approx([1, 1], rel=0.1)


def test_flow_matching_is_a_special_case():
    """Linear, no gamma, x_1 a normal: the target is x_1 - x_0 (arXiv 2210.02747, 2209.03003), x_t that of `Linear`."""
    x_0, x_1, t = torch.randn(5, 3, dtype=F64), torch.randn(5, 3, dtype=F64), torch.rand(5, dtype=F64)
    flow = Interpolant(LINEAR, NO_GAMMA)
    torch.testing.assert_close(b_target(flow, x_0, x_1, torch.randn(5, 3), t), x_1 - x_0, rtol=0, atol=0)
    alpha, sigma = Linear().level(t[:, None])
    assert torch.equal(flow.draw(x_0, x_1, t, Rng(0, torch.arange(5))), alpha * x_0 + sigma * x_1)


def test_losses_take_fields_of_any_layout_and_belong_to_the_sample():
    """Elementwise, (B, N, 3) with a time for each sample; a sample's loss does not depend on its batch."""
    x_0, x_1 = torch.randn(6, 4, 3), torch.randn(6, 4, 3)
    t, ids, keep = torch.rand(6), torch.arange(6) + 3, torch.tensor([4, 1])
    interpolant = Interpolant(trig(brownian()), brownian())
    for target in TARGETS.values():
        loss = lambda rows, target=target: paired_loss(
            lambda x, t: torch.tanh(x) * t[:, None, None],
            target, interpolant, x_0[rows], x_1[rows], t[rows], Rng(1, ids[rows]), "position", 1,
        )  # fmt: skip
        whole = loss(torch.arange(6))
        assert whole.shape == x_0.shape and whole.dtype == torch.float32
        assert torch.equal(whole[keep], loss(keep))
    a, b = (interpolant.draw(x_0[r], x_1[r], t[r], Rng(1, ids[r]), "position", 1) for r in (torch.arange(6), keep))
    assert torch.equal(a[keep], b)
    pair = Interpolant(LINEAR, brownian()).draw(
        torch.zeros(2, 3, 3), torch.zeros(2, 3, 3), t[0], Rng(0, ids[:2]), "e", 2
    )
    assert torch.equal(pair, pair.transpose(1, 2)) and pair[0, 0, 1] != pair[0, 0, 2]


@pytest.mark.parametrize("process", [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()], ids=lambda p: type(p).__name__)
def test_path_of_a_process_has_its_slope(process):
    path = path_of(process)
    for i in (0, 1):
        torch.testing.assert_close(path.level(inside)[i], process.level(inside)[i])
        slope = derivative(lambda t, i=i: process.level(t)[i], inside)
        torch.testing.assert_close(path.slope(inside)[i], slope, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("path", "process"), [(LINEAR, Linear()), (trig(), Cosine())], ids=["linear", "trig"])
def test_one_sided_paths_are_gaussian_processes(path, process):
    one_sided = OneSided(path)
    t = torch.cat([torch.zeros(1, dtype=F64), inside, torch.ones(1, dtype=F64)])
    for ours, theirs in zip(one_sided.level(t), process.level(t), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-15)
    torch.testing.assert_close(one_sided.time(lam(process, inside)), inside, rtol=0, atol=1e-10)
    for ours, theirs in zip(drift_diffusion(one_sided, inside), drift_diffusion(process, inside), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)
    assert one_sided == OneSided(path)


def test_bad_parts_are_refused():
    for c in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=f"c must be positive and finite, got {c}"):
            brownian(c)
    for gamma in (SINE_SQUARED, brownian(4.0)):
        with pytest.raises(ValueError, match="trig needs gamma < 1"):
            trig(gamma)
    ones = lambda t: torch.ones_like(t)
    swapped = Path(lambda t: (t, 1 - t), LINEAR.slope)
    short = Path(lambda t: (1 - t, t / 2), LINEAR.slope)
    for path, gamma in ((swapped, NO_GAMMA), (short, NO_GAMMA), (LINEAR, Gamma(ones, ones, ones))):
        with pytest.raises(ValueError, match="an interpolant ends in its data"):
            Interpolant(path, gamma)
