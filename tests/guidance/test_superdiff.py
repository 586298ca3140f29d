"""SuperDiff on laws of known densities: Or draws their mixture, And lands where they are equal (S22, section 4)."""

import math

import pytest
import torch

from tests.oracles import EnumeratedOracle, GaussianOracle, MixtureOracle, normal
from unisci.batch import Field
from unisci.guidance.joint_step import joint_step
from unisci.guidance.mixture import Mixture
from unisci.guidance.superdiff import And, Or, SuperDiff, superpose
from unisci.processes.categorical import absorbing, uniform
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP
from unisci.processes.poisson_flow import StudentT
from unisci.rng import Rng
from unisci.solvers.divergence import exact, hutchinson
from unisci.solvers.grids import grid
from unisci.solvers.ito_density import ItoDensity, sample_with_density
from unisci.solvers.program import compile_solver, run

F64 = torch.float64


def law(process, mean, variance):
    one = torch.ones(1, dtype=F64)
    return MixtureOracle(process, torch.tensor([mean], dtype=F64), one * variance**0.5, one)


def pair(process):
    return law(process, (1.5, 0.0, 0.0), 0.3), law(process, (-1.5, 0.5, 0.0), 0.5)


def even(n, end=1e-2):
    return grid(VP(), n, "time", end=end)


def solve(models, times, solver, n, d=3, seed=0):
    """The end, log q followed and log q exact."""
    process = models[0].process
    x = process.level(times[0])[1] * normal(n, d, seed=seed)
    end, log_q = superpose(Mixture(models), x, times, solver, Rng(seed, torch.arange(n)))
    return end, log_q, torch.stack([m.logp(end, times[-1]) for m in models], 1)


def gap(true):
    return (true.amax(1) - true.amin(1)).median().item()


@pytest.mark.parametrize(("n", "want", "bar", "error"), [(100, 0.055, 0.06, 1.35), (400, 0.029, 0.03, 0.62)])
def test_and_equalises_the_true_densities(n, want, bar, error):
    """The median gap at 100 and 400 steps, and the error of log q itself (S22, check 3)."""
    end, log_q, true = solve(pair(VP()), even(n), SuperDiff(And()), 2000)
    assert gap(true) < bar and gap(true) == pytest.approx(want, rel=0.1)
    assert (log_q - true).square().mean().sqrt() < error
    assert (log_q[:, 0] - log_q[:, 1]).abs().max() < 1e-9
    assert not end.requires_grad and not log_q.requires_grad


def test_and_as_published_does_not():
    """By its own count the densities are equal; the true median gap is .25 whatever the number of steps."""
    for n in (100, 200):
        _, log_q, true = solve(pair(VP()), even(n), SuperDiff(And(corrected=False)), 1000)
        assert gap(true) == pytest.approx(0.26, abs=0.03)
        assert (log_q[:, 0] - log_q[:, 1]).abs().max() < 0.07
        assert (log_q - true).square().mean().sqrt() > 5


@pytest.mark.parametrize("process", [SubVP(), VE(), EDM(), Linear(), Cosine()], ids=lambda p: type(p).__name__)
def test_and_in_every_process(process):
    times = grid(process, 100, end=2e-2)
    _, _, true = solve(pair(process), times, SuperDiff(And()), 500)
    assert gap(true) < 0.08


def test_and_of_three_models():
    """Their span is a plane: an orthonormal basis of it enters the correction."""
    models = (*pair(VP()), law(VP(), (0.0, -1.0, 1.0), 0.4))
    _, _, true = solve(models, even(100), SuperDiff(And()), 500)
    assert gap(true) < 0.06
    _, _, true = solve(models, even(100), SuperDiff(And(corrected=False)), 500)
    assert gap(true) > 0.4


def test_and_of_more_models_than_dimensions_stays_finite():
    models = tuple(law(VP(), (m,), v) for m, v in ((1.5, 0.3), (-1.5, 0.5), (0.0, 0.4)))
    end, _, _ = solve(models, even(100), SuperDiff(And()), 200, d=1)
    assert end.abs().max() < 3


def test_and_with_a_bias():
    """log q_2 - log q_1 is bias_1 - bias_2 at t = 0, and grows towards it in time."""
    _, _, true = solve(pair(VP()), even(200), SuperDiff(And(bias=(1.0, 0.0))), 1000)
    away = true[:, 0] - true[:, 1]
    assert away.median().item() == pytest.approx(-0.99, abs=0.02)
    assert (away + 0.99).abs().median() < 0.06


def test_and_needs_the_noise_and_the_gap():
    """kappa from the drift alone, without the step's noise, leaves the gap wide (3.2 in S22)."""

    class DriftOnly(And):
        def choose(self, step, log_q):
            quiet = joint_step(mixture, step.x, step.t, step.s, None, vectors=exact, inner=True)
            return super().choose(quiet, log_q)[0], 0.0

    mixture = Mixture(pair(VP()))
    _, _, true = solve(pair(VP()), even(50), SuperDiff(DriftOnly()), 100)
    assert gap(true) > 1


@pytest.mark.parametrize(("bias", "share"), [(None, 0.5), ((math.log(3), 0.0), 0.75)])
def test_or_draws_the_mixture(bias, share):
    """The share of the first mode, and the modes themselves (S22, check 4)."""
    models = law(VP(), (2.0, 0.0), 0.1), law(VP(), (-2.0, 0.0), 0.1)
    end, _, _ = solve(models, even(200), SuperDiff(Or(bias=bias)), 4000, d=2)
    first = end[:, 0] > 0
    assert first.double().mean().item() == pytest.approx(share, abs=0.03)
    assert end[:, 0].abs().mean().item() == pytest.approx(2, abs=0.03)
    assert end[first, 0].std().item() == pytest.approx(0.316, abs=0.02)


def test_averaged_scores_do_not():
    models = law(VP(), (2.0, 0.0), 0.1), law(VP(), (-2.0, 0.0), 0.1)
    rng, times = Rng(0, torch.arange(1000)), even(200)
    end = run(Mixture(models), normal(1000, 2), compile_solver(VP(), times, "ancestral"), rng)
    assert end[:, 0].abs().mean().item() == pytest.approx(0.25, abs=0.03)


def test_temperature():
    log_q = torch.tensor([[0.0, 1.0, 0.9]], dtype=F64)
    kappa, _ = Or(temperature=1e6).choose(None, log_q)
    assert torch.equal(kappa, torch.tensor([[0.0, 1.0, 0.0]], dtype=F64))
    kappa, _ = Or(bias=(0.0, -1.0, -0.9)).choose(None, log_q - 1e5)
    torch.testing.assert_close(kappa, torch.full((1, 3), 1 / 3, dtype=F64))


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_one_model_is_followed_as_by_ito_density(name):
    """The same points and the same log q."""
    (model, _), times, rng = pair(VP()), even(50), Rng(0, torch.arange(20))
    vectors = exact if name == "ddim" else None
    end, log_q, _ = solve((model,), times, SuperDiff(Or(), vectors=vectors), 20)
    follow = ItoDensity(compile_solver(VP(), times, name), vectors=vectors)
    start = VP().level(times[0])[1] * normal(20, 3)
    want, density = sample_with_density(model, start, times, follow, rng)
    torch.testing.assert_close(end, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(log_q, density[:, None], rtol=1e-7, atol=1e-7)
    also, _, _ = solve((model,), times, SuperDiff(And(), vectors=vectors), 20)
    torch.testing.assert_close(also, want, rtol=1e-9, atol=1e-9)


def test_without_noise():
    """By the divergence the density is of order 1, and And closes the gap on the flow too."""
    errors = {}
    for n in (25, 100):
        end, log_q, true = solve(pair(VP()), even(n), SuperDiff(Or(), vectors=exact), 200)
        errors[n] = (log_q - true).square().mean().sqrt().item()
    assert errors[100] < 0.5 and math.log(errors[25] / errors[100]) / math.log(4) == pytest.approx(1, abs=0.2)
    assert (true[:, 0] > true[:, 1]).double().mean().item() == pytest.approx(0.5, abs=0.08)
    signs = hutchinson(Rng(3, torch.arange(200)))  # exact here, as every Jacobian is a multiple of the identity
    same, _, _ = solve(pair(VP()), even(100), SuperDiff(Or(), vectors=signs), 200)
    torch.testing.assert_close(same, end)
    _, log_q, true = solve(pair(VP()), even(100), SuperDiff(And(), vectors=exact), 200)
    assert gap(true) < 0.06 and (log_q[:, 0] - log_q[:, 1]).abs().max() < 1e-9


@pytest.mark.parametrize("policy", [Or(), And(), And(corrected=False)])
def test_equal_models_are_one(policy):
    """Bitwise, with kappa = 1/2 and no nan (S22, check 5)."""
    model, _ = pair(VP())
    one, log_q, _ = solve((model,), even(30), SuperDiff(Or()), 20)
    two, both, _ = solve((model, model), even(30), SuperDiff(policy), 20)
    assert torch.equal(two, one) and torch.equal(both, log_q.expand(-1, 2))


def test_models_equal_up_to_rounding():
    """Single precision, models that differ by their last bits, which And must not chase."""

    class Rounded(GaussianOracle):
        def __call__(self, x, t):
            return super().__call__(x, t) * (1 + 2e-7)

    models, rng, times = (GaussianOracle(VP(), 1.0, 0.5), Rounded(VP(), 1.0, 0.5)), Rng(0, torch.arange(500)), even(50)
    x = normal(500, 3).float()
    one, _ = superpose(Mixture(models[:1]), x, times, SuperDiff(Or()), rng)
    two, log_q = superpose(Mixture(models), x, times, SuperDiff(And()), rng)
    assert two.dtype == torch.float32 and log_q.dtype == F64
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)


class Shuffled:
    """The Rng of site fields whose sites were permuted."""

    def __init__(self, rng, order):
        self.rng, self.order = rng, order

    def at(self, k):
        return Shuffled(self.rng.at(k), self.order)

    def normal(self, *args):
        return self.rng.normal(*args)[:, self.order]


SITES = {"position": Field("site", (3,))}
ATOMS = tuple(GaussianOracle({"position": VP()}, m, s, SITES) for m, s in ((1.0, 0.5), (-0.5, 0.8)))


@pytest.mark.parametrize("policy", [Or(), And()])
def test_permuted_and_padded_sites(policy):
    """Permuting atoms permutes the samples; padding changes nothing (S22, check 6)."""
    x, rng, order = normal(10, 4, 3), Rng(0, torch.arange(10)), torch.tensor([2, 0, 3, 1])
    solver = SuperDiff(policy)
    end, log_q = superpose(Mixture(ATOMS), {"position": x}, even(30), solver, rng)
    swapped, same = superpose(Mixture(ATOMS), {"position": x[:, order]}, even(30), solver, Shuffled(rng, order))
    torch.testing.assert_close(swapped["position"], end["position"][:, order])
    torch.testing.assert_close(same, log_q)
    wide = torch.cat([x, 7 + normal(10, 5, 3, seed=1)], 1)
    mask = (torch.arange(9) < 4).expand(10, 9)
    padded, same = superpose(Mixture(ATOMS), {"position": wide}, even(30), SuperDiff(policy, mask), rng)
    torch.testing.assert_close(padded["position"][:, :4], end["position"], rtol=0, atol=1e-9)
    torch.testing.assert_close(same, log_q, rtol=0, atol=1e-9)


@pytest.mark.parametrize("policy", [Or(), And()])
def test_a_pair_counts_once(policy):
    """A symmetric field of pairs, whose laws tie every entry, against its upper triangle as a bare state."""
    upper = torch.triu_indices(3, 3, 1)

    def symmetric(v):
        out = v.new_zeros(len(v), 3, 3)
        out[:, upper[0], upper[1]] = v
        return out + out.mT

    class Bonds:
        process, schema = {"bond": VP()}, {"bond": Field("pair")}

        def __init__(self, model):
            self.model = model

        def __call__(self, x, t):
            return {"bond": symmetric(self.model(x["bond"][:, upper[0], upper[1]], t))}

    class Drawn(Rng):
        """Of a pair field, the draws of its upper triangle."""

        def normal(self, name, step, shape, axes):
            flat = super().normal("x", step, (shape[0], 3), 0)
            return symmetric(flat) if len(shape) == 3 else flat

    rng, models, x = Drawn(0, torch.arange(10)), pair(VP()), normal(10, 3)
    flat, want = superpose(Mixture(models), x, even(30), SuperDiff(policy), rng)
    bonds = Mixture(tuple(Bonds(m) for m in models))
    end, log_q = superpose(bonds, {"bond": symmetric(x)}, even(30), SuperDiff(policy), rng)
    torch.testing.assert_close(end["bond"][:, upper[0], upper[1]], flat)
    torch.testing.assert_close(log_q, want)


@pytest.mark.parametrize("process", [absorbing(4), uniform(4)], ids=["absorbing", "uniform"])
def test_or_of_one_site_is_exact(process):
    """Discrete: log q of both laws at the end, and draws from .75 p + .25 q."""
    p, q = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.1, 0.2, 0.3, 0.4]], dtype=F64)
    mixture, n = Mixture(tuple(EnumeratedOracle(process, v) for v in (p, q))), 4000
    rng, times = Rng(0, torch.arange(n)), torch.linspace(1, 0, 9, dtype=F64)
    x = process.prior(torch.zeros(n, 1, dtype=torch.int64), rng.at(99))
    end, log_q = superpose(mixture, x, times, SuperDiff(Or(bias=(math.log(3), 0.0))), rng)
    torch.testing.assert_close(log_q.exp(), torch.stack([p, q], 1)[end[:, 0]], rtol=1e-5, atol=1e-6)
    shares = torch.bincount(end[:, 0], minlength=4) / n
    torch.testing.assert_close(shares.double(), 0.75 * p + 0.25 * q, rtol=0, atol=0.025)


def test_or_of_atoms_and_positions():
    """Two kinds of molecule: both fields of a sample come from the same model, padding or not."""
    schema = {"atom": Field("site", (), ("a", "b")), "position": Field("site", (2,))}
    process = {"atom": absorbing(2), "position": VP()}

    class Kind:
        def __init__(self, i):
            self.process, self.schema = process, schema
            self.probs = torch.tensor([0.95, 0.05] if i else [0.05, 0.95], dtype=F64)
            self.position = GaussianOracle(VP(), 3.0 * i - 1.5, 0.5)

        def __call__(self, x, t):
            logits = self.probs.log().expand(*x["atom"].shape, 2)
            return {"atom": logits, "position": self.position(x["position"], t["position"])}

    n, mixture = 500, Mixture((Kind(0), Kind(1)))
    rng, mask = Rng(0, torch.arange(n)), torch.tensor([True, True, True, False]).expand(n, 4)
    blank = torch.zeros(n, 4, dtype=torch.int64)
    x = {"atom": process["atom"].prior(blank, rng.at(99), "atom", 1), "position": normal(n, 4, 2)}
    times, last = even(100), torch.zeros((), dtype=F64)
    steps = [{"atom": t, "position": t} for t in times[:-1]] + [{"atom": last, "position": times[-1]}]
    end, log_q = superpose(mixture, x, steps, SuperDiff(Or(), mask), rng)
    second = end["position"][:, :3].mean((1, 2)) > 0
    assert second.double().mean().item() == pytest.approx(0.5, abs=0.08)
    share = (end["atom"][:, :3] == 0).double().mean(1)
    assert share[second].mean().item() == pytest.approx(0.95, abs=0.02)
    assert share[~second].mean().item() == pytest.approx(0.05, abs=0.02)
    assert torch.equal(log_q.argmax(1) == 1, second)


@pytest.mark.parametrize("policy", [Or(), And(), And(corrected=False), And(bias=(0.5, 0.0, 0.2))])
def test_a_sample_does_not_depend_on_its_batch(policy):
    models = (*pair(VP()), law(VP(), (0.0, -1.0, 1.0), 0.4))
    x, rng, times, solver = normal(33, 3), Rng(0, torch.arange(33)), even(20), SuperDiff(policy)
    end, log_q = superpose(Mixture(models), x, times, solver, rng)
    for rows in (torch.tensor([4]), torch.tensor([30, 4, 11])):
        alone, density = superpose(Mixture(models), x[rows], times, solver, rng[rows])
        assert torch.equal(alone, end[rows]) and torch.equal(density, log_q[rows])


def test_under_inference_mode():
    _, log_q, _ = solve(pair(VP()), even(10), SuperDiff(And()), 5)
    with torch.inference_mode():
        _, same, _ = solve(pair(VP()), even(10), SuperDiff(And()), 5)
        solve(pair(VP()), even(10), SuperDiff(Or(), vectors=exact), 5)
    assert torch.equal(same, log_q)


def test_where_log_q_starts():
    """The prior's, or what is given."""
    t, s = torch.tensor(1.0, dtype=F64), torch.tensor(0.999, dtype=F64)
    x, rng, mixture = 0.5 * normal(6, 3), Rng(0, torch.arange(6)), Mixture(pair(VE()))
    _, given = SuperDiff(Or(), start=torch.zeros(6, 2)).step(mixture, x, t, s, None, rng)
    _, usual = SuperDiff(Or()).step(mixture, x, t, s, None, rng)
    prior = torch.distributions.Normal(0.0, VE().level(t)[1]).log_prob(x).sum(1, keepdim=True)
    torch.testing.assert_close(usual - given, prior.expand(-1, 2))


def test_what_is_refused():
    x, rng, mixture = normal(4, 3), Rng(0, torch.arange(4)), Mixture(pair(VP()))
    few = even(3)
    go = lambda solver, mixture=mixture, times=few, rng=rng, x=x: superpose(mixture, x, times, solver, rng)
    with pytest.raises(ValueError, match="steps a Mixture, got MixtureOracle"):
        go(SuperDiff(Or()), pair(VP())[0])
    with pytest.raises(ValueError, match="is not one number for each of 2 models"):
        go(SuperDiff(Or(bias=(0.0,))))
    with pytest.raises(ValueError, match="is not one number for each of 2 models"):
        go(SuperDiff(And(bias=(0.0, 0.0, 1.0))))
    with pytest.raises(ValueError, match="pass rng=Rng"):
        go(SuperDiff(Or()), rng=None)
    with pytest.raises(ValueError, match="no density at t = 0"):
        go(SuperDiff(Or()), times=grid(VP(), 3))
    with pytest.raises(ValueError, match="alpha of field 'x' is 0 at the first time"):
        go(SuperDiff(Or()), Mixture(pair(Linear())))
    with pytest.raises(ValueError, match="grows in time; give a sample one time"):
        go(SuperDiff(And(bias=(1.0, 0.0))), times=[t.expand(4, 3) for t in even(3)])
    heavy = GaussianOracle(StudentT(EDM(), 64.0))
    with pytest.raises(ValueError, match="its process StudentT"):
        go(SuperDiff(Or()), Mixture((heavy,)))
    token = Mixture((EnumeratedOracle(absorbing(3), torch.ones(3, dtype=F64)),))
    for solver in (SuperDiff(And()), SuperDiff(Or(), vectors=exact)):
        with pytest.raises(ValueError, match="SuperDiff with And or vectors needs the score"):
            go(solver, token, x=torch.full((4, 1), 3))
