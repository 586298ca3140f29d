"""The coefficients of one step, against the marginals of Gaussian data and the programs of the same name."""

import pytest
import torch

from tests.oracles import GaussianOracle, normal
from unisci.processes.gaussian import EDM, VE, VP, Cosine, Linear, SubVP
from unisci.rng import Rng
from unisci.solvers.program import compile_solver
from unisci.solvers.reverse_kernel import ancestral, ddim

F64 = torch.float64
T, S, ZERO = (torch.tensor(v, dtype=F64) for v in (0.7, 0.2, 0.0))
each_process = pytest.mark.parametrize(
    "process", [VP(), SubVP(), VE(), EDM(), Cosine(), Linear()], ids=lambda p: type(p).__name__
)


@each_process
@pytest.mark.parametrize("variance", [0.0, 0.8])
def test_ancestral_is_the_law_of_gaussian_data(process, variance):
    """N(m_t, p_t) goes to N(m_s, p_s) whatever the step, and with variance 0 a point to its own noise."""
    (alpha, sigma), (alpha_s, sigma_s) = process.level(T), process.level(S)
    keep, gain, deviation = ancestral(process, T, S, variance)
    p, p_s = alpha**2 * variance + sigma**2, alpha_s**2 * variance + sigma_s**2
    slope = keep + gain * alpha * variance / p
    torch.testing.assert_close(slope**2 * p + deviation**2, p_s)
    torch.testing.assert_close(slope * alpha + gain * (1 - alpha**2 * variance / p), alpha_s)
    torch.testing.assert_close(slope * p, alpha / alpha_s * p_s)  # the covariance of x_s and x_t


@each_process
@pytest.mark.parametrize("kernel", [ancestral, ddim])
def test_the_program_of_the_same_name(process, kernel):
    denoise, rng, x = GaussianOracle(process, 0.3, 0.5), Rng(0, torch.arange(5)), normal(5, 2)
    want, _ = compile_solver(process, torch.stack([T, S]), kernel.__name__).step(denoise, x, T, S, None, rng)
    keep, gain, deviation = kernel(process, T, S).on(x)
    got = keep * x + gain * denoise(x, T) + deviation * rng.normal("x", 0, (5, 2), 0).double()
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@each_process
@pytest.mark.parametrize("kernel", [ancestral, ddim])
def test_the_ends(process, kernel):
    """What is clean stays, and the last step goes to the prediction, without noise."""
    assert [v.item() for v in kernel(process, ZERO, ZERO)] == [1, 0, 0]
    assert [v.item() for v in kernel(process, T, ZERO)] == [0, 1, 0]
    assert [v.item() for v in ancestral(process, ZERO, ZERO, 0.8)] == [1, 0, 0]
    assert [v.item() for v in ancestral(process, T, ZERO, 0.8)] == [0, 1, 0]


def test_a_time_for_each_site():
    """In the dtype of x, broadcasting from the left; a scalar stays one."""
    t, x = torch.tensor([[0.7, 0.0], [0.4, 0.7]], dtype=F64), torch.zeros(2, 2, 3)
    for kernel in (ancestral, ddim):
        each = kernel(VP(), t, t / 2).on(x)
        assert all(v.shape == (2, 2, 1) and v.dtype == x.dtype for v in each)
        alone = kernel(VP(), t[1, 0], t[1, 0] / 2).on(x)
        assert [v[1, 0, 0].item() for v in each] == [v.item() for v in alone] and alone.keep.shape == ()
        assert [v[0, 1, 0].item() for v in each] == [1, 0, 0]
