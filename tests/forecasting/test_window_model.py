"""One model of windows against closed forms, and what it is shown in training and in prediction."""

import pytest
import torch

from tests.forecasting.ar_windows import TRUTH
from tests.forecasting.exact_windows import F64, GaussianNetwork, Spy, ar, conditional, model_of, panel, source_of
from tests.laws import no_host_reads
from tests.oracles import normal
from unisci.batch import Batch
from unisci.forecasting.anchors import anchors
from unisci.forecasting.gpd import CLEAN, Moment
from unisci.forecasting.scales import about, scaled
from unisci.forecasting.window_model import LARGEST, PATTERNS, Patterns, WindowModel
from unisci.forecasting.windows import WindowShape, at_places, places
from unisci.rng import Rng

N = 1500


def exact(y, covariance, shape, basis, n=N):
    """Model of a Gaussian law in the units that `basis` of the window y (N,) sets, n such windows as a batch."""
    data = panel(y.reshape(shape.channels, -1).T.numpy())
    source = source_of(data)
    batch = source.cut(shape, torch.zeros(n, dtype=torch.long), torch.full((n,), shape.context))
    _, loc, scale, _ = scaled(y[None], basis[None], source.spread)
    loc, scale = (v.expand(1, shape.channels, shape.length).flatten() for v in (loc, scale))
    return model_of(GaussianNetwork(-loc / scale, covariance / scale[:, None] / scale), shape, data), batch


def figures(out, y, covariance, known):
    """RMS error of the mean in standard deviations, and the largest error of a standard deviation."""
    mean, std = conditional(covariance, y, known)
    error = (out[:, ~known].mean(0) - mean).square().mean().sqrt()
    return float(error), float((out[:, ~known].std(0) / std - 1).abs().max())


def two_channels(length):
    y = (
        torch.linalg.cholesky(ar(length))
        @ normal(length, 2, seed=3)
        @ torch.tensor([[1.0, 0.8], [0.0, 0.6]], dtype=F64)
    )
    return y.T.flatten(), torch.kron(torch.tensor([[1.0, 0.8], [0.8, 1.0]], dtype=F64), ar(length))


def cases():
    y = torch.tensor(TRUTH, dtype=F64)
    step = torch.arange(24)
    yield "forecast", WindowShape(16, 8), y, ar(24), step < 16
    yield "gap", WindowShape(16, 8), y, ar(24), (step < 9) | (step > 15)
    y, covariance = two_channels(12)
    step = torch.arange(24) % 12
    yield "channels", WindowShape(8, 4, 2), y, covariance, step < 8
    yield "one channel told", WindowShape(8, 4, 2), y, covariance, (step < 8) | (torch.arange(24) >= 12)


@pytest.mark.parametrize(("shape", "y", "covariance", "known"), [pytest.param(*c[1:], id=c[0]) for c in cases()])
def test_windows_are_completed_by_the_exact_law(shape, y, covariance, known):
    model, batch = exact(y, covariance, shape, known)
    where = known.expand(N, -1)
    out = model.complete(batch, where, ~where, model.program(20, "dpm++2m"), Rng(0, torch.arange(N)))
    assert out.dtype == F64 and torch.equal(out[:, known], y[known].expand(N, -1))
    error, spread = figures(out, y, covariance, known)
    assert error < 0.05 and spread < 0.08, (error, spread)


def test_other_conditioners_are_exact_too():
    _, shape, y, covariance, known = next(cases())
    model, batch = exact(y, covariance, shape, known, 400)
    where, program = known.expand(400, -1), model.program(12, "dpm++2m")
    out = model.complete(batch, where, ~where, program, Rng(0, torch.arange(400)), Moment(iterations=16))
    error, spread = figures(out, y, covariance, known)
    assert error < 0.1 and spread < 0.15, (error, spread)


def test_a_part_may_be_neither_known_nor_wanted():
    """Then it tells nothing, and comes back as 0; the scale may come from elsewhere."""
    _, shape, y, covariance, _ = next(cases())
    step = torch.arange(24)
    basis, known, wanted = step < 16, (step >= 4) & (step < 16), (step >= 16) & (step < 20)
    model, batch = exact(y, covariance, shape, basis)
    every = lambda v: v.expand(N, -1)
    out = model.complete(
        batch, every(known), every(wanted), model.program(20, "dpm++2m"), Rng(0, torch.arange(N)), basis=every(basis)
    )
    assert not out[:, ~(known | wanted)].any()
    error, spread = figures(out[:, 4:20], y[4:20], covariance[4:20, 4:20], known[4:20])
    assert error < 0.05 and spread < 0.08, (error, spread)


def test_every_channel_needs_a_value_for_its_scale():
    y, _ = two_channels(12)
    shape = WindowShape(8, 4, 2)
    model, batch = exact(y, torch.eye(24, dtype=F64), shape, torch.arange(24) % 12 < 8, 3)
    known = (torch.arange(24) < 8).expand(3, -1)
    with pytest.raises(ValueError, match="every channel of a window needs a known value, which sets its scale"):
        model.complete(batch, known, ~known, model.program(2), Rng(0, torch.arange(3)))


def test_guidance_sees_the_way_back_to_units():
    _, shape, y, covariance, known = next(cases())
    model, batch = exact(y, covariance, shape, known, 3)
    seen = []

    def guide(denoise, units):
        seen.append(units)
        return denoise

    where = known.expand(3, -1)
    model.complete(batch, where, ~where, model.program(2), Rng(0, torch.arange(3)), guide=guide)
    torch.testing.assert_close(seen[0].back(seen[0].x), y.expand(3, -1), rtol=1e-5, atol=1e-5)


def training(shape, patterns=PATTERNS, n=400, steps=60, seed=0, gap=True):
    """A spying model, and n training windows of a random walk, with a stretch of it missing."""
    y = normal(steps, shape.channels, seed=1).cumsum(0).numpy()
    if gap:
        y[20:23] = float("nan")
    data = panel(y)
    model = model_of(Spy(), shape, data, patterns)
    source = source_of(data)
    where = places(source, shape)
    rows = torch.arange(n) % len(where)
    batch = at_places(source, shape, where[rows])
    return model, Batch(batch.schema, batch.state, batch.mask, batch.given, torch.arange(n))


def rng(n, seed=0):
    return Rng(seed, torch.arange(n))


ONLY = {name: Patterns(0, 0, 0) for name in ("forecast",)} | {
    "gaps": Patterns(1, 0, 0),
    "nothing": Patterns(0, 1, 0),
    "shorter": Patterns(0, 0, 1),
    "splits": Patterns(0, 0, 0, True),
}


def test_a_forecast_is_never_shown_its_horizon():
    for name in ("forecast", "shorter"):
        model, batch = training(WindowShape(10, 4, 2), ONLY[name])
        basis, known, exists = model.prompt(batch, rng(400))
        horizon = model.shape.steps() >= 10
        assert not (known & horizon).any() and not (basis & horizon).any()
        assert torch.equal(known, basis) and torch.equal(exists & ~known, batch.given["observed"] & horizon)
        assert bool((known <= batch.given["observed"]).all())


def test_a_shorter_history_is_gone_not_noised():
    """At least a horizon of it stays; what comes before does not exist, as at the begin of a series."""
    model, batch = training(WindowShape(10, 4), ONLY["shorter"], gap=False)
    _, known, exists = model.prompt(batch, rng(400))
    sizes = known.sum(1)
    assert sizes.min() == 4 and sizes.max() == 10 and sizes.unique().numel() == 7
    assert torch.equal(exists.sum(1), sizes + 4)
    assert torch.equal(known[:, :10].long().diff(dim=1).amin(1), torch.zeros(400, dtype=torch.long))


def test_nothing_known_keeps_the_scale_of_the_past():
    model, batch = training(WindowShape(10, 4), ONLY["nothing"])
    basis, known, exists = model.prompt(batch, rng(400))
    past = batch.given["observed"] & (model.shape.steps() < 10)
    assert not known.any() and torch.equal(basis, past) and torch.equal(exists, batch.given["observed"])


def test_gaps_are_spans_in_some_channels():
    model, batch = training(WindowShape(20, 10, 2), ONLY["gaps"], gap=False)
    basis, known, exists = model.prompt(batch, rng(400))
    assert torch.equal(basis, known) and bool(exists.all())
    hidden = (~known).unflatten(1, (2, 30))
    runs = (hidden.long().diff(dim=2) == 1).sum(2) + hidden[..., 0]
    assert runs.max() == 2 and hidden.sum(2).max() <= 22
    assert 0.1 < float(hidden.double().mean()) < 0.3
    one, both = hidden.any(2).any(1), hidden.any(2).all(1)
    assert 0.05 < float((one & ~both).double().mean()) < 0.5
    single, few = training(WindowShape(20, 10), ONLY["gaps"], gap=False)
    assert float((~single.prompt(few, rng(400))[1]).any(1).double().mean()) > 0.9


def test_splits_begin_in_the_second_half():
    model, batch = training(WindowShape(10, 6), ONLY["splits"], gap=False)
    _, known, _ = model.prompt(batch, rng(400))
    sizes = known.sum(1)
    assert set(sizes.tolist()) == set(range(8, 16)) and bool((known.long().diff(dim=1) <= 0).all())


def test_shares_are_as_asked():
    n = 4000
    model, batch = training(WindowShape(10, 4), Patterns(0.3, 0.2, 0.25), n, gap=False)
    basis, known, _ = model.prompt(batch, rng(n))
    horizon = model.shape.steps() >= 10
    nothing, filling = ~known.any(1), (known & horizon).any(1)
    forecast = ~nothing & ~filling
    shorter = forecast & (known.sum(1) < 10)
    shares = [float(v.double().mean()) for v in (filling, nothing, shorter)]
    # a gap at the very end looks like a forecast; a cut of less than one step is none
    assert abs(shares[0] - 0.3) < 0.04 and abs(shares[1] - 0.2) < 0.02
    assert abs(float(shorter.sum() / forecast.sum()) - 0.25 * 0.9) < 0.04
    assert bool((basis.any(1)).all())


def test_patterns_belong_to_the_sample():
    model, batch = training(WindowShape(10, 4, 2), n=50)
    whole, rows = model.prompt(batch, rng(50)), torch.tensor([3, 17, 40])
    for all_, own in zip(whole, model.prompt(batch[rows], rng(50)[rows]), strict=True):
        assert torch.equal(all_[rows], own)
    assert not torch.equal(whole[1], model.prompt(batch, rng(50, 1))[1])


def anchored(y, covariance, known, shape, batch):
    """The exact model of these windows when they count from their anchors. y, known (B, N)."""
    units = scaled(batch.state["y"], known, batch.given["spread"])
    each = lambda v: v.unflatten(1, (shape.channels, -1))
    found = anchors(each(units.x), each(known), each(batch.given["structure"]) / units.scale.square())
    units, anchor = about(units, found)
    every = lambda v: v.expand(-1, -1, shape.length).flatten(1)
    loc, scale = every(units.loc), every(units.scale)
    network = GaussianNetwork(-loc / scale, covariance / scale[:, :, None] / scale[:, None])
    return WindowModel(network, shape, batch.schema, anchored=True).eval(), scale, anchor


@pytest.mark.parametrize(("shape", "y", "covariance", "known"), [pytest.param(*c[1:], id=c[0]) for c in cases()])
def test_anchored_windows_are_completed_by_the_exact_law(shape, y, covariance, known):
    """Any anchor and spread leave the law as it is."""
    _, batch = exact(y, covariance, shape, known)
    where = known.expand(N, -1)
    model, _, anchor = anchored(y, covariance, where, shape, batch)
    assert bool(anchor[:, ~known].any()) and not anchor[:, known].any()
    out = model.complete(batch, where, ~where, model.program(20, "dpm++2m"), Rng(0, torch.arange(N)))
    assert torch.equal(out[:, known], y[known].expand(N, -1))
    error, spread = figures(out, y, covariance, known)
    assert error < 0.05 and spread < 0.08, (error, spread)


def test_the_anchored_loss_of_an_exact_model_is_the_variance_that_is_left():
    """In units of each entry's spread: E (D - x_0)^2 / sigma^2 of windows of the law, each with its own anchors."""
    shape, n = WindowShape(12, 4), 3000
    covariance = ar(16)
    y = normal(n, 16, seed=5) @ torch.linalg.cholesky(covariance).T
    source = source_of(panel(y.flatten().numpy()))
    batch = source.cut(shape, torch.zeros(n, dtype=torch.long), 16 * torch.arange(n) + 12, torch.arange(n))
    known = (torch.arange(16) < 12).expand(n, -1)
    model, scale, _ = anchored(y, covariance, known, shape, batch)
    model.patterns = ONLY["forecast"]
    t = 1e-3 + (1 - 1e-3) * rng(n).uniform("time", 0, (n,), 0)
    alpha, sigma = (v.double()[:, None] for v in model.denoiser.product.processes["y"].level(t))
    gain = covariance[12:, :12] @ torch.linalg.inv(covariance[:12, :12])
    prior = covariance[12:, 12:] - gain @ covariance[:12, 12:]
    prior = prior / scale[:, 12:, None] / scale[:, None, 12:]
    noised = alpha[..., None] ** 2 * prior + torch.diag_embed(sigma.expand(n, 4) ** 2)
    left = prior - alpha[..., None] ** 2 * prior @ torch.linalg.solve(noised, prior)
    want = (left.diagonal(dim1=1, dim2=2) / sigma**2).mean()
    assert float((model.loss(batch, rng(n)) / want - 1).abs()) < 0.04
    spread = (scale[:, 12:] / scale[:, :1]).mean(0)
    assert bool((spread.diff() > 0).all()) and spread[0] < 0.95


def test_other_conditioners_have_no_anchors():
    """They tell the network nothing, which then counts as it was trained to where nothing is known."""
    model, batch = training(WindowShape(10, 4), n=3)
    model.anchored = True
    known = batch.given["observed"] & (model.shape.steps() < 10)
    for conditioner, some in ((Moment(iterations=2), False), (CLEAN, True)):
        model.denoiser.network.seen.clear()
        model.complete(batch, known, ~known, model.program(2), rng(3), conditioner)
        anchor = model.denoiser.network.seen[0][3]["anchor"]
        assert bool(anchor.any()) is some and not anchor[known].any()


def test_anchors_see_nothing_but_the_known():
    model, batch = training(WindowShape(10, 4), n=60)
    model.anchored = True
    basis, known, exists = model.prompt(batch, rng(60))
    for value in (3.0, torch.nan):
        y = torch.where(known, batch.state["y"], batch.state["y"] + value)
        (one, _), (other, _) = (model.windows(b, basis, known, exists) for b in (batch, batch.replace(y=y)))
        assert torch.equal(one.given["anchor"], other.given["anchor"])
        assert torch.equal(one.state["y"][known], other.state["y"][known])


@pytest.mark.parametrize("bad", [(0.7, 0.4, 0), (-0.1, 0, 0), (0, 0, 1.1)])
def test_shares_must_be_shares(bad):
    with pytest.raises(ValueError, match="must be shares between 0 and 1"):
        Patterns(*bad)


def by_hand(model, batch, rng):
    """The loss entry by entry: (D - x_0)^2 / c_out^2 over what is to predict, its mean, or that of windows' means."""
    basis, known, exists = model.prompt(batch, rng)
    process, x = model.denoiser.product.processes["y"], scaled(batch.state["y"], basis, batch.given["spread"]).x
    exists = exists & (x.abs() < LARGEST)
    t = 1e-3 + (1 - 1e-3) * rng.uniform("time", 0, (len(batch),), 0)
    eps = rng.normal("y", 0, tuple(x.shape), 1)
    alpha, sigma = process.level(t[:, None])
    with torch.no_grad():
        noisy = torch.where(exists, torch.where(known, x, alpha * x + sigma * eps), 0.0)
        t_all = torch.where(known, 0.0, t[:, None])
        f = model.denoiser.network({"y": noisy}, {"y": t_all}, exists, {})["y"]
    wanted = exists & ~known
    error = (alpha * noisy + sigma * f - x).square() / sigma.square()
    each = torch.stack([e[w].mean() for e, w in zip(error, wanted, strict=True) if w.any()])
    return each.mean() if model.patterns.by_window else error[wanted].sum() / wanted.sum()


@pytest.mark.parametrize("by_window", [False, True])
def test_the_loss_is_the_mean_over_what_is_to_predict(by_window):
    model, batch = training(WindowShape(10, 4, 2), Patterns(0.3, 0.2, 0.5, by_window=by_window))
    torch.testing.assert_close(model.loss(batch, rng(400)).detach(), by_hand(model, batch, rng(400)), rtol=1e-4, atol=0)


def test_what_is_missing_never_matters():
    model, batch = training(WindowShape(10, 4), n=60)
    want = model.loss(batch, rng(60))
    for value in (torch.nan, 1e30, -5.0):
        y = torch.where(batch.given["observed"], batch.state["y"], value)
        found = model.loss(batch.replace(y=y), rng(60))
        assert torch.equal(found, want)
        (slope,) = torch.autograd.grad(found, model.denoiser.network.a)
        assert bool(slope.isfinite())


def test_entries_far_away_and_channels_without_a_scale_are_left_out():
    model, batch = training(WindowShape(10, 4, 2), ONLY["forecast"], n=3, gap=False)
    want = model.loss(batch[:1], rng(1))
    y = batch.state["y"].clone()
    y[1, 12] += 1e6
    observed = batch.given["observed"].clone()
    observed[2, :10] = False
    model.denoiser.network.seen.clear()
    given = batch.given | {"observed": observed}
    loss = model.loss(Batch(batch.schema, {"y": y}, batch.mask, given, batch.ids), rng(3))
    x, _, mask, _ = model.denoiser.network.seen[0]
    assert bool(loss < 100) and bool(want.isfinite())
    assert not mask[1, 12] and mask[1].sum() == 27 and x[1, 12].abs() > LARGEST
    assert not mask[2, :14].any() and bool(mask[2, 14:].all()) and bool(mask[0].all())


def test_training_shows_what_prediction_shows():
    """The same history, cut, scaled and marked alike: of a forecast all but the noised values."""
    shape = WindowShape(10, 4, 2)
    model, batch = training(shape, ONLY["forecast"], n=30)
    model.loss(batch, rng(30))
    past = batch.given["observed"] & (shape.steps() < 10)
    wanted = batch.given["observed"] & (shape.steps() >= 10)
    hidden = batch.replace(y=torch.where(past, batch.state["y"], 0.0))
    model.complete(hidden, past, wanted, model.program(3), rng(30))
    (x, t, mask, given), *calls = model.denoiser.network.seen
    assert len(calls) == 3
    for x_p, t_p, mask_p, given_p in calls:
        assert x_p.dtype == x.dtype == torch.float32 and torch.equal(mask_p, mask)
        assert torch.equal(x_p[past], x[past]) and not torch.equal(x_p[wanted], x[wanted])
        assert not t_p[past].any() and not t[past].any()
        assert bool((t_p[wanted] == t_p.max()).all()) and bool((t[wanted] > 0).all())
        assert bool((t[~past] == t.amax(1, keepdim=True).expand_as(t)[~past]).all())
        assert given_p.keys() == given.keys() == {"phase"} and torch.equal(given_p["phase"], given["phase"])


@pytest.mark.parametrize("splits", [False, True])
def test_nothing_is_copied_from_or_to_a_device(splits):
    model, batch = training(WindowShape(10, 4, 2), Patterns(0.3, 0.2, 0.5, splits), n=8)
    far = Batch(batch.schema, {"y": batch.state["y"]}, batch.mask, batch.given, batch.ids).to("meta")
    there = WindowModel(Spy().to("meta"), model.shape, model.schema, model.patterns)
    with no_host_reads("meta"):
        assert there.loss(far, Rng(0, far.ids)).device.type == "meta"


def test_a_program_has_so_many_calls():
    model, _ = training(WindowShape(10, 4), n=2)
    assert model.program(7).nfe == 7
    assert model.program(7, "ddim").name != model.program(7).name == "ancestral"
