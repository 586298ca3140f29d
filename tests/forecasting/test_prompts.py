"""Exact conditioning by clean known entries, and the scaling of a window by its prompt, against closed forms."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.forecasting.ar_windows import DDPM, F64, PAST, L, Windows, errors, future, ids, program, prompt
from tests.laws import assert_same_samples
from tests.oracles import normal
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.forecasting.prompts import Prompted, cleared, draw, hold, normalise, values
from unisci.guidance.particles import prior
from unisci.processes.gaussian import VP
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.program import run

SCHEMA = {"y": Field("site"), "level": Field("whole")}
T = torch.tensor(0.4, dtype=F64)


class Net(nn.Module):
    """Entry by entry and by the mean of the window; remembers what it was given."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor([0.3, -0.2, 0.1]))

    def forward(self, state, t, mask, given, order=None, cache=None):
        self.state, self.t, self.rows = state["y"], t["y"], len(mask)
        level = t["y"] if t["y"].ndim == 2 else t["y"].reshape(-1, 1)
        x = torch.where(mask, state["y"], 0.0)
        shift = given["level"][:, None] if "level" in given else 0.0
        return {"y": self.a[0] * x + self.a[1] * x.mean(1, keepdim=True) + self.a[2] * level + shift}


def network(n=5, length=6, process=DDPM):
    """A denoiser of fields bound to a batch, its net, y and where."""
    torch.manual_seed(0)
    net = Net()
    mask = torch.arange(length) < torch.tensor([length, length - 1, length, length - 2, length])[:n, None]
    y = {"y": normal(n, length, seed=2).float()}
    batch = Batch(SCHEMA, y, mask, {"level": normal(n, seed=3).float()})
    denoise = Denoiser(net, Product({"y": process}, SCHEMA)).on(batch)
    where = (normal(n, length, seed=4) > 0) & mask
    return denoise, net, y, where


def conditional_mean(x, t, y, where, process):
    """E[x_0 | y clean, the rest at time t] of one window (L,), from the joint Gaussian law."""
    s, (alpha, sigma) = Windows().covariance, process.level(t)
    gain = torch.where(where, 1.0, alpha)
    joint = gain[:, None] * s * gain + torch.diag(torch.where(where, 0.0, sigma**2))
    return (s * gain) @ torch.linalg.solve(joint, torch.where(where, y, x))


def test_the_prediction_is_the_conditional_mean():
    """Ragged prompts, none and all included; what x holds at known entries, and y at unknown ones, does not matter."""
    where = torch.stack([PAST, ~PAST, torch.arange(L) % 3 == 0, torch.zeros(L) > 0, torch.zeros(L) == 0])
    y, x = normal(5, L), normal(5, L, seed=1)
    got = Prompted(Windows(VP()), torch.where(where, y, torch.nan), where)(torch.where(where, torch.nan, x), T)
    want = torch.stack([conditional_mean(*row, VP()) for row in zip(x, T.expand(5), y, where, strict=True)])
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)
    assert torch.equal(got[where], y[where])
    by_row = Prompted(Windows(VP()), y, where)(x, T.expand(5))
    torch.testing.assert_close(by_row, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("name", "steps"), [("dpm++2m", 20), ("sde-dpm++2m", 40)])
def test_the_forecast_has_the_exact_mean_and_spread(name, steps):
    y, where = prompt(1500)
    x = draw(Prompted(Windows(VP()), y, where), y, program(steps, name, VP(), kind="lambda"), ids(1500))
    error, ratio = errors(x, y)
    assert error.square().mean().sqrt() < 0.05, error
    assert (ratio - 1).abs().max() < 0.06, ratio
    assert torch.equal(x[where], y[where])


def test_gaps_are_filled_with_the_exact_mean_and_spread():
    n, where = 1500, (torch.arange(L) % 5 != 2) & (torch.arange(L) < 20)
    y = normal(L, seed=5)
    x = draw(
        Prompted(Windows(VP()), y.expand(n, L), where.expand(n, L)),
        y.expand(n, L),
        program(20, "dpm++2m", VP(), kind="lambda"),
        ids(n),
    )
    mean, std = future(y, where)
    assert ((x[:, ~where].mean(0) - mean) / std).abs().max() < 4 / n**0.5 + 0.02
    assert (x[:, ~where].std(0) / std - 1).abs().max() < 0.08


def test_without_known_entries_samples_are_the_models_own():
    n, none = 20, torch.zeros(20, L, dtype=torch.bool)
    like, den = torch.full((n, L), torch.nan, dtype=F64), Windows(VP())
    steps = program(10, "ancestral", VP())
    x = draw(den, like, steps, ids(n))
    assert torch.equal(x, run(den, prior(den, like, ids(n), 1), steps, ids(n)))
    shared = lambda x, t: den(x, t.expand(x.shape))
    wide = type("Wide", (), {"process": VP(), "schema": None, "__call__": lambda self, x, t: shared(x, t)})()
    assert torch.equal(draw(Prompted(den, like, none), like, steps, ids(n)), draw(wide, like, steps, ids(n)))


def test_a_network_sees_known_entries_clean_at_time_zero():
    denoise, net, y, where = network()
    x = {"y": normal(5, 6, seed=7).float()}
    model = Prompted(denoise, y, where)
    assert model.process == denoise.process and model.schema is denoise.schema
    for t in (T, T.float().expand(5), {"y": T}):
        clean = model(x, t)
        assert torch.equal(net.t, torch.where(where, 0.0, T.float().expand(5, 6)))
        assert torch.equal(net.state[where], y["y"][where])
        assert torch.equal(clean["y"][where], y["y"][where])
        assert not torch.equal(clean["y"][~where], denoise(x, T.float())["y"][~where])


def test_a_sample_does_not_depend_on_its_batch():
    _, net, _, _ = network()
    product = Product({"y": DDPM}, SCHEMA)

    def generate(seed, who):
        rng, n = Rng(seed, who), len(who)
        y = {"y": rng.at(9).normal("data", 0, (n, 6))}
        where, level = rng.at(9).uniform("where", 0, (n, 6)) < 0.5, rng.at(9).normal("level", 0, (n,), 0)
        bound = Denoiser(net, product).on(Batch(SCHEMA, y, torch.ones_like(where), {"level": level}))
        with torch.no_grad():
            return draw(Prompted(bound, y, where), y, program(8), rng)

    assert_same_samples(generate, batch_sizes=(1, 7))


@pytest.mark.parametrize(
    ("y", "where", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(2, 3), "bool"),
        (torch.zeros(2, 3), torch.zeros(3, dtype=torch.bool), r"shape \(2, 3\), got torch.bool \(3,\)"),
        (torch.tensor([[0.0], [torch.nan]]), torch.ones(2, 1, dtype=torch.bool), r"samples \[1\]"),
    ],
)
def test_bad_prompts_are_refused(y, where, words):
    for state in (y, {"y": y}):
        with pytest.raises(ValueError, match=words):
            Prompted(Windows(), state, where)


def test_clearing_and_holding():
    y, where = torch.tensor([[1.0, torch.nan]]), torch.tensor([[True, False]])
    assert cleared(y, where).tolist() == [[1.0, 0.0]]
    assert cleared({"y": y}, where)["y"].tolist() == [[1.0, 0.0]]
    x = torch.tensor([[5.0, 6.0]], dtype=F64)
    assert hold(x, y, where).tolist() == [[1.0, 6.0]] and hold(x, y, where).dtype == F64
    assert values({"y": x}) is x and values(x) is x


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(-1e3, 1e3), st.integers(0, 99))
def test_scaling_is_equivariant(a, b, seed):
    """Per sample and channel, by known entries alone."""
    y, where = normal(3, 2, 9, seed=seed), normal(3, 2, 9, seed=seed + 100) > -0.5
    where[..., :2] = True
    loc, scale = normalise(torch.where(where, y, torch.nan), where)
    moved, grown = normalise(torch.where(where, a * y + b, torch.inf), where)
    assert loc.shape == scale.shape == (3, 2, 1)
    torch.testing.assert_close(moved, a * loc + b, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(grown, a * scale, rtol=1e-6, atol=1e-9)
    one = y[1, 1][where[1, 1]]
    torch.testing.assert_close(loc[1, 1, 0], one.mean())
    torch.testing.assert_close(scale[1, 1, 0], one.std(correction=0))


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_scaling_of_what_has_no_spread(dtype):
    """Constant, zero, one known entry, none, huge: finite, and scaled values stay small."""
    nan = torch.nan
    y = torch.tensor([[7.1, 7.1, 7.1], [0, 0, 0], [-3, nan, nan], [nan, nan, nan], [1e6 + 0.1] * 3], dtype=dtype)
    where = y.isfinite()
    loc, scale = normalise(y, where)
    assert bool(loc.isfinite().all()) and bool((scale > 0).all()) and bool(scale.isfinite().all())
    assert loc[3] == 0 and scale[3] == 1 and loc[2] == -3
    scaled = ((y - loc) / scale)[where]
    assert scaled.abs().max() < 0.5
    assert (scale[[0, 2, 4]] < 1e-5 * loc[[0, 2, 4]].abs()).all() and scale[1] < 1e-9
