"""The diffusion classifier (S27, check 3)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, normal, three_modes
from unisci.batch import Field
from unisci.inverse.classify import class_losses, classify
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VE, VP, Cosine
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.sample import perturbed

F64 = torch.float64
TIMES = grid(VP(), 40, end=1e-3)


def two(process=None, schema=None, mean=0.8):
    """Two Gaussians in the plane, of different widths."""
    process = process or VP()
    return [GaussianOracle(process, -mean, 0.8, schema), GaussianOracle(process, mean, 1.2, schema)]


def points(n, seed=0):
    """Half of each class, and the log likelihood of each under both."""
    label = torch.arange(n) % 2
    m, s = torch.tensor([-0.8, 0.8], dtype=F64), torch.tensor([0.8, 1.2], dtype=F64)
    x = m[label, None] + s[label, None] * normal(n, 2, seed=seed)
    logp = torch.distributions.Normal(m, s).log_prob(x[..., None]).sum(1)
    return x, label, logp


def test_as_good_as_bayes():
    """Accuracy within 1 % of Bayes' with 400 noises, and at temperature 1 Bayes' own probabilities."""
    x, label, logp = points(2000)
    rng = Rng(0, torch.arange(2000))
    losses = sum(class_losses(two(), x, TIMES, rng.at(d)) for d in range(10)) / 10
    accuracy = lambda score: (score.argmax(1) == label).double().mean().item()
    assert accuracy(-losses) == pytest.approx(accuracy(logp), abs=0.01) and 0.8 < accuracy(logp) < 0.95
    assert ((-losses).softmax(1) - logp.softmax(1)).abs().mean() < 0.03


@pytest.mark.parametrize("process", [VP(), VE(), Cosine()], ids=lambda p: type(p).__name__)
def test_losses_are_log_likelihoods(process):
    """The difference of the losses is the log ratio of the densities, in the mean over noises."""
    x = torch.tensor([[0.3, -0.4], [2.0, 1.0]], dtype=F64).repeat_interleave(3000, 0)
    start = 0.999 if isinstance(process, Cosine) else 1.0
    losses = class_losses(two(process), x, grid(process, 60, start=start, end=1e-3), Rng(0, torch.arange(6000)))
    ratio = (losses[:, 0] - losses[:, 1]).reshape(2, 3000).mean(1)
    logp = [torch.distributions.Normal(m, s).log_prob(x[::3000]).sum(1) for m, s in ((-0.8, 0.8), (0.8, 1.2))]
    torch.testing.assert_close(ratio, logp[1] - logp[0], rtol=0.03, atol=0.05)


def test_shared_noise():
    """The same noise for both classes: a third of the variance of independent noise or less."""
    x = points(1)[0].expand(3000, 2)
    ids = torch.arange(3000)
    shared = class_losses(two(), x, TIMES, Rng(0, ids))
    other = class_losses(two(), x, TIMES, Rng(1, ids))
    assert 3 * (shared[:, 0] - shared[:, 1]).var() < (shared[:, 0] - other[:, 1]).var()
    alike = class_losses([two()[0]] * 2, x[:4], TIMES, Rng(0, ids[:4]))
    assert torch.equal(alike[:, 0], alike[:, 1])


def test_by_hand():
    """sum_k h_k w |D - x|^2 with h the trapezoid in lam, noise k of stream k."""
    process, x, rng = VP(), normal(3, 2), Rng(5, torch.arange(3))
    times = torch.tensor([0.9, 0.5, 0.2], dtype=F64)
    alpha, sigma = process.level(times)
    lam = (alpha / sigma).log()
    h = [(lam[1] - lam[0]) / 2, (lam[2] - lam[0]) / 2, (lam[2] - lam[1]) / 2]
    weight = lambda a, s: a + 2 * s
    denoises = [GaussianOracle(process, 0.5), three_modes(process)]
    for c, denoise in enumerate(denoises):
        want = 0
        for k, t in enumerate(times):
            away = denoise(perturbed(denoise, x, t, rng.at(k)), t) - x
            want = want + h[k] * (alpha[k] + 2 * sigma[k]) * away.square().sum(1)
        got = class_losses(denoises, x, times, rng, weight)
        torch.testing.assert_close(got[:, c], want)
    sharp, soft = (classify(denoises, x, times, rng, weight, temperature=t) for t in (1.0, 3.0))
    torch.testing.assert_close(sharp, (-got).softmax(1))
    torch.testing.assert_close(soft, (-got / 3).softmax(1))


def test_fields_and_padding():
    """Fields add, what does not exist does not count."""
    x, rng = {"a": normal(4, 5, 2).float(), "b": normal(4, 3).float()}, Rng(0, torch.arange(4))
    schema = {"a": Field("site", (2,)), "b": Field("whole", (3,))}
    both = two({"a": VP(), "b": VE()}, schema)
    got = class_losses(both, x, TIMES, rng)
    assert got.shape == (4, 2)
    parts = [class_losses(two({k: p}, {k: schema[k]}), {k: x[k]}, TIMES, rng) for k, p in (("a", VP()), ("b", VE()))]
    torch.testing.assert_close(got, sum(parts))
    wide = {"a": torch.cat([x["a"], torch.full((4, 2, 2), 9.0)], 1), "b": x["b"]}
    mask = torch.arange(7).expand(4, 7) < 5
    torch.testing.assert_close(class_losses(both, wide, TIMES, rng, mask=mask), got)


@given(size=st.integers(1, 6), seed=st.integers(0, 5))
@settings(max_examples=10, deadline=None)
def test_batch(size, seed):
    """A sample is the same, bit for bit, in any batch."""
    x, rng = normal(6, 5, seed=seed), Rng(seed, torch.arange(6))
    rows = torch.randperm(6, generator=torch.Generator().manual_seed(seed))[:size]
    whole, part = (classify(two(), v, TIMES, r, temperature=5.0) for v, r in ((x, rng), (x[rows], rng[rows])))
    assert torch.equal(whole[rows], part)


def test_what_is_refused():
    x, rng = normal(2, 2), Rng(0, torch.arange(2))
    for times in (TIMES.flip(0), TIMES[:1], torch.cat([TIMES, torch.zeros(1, dtype=F64)])):
        with pytest.raises(ValueError, match="must decrease within"):
            class_losses(two(), x, times, rng)
    with pytest.raises(ValueError, match="alpha is 0 at t = 1"):
        class_losses(two(Cosine()), x, torch.tensor([1.0, 0.5]), rng)
    with pytest.raises(ValueError, match="classes must share their noise"):
        class_losses([two()[0], two(VE())[1]], x, TIMES, rng)
    with pytest.raises(ValueError, match="adds no Gaussian noise"):
        class_losses(two(absorbing(3)), x, TIMES, rng)
    with pytest.raises(ValueError, match="temperature must be positive, got 0"):
        classify(two(), x, TIMES, rng, temperature=0)
