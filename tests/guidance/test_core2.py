"""CoRe^2 on laws whose guided predictions are known (S39, section 4)."""

from dataclasses import replace
from functools import cache

import pytest
import torch
import torch.nn.functional as F

from benchmarks.core2 import MEANS, Counted, bound, energy_distance, hits, told, train
from tests.guidance.test_weak import bent
from tests.oracles import EnumeratedOracle, GaussianOracle, MixtureOracle, normal
from unisci.batch import Field
from unisci.guidance.conditional import classifier_free
from unisci.guidance.core2 import Trajectories, WeakToStrong, collect, reflect
from unisci.guidance.weak import Fast, WeakNet, WeakNets, seen
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.gaussian import VE, VP
from unisci.rng import Rng
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.sample import Together, sample
from unisci.solvers.tokens import Ancestral, token_grid

F64 = torch.float64
T = torch.tensor(0.4, dtype=F64)
P = VP()
PROGRAM = compile_solver(P, grid(P, 12), "dpm++2m")
ROWS = Rng(9, torch.arange(256))
ONE = torch.ones(1, dtype=F64)
STRONG = GaussianOracle(P, 2.0, 1.0)
BOTH = MixtureOracle(P, torch.tensor([[-2.0], [2.0]], dtype=F64), ONE.expand(2), ONE.expand(2) / 2)


def noise(n, d=1, seed=0):
    return P.prior(torch.zeros(n, d, dtype=F64), Rng(seed, torch.arange(n)))


def test_refining_an_exact_weak_network_is_guidance():
    """g = D_s: any omega gives classifier-free guidance (S39, check 1)."""
    cfg, x = classifier_free(STRONG, BOTH, 2.5), noise(50)
    exact = lambda clean, seen, t, condition: cfg(seen * sum(v**2 for v in P.level(t)).sqrt(), t)
    want = run(cfg, x, PROGRAM)
    assert (want - run(STRONG, x, PROGRAM)).abs().max() > 0.3
    for omega in (0.0, 1.0, 1.5, 5.0):
        out = run(WeakToStrong(Fast(STRONG, exact), BOTH, 2.5, omega), x, PROGRAM)
        torch.testing.assert_close(out, want, rtol=1e-6, atol=1e-6)


def test_omega_one_is_guidance_and_omega_zero_is_fast():
    fast, cfg, x = Fast(STRONG, bent(1)), classifier_free(STRONG, BOTH, 2.5), noise(50)
    refined = lambda omega, until=0.0: run(WeakToStrong(fast, BOTH, 2.5, omega, until), x, PROGRAM)
    torch.testing.assert_close(refined(1.0), run(cfg, x, PROGRAM), rtol=1e-6, atol=1e-6)
    assert torch.equal(refined(0.0), run(fast, x, PROGRAM))
    assert (refined(1.0) - refined(0.0)).abs().max() > 0.1
    each = torch.tensor([0.0, 1.0]).repeat(25)
    torch.testing.assert_close(refined(each), torch.where(each[:, None] == 1, refined(1.0), refined(0.0)))
    t, g, s = T, fast(x, T), cfg(x, T)
    torch.testing.assert_close(WeakToStrong(fast, BOTH, 2.5, 1.5)(x, t), g + 1.5 * (s - g))
    torch.testing.assert_close(WeakToStrong(fast, BOTH, 2.5, 1.5, until=0.5)(x, t), g)
    late = torch.tensor([0.2, 0.8]).double().repeat(25)
    out = WeakToStrong(fast, BOTH, 2.5, 1.0, until=0.5)(x, late)
    torch.testing.assert_close(out, torch.where(late[:, None] > 0.5, cfg(x, late), fast(x, late)))


@pytest.mark.parametrize(("omega", "until"), [(float("nan"), 0.0), (1.0, 1.5)])
def test_bad_refinements_are_refused(omega, until):
    with pytest.raises(ValueError, match=r"finite|interval"):
        WeakToStrong(Fast(STRONG, WeakNet(1)), BOTH, 2.0, omega, until)


@pytest.mark.parametrize("k", [0, 4, 12])
def test_calls_of_the_big_network(k):
    """N fast, 2 N guided, N + k with k strong steps (S39, check 2)."""
    n, x = 12, noise(4)
    a, b = Counted(STRONG), Counted(BOTH)
    until = float(PROGRAM.times[k - 1] + PROGRAM.times[k]) / 2 if k else 1.0
    program = PROGRAM if k else compile_solver(P, grid(P, n, start=0.999), "dpm++2m")  # until = 1 acts at 1
    run(WeakToStrong(Fast(a, WeakNet(1)), b, 2.0, 1.5, until), x, program)
    assert (a.calls, b.calls) == (n, k)
    a.calls = b.calls = 0
    run(Fast(a, WeakNet(1)), x, program)
    assert (a.calls, b.calls) == (n, 0)
    run(classifier_free(a, b, 2.0), x, program)
    assert (a.calls, b.calls) == (2 * n, n)


def test_before_training_fast_is_the_conditional_model():
    x = noise(50)
    assert torch.equal(run(Fast(STRONG, WeakNet(1)), x, PROGRAM), run(STRONG, x, PROGRAM))  # S39, check 3


class LeastSquares:
    """g = a clean + b x + c with its own a, b, c at each of the times, fitted in closed form."""

    def __init__(self, part):
        self.times = part.t.unique()
        rows = [part[(part.t == t).nonzero()[:, 0]] for t in self.times]
        self.fits = [torch.linalg.lstsq(self._design(r.clean, r.x), r.strong).solution for r in rows]

    @staticmethod
    def _design(clean, x):
        return torch.cat([clean, x, torch.ones_like(x)], 1)

    def __call__(self, clean, x, t, condition):
        return self._design(clean, x) @ self.fits[int((self.times - t).abs().argmin())]


@cache
def reflected():
    """A weak network for w = 2, its collected states and its losses."""
    torch.manual_seed(0)
    fast = Fast(STRONG, WeakNet(1, width=32))
    states = collect(fast, BOTH, 2.0, noise(600, seed=3), PROGRAM.times, PROGRAM, Rng(1, torch.arange(600)))
    return fast, states, reflect(fast.weak, states, 500, ROWS, lr=3e-3)


@pytest.mark.parametrize("kind", ["linear", "network"])
def test_fast_samples_are_guided_samples(kind):
    """Energy distance of fast and guided samples of other noises below .02, that of plain ones .2 (S39, check 4)."""
    fast, states, _ = reflected()
    fast = Fast(STRONG, LeastSquares(states)) if kind == "linear" else fast
    ends = [
        run(m, noise(2000, seed=s), PROGRAM)
        for m, s in ((fast, 5), (classifier_free(STRONG, BOTH, 2.0), 6), (STRONG, 7))
    ]
    assert energy_distance(ends[0], ends[1]) < (0.01 if kind == "linear" else 0.003)
    assert energy_distance(ends[2], ends[1]) > 0.15


def test_refinement_moves_on_where_the_weak_network_falls_short():
    """omega = 1.5 goes beyond guidance where g = D_c, by w' = 1 + 1.5 (w - 1), and hardly where g is trained."""
    x, mean = noise(2000, seed=8), {}
    for name, weak in (("none", WeakNet(1)), ("trained", reflected()[0].weak)):
        mean[name] = run(WeakToStrong(Fast(STRONG, weak), BOTH, 2.0, 1.5), x, PROGRAM).mean().item()
    cfg = {w: run(classifier_free(STRONG, BOTH, w), x, PROGRAM).mean().item() for w in (2.0, 2.5)}
    assert mean["none"] == pytest.approx(cfg[2.5], abs=1e-6) and cfg[2.5] > cfg[2.0] + 0.1
    assert mean["trained"] == pytest.approx(cfg[2.0], abs=0.01)


def test_the_loss_falls_and_training_repeats():
    _, states, losses = reflected()
    assert losses.shape == (500,) and losses[-20:].mean() < losses[:5].mean() / 1000
    short = lambda rng: reflect(bent(1), states, 3, rng)
    assert torch.equal(short(ROWS), short(ROWS)) and not torch.equal(short(ROWS), short(ROWS.at(1)))
    net = bent(1)
    with torch.inference_mode():
        held = collect(Fast(STRONG, net), BOTH, 2.0, noise(9), PROGRAM.times, PROGRAM, Rng(1, torch.arange(9)))
        assert reflect(net, held, 3, ROWS).diff()[0] != 0
    with pytest.raises(ValueError, match="steps"):
        reflect(WeakNet(1), states, 0, ROWS)
    with pytest.raises(FloatingPointError):
        reflect(WeakNet(1), replace(states, strong=states.strong * float("inf")), 2, ROWS)


def test_steps_of_training():
    """Each step draws its own rows; the second of two is half as long; and the loss of logits is KL(D_s || g)."""
    _, states, _ = reflected()
    assert reflect(bent(1), states, 9, ROWS, lr=0.0).std() > 0
    net = WeakNet(1)
    reflect(net, replace(states, strong=states.clean + 100), 2, ROWS, lr=1e-3)
    assert net.residual.leave.bias.item() == pytest.approx(1.5e-3, rel=0.02)
    strong, clean = torch.tensor([[0.9, 0.1, 0.0]], dtype=F64), torch.tensor([[0.2, 0.3, 0.5]], dtype=F64)
    one = Trajectories(torch.ones(1).long(), T[None], clean.log(), strong.log(), None, None, torch.zeros(1))
    loss = reflect(WeakNet(3, states=3), one, 1, ROWS)
    assert loss.item() == pytest.approx((0.9 * torch.tensor(4.5).log() + 0.1 * torch.tensor(1 / 3).log()).item())


@pytest.mark.parametrize("process", [P, VE()], ids=["VP", "VE"])
def test_collect_keeps_what_guidance_saw(process):
    strong, both = GaussianOracle(process, 2.0, 1.0), GaussianOracle(process, 0.0, 3.0)
    x, rng, w = noise(40), Rng(1, torch.arange(40)), torch.linspace(1, 3, 40, dtype=F64)
    program, condition, visited = compile_solver(process, grid(process, 5), "ancestral"), w[:, None], []
    fast = Fast(strong, WeakNet(1, 1), condition)
    states = collect(fast, both, w, x, program.times, program, rng)
    assert len(states) == 200 and states.t.shape == (200,)
    run(classifier_free(strong, both, w), x, program, rng, on_step=lambda x, t: visited.append(x))
    back = states.x * sum(v**2 for v in process.level(states.t)).sqrt()[:, None]
    torch.testing.assert_close(back, torch.cat([x, *visited[:-1]]))
    torch.testing.assert_close(states.clean, strong(back, states.t))
    torch.testing.assert_close(states.strong, classifier_free(strong, both, states.condition[:, 0])(back, states.t))
    torch.testing.assert_close(states.condition, condition.repeat(5, 1))
    with pytest.raises(ValueError, match="keep"):
        collect(fast, both, w, x, program.times, program, rng, keep=0)


def test_the_reservoir_is_uniform():
    """Of 40 samples at 5 times, 50 are kept, each as likely as any other; and a state's key is its own."""
    x, kept = noise(40), torch.zeros(5, 40)
    take = lambda rows, seed, keep: collect(
        Fast(STRONG, WeakNet(1, 1), rows[:, None]),
        BOTH,
        2.0,
        x[rows],
        PROGRAM.times[:6],
        PROGRAM,
        Rng(seed, rows),
        keep=keep,
    )
    rows = torch.arange(40)
    for seed in range(60):
        part = take(rows, seed, 50)
        assert len(part) == 50
        step = (PROGRAM.times[:5, None] - part.t).abs().argmin(0)
        assert len(set(zip(step.tolist(), part.condition[:, 0].tolist(), strict=True))) == 50
        kept[step, part.condition[:, 0]] += 1
    expected = 60 * 50 / 200
    chi2 = ((kept - expected) ** 2 / (expected * (1 - 50 / 200))).sum().item()
    assert abs(chi2 - 199) < 4 * (2 * 199) ** 0.5
    assert kept.sum(1).std() < 40
    some = take(torch.tensor([7, 3]), 0, 50)
    whole = take(rows, 0, 200)
    assert torch.equal(some.key[some.condition[:, 0] == 7], whole.key[whole.condition[:, 0] == 7])


def test_a_second_round_follows_the_fast_model():
    """States of the path of `follow`, targets of guidance there, and both rounds joined without bias."""
    x, rng, fast = noise(40), Rng(1, torch.arange(40)), Fast(STRONG, bent(1))
    first = collect(fast, BOTH, 2.0, x, PROGRAM.times, PROGRAM, rng)
    second = collect(fast, BOTH, 2.0, x, PROGRAM.times, PROGRAM, rng.at(1), follow=fast)
    visited = []
    run(fast, x, PROGRAM, on_step=lambda x, t: visited.append(x))
    back = second.x * sum(v**2 for v in P.level(second.t)).sqrt()[:, None]
    torch.testing.assert_close(back, torch.cat([x, *visited[:-1]]))
    assert (first.x - second.x).abs().max() > 0.1
    torch.testing.assert_close(second.strong, classifier_free(STRONG, BOTH, 2.0)(back, second.t))
    half = first.joined(second, 480)
    assert len(half) == 480 and len(first.joined(second, 2000)) == 960
    assert 190 < sum(bool((first.key == k).any()) for k in half.key) < 290


def test_padding_is_left_alone_and_not_trained_on():
    """S39, check 5: what does not exist stays as the conditional model has it, and does not count in the loss."""
    net, (b, n), condition = bent(3, condition=2).double(), (4, 6), normal(4, 2, seed=2)
    x = normal(b, n, 3, seed=1)
    model = GaussianOracle(P, 0.0, 1.0)
    there = torch.arange(n) < torch.tensor([[6], [3], [1], [5]])
    fast = Fast(model, net, condition, there)
    x = x * there[..., None]
    assert not fast(x, T)[~there].any() and (fast(x, T) - model(x, T))[there].abs().min() > 0
    states = collect(fast, GaussianOracle(P, 1.0, 1.0), 2.0, x, PROGRAM.times, PROGRAM, Rng(0, torch.arange(b)))
    spoilt = replace(states, strong=torch.where(states.where[..., None], states.strong, 1e6))
    losses = [reflect(bent(3, 2), part, 2, ROWS) for part in (states, spoilt)]
    assert torch.equal(*losses)


class Fields:
    """Fields of each kind, all predicted as m."""

    def __init__(self, m):
        self.m, self.process = m, {"a": VP(), "k": uniform(3), "b": VP()}
        self.schema = {"a": Field("site", (2,)), "k": Field("site", (), ("x", "y", "z")), "b": Field("whole", (1,))}

    def __call__(self, x, t):
        clean = {"a": torch.full_like(x["a"], self.m), "k": self.m * F.one_hot(x["k"], 3).float()}
        return clean | {"b": torch.full_like(x["b"], self.m)}


class Still:
    """A solver that leaves the state where it is."""

    def step(self, denoise, x, t, s, memory, rng):
        denoise(x, t)
        return x, None


def test_fields_have_a_network_each():
    x = {"a": torch.randn(5, 4, 2), "k": torch.randint(3, (5, 4)), "b": torch.randn(5, 1)}
    t = {"a": torch.rand(5), "k": torch.rand(5), "b": torch.rand(5)}
    nets = WeakNets({"a": bent(2), "k": bent(3, states=3)})
    out, clean = Fast(Fields(1.0), nets)(x, t), Fields(1.0)(x, t)
    assert torch.equal(out["b"], clean["b"])
    torch.testing.assert_close(out["a"], nets["a"](clean["a"], seen(x["a"], VP(), t["a"]), t["a"]))
    torch.testing.assert_close(out["k"], nets["k"](clean["k"], x["k"], t["k"]))
    assert (out["a"] - clean["a"]).abs().mean() > 0.01 and (out["k"] - clean["k"]).abs().mean() > 0.01
    solver = Together(a=Still(), k=Ancestral(), b=Still())
    states = collect(Fast(Fields(1.0), nets), Fields(0.0), 3.0, x, token_grid(4), solver, Rng(0, torch.arange(5)))
    assert torch.equal(states.strong["a"], torch.full((20, 4, 2), 3.0)) and states.x["k"].shape == (20, 4)
    before = reflect(nets, states, 100, ROWS, lr=1e-2)
    assert before[-1] < before[0] / 2


TABLE = torch.rand(5, 5, generator=torch.Generator().manual_seed(4), dtype=F64) ** 3
TILT = torch.tensor([0.2, 1.0, 3.0, 0.5, 1.0], dtype=F64)
GIVEN, FREE = EnumeratedOracle(absorbing(5), TABLE * TILT[:, None] * TILT), EnumeratedOracle(absorbing(5), TABLE)


def test_fast_logits():
    """Two tokens of 5 classes: KL of guided to fast logits < .01 after 1000 steps, where plain ones have 10 times that
    (S39, check 6); samples by the ancestral chain likewise."""
    torch.manual_seed(0)
    n, w = 500, 2.0
    fast = Fast(GIVEN, WeakNet(5, states=6, width=32))
    prior = torch.full((n, 2), 5)
    times = token_grid(8, 1.0)
    states = collect(fast, FREE, w, prior, times, Ancestral(), Rng(1, torch.arange(n)))
    reflect(fast.weak, states, 1000, ROWS, lr=3e-3)
    held = collect(fast, FREE, w, prior, times, Ancestral(), Rng(5, torch.arange(n)))

    def divergence(logits):
        p, q = (v.log_softmax(-1)[held.x == 5] for v in (held.strong, logits))
        return float((p.exp() * (p - q)).sum(-1).mean())

    with torch.no_grad():
        assert divergence(fast.weak(held.clean, held.x, held.t)) < 0.01 < 0.1 < divergence(held.clean)
    cfg = classifier_free(GIVEN, FREE, w)
    share = lambda model: (
        F.one_hot(sample(model, prior, times, Ancestral(), Rng(3, torch.arange(n))), 5).double().mean((0, 1))
    )
    assert (share(fast) - share(cfg)).abs().max() < 0.02 < (share(GIVEN) - share(cfg)).abs().max()


def exact_models(kind):
    return GaussianOracle(P, MEANS[kind], 1.0), MixtureOracle(P, MEANS, ONE.expand(4), ONE.expand(4) / 4)


trained = cache(lambda: train(0))


def trained_models(kind):
    return bound(trained(), kind)


def bare(v):
    return v


def field(v):
    return {"x": v.float()}


@pytest.mark.parametrize(
    ("bind", "dress"),
    [
        pytest.param(exact_models, bare, id="exact"),
        pytest.param(trained_models, field, id="trained", marks=pytest.mark.slow),
    ],
)
def test_hits_at_half_the_calls(bind, dress):
    """Of 4 overlapping classes a sample should fall into the quadrant of its own: CoRe^2 does so as often as guidance
    does for twice the calls (paired, of 6000, within two standard errors), and spreads as guidance does."""
    torch.manual_seed(0)
    net, kind, x = WeakNet(2, 4, width=32, layers=1), torch.arange(1000) % 4, dress(noise(1000, 2, seed=50))
    conditional, unconditional = bind(kind)
    fast = Fast(conditional, net if dress is bare else WeakNets({"x": net}), told(kind))
    rng = Rng(1, torch.arange(1000))
    reflect(
        fast.weak, collect(fast, unconditional, 2.0, x, PROGRAM.times, PROGRAM, rng, keep=12000), 800, ROWS, lr=3e-3
    )

    kind, x, hit, calls, spread = torch.arange(6000) % 4, dress(noise(6000, 2, seed=60)), {}, {}, {}
    conditional, unconditional = (Counted(model) for model in bind(kind))
    models = {
        "fast": Fast(conditional, fast.weak, told(kind)),
        "guided": classifier_free(conditional, unconditional, 2.0),
    }
    for name, model in (models | {"plain": conditional}).items():
        conditional.calls = unconditional.calls = 0
        end = run(model, x, PROGRAM)
        end = end if dress is bare else end["x"]
        hit[name], calls[name] = hits(end, kind).double(), conditional.calls + unconditional.calls
        spread[name] = (end * MEANS[kind]).std(0)
    more = hit["fast"] - hit["guided"]
    assert calls == {"fast": 12, "guided": 24, "plain": 12}
    assert more.mean() >= -2 * more.std() / 6000**0.5
    assert more.mean() > -0.003 and hit["guided"].mean() > hit["plain"].mean() + 0.2
    torch.testing.assert_close(spread["fast"], spread["guided"], rtol=0.02, atol=0)
