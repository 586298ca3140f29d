"""The exact denoisers themselves: against Tweedie's formula, against sampling, and against dense linear algebra."""

import itertools

import pytest
import torch

from tests.oracles import AROracle, EnumeratedOracle, GaussianOracle, LowRankMixtureOracle, three_modes
from unisci.processes.gaussian import VE, VP, Linear, level_for
from unisci.rng import Rng

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=F64)


@pytest.mark.parametrize("process", [VP(), VE(), Linear()])
@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_mixture_obeys_tweedie(process, t):
    """alpha E[x_0 | x] = x + sigma^2 grad log p(x), and p integrates to 1."""
    oracle, t = three_modes(process), torch.tensor(t, dtype=F64)
    alpha, sigma = process.level(t)
    x = (normal(32, 2) * (alpha + sigma)).requires_grad_()
    (score,) = torch.autograd.grad(oracle.logp(x, t).sum(), x)
    torch.testing.assert_close(alpha * oracle(x.detach(), t), x.detach() + sigma**2 * score, rtol=1e-9, atol=1e-9)
    side = torch.linspace(-1, 1, 401, dtype=F64) * (3 * alpha + 6 * (alpha * 0.4 + sigma))
    cell = (side[1] - side[0]) ** 2
    assert oracle.logp(torch.cartesian_prod(side, side), t).exp().sum() * cell == pytest.approx(1, abs=1e-3)
    assert torch.equal(oracle(x, t.expand(32)), oracle(x, t))


def test_mixture_samples_have_its_moments():
    oracle = three_modes(VP())
    x = oracle.sample(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(x.mean(0), oracle.weights @ oracle.means, rtol=0, atol=0.04)
    noised = VP().perturb(x, T, Rng(0, torch.arange(20000)))
    # The best guess has the mean of the data, and an error that correlates with no function of x_t.
    error = oracle(noised, T) - x
    assert error.mean(0).abs().max() < 0.03 and (error * noised.sin()).mean(0).abs().max() < 0.03


def test_gaussian_is_the_mixture_of_one():
    mixture = three_modes(VP())
    one = type(mixture)(VP(), mixture.means[:1], mixture.stds[:1], torch.ones(1, dtype=F64))
    x, gauss = normal(8, 2), GaussianOracle(VP(), mixture.means[0], 0.3)
    torch.testing.assert_close(gauss(x, T), one(x, T))
    s = torch.tensor(0.1, dtype=F64)
    torch.testing.assert_close(gauss.flow(gauss.flow(x, T, s), s, T), x)
    per_field = GaussianOracle({"a": VP(), "b": Linear()}, {"a": 1.0, "b": 2.0}, 0.5)
    both = per_field({"a": x, "b": x}, {"a": T, "b": s})
    assert torch.equal(both["a"], GaussianOracle(VP(), 1.0, 0.5)(x, T))
    assert torch.equal(both["b"], GaussianOracle(Linear(), 2.0, 0.5)(x, s))


def test_low_rank_mixture_by_dense_covariances():
    basis = torch.linalg.qr(normal(6, 6))[0]
    bases, weights = [basis[:, :2], basis[:, 1:4], basis[:, 5:]], torch.tensor([0.2, 0.5, 0.3], dtype=F64)
    alpha, sigma = VP().level(T)
    x = normal(8, 6)
    joint, means = [], []
    for u, w in zip(bases, weights, strict=True):
        covariance = alpha**2 * u @ u.T + sigma**2 * torch.eye(6, dtype=F64)
        law = torch.distributions.MultivariateNormal(torch.zeros(6, dtype=F64), covariance)
        joint.append(w.log() + law.log_prob(x))
        means.append(alpha * x @ torch.linalg.solve(covariance, u @ u.T))
    want = (torch.stack(joint, 1).softmax(1)[..., None] * torch.stack(means, 1)).sum(1)
    torch.testing.assert_close(LowRankMixtureOracle(VP(), bases, weights)(x, T), want)


def test_series_by_its_conditional_law():
    """Clean neighbours determine a wholly noised element: rho / (1 + rho^2) times their sum."""
    rho, x = 0.8, normal(4, 5)
    oracle = AROracle(Linear(), rho, 5)
    t = torch.tensor([0.0, 0, 1, 0, 0], dtype=F64).expand(4, 5)
    clean = oracle(x, t)
    torch.testing.assert_close(clean[:, 2], rho / (1 + rho**2) * (x[:, 1] + x[:, 3]))
    torch.testing.assert_close(clean[:, [0, 1, 3, 4]], x[:, [0, 1, 3, 4]])
    alpha, sigma = Linear().level(T)
    c = oracle.covariance
    want = alpha * x @ torch.linalg.solve(alpha**2 * c + sigma**2 * torch.eye(5, dtype=F64), c)
    torch.testing.assert_close(oracle(x, T), want)
    torch.testing.assert_close(oracle(x, T.expand(4)), want)
    assert c[0, 3] == pytest.approx(rho**3) and c[2, 2] == 1


class Masking:
    """Absorbing noise at rate t, the mask being token V."""

    def likelihood(self, x, t):
        _, t = level_for(Linear(), t, x.double())
        t = t if t.ndim == 0 else t[..., None]
        clean = torch.nn.functional.one_hot(x, 4)[..., :3].double()
        return torch.where((x == 3)[..., None], t, (1 - t) * clean)


def test_enumerated_by_hand():
    """p(x_0^i | x_t) by a plain sum over all sequences that agree with the unmasked tokens."""
    table = torch.rand(3, 3, 3, generator=torch.Generator().manual_seed(1), dtype=F64)
    oracle = EnumeratedOracle(Masking(), table)
    x = torch.tensor([[3, 3, 3], [0, 3, 3], [3, 1, 2], [2, 1, 0]])
    for t in (T, T.expand(4), torch.rand(4, 3, dtype=F64) * 0.8 + 0.1):
        p = oracle(x, t).exp()
        assert p.shape == (4, 3, 3)
        for b, i, k in itertools.product(range(4), range(3), range(3)):
            agree = [s for s in itertools.product(range(3), repeat=3) if all(x[b, j] in (3, s[j]) for j in range(3))]
            total = sum(table[s].item() for s in agree)
            want = sum(table[s].item() for s in agree if s[i] == k) / total
            assert p[b, i, k].item() == pytest.approx(want, abs=1e-9)


def test_enumerated_meets_the_categorical_process():
    categorical = pytest.importorskip("unisci.processes.categorical")
    process = categorical.Categorical(categorical.linear_keep, categorical.nothing, torch.full((3,), 1 / 3))
    table = torch.rand(3, 3, generator=torch.Generator().manual_seed(1))
    oracle, x = EnumeratedOracle(process, table), torch.tensor([[0, 2], [1, 1]])
    t = torch.tensor([0.0, 1.0])
    p = oracle(x, t).exp()
    torch.testing.assert_close(p[0], torch.eye(3)[x[0]])  # no noise: the tokens themselves
    torch.testing.assert_close(p[1], torch.stack([table.sum(1), table.sum(0)]) / table.sum())  # all noise: the prior
    assert p[1].dtype == torch.float32
