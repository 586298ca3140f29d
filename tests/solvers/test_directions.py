"""Programs by direction: at first the same as their table, exact for a Gaussian law, better on noises never seen."""

import pytest
import torch

from tests.oracles import GaussianOracle, normal, three_modes
from tests.solvers.test_program import Counting
from unisci.processes.gaussian import VE, VP
from unisci.rng import Rng
from unisci.solvers.directions import Directional, by_direction, refine_directions
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.refine import Problem
from unisci.solvers.sample import sample

F64 = torch.float64


class Gauss:
    """Exact denoiser of N(m, Q diag(s^2) Q^T)."""

    schema = None

    def __init__(self, process, q, s, m):
        self.process, self.q, self.s, self.m = process, q, s, m

    def __call__(self, x, t):
        alpha, sigma = self.process.level(t)
        z = (x - alpha * self.m) @ self.q
        return self.m + (z * alpha * self.s**2 / (alpha**2 * self.s**2 + sigma**2)) @ self.q.T


def rotation(d: int) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d))[0]


def solved(denoise, x) -> Problem:
    process = denoise.process
    fine = compile_solver(process, grid(process, 300, end=1e-5), "unipc3")
    return Problem(denoise, process, x, run(denoise, x, fine))


@pytest.fixture(scope="module")
def modes():
    return solved(three_modes(VP()), normal(1280, 2))


@pytest.mark.parametrize("name", ["ddim", "dpm++2m", "unipc2"])
def test_unrefined_it_is_its_table(name, modes):
    process = modes.process
    program = compile_solver(process, grid(process, 6, end=1e-3), name)
    ours = by_direction(program, rotation(2))
    counting = Counting(modes.denoise)
    out = sample(counting, modes.noises, ours.times, ours)
    expected = run(modes.denoise, modes.noises, program)
    alpha, _ = process.level(torch.tensor(1e-3, dtype=F64))
    torch.testing.assert_close(out, expected / alpha, atol=1e-9, rtol=0)  # it ends in the clean value
    assert counting.times == pytest.approx(list(ours.times[:-1]))


def test_a_gaussian_law_in_its_axes_takes_two_calls():
    process, q = VP(), rotation(3)
    law = Gauss(process, q, torch.tensor([0.05, 0.4, 2.0], dtype=F64), torch.tensor([1.0, 0, -2], dtype=F64))
    x = normal(400, 3)
    reference = solved(law, x)
    problem = Problem(law, process, x[:200], reference.reference[:200])
    start = by_direction(compile_solver(process, grid(process, 2, end=1e-3), "ddim"), q)
    found = refine_directions(start, problem, 100)
    error = lambda program: float(
        (sample(law, x[200:], program.times, program) - reference.reference[200:]).norm()
        / reference.reference[200:].norm()
    )
    assert error(found) < 1e-4 < 0.1 < error(start)
    wrong = by_direction(compile_solver(process, grid(process, 2, end=1e-3), "ddim"), torch.eye(3, dtype=F64))
    other = refine_directions(wrong, problem, 100)
    assert error(other) > 10 * error(found)  # the axes matter


def test_refinement_pays_on_noises_it_never_saw(modes):
    program = compile_solver(modes.process, grid(modes.process, 5, end=1e-3), "unipc2")
    train, held = (
        Problem(modes.denoise, modes.process, modes.noises[a:b], modes.reference[a:b])
        for a, b in ((0, 1024), (1024, 1280))
    )
    start = by_direction(program, torch.eye(2, dtype=F64))
    found = refine_directions(start, train, 40)
    after, before = (held.loss(sample(modes.denoise, held.noises, p.times, p)) for p in (found, start))
    assert float(after) < 0.7 * float(before)
    assert float(train.loss(sample(modes.denoise, train.noises, found.times, found))) < float(after) * 1.5
    again = refine_directions(start, train, 0)
    torch.testing.assert_close(again.weight, start.weight)


def test_a_sample_does_not_depend_on_its_batch(modes):
    ours = by_direction(compile_solver(modes.process, grid(modes.process, 4, end=1e-3), "dpm++2m"), rotation(2))
    out = sample(modes.denoise, modes.noises[:8], ours.times, ours)
    one = sample(modes.denoise, modes.noises[3:4], ours.times, ours)
    torch.testing.assert_close(one, out[3:4], atol=1e-12, rtol=0)


def test_what_does_not_fit_is_refused(modes):
    program = compile_solver(modes.process, grid(modes.process, 4, end=1e-3), "ddim")
    with pytest.raises(ValueError, match="orthonormal"):
        by_direction(program, torch.ones(2, 2, dtype=F64))
    with pytest.raises(ValueError, match="must decrease"):
        by_direction(compile_solver(modes.process, grid(modes.process, 4, end=1e-3), "heun"), torch.eye(2, dtype=F64))
    ours = by_direction(program, torch.eye(2, dtype=F64))
    with pytest.raises(ValueError, match=r"states are \(B, 2\)"):
        sample(modes.denoise, torch.zeros(4, 3, dtype=F64), ours.times, ours)
    other = GaussianOracle(VE(), 0.0, 1.0)
    with pytest.raises(ValueError, match="was made for"):
        sample(other, modes.noises, ours.times, ours, Rng(0, torch.arange(1280)))


def test_a_step_by_hand():
    """One step of y -> g y + (e^lam' - e^lam) w E + b in turned axes, landing on the clean value."""
    process, q = VP(), rotation(2)
    numbers = torch.tensor([[2.0, 3.0]], dtype=F64)
    ours = Directional(process, (0.8, 0.3), q, numbers, numbers[None] / 7, numbers + 1)
    law, x = GaussianOracle(process, 0.5, 1.0), normal(4, 2)
    (a, a_next), (s, s_next) = process.level(torch.tensor([0.8, 0.3], dtype=F64))
    clean = law(x, torch.tensor(0.8, dtype=F64))
    y = (x @ q / s) * numbers + (a_next / s_next - a / s) * numbers / 7 * (clean @ q) + numbers + 1
    torch.testing.assert_close(sample(law, x, ours.times, ours), y * s_next / a_next @ q.T)
