"""Terms: absent at scale 0 and outside their interval, additive, and right by the closed form."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.oracles import GaussianOracle, normal
from unisci.batch import Field
from unisci.guidance.observation import Observation, Reward
from unisci.guidance.potential import Potential
from unisci.guidance.terms import Contrast, Pin, Start, guided, latest
from unisci.processes.categorical import absorbing
from unisci.processes.gaussian import VE, VP, Linear
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run

P = VP()


class Counted:
    """A denoiser that counts its calls."""

    def __init__(self, inner):
        self.inner, self.calls = inner, 0
        self.process, self.schema = inner.process, inner.schema

    def __call__(self, x, t):
        self.calls += 1
        return self.inner(x, t)


def models():
    return Counted(GaussianOracle(P, 1.0, 0.5)), Counted(GaussianOracle(P, -1.0, 0.5))


def terms(other, scale=1.0, interval=(0.0, 1.0)):
    """One of each kind; each would change the prediction if it acted."""
    pull = lambda x: -(x - 3).square().flatten(1).sum(1)
    common = {"scale": scale, "interval": interval}
    return [
        Contrast(weak=other, **common),
        Potential(log_h=lambda x, t: pull(x), **common),
        Reward(log_h=pull, **common),
        Observation(operator=lambda x: x[:, :2], y=torch.ones(2), sigma_y=0.1, **common),
    ]


@pytest.mark.parametrize("k", range(4))
@pytest.mark.parametrize("absent", [{"scale": 0.0}, {"interval": (0.6, 0.9)}, {"scale": lambda t: 0 * t}])
def test_scale_0_and_outside_its_interval_a_term_is_absent_bit_for_bit_and_asks_nobody(k, absent):
    model, other = models()
    x, t = normal(5, 3), torch.tensor(0.4, dtype=torch.float64)
    plain = model(x, t)
    model.calls = 0
    out = guided(model, terms(other, **absent)[k])(x, t)
    assert torch.equal(out, plain) and model.calls == 1 and other.calls == 0


@pytest.mark.parametrize("k", range(4))
def test_a_term_acts_inside_its_interval_at_both_ends(k):
    model, other = models()
    x = normal(5, 3)
    term = terms(other, interval=(0.25, 0.75))[k]
    for t in (0.25, 0.5, 0.75):
        t = torch.tensor(t, dtype=torch.float64)
        assert (guided(model, term)(x, t) - model(x, t)).abs().max() > 1e-6


@pytest.mark.parametrize("k", range(4))
def test_scales_by_sample_and_by_time(k):
    model, other = models()
    x, t = normal(3, 3), torch.tensor(0.5, dtype=torch.float64)
    one, two, none = guided(model, terms(other)[k]), guided(model, terms(other, 2.0)[k]), model(x, t)
    mixed = guided(model, terms(other, torch.tensor([0.0, 1.0, 2.0]))[k])(x, t)
    assert torch.equal(mixed[0], none[0])
    torch.testing.assert_close(mixed[1:], torch.stack([one(x, t)[1], two(x, t)[2]]))
    by_time = guided(model, terms(other, lambda now: 4 * now)[k])(x, t)
    torch.testing.assert_close(by_time, two(x, t))


def test_times_by_sample_gate_each_sample():
    model, other = models()
    x, t = normal(2, 3), torch.tensor([0.2, 0.8], dtype=torch.float64)
    out = guided(model, Contrast(weak=other, interval=(0.0, 0.5)))(x, t)
    plain = model(x, t)
    assert torch.equal(out[1], plain[1]) and (out[0] - plain[0]).abs().max() > 1e-3


@settings(deadline=None, max_examples=10)
@given(st.permutations(range(4)))
def test_terms_commute(order):
    model, other = models()
    x, t = normal(4, 3), torch.tensor(0.3, dtype=torch.float64)
    every = terms(other)
    expected = guided(model, *every)(x, t)
    torch.testing.assert_close(guided(model, *[every[k] for k in order])(x, t), expected, rtol=1e-12, atol=1e-12)


def test_guiding_what_is_guided_joins_the_terms():
    model, other = models()
    x, t = normal(4, 3), torch.tensor(0.3, dtype=torch.float64)
    first, *rest = terms(other, scale=0.7)
    assert torch.equal(guided(guided(model, first), *rest)(x, t), guided(model, first, *rest)(x, t))


def test_pushes_add_up():
    model, other = models()
    x, t = normal(4, 3), torch.tensor(0.3, dtype=torch.float64)
    alone = sum(guided(model, term)(x, t) - model(x, t) for term in terms(other))
    torch.testing.assert_close(guided(model, *terms(other))(x, t) - model(x, t), alone)


def test_a_contrast_is_linear_in_both_predictions():
    model, other = models()
    x, t = normal(4, 3), torch.tensor(0.3, dtype=torch.float64)
    strong, weak = model(x, t), other(x, t)
    torch.testing.assert_close(guided(model, Contrast(weak=other, scale=2.0))(x, t), weak + 3 * (strong - weak))
    torch.testing.assert_close(guided(other, Contrast(strong=model, scale=1.0))(x, t), strong)
    with pytest.raises(ValueError, match="strong or a weak"):
        Contrast()


def test_a_contrast_of_logits_keeps_what_both_find_impossible():
    class Logits:
        process, schema = absorbing(3), None

        def __init__(self, logits):
            self.logits = torch.tensor(logits)

        def __call__(self, x, t):
            return self.logits.expand(*x.shape, 3)

    inf = float("inf")
    model, weak = Logits([0.0, 1.0, -inf]), Logits([1.0, 0.0, -inf])
    out = guided(model, Contrast(weak=weak, scale=1.0))(torch.full((2, 4), 3), torch.tensor(0.5))
    probs = out.softmax(-1)
    assert not out.isnan().any() and (probs[..., 2] == 0).all()
    torch.testing.assert_close(probs[..., 1] / probs[..., 0], torch.full((2, 4), 1.0).exp() ** 3)


def test_fields_may_be_left_alone():
    schema = {"a": Field("whole", (2,)), "b": Field("whole", (2,))}
    model = GaussianOracle({"a": P, "b": VE()}, {"a": 0.0, "b": 1.0}, {"a": 1.0, "b": 1.0}, schema)
    x, t = {"a": normal(3, 2), "b": normal(3, 2, seed=1)}, torch.tensor(0.5, dtype=torch.float64)
    pull = lambda x, t: -(x["a"].square() + x["b"].square()).sum(1)
    for term in (
        Potential(log_h=pull, fields=("b",)),
        Reward(log_h=lambda x: pull(x, None), fields=("b",)),
        Observation(operator=lambda s: s["a"] + s["b"], y=torch.ones(2), sigma_y=1.0, fields=("b",)),
        Contrast(weak=GaussianOracle(model.process, {"a": 5.0, "b": 5.0}, {"a": 1.0, "b": 1.0}, schema), fields=("b",)),
    ):
        out, plain = guided(model, term)(x, t), model(x, t)
        assert torch.equal(out["a"], plain["a"]) and (out["b"] - plain["b"]).abs().min() > 1e-6


def test_a_potential_of_the_noised_state_is_its_h_transform():
    """N(0, 1) tilted by exp(theta x): h_t is known, and the guided denoiser is that of N(theta, 1)."""
    theta, model, wanted = 0.7, GaussianOracle(P, 0.0, 1.0), GaussianOracle(P, 0.7, 1.0)

    def log_h(x, t):
        alpha, sigma = P.level(t)
        return (theta * alpha / (alpha**2 + sigma**2) * x).sum(1)

    for t in (0.1, 0.5, 0.99):
        x, t = normal(6, 2), torch.tensor(t, dtype=torch.float64)
        torch.testing.assert_close(guided(model, Potential(log_h=log_h))(x, t), wanted(x, t))


def test_where_alpha_is_0_nothing_is_pushed():
    model = GaussianOracle(Linear(), 0.0, 1.0)
    out = guided(model, Potential(log_h=lambda x, t: x.sum(1)))(normal(2, 2), torch.ones((), dtype=torch.float64))
    assert out.isfinite().all()


def test_gradients_need_no_mode_and_leave_no_trace():
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))

    class Net:
        process, schema = P, None

        def __call__(self, x, t):
            return weight * x

    term = Observation(operator=lambda x: x, y=torch.ones(3), sigma_y=0.1)
    x, t = normal(2, 3), torch.tensor(0.5, dtype=torch.float64)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            out = guided(Net(), term)(x, t)
        assert not out.requires_grad and weight.grad is None


def test_a_sample_is_guided_alike_in_any_batch():
    model, other = models()
    x, t = normal(9, 3), torch.tensor(0.3, dtype=torch.float64)
    denoise = guided(model, *terms(other))
    torch.testing.assert_close(denoise(x, t)[4:5], denoise(x[4:5], t), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bad", [{"interval": (0.5, 0.2)}, {"interval": (-1, 1)}, {"scale": float("nan")}])
def test_bad_terms_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        Contrast(weak=models()[1], **bad)


def test_the_latest_time_of_a_sample_counts():
    site, pair = torch.tensor([[0.0, 0.3], [0.0, 0.0]]), torch.zeros(2, 2, 2)
    assert latest({"a": site, "b": pair}).tolist() == pytest.approx([0.3, 0.0])
    assert latest(torch.tensor(0.4)).item() == pytest.approx(0.4)


def test_a_pin_holds_values_along_a_path_of_the_process():
    x, known = normal(4, 5), normal(4, 5, seed=1)
    where = torch.tensor([True, True, False, False, True])
    pin = Pin(known, where, P, Rng(0, torch.arange(4)))
    for s in (0.0, 0.5):
        s = torch.tensor(s, dtype=torch.float64)
        out = pin(x, s)
        assert torch.equal(out[:, ~where], x[:, ~where])
        alpha, sigma = P.level(s)
        noise = (out - alpha * known)[:, where] / sigma.clamp(min=1e-12)
        if s > 0:
            first = noise
        else:
            assert torch.equal(out[:, where], known[:, where])
    later = (pin(x, torch.tensor(0.9, dtype=torch.float64)) - P.level(torch.tensor(0.9).double())[0] * known)[:, where]
    torch.testing.assert_close(later / P.level(torch.tensor(0.9).double())[1], first)
    with pytest.raises(ValueError, match="broadcast"):
        Pin(known, torch.ones(3, dtype=torch.bool), P, Rng(0, torch.arange(4)))
    with pytest.raises(ValueError, match="bool"):
        Pin(known, torch.ones(5), P, Rng(0, torch.arange(4)))


def test_pinned_entries_of_independent_data_leave_the_others_law_alone():
    n, model = 4000, GaussianOracle(P, 1.0, 0.5)
    rng, known = Rng(0, torch.arange(4000)), torch.full((4000, 2), 3.0, dtype=torch.float64)
    pin = Pin(known, torch.tensor([True, False]), P, rng.at(7))
    program = compile_solver(P, grid(P, 20), "dpm++2m")
    out = run(model, P.prior(torch.zeros(n, 2, dtype=torch.float64), rng), program, after=pin)
    assert (out[:, 0] == 3).all()
    assert abs(float(out[:, 1].mean()) - 1) < 0.03 and abs(float(out[:, 1].std()) - 0.5) < 0.02


def test_a_start_keeps_what_it_began_with_the_more_the_later_it_is():
    model, known = GaussianOracle(P, 0.0, 1.0), torch.full((500, 1), 2.0, dtype=torch.float64)
    means = []
    for t in (0.2, 0.9):
        start = Start(known, t)
        times = start.times(grid(P, 30))
        assert float(times[0]) == pytest.approx(t) and bool((times.diff() < 0).all())
        x = start.state(model, Rng(0, torch.arange(500)))
        means.append(float(run(model, x, compile_solver(P, times, "dpm++2m")).mean()))
    assert means[0] > 1.5 and abs(means[1]) < 0.2
    with pytest.raises(ValueError, match="0 < t"):
        Start(known, 0.0)
