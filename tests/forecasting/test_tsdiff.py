"""Self-guidance and refinement on AR(.9) windows, 24 steps of which 16 are known (S06, section 4)."""

import pytest
import torch

from tests.forecasting.ar_windows import DDPM, F64, PAST, TRUTH, H, L, Windows, errors, ids, program, prompt
from tests.forecasting.test_prompts import network
from tests.oracles import normal
from unisci.forecasting.prompts import draw
from unisci.forecasting.tsdiff import (
    LEVELS,
    denoising_loss,
    exact,
    mean_square,
    path_levels,
    pinball,
    quantiles,
    refine_langevin,
    refine_map,
    representative_level,
    squared_error,
)
from unisci.guidance.observation import Observation, Unit
from unisci.guidance.terms import guided
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import to_noise
from unisci.solvers.sample import draw_keys

T = torch.tensor(0.4, dtype=F64)


def rms(v):
    return float(v.square().mean().sqrt())


def forecast(term, n, steps=100):
    """RMS error of the future's mean, ratios of its spread at the ends, and RMS error at known entries."""
    y, where = prompt(n)
    x = draw(guided(Windows(), term(y, where)), y, program(steps), ids(n))
    error, ratio = errors(x, y)
    return rms(error), float(ratio[0]), float(ratio[-1]), rms((x - y)[:, :H])


def is_exact(error, first, last, known):
    return error < 0.05 and abs(first - 1) < 0.1 and abs(last - 1) < 0.1 and known < 0.05


def test_the_likelihood_with_its_variance_is_exact():
    assert is_exact(*forecast(exact, 1000, 60))


@pytest.mark.slow
def test_the_likelihood_with_its_variance_is_exact_in_full():
    """The setting of S06: .012, .97 and .96 there."""
    result = forecast(exact, 4000)
    assert is_exact(*result), result


def test_mean_squares_fit_the_context_and_miss_the_future():
    """(S06, check 2) .42, .47, .36 at known errors .44, .26, .19 with the paper's 100 steps: b(t) of VP is T beta."""
    results = [forecast(lambda y, where, s=s: mean_square(y, where, s), 1000) for s in (1.0, 4.0, 8.0)]
    for (error, _, _, known), future, context in zip(results, (0.42, 0.47, 0.36), (0.44, 0.26, 0.19), strict=True):
        assert abs(error - future) < 0.05 and abs(known - context) < 0.04, results
    contexts = [r[3] for r in results]
    assert contexts == sorted(contexts, reverse=True)


def test_too_large_a_scale_diverges_and_is_caught():
    """s = 32: beyond 1e30 in float64, and an error that names the step in float32."""
    y, where = prompt(50)
    model = guided(Windows(), mean_square(y, where, 32.0))
    assert draw(model, y, program(), ids(50)).abs().max() > 1e30
    with pytest.raises(ValueError, match="finite"):
        draw(model, y.float(), program(), ids(50))


def test_mean_squares_are_an_observation_of_unit_variance():
    y, where = prompt(4)
    x, s = normal(4, L), torch.tensor([0.5, 1.0, 2.0, 0.0], dtype=F64)
    known = torch.where(where, y, 0.0)
    unit = Observation(
        operator=lambda x: torch.where(where, x, 0.0), y=known, sigma_y=1.0, covariance=Unit(), scale=2 * s
    )
    got, want = (guided(Windows(), term)(x, T) for term in (mean_square(y, where, s), unit))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    # by hand: the noise's prediction grows by s sigma grad E
    alpha, sigma = DDPM.level(T)
    at = x.clone().requires_grad_()
    clean = Windows()(at, T)
    energy = (torch.where(where, y, 0.0) - clean)[:, :H].square().sum(1)
    (slope,) = torch.autograd.grad((s * energy).sum(), at)
    noise = to_noise(clean.detach(), x, alpha, sigma) + sigma * slope
    torch.testing.assert_close(got, (x - sigma * noise) / alpha, rtol=1e-9, atol=1e-9)


def test_scale_zero_is_the_model_itself():
    y, where = prompt(6)
    steps = program(10, "ddim")
    plain = draw(Windows(), y, steps, ids(6))
    for term in (mean_square(y, where, 0.0), quantiles(y, where, 0.5, 0.0)):
        assert torch.equal(draw(guided(Windows(), term), y, steps, ids(6)), plain)


def test_paths_are_ordered_by_their_levels():
    """(S06, check 3) Spearman's correlation of level and mean at known steps above .9, over repeats."""
    paths, repeats = 9, 40
    levels = path_levels(paths)
    torch.testing.assert_close(levels, torch.arange(1, 10, dtype=F64) / 10)
    y, where = prompt(paths * repeats)
    term = quantiles(y, where, levels.repeat(repeats), 4.0)
    x = draw(guided(Windows(), term), y, program(50), ids(paths * repeats))
    means = x.reshape(repeats, paths, L)[..., :H].mean((0, 2))
    rank = means.argsort().argsort().double()
    assert torch.corrcoef(torch.stack([rank, levels]))[0, 1] > 0.9
    free = draw(Windows(), y, program(50), ids(paths * repeats))
    assert rms((x - y)[4::paths, :H]) < 0.6 * rms((free - y)[4::paths, :H])


def test_levels_need_a_path():
    with pytest.raises(ValueError, match="one path or more, got 0"):
        path_levels(0)


def test_the_loss_is_the_error_of_the_predicted_noise():
    x, eps = normal(5, L), normal(5, L, seed=1)
    alpha, sigma = DDPM.level(T)
    x_t = alpha * x + sigma * eps
    want = (eps - to_noise(Windows()(x_t, T), x_t, alpha, sigma)).square().sum(1)
    torch.testing.assert_close(denoising_loss(Windows(), x, T, eps), want)
    in_fields = type("Fields", (), {"process": {"y": DDPM}, "schema": None})()
    in_fields.__class__.__call__ = lambda self, x, t: {"y": Windows()(x["y"], t["y"] if isinstance(t, dict) else t)}
    torch.testing.assert_close(denoising_loss(in_fields, {"y": x}, T, {"y": eps}), want)


def test_the_representative_level():
    """Of exact Gaussian data, the loss at t is trace of alpha^2 S / (alpha^2 S + sigma^2), up to sampling error."""
    n, s = 3000, Windows().covariance
    data = normal(n, L) @ torch.linalg.cholesky(s).T
    t = representative_level(Windows(), data, ids(n))
    c, (alpha, sigma) = torch.linalg.eigvalsh(s), DDPM.level(LEVELS[:, None])
    loss = (alpha**2 * c / (alpha**2 * c + sigma**2)).sum(1)
    want = LEVELS[(loss - loss.mean()).abs().argmin()]
    assert t.ndim == 0 and abs(t - want) < 0.025 and 0.1 < want < 0.6
    assert representative_level(Windows(), data[:9], ids(9), torch.tensor([0.3])) == pytest.approx(0.3)
    for times in (torch.tensor([0.0, 0.5]), torch.tensor([]), torch.tensor(0.5), torch.tensor([1.1])):
        with pytest.raises(ValueError, match=r"\(0, 1\]"):
            representative_level(Windows(), data[:2], ids(2), times)


def shifted(n=300):
    """Truths of the model, a base forecast one standard deviation above them, their known entries."""
    truth = normal(n, L) @ torch.linalg.cholesky(Windows().covariance).T
    return truth, truth + 1, PAST.expand(n, L)


@pytest.mark.parametrize("gamma", [0.0, 0.1])
def test_refinement_lowers_energy_and_error(gamma):
    """(S06, check 5) From truth + 1 the energy falls at every 5th of 20 steps, and the error too."""
    truth, base, where = shifted()
    penalty, noises = squared_error(truth, where), [normal(*base.shape, seed=k) for k in range(20)]
    energy = lambda x: float(sum((denoising_loss(Windows(), x, T, e) + penalty(x)).mean() for e in noises)) / 20
    seen = [base]
    refine = lambda rng: refine_langevin(Windows(), base, penalty, T, rng, gamma=gamma, on_step=seen.append)
    x = refine(ids(300))
    energies = [energy(v) for v in seen[::5]]
    assert len(seen) == 21 and energies == sorted(energies, reverse=True), energies
    assert rms(x - truth) < 0.8 * rms(base - truth)
    assert rms((x - truth)[:, H]) < rms((base - truth)[:, H])
    assert torch.equal(refine(ids(300)), x)


class Silent:
    """An Rng whose draws number 1, the xi of a chain, are nan."""

    def __init__(self, rng):
        self.rng = rng

    def at(self, k):
        return Silent(self.rng.at(k))

    def normal(self, name, step, shape, axes):
        return self.rng.normal(name, step, shape, axes) + (1e9 if step == 1 else 0)


def test_map_draws_no_noise_of_its_own():
    """gamma = 0 is gradient descent, whatever xi; the temperature scales the spread that xi leaves."""
    truth, base, where = shifted(50)
    penalty = squared_error(truth, where)
    map_ = refine_map(Windows(), base, penalty, T, ids(50), eta=0.1)
    assert torch.equal(map_, refine_langevin(Windows(), base, penalty, T, ids(50), gamma=0.0))
    assert torch.equal(map_, refine_map(Windows(), base, penalty, T, Silent(ids(50))))
    one = refine_map(Windows(), base, penalty, T, ids(50), steps=1, eta=0.05)
    eps = ids(50).at(0).normal(*draw_keys(base, None)[:1], 0, (50, L), 0).double()
    at = base.clone().requires_grad_()
    (slope,) = torch.autograd.grad((denoising_loss(Windows(), at, T, eps) + penalty(at)).sum(), at)
    torch.testing.assert_close(one, base - 0.05 * slope)
    hot = refine_langevin(Windows(), base, penalty, T, ids(50), steps=1, eta=0.05, gamma=0.3)
    xi = ids(50).at(0).normal("x", 1, (50, L), 0).double()
    torch.testing.assert_close(hot, one + (2 * 0.05 * 0.3) ** 0.5 * xi)


def test_a_seasonal_base_is_refined_by_quantiles():
    """The pinball regulariser covers the future too: a base far off pulls there, by at most 1 in each entry."""
    base, levels = normal(9, L) + 3, path_levels(9)
    x = torch.zeros(9, L, dtype=F64, requires_grad=True)
    value = pinball(base, levels)(x)
    (slope,) = torch.autograd.grad(value.sum(), x)
    want = torch.where(base > 0, -levels[:, None], 1 - levels[:, None])
    torch.testing.assert_close(slope, want)
    torch.testing.assert_close(value, (want * (x - base)).sum(1).detach())
    free = refine_map(Windows(), base, lambda x: 0 * x.sum(1), T, ids(9))
    held = refine_map(Windows(), base, pinball(base, levels), T, ids(9))
    assert rms((held - base)[:, H:]) < rms((free - base)[:, H:])


def test_a_squared_error_leaves_the_future_free():
    y, where = prompt(3)
    penalty, x = squared_error(y, where), normal(3, L)
    want = (x - torch.tensor(TRUTH, dtype=F64))[:, :H].square().sum(1)
    torch.testing.assert_close(penalty(x), want)
    torch.testing.assert_close(penalty({"y": x}), want)


def test_fields_are_guided_and_refined_as_bare_windows():
    denoise, _, y, where = network()
    x, t = {"y": normal(5, 6, seed=7).float()}, T.float()
    base = denoise(x, t)["y"].detach()
    for term in (exact(y, where), mean_square(y, where, 2.0), quantiles(y, where, 0.3, 2.0)):
        moved = guided(denoise, term)(x, t)["y"] - base
        towards = moved * (y["y"] - base) * where
        assert towards.sum() > 0 and moved.isfinite().all()
    penalty = pinball(y, 0.4)
    out = refine_map(denoise, y, penalty, t, ids(5))
    assert out["y"].shape == (5, 6) and not torch.equal(out["y"], y["y"])
    assert not out["y"].requires_grad
    with torch.inference_mode():
        assert torch.equal(refine_map(denoise, y, penalty, t, ids(5))["y"], out["y"])


def test_bad_refinements_are_refused():
    x, free = normal(2, L), lambda x: x.sum(1)
    for bad, words in (({"steps": 0}, "steps"), ({"eta": 0.0}, "eta"), ({"gamma": -1.0}, "gamma")):
        with pytest.raises(ValueError, match=words):
            refine_langevin(Windows(), x, free, T, ids(2), **bad)
    with pytest.raises(ValueError, match="level t"):
        refine_map(Windows(), x, free, torch.tensor(0.0), ids(2))
    tokens = type("Tokens", (), {"process": absorbing(3), "schema": None})()
    with pytest.raises(ValueError, match="Gaussian"):
        refine_map(tokens, x, free, T, ids(2))
    with pytest.raises(ValueError, match="Gaussian"):
        representative_level(tokens, x, ids(2))
