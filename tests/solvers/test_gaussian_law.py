"""The Gaussian closed form against the solved ODE, dense linear algebra and sampling (S48)."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd.functional import jacobian

from tests.oracles import AROracle, normal
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw, stack
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.teleport import GaussianDenoise

F64 = torch.float64
PROCESSES = [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()]
each_process = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def at(*t):
    return torch.tensor(t, dtype=F64).squeeze()


def low_rank(d=40, r=5, rest=0.2, seed=0) -> GaussianLaw:
    basis = torch.linalg.qr(normal(d, r, seed=seed))[0]
    return GaussianLaw(normal(d, seed=seed + 1), basis, 1 + torch.arange(r, dtype=F64).flip(0), at(rest))


def dense(law: GaussianLaw) -> torch.Tensor:
    off = torch.eye(len(law.mean), dtype=F64) - law.basis @ law.basis.T
    return law.basis * law.variances @ law.basis.T + law.rest * off


@each_process
def test_closed_form_is_the_ode(process):
    """S48, check 1: the error of a solver against `flow` falls with its order."""
    law = GaussianLaw(at(0.3, -0.5), torch.eye(2, dtype=F64)[:, :1], at(1.0).reshape(1), at(0.25))
    times = {n: grid(process, n, start=0.99, end=1e-3) for n in (80, 160)}
    x = law.draw(process, torch.zeros(16, 2, dtype=F64), times[80][0], Rng(0, torch.arange(16)))
    exact = law.flow(process, x, times[80][0], times[80][-1])
    error = {
        n: (run(GaussianDenoise(process, law), x, compile_solver(process, t, "dpm3")) - exact).abs().max().item()
        for n, t in times.items()
    }
    assert error[80] / error[160] == pytest.approx(8, rel=0.15)
    assert error[160] < 3e-6


@each_process
@given(t=st.floats(0.01, 1), u=st.floats(0.01, 1), s=st.floats(0, 1))
@settings(max_examples=20, deadline=None)
def test_flow_is_a_group(process, t, u, s):
    """S48, check 2. And log densities change by the log determinant of the flow."""
    law, x, (t, u, s) = low_rank(4, 2), normal(8, 4), (at(t), at(u), at(s))
    torch.testing.assert_close(
        law.flow(process, law.flow(process, x, t, u), u, s), law.flow(process, x, t, s), rtol=1e-12, atol=1e-11
    )
    torch.testing.assert_close(law.flow(process, law.flow(process, x, t, u), u, t), x, rtol=1e-12, atol=1e-11)
    logdet = jacobian(lambda y: law.flow(process, y[None], t, s)[0], x[0]).det().abs().log()
    change = law.log_density(process, law.flow(process, x, t, s), s) - law.log_density(process, x, t)
    torch.testing.assert_close(change, -logdet.expand(8), rtol=1e-8, atol=1e-8)


def test_pushforward_has_the_covariance():
    """S48, check 3: 50000 draws at t = 1, carried to t = 0."""
    process, law, n = VP(), low_rank(3, 2), 50000
    x1 = law.draw(process, torch.zeros(n, 3, dtype=F64), at(1.0), Rng(0, torch.arange(n)))
    alpha, sigma = process.level(at(1.0))
    noised = alpha**2 * dense(law) + sigma**2 * torch.eye(3, dtype=F64)
    x0 = law.flow(process, x1, at(1.0), at(0.0))
    for x, mean, covariance in ((x1, alpha * law.mean, noised), (x0, law.mean, dense(law))):
        assert (x.T.cov() - covariance).norm() < 0.02 * covariance.norm()
        assert (x.mean(0) - mean).abs().max() < 5 * (covariance.diag().max() / n).sqrt()


def test_low_rank_is_the_dense_law():
    """S48, check 4, against linear algebra with the full matrix."""
    process, law, x = VP(), low_rank(), normal(6, 40)
    full, t, s = GaussianLaw.of(law.mean, dense(law)), at(0.7), at(0.2)
    torch.testing.assert_close(law.flow(process, x, t, s), full.flow(process, x, t, s), rtol=1e-10, atol=1e-10)
    alpha, sigma = process.level(t)
    noised = alpha**2 * dense(law) + sigma**2 * torch.eye(40, dtype=F64)
    clean = law.mean + (x - alpha * law.mean) @ torch.linalg.solve(noised, alpha * dense(law))
    for each in (law, full):
        torch.testing.assert_close(GaussianDenoise(process, each)(x, t), clean, rtol=1e-10, atol=1e-10)
    expected = torch.distributions.MultivariateNormal(alpha * law.mean, noised).log_prob(x)
    for each in (law, full):
        torch.testing.assert_close(each.log_density(process, x, t), expected, rtol=1e-10, atol=1e-10)
    series = AROracle(process, 0.8, 12)
    ar = GaussianDenoise(process, GaussianLaw.of(torch.zeros(12, dtype=F64), series.covariance))
    torch.testing.assert_close(ar(x[:, :12], t), series(x[:, :12], t), rtol=1e-10, atol=1e-10)


def test_low_rank_makes_no_square_matrix():
    """A state of a million numbers: its covariance would take 8 TB."""
    d = 1_000_000
    law = GaussianLaw(torch.zeros(d), torch.linalg.qr(torch.ones(d, 1))[0], torch.ones(1), torch.tensor(0.5))
    x = torch.ones(2, d)
    assert law.flow(VP(), x, at(1.0), at(0.1)).shape == x.shape
    assert law.log_density(VP(), x, at(0.5)).isfinite().all()
    assert GaussianDenoise(VP(), law)(x, at(0.5)).isfinite().all()
    assert GaussianLaw.fit(torch.randn(6, 200_000), 2).basis.shape == (200_000, 2)


def test_fit_finds_the_moments():
    x = normal(50, 3, 4) * torch.arange(1, 13).reshape(3, 4) + 2
    flat = x.flatten(1)
    full, three = GaussianLaw.fit(x), GaussianLaw.fit(x, 3)
    torch.testing.assert_close(full.mean, flat.mean(0))
    torch.testing.assert_close(dense(full), flat.T.cov())
    values, vectors = torch.linalg.eigh(flat.T.cov())
    torch.testing.assert_close(three.variances, values[-3:].flip(0))
    torch.testing.assert_close(three.rest, values[:-3].mean())
    torch.testing.assert_close(three.basis @ three.basis.T, vectors[:, -3:] @ vectors[:, -3:].T)
    assert GaussianLaw.fit(x.float()).mean.dtype == F64
    t, y = at(0.5), normal(2, 3, 4, seed=1)
    torch.testing.assert_close(full.flow(VP(), y, t, at(0.1)).flatten(1), full.flow(VP(), y.flatten(1), t, at(0.1)))


@given(cuts=st.lists(st.integers(1, 59), max_size=4, unique=True), rank=st.sampled_from([None, 0, 2, 4]))
@settings(max_examples=25, deadline=None)
def test_fit_in_chunks_is_the_fit_of_all(cuts, rank):
    """Data of rank 4 about their mean, so that the sketch loses nothing."""
    x = normal(60, 4) @ normal(4, 20, seed=1) + normal(20, seed=2)
    whole, parts = GaussianLaw.fit(x, rank), GaussianLaw.fit(iter(x.tensor_split(sorted(cuts))), rank)
    torch.testing.assert_close(parts.mean, whole.mean)
    torch.testing.assert_close(dense(parts), dense(whole), rtol=1e-9, atol=1e-9)


def test_fit_in_chunks_of_full_rank_is_close():
    """Singular values fall off, and what the sketch forgets goes to the remainder, so that the trace stays."""
    x = normal(400, 60) * 0.9 ** torch.arange(60)
    whole, parts = GaussianLaw.fit(x, 5), GaussianLaw.fit(x.split(50), 5)
    torch.testing.assert_close(parts.variances, whole.variances, rtol=0.01, atol=0)
    torch.testing.assert_close(parts.variances.sum() + 55 * parts.rest, x.T.cov().trace())


def test_shrinkage_helps_where_rows_are_few():
    """As scikit-learn's OAS, whose value for these formulae is computed here densely; nearer to the truth than S."""
    truth = low_rank(30, 3)
    x = truth.draw(VP(), torch.zeros(20, 30, dtype=F64), at(0.0), Rng(0, torch.arange(20)))
    s, d, n = x.T.cov(), 30, 20
    square, trace = (s @ s).trace(), s.trace()
    amount = ((1 - 2 / d) * square + trace**2) / ((n + 1 - 2 / d) * (square - trace**2 / d))
    assert 0.1 < amount < 0.9
    law = GaussianLaw.fit(x, shrink=True)
    torch.testing.assert_close(dense(law), (1 - amount) * s + amount * trace / d * torch.eye(d, dtype=F64))
    assert (dense(law) - dense(truth)).norm() < 0.9 * (s - dense(truth)).norm()
    assert law.log_density(VP(), x, at(0.0)).isfinite().all()
    isotropic = GaussianLaw.fit(torch.eye(4, dtype=F64), rank=0, shrink=True)
    torch.testing.assert_close(dense(isotropic), torch.eye(4, dtype=F64) / 4)


def test_class_laws_and_times_per_sample():
    laws = [low_rank(6, 2, seed=k) for k in (0, 10)]
    both, x, k = stack(laws), normal(3, 6), torch.tensor([1, 0, 1])
    t, s = at(0.9, 0.5, 0.3), at(0.2, 0.1, 0.0)
    own = [laws[c] for c in k]
    rows = [law.flow(VP(), x[i : i + 1], t[i], s[i]) for i, law in enumerate(own)]
    torch.testing.assert_close(both[k].flow(VP(), x, t, s), torch.cat(rows))
    rows = [GaussianDenoise(VP(), law)(x[i : i + 1], t[i]) for i, law in enumerate(own)]
    torch.testing.assert_close(GaussianDenoise(VP(), both[k])(x, t), torch.cat(rows))
    rows = [law.log_density(VP(), x[i : i + 1], t[i]) for i, law in enumerate(own)]
    torch.testing.assert_close(both[k].log_density(VP(), x, t), torch.cat(rows))
    torch.testing.assert_close(both[0].flow(VP(), x, t, s), laws[0].flow(VP(), x, t, s))


def test_draw_depends_on_the_sample_alone():
    law, like = low_rank(6, 2), torch.zeros(4, 6, dtype=F64)
    x = law.draw(VE(), like, at(1.0), Rng(3, torch.arange(4)))
    assert torch.equal(law.draw(VE(), like[2:3], at(1.0), Rng(3, torch.tensor([2]))), x[2:3])
    later = law.draw(VE(), like, at(0.3), Rng(3, torch.arange(4)))
    torch.testing.assert_close(law.flow(VE(), x, at(1.0), at(0.3)), later)
    # The law's draw at t = 1 is the process's prior, up to the data that the prior forgets.
    prior = VE().prior(like, Rng(3, torch.arange(4)))
    torch.testing.assert_close(x, prior, rtol=0, atol=8.0)
    assert (x - prior).abs().max() > 1e-3


def test_fields_have_laws_of_their_own():
    laws, x = {"a": low_rank(6, 2), "b": low_rank(3, 1)}, {"a": normal(2, 6), "b": normal(2, 3)}
    denoise = GaussianDenoise({"a": VP(), "b": Linear()}, laws)
    out = denoise(x, {"a": at(0.5), "b": at(0.2)})
    assert torch.equal(out["b"], GaussianDenoise(Linear(), laws["b"])(x["b"], at(0.2)))


def test_float32_keeps_its_dtype_and_precision():
    law, x = low_rank(), normal(3, 40)
    for t, s in ((1.0, 0.3), (0.3, 0.01)):
        out = law.flow(VP(), x.float(), at(t), at(s))
        assert out.dtype == torch.float32
        torch.testing.assert_close(out.double(), law.flow(VP(), x, at(t), at(s)), rtol=1e-4, atol=1e-4)
    zero = GaussianLaw(at(1.0, 2.0), torch.eye(2, dtype=F64), at(0.0, 1.0), at(0.0))
    torch.testing.assert_close(GaussianDenoise(VP(), zero)(at(3.0, 3.0)[None], at(0.0)), at(1.0, 3.0)[None])


def test_bad_input_is_refused():
    x = normal(5, 8)
    with pytest.raises(ValueError, match="2 rows or more, got 1"):
        GaussianLaw.fit(x[:1])
    with pytest.raises(ValueError, match="2 rows or more, got 0"):
        GaussianLaw.fit([])
    with pytest.raises(ValueError, match="drop rows with nan"):
        GaussianLaw.fit([x, torch.where(x > 1, torch.nan, x)])
    for rank in (-1, 5):
        with pytest.raises(
            ValueError, match=f"rank {rank} is out of range: 5 rows of 8 numbers have ranks from 0 to 4"
        ):
            GaussianLaw.fit(x, rank)
    singular = GaussianLaw.fit(x)
    for bad in (singular, GaussianLaw.fit(x - x.mean(0), 4)):
        with pytest.raises(ValueError, match="covariance without zeros; take t > 0"):
            bad.flow(VP(), x, at(0.0), at(0.5))
        with pytest.raises(ValueError, match="covariance without zeros; take t > 0"):
            bad.log_density(VP(), x, at(0.0))
    assert singular.flow(VP(), x, at(0.5), at(0.0)).isfinite().all()
    assert GaussianLaw.fit(x, shrink=True).flow(VP(), x, at(0.0), at(0.5)).isfinite().all()
    with pytest.raises(ValueError, match="do not fit the mean"):
        GaussianLaw(torch.zeros(3), torch.zeros(3, 2), torch.ones(3), torch.ones(()))
    with pytest.raises(ValueError, match="one size and rank stack"):
        stack([low_rank(6, 2), low_rank(6, 3)])
