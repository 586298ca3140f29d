"""S4 and its second-order form on Gaussian data, where every covariance is exact (S34)."""

import pytest
import torch

from benchmarks.gdss_oracle import JointGaussian, UnitNoise, covariance, error, solvers, table
from tests.laws import assert_same_samples
from tests.oracles import GaussianOracle, normal
from unisci.batch import Field, pair_mask
from unisci.processes.categorical import uniform
from unisci.processes.gaussian import VE, VP, Cosine
from unisci.rng import Rng
from unisci.solvers.predictor_corrector import Langevin, by_norm, by_schedule
from unisci.solvers.s4 import S4, SecondOrderS4
from unisci.solvers.sample import sample
from unisci.state import fieldwise

F64 = torch.float64
SCHEMA = {"atom": Field("site", (3,)), "bond": Field("pair")}
SPEC = {
    "Euler-Maruyama": (0.0227, 0.0113, 0.0057, 0.0028),
    "S4, released variance": (0.1044, 0.0536, 0.0271, 0.0137),
    "S4": (0.0375, 0.0192, 0.0097, 0.0049),
    "S4, second order": (0.0044, 0.0011, 0.0003, 0.00006),
}


def line(n: int, start: float = 1.0, end: float = 1e-3) -> torch.Tensor:
    return torch.linspace(start, end, n + 1, dtype=F64)


class Counting:
    def __init__(self, denoise):
        self.denoise, self.process, self.schema, self.calls = denoise, denoise.process, denoise.schema, 0

    def __call__(self, x, t):
        self.calls += 1
        return self.denoise(x, t)


class NoScore(GaussianOracle):
    """D = x / alpha: the score is 0, and F is all that moves."""

    def __call__(self, x, t):
        return fieldwise(lambda v, process: v / process.level(t)[0], x, self.process)


@pytest.mark.parametrize("name", SPEC)
@pytest.mark.parametrize("k", [0, 1, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_errors_on_gaussian_data(name, k):
    """(S34, check 2): max |cov - cov*| at t = 1e-3 from the exact marginal at t = 1, in 100, 200, 400, 800 steps."""
    times = line(100 * 2**k)
    oracle = JointGaussian({"X": VP(), "A": VP()})
    found = error(solvers(VP(), times)[name], oracle, times)
    assert found == pytest.approx(SPEC[name][k], abs=0.6 * 10.0 ** -(5 if SPEC[name][k] < 1e-4 else 4))


def test_orders_of_a_mixed_system():
    """X under VP, A under VE: S4 of order 1, its second-order form of order 2."""
    oracle = JointGaussian({"X": VP(0.1, 10.0), "A": VE(0.2, 2.0)})
    for solver, order in ((S4(), 1), (SecondOrderS4(), 2)):
        errors = [error(solver, oracle, line(n, end=1e-2)) for n in (100, 200)]
        assert torch.tensor(errors[0] / errors[1]).log2() == pytest.approx(order, abs=0.15)


def test_fields_may_have_times_of_their_own():
    oracle = JointGaussian({"X": VP(), "A": VP()})
    times = [{"X": t, "A": t} for t in line(20)]
    for solver in (S4(), SecondOrderS4()):
        torch.testing.assert_close(covariance(solver, oracle, times), covariance(solver, oracle, line(20)))


def test_the_table_has_a_line_a_solver():
    rows = table((25, 50)).splitlines()
    assert rows[0].endswith(" order") and len(rows) == 1 + len(SPEC)
    assert [row[:22].strip() for row in rows[1:]] == list(SPEC)


@pytest.mark.parametrize("process", [VP(), VE(0.1, 3.0)], ids=["VP", "VE"])
@pytest.mark.parametrize("solver", [S4(), SecondOrderS4()], ids=["S4", "second"])
def test_the_linear_part_is_exact(solver, process):
    """Without a score, halves compose to the kernel of the whole way, at any number of steps (S34, check 3)."""
    oracle, (t, s) = NoScore({"X": process, "A": process}, schema=JointGaussian.schema), (0.8, 0.3)
    oracle.marginal = lambda t: torch.eye(2, dtype=F64)
    (a_t, s_t), (a_s, s_s) = (process.level(torch.tensor(v, dtype=F64)) for v in (t, s))
    growth = (a_s / a_t) ** 2
    expected = (growth + growth * s_t**2 - s_s**2) * torch.eye(2, dtype=F64)
    for n in (1, 5):
        torch.testing.assert_close(covariance(solver, oracle, line(n, t, s)), expected)


def test_the_kernel_of_vp_by_draws():
    """Variance e^B - 1 over 1e5 samples, and 1 - e^-B as released (S34, check 3)."""
    process, x = VP(), torch.zeros(100_000, 1, dtype=F64)
    times = line(2, 0.6, 0.5)
    alpha, _ = process.level(times)
    first, second = (alpha[1:] / alpha[:-1]) ** 2  # e^B of the two halves
    for legacy, variance in ((False, first * second - 1), (True, second * (1 - 1 / first) + 1 - 1 / second)):
        solver, rng = S4(legacy=legacy), Rng(0, torch.arange(len(x)))
        drawn, _ = solver.step(NoScore(process), x, times[0], times[2], None, rng)
        assert drawn.var() == pytest.approx(float(variance), rel=0.01)


def test_the_released_variance_is_right_for_ve():
    oracle = JointGaussian({"X": VE(0.1, 2.0), "A": VE(0.1, 2.0)})
    assert torch.equal(covariance(S4(legacy=True), oracle, line(9)), covariance(S4(), oracle, line(9)))


@pytest.mark.parametrize(("solver", "calls"), [(S4(snr=0.1), 1), (SecondOrderS4(), 2), (SecondOrderS4(snr=0.1), 3)])
def test_evaluations_a_step(solver, calls):
    denoise = Counting(GaussianOracle(VP(), std=0.5))
    sample(denoise, normal(4, 3), line(6, end=0.0), solver, Rng(0, torch.arange(4)))
    assert denoise.calls == 6 * calls


def test_langevin_steps_are_taken_where_the_step_begins():
    """The other two evaluations are at its middle."""
    oracle, seen = GaussianOracle(VP(), std=0.5), []

    class Watched(Counting):
        def __call__(self, x, t):
            seen.append(float(t))
            return super().__call__(x, t)

    SecondOrderS4(snr=0.1).step(Watched(oracle), normal(2, 3), *line(1, 0.5, 0.3), None, Rng(0, torch.arange(2)))
    assert seen == pytest.approx([0.5, 0.4, 0.4])


@pytest.mark.parametrize("kind", [S4, SecondOrderS4])
@pytest.mark.parametrize("size", [by_norm, by_schedule])
def test_a_step_of_no_length_is_a_langevin_step(size, kind):
    class Flat:
        """An Rng without streams: Langevin draws from stream 0 of its own, S4 from the step's."""

        def __init__(self, rng):
            self.rng, self.normal = rng, rng.normal

        def at(self, k):
            return self

    denoise, t = GaussianOracle(VP(), std=0.5), torch.tensor(0.4, dtype=F64)
    x, rng = normal(5, 3), Flat(Rng(0, torch.arange(5)))
    moved, _ = kind(snr=0.2, size=size).step(denoise, x, t, t, None, rng)
    expected = Langevin(0.2, size=size).correct(denoise, x, t, rng)
    torch.testing.assert_close(moved, expected)
    cold, _ = kind(snr=0.2, scale=0.0, size=size).step(denoise, x, t, t, None, rng)
    half, _ = kind(snr=0.2, scale=0.5, size=size).step(denoise, x, t, t, None, rng)
    torch.testing.assert_close(half - cold, (moved - cold) / 2)
    assert (moved - cold).abs().min() > 0 and (cold - x).abs().min() > 0


@pytest.mark.parametrize("solver", [S4(snr=0.1, scale=0.7), SecondOrderS4(), SecondOrderS4(0.1, 0.7)])
def test_samples_do_not_depend_on_their_batch(solver):
    oracle = GaussianOracle({"atom": VP(), "bond": VE(0.2, 1.0)}, 0.3, 0.4, SCHEMA)

    def generate(seed, ids):
        rng = Rng(seed, ids)
        x = {"atom": rng.normal("atom", 9, (len(ids), 4, 3)), "bond": rng.normal("bond", 9, (len(ids), 4, 4), 2)}
        return sample(oracle, x, line(4, end=1e-2), solver, rng)

    assert_same_samples(generate)


@pytest.mark.parametrize("kind", [S4, SecondOrderS4])
def test_pairs_stay_symmetric_and_nothing_is_drawn_where_nothing_is(kind):
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]]).bool()
    oracle = GaussianOracle({"atom": VE(), "bond": VE()}, 0.0, 1.0, SCHEMA)
    solver = kind(snr=0.1, mask=mask)
    x = {"atom": torch.zeros(2, 4, 3), "bond": torch.zeros(2, 4, 4)}
    out = sample(oracle, x, line(3, end=0.1), solver, Rng(0, torch.arange(2)))
    assert torch.equal(out["bond"], out["bond"].transpose(1, 2))
    assert (out["bond"][~pair_mask(mask)] == 0).all() and (out["atom"][~mask] == 0).all()
    assert (out["bond"][pair_mask(mask)] != 0).all() and (out["atom"][mask] != 0).all()


def test_padding_has_no_part_in_the_norms():
    """The Langevin step of the sites that exist is the same beside any padding."""
    oracle = GaussianOracle({"atom": VE(), "bond": VE()}, 0.0, 1.0, SCHEMA)
    mask = torch.tensor([[1, 1, 1, 0]]).bool()
    t, rng = torch.tensor(0.5), Rng(0, torch.arange(1))
    x = {"atom": torch.randn(1, 4, 3), "bond": torch.randn(1, 4, 4)}
    wild = {"atom": x["atom"] + 100 * ~mask[..., None], "bond": x["bond"] + 100 * ~pair_mask(mask)}
    a, b = (S4(snr=0.2, mask=mask).step(oracle, v, t, t, None, rng)[0] for v in (x, wild))
    torch.testing.assert_close(a["atom"][mask], b["atom"][mask])
    torch.testing.assert_close(a["bond"][pair_mask(mask)], b["bond"][pair_mask(mask)])


@pytest.mark.parametrize("solver", [S4(snr=0.1), SecondOrderS4()], ids=["S4", "second"])
def test_the_last_step_lands_on_the_mean(solver):
    class Constant(GaussianOracle):
        def __call__(self, x, t):
            return torch.full_like(x, 7.0)

    x, _ = solver.step(Constant(VP()), normal(3, 2), *line(1, 0.01, 0.0), None, Rng(0, torch.arange(3)))
    assert (x == 7.0).all()


def test_refusals():
    x, rng, times = normal(2, 2), Rng(0, torch.arange(2)), line(1, 0.5, 0.4)
    for solver in (S4(), SecondOrderS4()):
        with pytest.raises(ValueError, match="pass rng"):
            solver.step(GaussianOracle(VP()), x, *times, None, None)
        with pytest.raises(ValueError, match="alpha"):
            solver.step(GaussianOracle(Cosine()), x, *line(1), None, rng)
        with pytest.raises(ValueError, match="Gaussian"):
            solver.step(GaussianOracle(uniform(3)), x, *times, None, rng)
    for wrong in ({"snr": -0.1}, {"scale": -1.0}):
        for kind in (S4, SecondOrderS4):
            with pytest.raises(ValueError, match=f"{kind.__name__} needs snr >= 0"):
                kind(**wrong)


def test_unit_noise_is_what_the_oracle_says():
    noise = UnitNoise().at(3).normal("A", 1, (8, 1))
    assert noise.nonzero().tolist() == [[5, 0]]
