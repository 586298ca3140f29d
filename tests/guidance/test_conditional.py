"""Classifier-free and classifier guidance on laws whose conditional laws are known (S16, section 4; S06, check 3)."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.oracles import AROracle, EnumeratedOracle, GaussianOracle, MixtureOracle, normal
from unisci.batch import Batch, Field
from unisci.denoiser import Denoiser
from unisci.guidance.conditional import Paired, classifier, classifier_free, drop_conditions, quantile
from unisci.guidance.observation import Reward
from unisci.guidance.terms import guided
from unisci.networks.embedding import TimeEmbedding
from unisci.order import Order
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import EDM, VP, Cosine
from unisci.processes.product import Product
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)
ONE = torch.ones(1, dtype=F64)
X = normal(20, 1, seed=3)
SCHEMA = {"x": Field("site", (2,)), "label": Field("whole", (3,)), "mass": Field("whole"), "kind": Field("site", (2,))}


def pair(process=VP()):  # noqa: B008
    return GaussianOracle(process, 1.0, 0.5), GaussianOracle(process, 0.0, 1.0)


def test_weights_one_and_zero_are_the_models_themselves():
    a, b = pair()
    for one in (1, 1.0, torch.tensor(1.0)):
        assert classifier_free(a, b, one) is a and classifier_free(a, b, 0 * one) is b


@settings(max_examples=20, deadline=None)
@given(st.floats(-3, 9))
def test_weights_extrapolate(w):
    a, b = pair()
    want = b(X, T) + w * (a(X, T) - b(X, T))
    torch.testing.assert_close(classifier_free(a, b, w)(X, T), want, rtol=1e-6, atol=1e-6)


def test_weights_of_samples_and_of_times():
    a, b = pair()
    w = torch.linspace(0, 3, 20, dtype=F64)
    want = b(X, T) + w[:, None] * (a(X, T) - b(X, T))
    torch.testing.assert_close(classifier_free(a, b, w)(X, T), want)
    torch.testing.assert_close(classifier_free(a, b, lambda t: 5 * t)(X, T), classifier_free(a, b, 2.0)(X, T))
    late = classifier_free(a, b, lambda t: torch.where(t > 0.5, 3.0, 1.0))
    assert torch.equal(late(X, T), a(X, T)) and not torch.equal(late(X, T + 0.2), a(X, T + 0.2))
    with pytest.raises(ValueError, match="finite"):
        classifier_free(a, b, float("nan"))


def test_weights_of_logits():
    table = torch.rand(3, 3, generator=torch.Generator().manual_seed(0), dtype=F64)
    a, b = EnumeratedOracle(absorbing(3), table), EnumeratedOracle(absorbing(3), table.flip(0))
    x = torch.full((2, 2), 3)
    p, q = a(x, T).softmax(-1), b(x, T).softmax(-1)
    want = p**2.5 * q**-1.5
    torch.testing.assert_close(classifier_free(a, b, 2.5)(x, T).softmax(-1), want / want.sum(-1, keepdim=True))


def flow_law(denoise, n=200):
    """Mean and variance of what the probability flow draws where it is affine, without sampling."""
    program = compile_solver(denoise.process, grid(denoise.process, n), "dpm++2m")
    zero, one = run(denoise, torch.tensor([[0.0], [1.0]], dtype=F64), program).flatten().tolist()
    return zero, (one - zero) ** 2


def test_guidance_is_not_the_product_law():
    """x ~ N(0, 1), y = x + N(0, .5), y = 2: the product p(x) p(y | x)^w is sampled at w = 1 only (S16, check 3)."""
    m, v = 4 / 3, 1 / 3
    a, b = GaussianOracle(VP(), m, v**0.5), GaussianOracle(VP(), 0.0, 1.0)
    mean, variance = {}, {}
    for w, target in {1: (1.333, 0.333), 2: (1.6, 0.2), 4: (1.778, 0.111)}.items():
        precision = (1 - w) + w / v
        assert (w * m / v / precision, 1 / precision) == pytest.approx(target, abs=5e-4)
        mean[w], variance[w] = flow_law(classifier_free(a, b, w))
    assert (mean[1], variance[1]) == pytest.approx((m, v), rel=5e-3)  # the prior leaves out alpha(1) m
    assert (mean[2], mean[4]) == pytest.approx((1.95, 2.31), abs=0.01)  # the product's: 1.6 and 1.778
    assert (variance[2], variance[4]) == pytest.approx(
        (v**2, v**4), rel=0.01
    )  # the flow's own; the product's: .2, .111


@pytest.mark.parametrize("process", [VP(), EDM(), Cosine()], ids=lambda p: type(p).__name__)
def test_an_exact_classifier_gives_the_conditional_model(process):
    """Two classes N(-2, 1), N(2, 1): scale 1 is the second class at every noise, and its flow ends there."""
    means = torch.tensor([[-2.0], [2.0]], dtype=F64)
    both = MixtureOracle(process, means, ONE.expand(2), ONE.expand(2) / 2)
    log_probability = lambda x, t: both._parts(x, t)[2].log_softmax(1)[:, 1]
    second, denoise = GaussianOracle(process, 2.0, 1.0), guided(both, classifier(log_probability))
    for t in torch.tensor([0.05, 0.3, 0.6, 0.95], dtype=F64):
        x = process.level(t)[1] * 3 * X
        torch.testing.assert_close(denoise(x, t), second(x, t), rtol=1e-9, atol=1e-9)
    program = compile_solver(process, grid(process, 30, start=0.99), "dpm++2m")
    torch.testing.assert_close(run(denoise, X, program), run(second, X, program), rtol=1e-8, atol=1e-8)


def test_a_classifier_has_its_scale_interval_and_fields():
    log_probability = lambda x, t: (x["a"] + 3 * x["b"]).sum((1, 2))
    term = classifier(log_probability, scale=2.0, interval=(0.3, 0.5), fields=("a",))
    model = GaussianOracle(VP(), 0.0, 1.0, {"a": Field("site", (2,)), "b": Field("site", (2,))})
    model.process = {"a": VP(), "b": VP()}
    model._clean = lambda x, t, process, m, c: 0 * x
    x = {"a": normal(4, 3, 2), "b": normal(4, 3, 2)}
    alpha, sigma = VP().level(T)
    out = guided(model, term)(x, T)
    torch.testing.assert_close(out["a"], (2 * sigma**2 / alpha).expand(4, 3, 2))
    assert not out["b"].any()
    assert not guided(model, term)(x, T + 0.2)["a"].any()


class Net(nn.Module):
    """Site by site, told of everything a network is told of. Counts the rows that it sees."""

    def __init__(self):
        super().__init__()
        self.map = nn.Sequential(nn.Linear(2 + 3 + 1 + 2 + 8 + 1, 16), nn.Tanh(), nn.Linear(16, 2))
        self.time, self.rows = TimeEmbedding(8), 0

    def forward(self, state, t, mask, given, order=None, cache=None):
        x = state["x"]
        b, n = mask.shape
        self.rows += b
        now = self.time(t["x"].to(x))
        now = now if now.ndim == 3 else (now if now.ndim == 1 else now[:, None]).expand(b, n, 8)
        rank = torch.zeros_like(mask) if order is None else order.rank
        whole = torch.cat([given["label"], given["mass"][:, None]], 1)[:, None].expand(b, n, 4)
        return {"x": self.map(torch.cat([x, whole, given["kind"], now, rank[..., None]], -1)) * mask[..., None]}


def denoisers(b=5, n=4, **bound):
    """The network's conditional and unconditional binding, and states."""
    torch.manual_seed(0)
    denoiser = Denoiser(Net(), Product({"x": VP()}, SCHEMA))
    given = {"label": normal(b, 3), "mass": normal(b, seed=1), "kind": normal(b, n, 2, seed=2)}
    given = {k: v.float() for k, v in given.items()}
    batch = Batch(
        SCHEMA, {"x": normal(b, n, 2, seed=5).float()}, torch.arange(n) < torch.tensor([[4], [3], [2], [4], [1]])
    )
    null = {k: torch.zeros_like(v) for k, v in given.items()}
    bind = lambda given: denoiser.on(Batch(SCHEMA, batch.state, batch.mask, given), **bound)
    return bind(given), bind(null), batch.state, denoiser.network


@torch.no_grad()
@pytest.mark.parametrize("ranked", [False, True])
@pytest.mark.parametrize("t", [torch.tensor(0.4), torch.linspace(0.1, 0.9, 5), torch.rand(5, 4), {"x": torch.rand(5)}])
def test_one_pass_of_twice_the_rows(t, ranked):
    """Equal to two passes, for any shape of the time, an order, and a weight for each sample."""
    order = Order(torch.arange(4).expand(5, 4), torch.zeros(5, 4, dtype=torch.bool)) if ranked else None
    a, b, x, net = denoisers(order=order)
    for weight in (3.0, torch.linspace(-1, 2, 5), lambda t: 1 + t):
        want = classifier_free(a, b, weight)(x, t)["x"]
        assert (want - a(x, t)["x"]).abs().max() > 0.01
        net.rows = 0
        torch.testing.assert_close(Paired(a, b, weight)(x, t)["x"], want, rtol=1e-6, atol=1e-6)
        assert net.rows == 10
    torch.testing.assert_close(Paired(a, b, 1.0)(x, t)["x"], a(x, t)["x"], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(Paired(a, b, 0.0)(x, t)["x"], b(x, t)["x"], rtol=1e-6, atol=1e-6)


def test_a_pair_is_sampled_as_any_model():
    a, b, x, _ = denoisers()
    program, rng = compile_solver(VP(), grid(VP(), 6), "ancestral"), Rng(0, torch.arange(5))
    out, want = (run(m, x, program, rng) for m in (Paired(a, b, 2.0), classifier_free(a, b, 2.0)))
    torch.testing.assert_close(out, want, rtol=1e-5, atol=1e-5)


def test_pairs_that_are_none_are_refused():
    a, b, _, _ = denoisers()
    other, _, _, _ = denoisers()
    order = Order(torch.zeros(5, 4, dtype=torch.long))
    for weak, message in (
        (other, "one denoiser"),
        (replace(b, cache=object()), "without a cache"),
        (replace(b, order=order), "order for both"),
        (replace(b, given={}), "null value"),
    ):
        with pytest.raises(ValueError, match=message):
            Paired(a, weak, 2.0)


def conditions(n):
    given = {"label": torch.ones(n, 3), "mass": 7.0 + torch.arange(n)}
    return Batch(SCHEMA, {"x": torch.zeros(n, 2, 2)}, torch.ones(n, 2, dtype=torch.bool), given)


def test_conditions_are_dropped_independently():
    n = 20000
    batch, rng = conditions(n), Rng(0, torch.arange(n))
    out = drop_conditions(
        batch, rng, {"label": 0.2, "mass": 0.5}, {"label": torch.tensor([0.0, 0.5, 0.0]), "mass": -1.0}
    )
    label, mass = (out.given["label"] != 1).all(1), out.given["mass"] == -1
    assert torch.equal(out.given["label"][label][0], torch.tensor([0.0, 0.5, 0.0]))
    assert torch.equal(out.given["mass"][~mass], batch.given["mass"][~mass])
    assert bool((out.given["label"][~label] == 1).all())
    for share, chance in (label, 0.2), (mass, 0.5), (label & mass, 0.1):
        assert share.double().mean().item() == pytest.approx(chance, abs=0.012)
    assert torch.equal(out.state["x"], batch.state["x"]) and bool((batch.given["label"] == 1).all())


def test_a_drop_belongs_to_its_sample_and_its_step():
    batch, rng = conditions(40), Rng(0, torch.arange(40))
    drop = lambda batch, rng: drop_conditions(batch, rng, 0.5, {"mass": -1.0}).given["mass"]
    whole, rows = drop(batch, rng), torch.tensor([7, 3, 30])
    assert torch.equal(drop(batch[rows], rng[rows]), whole[rows])
    assert not torch.equal(drop(batch, rng.at(1)), whole)
    assert torch.equal(drop_conditions(batch, rng, 0.0, {"mass": -1.0}).given["mass"], batch.given["mass"])
    assert bool((drop_conditions(batch, rng, 1.0, {"mass": -1.0}).given["mass"] == -1).all())


@pytest.mark.parametrize(
    ("probability", "null", "message"),
    [
        (0.1, {"charge": 0.0}, "batch's"),
        ({"label": 0.1}, {"mass": 0.0}, "must be of the same"),
        (1.1, {"mass": 0.0}, "1.1"),
    ],
)
def test_bad_drops_are_refused(probability, null, message):
    with pytest.raises(ValueError, match=message):
        drop_conditions(conditions(4), Rng(0, torch.arange(4)), probability, null)


def test_the_quantile_loss():
    """Its value, its gradient k or k - 1 whatever the distance, and nothing where nothing was observed, nan or not."""
    y, where = torch.tensor([[1.0, 2.0, float("nan")]]), torch.tensor([True, True, False])
    x = torch.tensor([[0.0, 5.0, 3.0], [3.0, 1.0, 0.0]], requires_grad=True)
    level = torch.tensor([0.2, 0.7])
    value = quantile(y, level, where)(x)
    torch.testing.assert_close(value, -torch.tensor([0.2 * 1 + 0.8 * 3, 0.3 * 2 + 0.7 * 1]))
    (gradient,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(gradient, torch.tensor([[0.2, -0.8, 0.0], [-0.3, 0.7, 0.0]]))
    torch.testing.assert_close(quantile(y[:, :2], 0.2)(x[:1, :2]), value[:1])
    for bad in (0.0, 1.0, torch.tensor([0.5, 1.2])):
        with pytest.raises(ValueError, match="level"):
            quantile(y, bad)


def test_paths_of_self_guidance_are_ordered_by_level():
    """AR(.9), 24 steps, 16 observed: a path for each level; rank correlation of level and mean there (S06, check 3)."""
    levels, repeats = torch.arange(1, 10) / 10, 40
    y = AROracle(VP(), 0.9, 24).covariance[0] * 1.5
    where = torch.arange(24) < 16
    k = levels.repeat_interleave(repeats)
    x = normal(repeats, 24).repeat(9, 1)
    model, program = AROracle(VP(), 0.9, 24), compile_solver(VP(), grid(VP(), 40, "time", end=0.01), "ddim")
    rewarded = lambda scale: guided(model, Reward(log_h=quantile(y, k, where), scale=scale))
    paths = run(rewarded(4.0), x, program).reshape(9, repeats, 24)
    observed = paths[..., where].mean((1, 2))
    rank = observed.argsort().argsort().double()
    assert float(torch.corrcoef(torch.stack([rank, torch.arange(9, dtype=F64)]))[0, 1]) > 0.9
    free = run(model, x, program).reshape(9, repeats, 24)
    error = lambda p: (p[4] - y)[..., where].square().mean().sqrt()
    assert error(paths) < 0.6 * error(free)
    assert torch.equal(run(rewarded(0.0), x, program).reshape(9, repeats, 24), free)
