"""Conditioners of an unconditional model on AR(.9) windows, and forecasts beyond a window (S20, section 4)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.forecasting.ar_windows import DDPM, F64, TRUTH, H, L, Windows, errors, future, ids, program, prompt
from tests.forecasting.test_prompts import network
from tests.laws import assert_same_samples
from tests.oracles import normal
from unisci.forecasting.gpd import Clean, Moment, Particles, Replace, for_particles, roll
from unisci.forecasting.prompts import draw
from unisci.order import Order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VP
from unisci.rng import Rng

ALL = [Clean(), Replace(), Replace(3), Moment(), Particles(4)]
BY_PATH = [Clean(), Replace(), Moment()]
label = lambda v: f"{v}".split("(")[0] if not isinstance(v, Replace) else f"Replace{v.resamples}"


def rms(v):
    return float(v.square().mean().sqrt())


SHARP = torch.linalg.cholesky(Windows().covariance) @ normal(L)  # ends far from 0, where replacement shows its bias


def forecast(conditioner, n, steps, name="ancestral", process=DDPM, kind="time", window=TRUTH):
    """Errors of the future's mean (8,) and ratios of its spread."""
    y, where = prompt(n, window)
    return errors(conditioner(Windows(process), y, where, program(steps, name, process, kind=kind), ids(n)), y)


def test_clean_and_moment_are_exact():
    for conditioner, n, steps, name in ((Clean(), 1500, 20, "dpm++2m"), (Moment(), 1000, 20, "dpm++2m")):
        error, ratio = forecast(conditioner, n, steps, name, VP(), "lambda")
        assert rms(error) < 0.05, (conditioner, error)
        assert (ratio - 1).abs().max() < 0.1, (conditioner, ratio)


def test_replacement_is_wrong_at_the_seam_and_resampling_mends_it():
    """Errors .66, .20, .02 at the first step for r = 1, 5, 20, where the exact ways have .01."""
    first = [abs(float(forecast(Replace(r), 300, 20, "ddim", window=SHARP)[0][0])) for r in (1, 5, 20)]
    assert first[0] > first[1] > first[2] and first[0] > 0.4 and first[2] < 0.12, first


def weighted(conditioner, groups, steps, window=TRUTH):
    """Means of the future by each group's weights (groups, 8), its mean spread's ratio, effective sizes."""
    y, where = prompt(groups, window)
    _, report = conditioner.weighted(Windows(), y, where, program(steps), ids(groups))
    w = report.log_weights.softmax(1)
    x = report.particles.reshape(groups, -1, L)[..., H:]
    means, (mean, std) = (w[..., None] * x).sum(1), future(y[0])
    variance = (w[..., None] * x.square()).sum(1).mean(0) - means.mean(0).square()
    return means - mean, variance.sqrt() / std, report.ess


def test_replaced_entries_walk_one_path_from_the_start():
    """The noise in them is the same at every call, the first included."""
    seen = []

    class Recorder(Point):
        def __call__(self, x, t):
            alpha, sigma = DDPM.level(t)
            seen.append(((x - alpha * y) / sigma)[where])
            return super().__call__(x, t)

    y, where = normal(4, L), normal(4, L, seed=1) > 0
    Replace(2)(Recorder(), y, where, program(3), ids(4))
    assert len(seen) == 6
    for noise in seen[2::2]:  # between them the calls after noising back
        torch.testing.assert_close(noise, seen[0], rtol=1e-6, atol=1e-6)


def test_particles_are_exact():
    """256 of them: the mean of one group, too, within .1 in the mean of groups; far from replacement's."""
    error, ratio, ess = weighted(Particles(256), 10, 60)
    assert rms(error.mean(0)) < 0.06 and float(error.square().mean(1).sqrt().mean()) < 0.12
    assert (ratio - 1).abs().max() < 0.15
    assert ess.min() < 250 and ess.mean() > 150


def test_more_particles_are_better_and_one_is_replacement():
    few, _, _ = weighted(Particles(1), 400, 40, SHARP)
    more, _, _ = weighted(Particles(32), 100, 40, SHARP)
    assert few.mean(0)[0] > 0.25 > 3 * abs(more.mean(0)[0])


def test_a_draw_of_each_group_has_the_law():
    error, ratio = forecast(Particles(32), 300, 40)
    assert rms(error) < 0.12 and (ratio - 1).abs().max() < 0.2


@pytest.mark.parametrize("conditioner", ALL, ids=label)
@pytest.mark.parametrize("end", [0.0, 1e-2])
def test_known_entries_are_kept_and_nothing_is_nan(conditioner, end):
    """(S20, checks 2 and 3) Ragged prompts with unknown left parts; all known returns the prompt, none is finite."""
    where = normal(6, L, seed=3) > 0
    where[0], where[1], where[2, :8] = False, True, False
    y = torch.where(where, normal(6, L), torch.nan)
    for name in ("ancestral", "ddim"):
        x = conditioner(Windows(), y, where, program(6, name, end=end), ids(6))
        assert x.shape == (6, L) and bool(x.isfinite().all())
        assert torch.equal(x[where], y[where]) and torch.equal(x[1], y[1])


@pytest.mark.parametrize("conditioner", [*BY_PATH, Replace(1)], ids=label)
@pytest.mark.parametrize("name", ["ancestral", "dpm++2m"])
def test_without_a_prompt_samples_are_the_models_own(conditioner, name):
    """(S20, check 3) To the last bit."""
    y, none = torch.full((5, L), torch.nan, dtype=F64), torch.zeros(5, L, dtype=torch.bool)
    x = conditioner(Windows(), y, none, program(8, name), ids(5))
    assert torch.equal(x, draw(Windows(), y, program(8, name), ids(5)))


def test_particles_without_a_prompt_are_the_models_own():
    y, none = torch.full((4, L), torch.nan, dtype=F64), torch.zeros(4, L, dtype=torch.bool)
    x, report = Particles(3).weighted(Windows(), y, none, program(8), ids(4))
    own = draw(Windows(), torch.zeros(12, L), program(8), ids(12))
    torch.testing.assert_close(report.particles, own.double(), rtol=1e-4, atol=1e-4)
    assert not report.log_weights.any() and all(any(torch.equal(a, b) for b in report.particles) for a in x)


class Point:
    """All data are 2."""

    process, schema = DDPM, None

    def __call__(self, x, t):
        return torch.full_like(x, 2.0)


def test_resampling_noises_back_to_the_same_law():
    """x_s ~ N(2 alpha_s, sigma_s^2) however often a step is done, and each time anew."""
    n, steps = 20000, program(3, "ddim", end=0.3)
    y, none = torch.zeros(n, 1, dtype=F64), torch.zeros(n, 1, dtype=torch.bool)
    once, thrice = (Replace(r)(Point(), y, none, steps, ids(n)) for r in (1, 3))
    (alpha, sigma), first = DDPM.level(steps.times[-1]), 2 * DDPM.level(steps.times[0])[0]
    assert abs(float(thrice.mean()) - float(2 * alpha)) < 0.02 * float(first) + 0.02
    assert abs(float(thrice.std() / sigma) - 1) < 0.02
    assert abs(float(torch.corrcoef(torch.cat([once, thrice], 1).T)[0, 1])) < 0.9


@pytest.mark.parametrize("conditioner", ALL, ids=label)
def test_networks_over_fields(conditioner):
    """A bound denoiser, with masks and conditions of each sample, as all others."""
    denoise, net, y, where = network()
    x = conditioner(denoise, y, where, program(5), ids(5))
    assert x["y"].shape == (5, 6) and torch.equal(x["y"][where], y["y"][where])
    assert net.rows == (20 if isinstance(conditioner, Particles) else 5)
    again = conditioner(denoise, y, where, program(5), ids(5, seed=1))
    assert not torch.equal(x["y"][~where & denoise.mask], again["y"][~where & denoise.mask])


@pytest.mark.parametrize("conditioner", ALL, ids=label)
def test_a_sample_does_not_depend_on_its_batch(conditioner):
    def generate(seed, who):
        rng = Rng(seed, who)
        where = rng.at(9).uniform("where", 0, (len(who), 6)) < 0.5
        y = rng.at(9).normal("data", 0, (len(who), 6))
        return {"y": conditioner(Pointwise(), y, where, program(4), rng)}

    assert_same_samples(generate, batch_sizes=(1, 7))


class Pointwise:
    """A model without sums, whose rounding would depend on the batch: each entry hears of its neighbour."""

    process, schema = DDPM, None

    def __call__(self, x, t):
        return 0.6 * x + 0.3 * x.roll(1, 1)


def test_particles_repeat_what_a_model_holds():
    denoise, *_ = network()
    many = for_particles(denoise, 3)
    assert torch.equal(many.mask, denoise.mask.repeat_interleave(3, 0))
    assert torch.equal(many.given["level"], denoise.given["level"].repeat_interleave(3))
    oracle = Windows()
    assert for_particles(oracle, 3) is oracle
    for bound in (replace(denoise, order=Order(torch.zeros(5, 6, dtype=torch.long))), replace(denoise, cache=object())):
        with pytest.raises(ValueError, match="without an order and a cache"):
            for_particles(bound, 2)


def test_bad_settings_are_refused():
    y, where = prompt(2)
    with pytest.raises(ValueError, match="resamples = 0"):
        Replace(0)
    with pytest.raises(ValueError, match="threshold"):
        Particles(4, threshold=2.0)
    with pytest.raises(ValueError, match="sigma_y"):
        Moment(0.0)(Windows(), y, where, program(2), ids(2))
    with pytest.raises(ValueError, match="at least one particle"):
        Particles(0)(Windows(), y, where, program(2), ids(2))
    tokens = type("Tokens", (), {"process": absorbing(3), "schema": None})()
    with pytest.raises(ValueError, match="Gaussian"):
        Particles(2)(tokens, y, where, program(2), ids(2))
    for keep, length, horizon in ((8, 8, 3), (-1, 8, 3), (4, 8, 0)):
        with pytest.raises(ValueError, match="need 0 <= keep < length"):
            roll(lambda y, where, k: y, y, horizon, keep, length)


def complete(conditioner=Clean(), steps=8, seed=0):  # noqa: B008
    """Windows by the exact model, block k from stream k."""

    solver = program(steps, "dpm++2m", VP(), kind="lambda")

    def windows(y, where, k):
        flat = y.flatten(0, -2)
        rng = ids(len(flat), seed).at(k)
        return conditioner(Windows(VP()), flat, where.flatten(0, -2), solver, rng).reshape(y.shape)

    return windows


def test_one_window_is_the_begin_of_a_rolled_forecast():
    """(S20, check 5) and the next block is prompted by the last values before it, drawn ones too."""
    history, seen = normal(3, H), []

    def windows(y, where, k):
        seen.append((y, where, k))
        return complete()(y, where, k)

    short, long = roll(windows, history, L - H, H, L), roll(windows, history, 30, H, L)
    assert short.shape == (3, 8) and long.shape == (3, 30)
    assert torch.equal(long[:, :8], short) and torch.equal(roll(complete(), history, 5, H, L), short[:, :5])
    assert [k for _, _, k in seen] == [0, 0, 1, 2, 3]
    y, where, _ = seen[3]
    before = torch.cat([history, long], 1)[:, 16:32]
    assert torch.equal(where[0], torch.arange(L) < H)
    want = (before - before.mean(1, keepdim=True)) / before.std(1, keepdim=True, correction=0)
    torch.testing.assert_close(y[:, :H], want)
    assert not y[:, H:].any()


def test_a_history_may_be_shorter_longer_and_have_gaps():
    history = normal(2, 20)
    history[0, 17] = torch.nan
    seen = []

    def windows(y, where, k):
        seen.append(where)
        return complete()(y, where, k)

    longer = roll(windows, history, 8, 12, L)
    assert torch.equal(longer, roll(windows, history[:, 8:], 8, 12, L))
    assert seen[0][0].tolist() == [k < 12 and k != 9 for k in range(L)]
    shorter = roll(windows, history[:, 15:], 8, 12, L)
    assert seen[2][1].tolist() == [7 <= k < 12 for k in range(L)]
    padded = torch.cat([torch.full((2, 7), torch.nan), history[:, 15:]], 1)
    assert torch.equal(shorter, roll(windows, padded, 8, 12, L))
    assert roll(complete(), torch.full((2, 0), torch.nan), 30, 12, L).isfinite().all()
    free = roll(complete(), history, 30, 0, L)
    assert free.shape == (2, 30) and free.isfinite().all()


@pytest.mark.parametrize("conditioner", [Clean(), Replace(), Moment(), Particles(4)], ids=label)
@settings(max_examples=8, deadline=None)
@given(a=st.floats(0.01, 100), b=st.floats(-100, 100))
def test_forecasts_are_equivariant_to_units(conditioner, a, b):
    """(S20, check 4), beyond one window and for each channel's own units."""
    history = normal(2, 2, 12)
    units = lambda v: torch.stack([a * v[:, 0] + b, v[:, 1]], 1)
    forecast = lambda history: roll(complete(conditioner, 4), history, 14, 16, L)
    got, want = forecast(units(history)), units(forecast(history))
    assert got.shape == (2, 2, 14)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5 * (a + abs(b)))


def test_a_constant_history_stays():
    x = roll(complete(), torch.tensor([[7.1] * 10, [0.0] * 10, [torch.nan] * 9 + [3.0]]), 40, 10, L)
    assert x.dtype == torch.float32
    torch.testing.assert_close(x, torch.tensor([7.1, 0.0, 3.0])[:, None].expand(3, 40), rtol=1e-3, atol=1e-6)


def test_a_rolled_forecast_has_the_law_of_the_series():
    """Blocks of 8 after 16 known values: without normalisation, exact for a Markov series to the last block."""
    y, n = prompt(1)[0][:, :H], 800
    raw = lambda y, where, k: complete(steps=15)(y, where, k)
    past = y.expand(n, H)
    for k in range(3):
        window = torch.cat([past[:, -H:], torch.full((n, 8), torch.nan)], 1)
        past = torch.cat([past, raw(window, window.isfinite(), k)[:, H:]], 1)
    decay = 0.9 ** torch.arange(1, 25, dtype=F64)
    std = (1 - decay**2).sqrt()
    assert ((past[:, H:].mean(0) - decay * y[0, -1]) / std).abs().max() < 4 / n**0.5 + 0.05
    assert (past[:, H:].std(0) / std - 1).abs().max() < 0.12


def test_particles_take_any_number_of_a_sample():
    y, where = prompt(3)
    large = Rng(0, torch.tensor([2**32 - 1, 5, 2**31]))
    x = Particles(4)(Windows(), y, where, program(4), large)
    again = Particles(4)(Windows(), y[1:2], where[1:2], program(4), large[torch.tensor([1])])
    assert bool(x.isfinite().all()) and torch.equal(x[1:2], again)
