"""Optimisation as conditional sampling, against closed forms of Gaussian data (S16, section 4)."""

import pytest
import torch

from tests.oracles import GaussianOracle, normal
from unisci.batch import Field
from unisci.guidance.observation import Observation, Unit
from unisci.guidance.optimization import Curve, best_of_n, climb, reward_curve
from unisci.guidance.potential import Potential
from unisci.guidance.ridge import fit_reward, pseudo_label
from unisci.guidance.terms import guided
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VP, level_for, time
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
P = VP()
S = torch.tensor([1.0, 0.25, 0.01], dtype=F64)
K = torch.tensor([1.0, 2.0, 3.0], dtype=F64)
PROGRAM = compile_solver(P, grid(P, 12), "dpm++2m")


class LawOracle:
    """The exact denoiser of a Gaussian law."""

    schema, process = None, P

    def __init__(self, law):
        self.law = law

    def __call__(self, x, t):
        (alpha, sigma), law = level_for(P, t, x), self.law.to(x)
        return law.mean + law.scale(x - alpha * law.mean, lambda c: alpha * c / (alpha**2 * c + sigma**2))


def gaussian(covariance, mean=None):
    return LawOracle(GaussianLaw.of(torch.zeros(len(covariance), dtype=F64) if mean is None else mean, covariance))


def noise(n, d, seed=7):
    return P.prior(torch.zeros(n, d, dtype=F64), Rng(seed, torch.arange(n)))


def observed(model, reward, target, sigma_y):
    """The model asked for a reward: operator C of S16."""
    y = torch.tensor([[target]], dtype=F64)
    return guided(model, Observation(operator=lambda x: reward(x)[:, None], y=y, sigma_y=sigma_y, iterations=1))


def flow_moments(denoise, n=400):
    """Mean and variances of what the probability flow draws from lam = -5 to 5 where it is affine, without sampling."""
    start, end = time(P, torch.tensor([-5.0, 5.0], dtype=F64)).tolist()
    program = compile_solver(P, grid(P, n, start=start, end=end), "ddim")
    out = run(denoise, torch.cat([torch.zeros(1, 3), torch.eye(3)]).double(), program)
    return out[0], (out[1:] - out[0]).square().sum(0)


def test_a_target_reward_is_met_as_bayes_has_it():
    """y = K x + .3 xi = 2: exact mean and variances within 3 % of the flow, and of samples of the SDE but
    for their own error, by the look-ahead term (S16, check 1). DPS, whose
    variance leaves the noise out, is wrong by more than 100 %."""
    gain = S * K / (K @ (S * K) + 0.09)
    mean, variance = 2 * gain, S - gain * S * K
    torch.testing.assert_close(mean, torch.tensor([0.917, 0.459, 0.0275]).double(), rtol=0, atol=5e-4)
    torch.testing.assert_close(variance, torch.tensor([0.541, 0.135, 0.0096]).double(), rtol=0, atol=5e-4)
    model = gaussian(torch.diag(S))
    got = flow_moments(observed(model, lambda x: x @ K, 2.0, 0.3))
    torch.testing.assert_close(got[0], mean, rtol=0.03, atol=0)
    torch.testing.assert_close(got[1], variance, rtol=0.03, atol=0)
    n, program = 2000, compile_solver(P, grid(P, 100), "ancestral")
    end = run(observed(model, lambda x: x @ K, 2.0, 0.3), noise(n, 3), program, Rng(1, torch.arange(n)))
    within = lambda value, want, error: bool(((value - want).abs() < 0.03 * want + 3 * error).all())
    assert within(end.mean(0), mean, (variance / n).sqrt()) and within(end.var(0), variance, variance * (2 / n) ** 0.5)
    y = torch.tensor([[2.0]], dtype=F64)
    dps = Observation(operator=lambda x: (x @ K)[:, None], y=y, sigma_y=0.3, covariance=Unit(), scale=1 / 0.09)
    off, _ = flow_moments(guided(model, dps))
    torch.testing.assert_close(off, torch.tensor([2.09, -0.011, -0.017]).double(), rtol=0, atol=6e-3)


def model_of_pairs(x, y):
    """The conditional model of Gaussian data x and their labels y, by moments: a -> Denoise."""
    z = torch.cat([x, y[:, None]], 1)
    mean, c = z.mean(0), torch.cov(z.T)
    gain = c[:-1, -1] / c[-1, -1]
    return lambda a: gaussian(c[:-1, :-1] - torch.outer(gain, c[:-1, -1]), mean[:-1] + gain * (a - mean[-1]))


def test_reward_follows_the_target():
    """500 labels, pseudo-labels for 20000, a conditional model, a sweep: slope .9587 (S16, check 2)."""
    x = normal(500, 3) * S.sqrt()
    fit = fit_reward(lambda x: x, x, x @ K + 0.3 * normal(500, seed=50))
    assert fit.error == pytest.approx(0.3, rel=0.1)
    x = normal(20000, 3, seed=99) * S.sqrt()
    model = model_of_pairs(x, pseudo_label(fit, x, 0.3, Rng(0, torch.arange(20000))))
    start, truth = noise(1000, 3), lambda x: x @ K
    curve = reward_curve(lambda a: run(model(a), start, PROGRAM), truth, [0.0, 1.0, 2.0, 3.0], fit.leverage)
    slope = (curve.achieved[-1] - curve.achieved[0]) / 3
    assert slope.item() == pytest.approx(2.09 / 2.18, abs=0.02)
    assert bool((curve.distance.diff() > 0).all()) and curve.best == curve.bend() == 3
    spread = (K @ (S * K) - (K @ (S * K)) ** 2 / 2.18) ** 0.5
    torch.testing.assert_close(curve.spread, spread.expand(4), rtol=0.08, atol=0)
    torch.testing.assert_close(curve.standard_error, curve.spread / 1000**0.5)


def squares(x):
    """x and all products of two of its entries."""
    i, j = torch.triu_indices(x.shape[1], x.shape[1])
    return torch.cat([x, x[:, i] * x[:, j]], 1)


def test_few_labels_bend_the_curve():
    """27 features fitted to 30 or to 1000 labels of a linear reward: its true value against the target is concave and
    far below, or close to linear (S16, check 5)."""
    k = torch.ones(6, dtype=F64) / 6**0.5
    truth, model, start = lambda x: x @ k, gaussian(torch.eye(6, dtype=F64)), noise(300, 6)
    targets, achieved = [0.0, 2.0, 4.0, 6.0], {}
    for n in (30, 1000):
        x = normal(n, 6, seed=3)
        fit = fit_reward(squares, x, truth(x) + 0.3 * normal(n, seed=53), 1e-2)
        generate = lambda a, fit=fit: run(observed(model, fit, a, max(0.3, fit.error)), start, PROGRAM)
        curve = reward_curve(generate, truth, targets)
        achieved[n] = curve.achieved
    assert bool((achieved[30].diff().diff() < 0).all()) and achieved[30][-1] < 3
    assert bool((achieved[1000].diff() > 1.6).all()) and achieved[1000][-1] > 5


def test_reward_hacking_shows():
    """A linear fit of x_1 - |x|^2 / 5 is right near the data and wrong beyond. What samples achieve peaks where the
    true reward does, E f = m - (m^2 + v) / 5 in x_1, and only the held-out reward and the leverage say so."""
    truth = lambda x: x[:, 0] - x.square().sum(1) / 5
    x = normal(400, 3, seed=1)
    fit = fit_reward(lambda x: x, x, truth(x) + 0.1 * normal(400, seed=2))
    model, start, targets = gaussian(torch.eye(3, dtype=F64)), noise(400, 3), [0.5 * a for a in range(-1, 10)]
    ends = {a: run(observed(model, fit, a, 0.3), start, PROGRAM) for a in targets}
    curve = reward_curve(ends.get, truth, targets, fit.leverage)
    means = torch.stack([ends[a][:, 0].mean() for a in targets])
    assert means[curve.best].item() == pytest.approx(2.5, abs=0.4)
    assert bool((curve.distance.diff() > 0).all())
    assert 0 < curve.bend() < curve.best < len(targets) - 1
    fooled = reward_curve(ends.get, fit, targets)
    assert fooled.best == len(targets) - 1 and bool(fooled.distance.isnan().all())
    assert curve.achieved[-1] < fooled.achieved[-1] - 2


@pytest.mark.parametrize(
    ("achieved", "best", "bend"),
    [
        ((0, 1, 2, 3), 3, 3),
        ((0, 1, 1.4, 3), 3, 1),
        ((0, 2, 1, 0), 1, 1),
        ((0, 1, 3, 3.9), 3, 3),
        ((0, 1, 1.6, 1.7), 3, 2),
    ],
)
def test_where_a_curve_bends(achieved, best, bend):
    curve = Curve(torch.arange(4).double(), *(torch.tensor(achieved, dtype=F64),) * 4)
    assert (curve.best, curve.bend()) == (best, bend)
    uneven = Curve(torch.tensor([0.0, 1.0, 3.0, 7.0]), *(torch.tensor([0.0, 1.0, 3.0, 7.0]),) * 4)
    assert uneven.bend(0.9) == 3
    falling = torch.tensor([0.0, 2.0, 3.4, 11.4])  # slopes 2, .7, 2
    assert Curve(uneven.targets, *(falling,) * 4).bend() == 1
    with pytest.raises(ValueError, match="3 targets"):
        Curve(*(torch.zeros(2),) * 5).bend()


@pytest.mark.parametrize("targets", [[], [1.0, 1.0], [2.0, 1.0]])
def test_targets_increase(targets):
    with pytest.raises(ValueError, match="increase"):
        reward_curve(lambda a: normal(4, 2), lambda x: x[:, 0], targets)


def test_climbing_stays_in_the_subspace_of_the_data():
    """Data on 3 of 20 dimensions: what climbs by J^T k leaves them by rounding alone, what climbs by k at x_t does not,
    though it gets no further (S16, check 4)."""
    basis = torch.linalg.qr(normal(20, 3)).Q
    law = GaussianLaw(torch.zeros(20, dtype=F64), basis, torch.ones(3, dtype=F64), torch.zeros((), dtype=F64))
    model, start, k = LawOracle(law), noise(200, 20), torch.full((20,), 0.45, dtype=F64)
    program, reward = compile_solver(P, grid(P, 20, "time"), "ddim"), lambda x: x @ k
    off = lambda x: (x - x @ basis @ basis.T).square().sum(1).mean()
    ends = climb(model, reward, start, program.times, program, Rng(0, torch.arange(200)), [1.0, 3.0], 0.1)
    naive = run(guided(model, Potential(log_h=lambda x, t: reward(x))), start, program)
    assert [reward(e).mean().item() for e in ends] == pytest.approx([1.0, 3.0], rel=0.03)
    assert reward(naive).mean() < 3.2
    assert off(ends[1]) < 1e-20
    assert off(naive) > 1e-3


def test_climbing_finds_the_regularised_optimum():
    """f = x_1 - |x|^2 / 5 made linear anew each round: the fixed point m of m_1 + k (m' - m) on N(0, I) is where the
    Gaussian posterior of the linear reward has its own mean."""
    reward = lambda x: x[:, 0] - x.square().sum(1) / 5
    model, start, rng = gaussian(torch.eye(3, dtype=F64)), noise(400, 3), Rng(0, torch.arange(400))
    ends = climb(model, reward, start, PROGRAM.times, PROGRAM, rng, [1.0] * 8, 0.3)
    free = run(model, start, PROGRAM)
    m = free.mean(0)
    for end in ends:
        k = torch.eye(3, dtype=F64)[0] - 0.4 * m
        value = reward(m[None])[0]
        gain = k / (k @ k + 0.09)
        expected = free.mean(0) + gain * (1.0 - value - k @ (free.mean(0) - m))
        torch.testing.assert_close(end.mean(0), expected, rtol=0.01, atol=0.02)
        m = end.mean(0)
    values = [reward(end).mean().item() for end in ends]
    assert values[0] > reward(free).mean() + 0.8 and values[-1] == pytest.approx(values[-2], abs=1e-3)
    assert values[-1] > reward(ends[0]).mean()


def test_fields_climb_together():
    schema = {"a": Field("whole", (2,)), "b": Field("site", (1,))}
    model = GaussianOracle({"a": P, "b": P}, 0.0, 1.0, schema)
    start = {"a": noise(50, 2), "b": noise(50, 3, 8)[..., None]}
    reward = lambda state: state["a"][:, 0] + 2 * state["b"][:, 1, 0]
    go = lambda reward: climb(model, reward, start, PROGRAM.times, PROGRAM, Rng(0, torch.arange(50)), [4.0], 0.2)[0]
    end = go(reward)
    assert reward(end).mean().item() == pytest.approx(4.0 * 5 / 5.04, rel=0.02)
    flat = torch.cat([end["a"], end["b"][..., 0]], 1).mean(0)
    assert flat[[1, 2, 4]].abs().max() < 0.5 and flat[3] > 1.2 and flat[0] > 0.5
    torch.testing.assert_close(go(lambda state: state["a"][:, 0])["b"], run(model, start, PROGRAM)["b"])  # untouched


def test_noise_of_rounds():
    """Round i draws from rng.at(i): rounds of a stochastic solver differ, a repetition does not."""
    program, rng = compile_solver(P, grid(P, 6), "ancestral"), Rng(0, torch.arange(8))
    model, start = gaussian(torch.eye(2, dtype=F64)), noise(8, 2)
    go = lambda *targets: climb(model, lambda x: x[:, 0], start, program.times, program, rng, targets, 0.3)
    first, second = go(1.0, 1.0), go(1.0, 1.0)
    assert torch.equal(first[1], second[1]) and (first[0] - first[1])[:, 1].abs().min() > 0
    with torch.inference_mode():
        torch.testing.assert_close(go(1.0)[0], first[0])


def test_bad_climbs_are_refused():
    model, start, rng = gaussian(torch.eye(2, dtype=F64)), noise(4, 2), Rng(0, torch.arange(4))
    go = lambda targets, sigma: climb(model, lambda x: x[:, 0], start, PROGRAM.times, PROGRAM, rng, targets, sigma)
    with pytest.raises(ValueError, match="a target"):
        go([], 0.3)
    for bad in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="noise > 0"):
            go([1.0], bad)
    model.process = absorbing(3)
    with pytest.raises(ValueError, match="climb needs the score"):
        go([1.0], 0.3)


def test_best_of_n():
    """The mean of the best of 8 normal numbers is 1.4236; states of fields, and groups that do not come out even."""
    x = normal(40000, 2)
    best = best_of_n(x, lambda x: x[:, 0], 8)
    assert best.shape == (5000, 2)
    torch.testing.assert_close(best[:, 0], x[:, 0].reshape(-1, 8).amax(1))
    assert best[:, 0].mean().item() == pytest.approx(1.4236, abs=0.04) and best[:, 1].mean().abs() < 0.06
    fields = best_of_n({"a": x, "b": x[:, 1]}, lambda s: s["a"][:, 0], 8)
    assert torch.equal(fields["b"], best[:, 1])
    assert torch.equal(best_of_n(x, lambda x: x[:, 0], 1), x)
    for n in (0, 7):
        with pytest.raises(ValueError, match="divide"):
            best_of_n(x, lambda x: x[:, 0], n)
