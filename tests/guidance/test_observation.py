"""Observations and rewards of the clean estimate, against the closed forms of Gaussian data."""

from typing import ClassVar

import pytest
import torch

from tests.oracles import AROracle, GaussianOracle, normal
from unisci.batch import Field
from unisci.guidance.observation import Isotropic, Jacobian, Observation, Reward, Unit, conjugate_gradients
from unisci.guidance.terms import guided
from unisci.processes.categorical import uniform
from unisci.processes.gaussian import VE, VP
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

P = VP()


class Correlated:
    """x_0 ~ N(0, S) exactly; state (B, D)."""

    schema = None

    def __init__(self, process, covariance):
        self.process, self.covariance = process, covariance

    def __call__(self, x, t):
        alpha, sigma = self.process.level(torch.as_tensor(t, dtype=torch.float64))
        noised = alpha**2 * self.covariance + sigma**2 * torch.eye(len(self.covariance), dtype=torch.float64)
        return x @ torch.linalg.solve(noised, alpha * self.covariance)


def draw(model, d, n=4000, steps=100, solver="ddim", process=P, end=1e-3):
    rng = Rng(0, torch.arange(n))
    program = compile_solver(process, grid(process, steps, end=end), solver)
    return run(model, process.prior(torch.zeros(n, d, dtype=torch.float64), rng), program, rng, check=False)


def forecast(covariance, **options):
    """16 of 24 values of an AR(.9) series observed: RMS error of the mean of the others, and their spread's ratio."""
    oracle = AROracle(P, 0.9, 24)
    s, noise = oracle.covariance, 0.05
    y = (torch.linalg.cholesky(s) @ normal(24))[:16]
    gain = s[16:, :16] @ torch.linalg.inv(s[:16, :16] + noise**2 * torch.eye(16))
    spread = (s[16:, 16:] - gain @ s[:16, 16:]).diag().sqrt()
    term = Observation(operator=lambda x: x[:, :16], y=y, sigma_y=noise, covariance=covariance, **options)
    x = draw(guided(oracle, term), 24, 2000, 60, "dpm++2m")[:, 16:]
    return float((x.mean(0) - gain @ y).square().mean().sqrt()), float((x.std(0) / spread).mean())


def test_a_series_is_forecast_with_the_exact_mean_and_spread():
    error, ratio = forecast(Jacobian())
    assert error < 0.05 and abs(ratio - 1) < 0.05, (error, ratio)


@pytest.mark.parametrize("covariance, options", [(Unit(), {}), (Unit(), {"scale": 4.0}), (Isotropic(1.0), {})])
def test_without_the_variance_of_the_likelihood_the_same_check_fails(covariance, options):
    assert forecast(covariance, **options)[0] > 0.2


@pytest.mark.parametrize("process", [P, VE(0.01, 30.0)])
def test_a_linear_target_of_gaussian_data_is_exact(process):
    """(S16, check 1): mean and covariance of x given k^T x + .3 eps = 2; DPS, the variance left out, is far off."""
    s, k = torch.diag(torch.tensor([1.0, 0.25, 0.01]).double()), torch.tensor([1.0, 2.0, 3.0]).double()
    model, nu = Correlated(process, s), 0.3
    operator, y = lambda x: (x @ k)[:, None], torch.tensor([2.0]).double()
    total = k @ s @ k + nu**2
    mean, variance = s @ k * 2 / total, (s - torch.outer(s @ k, s @ k) / total).diag()
    assert mean.tolist() == pytest.approx([0.917, 0.459, 0.0275], abs=1e-3)
    x = draw(guided(model, Observation(operator=operator, y=y, sigma_y=nu)), 3, 20000, 100, "dpm++2m", process, 1e-4)
    assert ((x.mean(0) - mean).abs() < 0.03 * mean.norm()).all()
    assert (x.var(0) / variance - 1).abs().max() < 0.03 + 0.02
    dps = Reward(log_h=lambda x: -(operator(x) - y).square().sum(1) / (2 * nu**2))
    wrong = draw(guided(model, dps), 3, 2000, 400, "ddim", process, 1e-4)
    assert not (wrong.mean(0) - mean).norm() < 0.5 * mean.norm()


def test_gaps_are_filled_as_the_kalman_smoother_does():
    """(S27, check 6) AR(1) windows with 30 % gaps: means within 3 standard errors, 90 % intervals cover 90 %."""
    n, length, noise = 3000, 12, 0.05
    oracle = AROracle(P, 0.8, length)
    s, hidden = oracle.covariance, torch.tensor([2, 3, 7, 9])
    seen = torch.tensor([k for k in range(length) if k not in hidden])
    truth = normal(n, length) @ torch.linalg.cholesky(s).T
    y = truth[:, seen] + noise * normal(n, len(seen), seed=1)
    gain = s[hidden][:, seen] @ torch.linalg.inv(s[seen][:, seen] + noise**2 * torch.eye(len(seen)))
    spread = (s[hidden][:, hidden] - gain @ s[seen][:, hidden]).diag().sqrt()
    term = Observation(operator=lambda x: x[:, seen], y=y, sigma_y=noise)
    filled = draw(guided(oracle, term), length, n, 60, "dpm++2m")[:, hidden]
    z = (filled - y @ gain.T) / spread
    assert (z.mean(0).abs() < 3 / n**0.5 + 0.02).all() and (z.std(0) - 1).abs().max() < 0.05
    inside = ((truth[:, hidden] - y @ gain.T).abs() < 1.645 * spread * z.std(0)).double().mean()
    assert 0.87 < float(inside) < 0.93


def test_a_linear_reward_shifts_the_mean_alone():
    """exp(theta k^T x) of N(0, S): mean S k theta, the covariance stays; no variance is needed."""
    s, k = torch.tensor([[1.0, 0.5], [0.5, 1.0]]).double(), torch.tensor([1.0, -2.0]).double()
    x = draw(guided(Correlated(P, s), Reward(log_h=lambda x: 0.5 * x @ k)), 2, 20000, 100, "dpm++2m")
    assert (x.mean(0) - 0.5 * s @ k).abs().max() < 0.03
    assert (x.T.cov() - s).abs().max() < 0.04


def test_one_isotropic_gaussian_makes_all_exact_policies_one():
    model, x, t = GaussianOracle(P, 0.0, 0.7), normal(5, 3), torch.tensor(0.4, dtype=torch.float64)
    y, operator = torch.ones(2).double(), lambda x: x[:, :2]
    outs = [
        guided(model, Observation(operator=operator, y=y, sigma_y=0.2, covariance=c))(x, t)
        for c in (Jacobian(), Isotropic(0.49), Isotropic(0.49, through_model=False))
    ]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0])


def test_one_number_a_sample_may_be_observed():
    model, x, t = GaussianOracle(P, 0.0, 0.7), normal(5, 3), torch.tensor(0.4, dtype=torch.float64)
    flat = Observation(operator=lambda x: x.sum(1), y=torch.tensor(1.0), sigma_y=0.2)
    kept = Observation(operator=lambda x: x.sum(1, keepdim=True), y=torch.tensor(1.0), sigma_y=0.2)
    torch.testing.assert_close(guided(model, flat)(x, t), guided(model, kept)(x, t))


def test_a_nonlinear_operator_pulls_towards_what_was_measured():
    model, y = GaussianOracle(P, 1.0, 0.5), torch.tensor([4.0]).double()
    term = Observation(operator=lambda x: x.square().sum(1, keepdim=True), y=y, sigma_y=0.1)
    plain, pulled = draw(model, 2, 500), draw(guided(model, term), 2, 500)
    off = lambda x: (x.square().sum(1) - 4).abs().median()
    assert off(pulled) < 0.3 < off(plain)


def test_discrete_fields_are_observed_by_their_expectation():
    """Types (B, 4) of 3 classes: how many are of class 2 is observed; its logits rise where too few are expected."""
    schema = {"kind": Field("site", classes=("a", "b", "c")), "x": Field("site", (1,))}

    class Model:
        process: ClassVar = {"kind": uniform(3), "x": P}

        def __call__(self, x, t):
            return {"kind": torch.zeros(*x["kind"].shape, 3), "x": 0.5 * x["x"]}

    Model.schema = schema
    state = {"kind": torch.zeros(2, 4, dtype=torch.long), "x": torch.randn(2, 4, 1)}
    term = Observation(operator=lambda s: s["kind"][..., 2].sum(1, keepdim=True), y=torch.tensor([3.0]), sigma_y=1.0)
    out, plain = guided(Model(), term)(state, torch.tensor(0.5)), Model()(state, torch.tensor(0.5))
    push = out["kind"] - plain["kind"]
    assert (push[..., 2] > 0.5).all() and (push[..., :2] == 0).all() and torch.equal(out["x"], plain["x"])


def test_conjugate_gradients_invert_each_sample_on_its_own():
    a = normal(3, 5, 5)
    a = a @ a.transpose(1, 2) + 0.1 * torch.eye(5)
    b = normal(3, 5, seed=1)
    times = lambda v: (a @ v[..., None])[..., 0]
    torch.testing.assert_close(conjugate_gradients(times, b, 12), torch.linalg.solve(a, b), rtol=1e-6, atol=1e-6)
    assert (conjugate_gradients(times, torch.zeros(3, 5).double(), 3) == 0).all()


def test_bad_observations_are_refused():
    operator, y = lambda x: x[:, :2], torch.ones(2)
    for bad, words in (({"sigma_y": 0.0}, "sigma_y"), ({"iterations": 0}, "iterations")):
        with pytest.raises(ValueError, match=words):
            Observation(**({"operator": operator, "y": y, "sigma_y": 1.0} | bad))
    with pytest.raises(ValueError, match="not finite"):
        Observation(operator=operator, y=torch.tensor([1.0, float("nan")]), sigma_y=1.0)
    with pytest.raises(ValueError, match=r"y has shape \(3,\), the operator gives \(4, 2\)"):
        guided(GaussianOracle(P), Observation(operator=operator, y=torch.ones(3), sigma_y=1.0))(
            normal(4, 3), torch.tensor(0.5, dtype=torch.float64)
        )
    with pytest.raises(ValueError, match="variance"):
        Isotropic(0.0)


def test_a_map_that_is_not_positive_leaves_conjugate_gradients_finite():
    """As the Jacobian of a trained model may be: the direction counts as one of the noise alone."""
    matrix, noise = torch.diag(torch.tensor([2.0, -0.5])), 0.01
    times = lambda v: v @ matrix + noise * v
    b = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.3, -0.2]])
    found = conjugate_gradients(times, b, 8, noise)
    assert bool(found.isfinite().all()) and float(found.abs().max()) <= 2 / noise
    torch.testing.assert_close(found[0], torch.tensor([1 / 2.01, 0.0]))
    torch.testing.assert_close(found[1], torch.tensor([0.0, 1 / noise]), msg="one step along the bad direction")
