"""Singular directions against full Jacobians, ranks on low-rank mixtures, edits against the Gaussian flow (S30)."""

import pytest
import torch
from torch.autograd.functional import jacobian

from tests.oracles import normal
from unisci.networks.low_rank import LowRankMixture
from unisci.processes.gaussian import VP, Linear
from unisci.rng import Rng
from unisci.solvers.gaussian_law import GaussianLaw
from unisci.solvers.grids import grid
from unisci.solvers.program import compile_solver, run
from unisci.solvers.teleport import GaussianDenoise
from unisci.theory.gaussian import sensitivity
from unisci.theory.jacobian import edit_along, energy_rank, intrinsic_dimension, jacobian_rank, singular_directions
from unisci.theory.subspaces import LowRankDenoise

F64 = torch.float64


def at(t: float) -> torch.Tensor:
    return torch.tensor(t, dtype=F64)


class Warped:
    """A denoiser whose Jacobian is not symmetric; states (B, 3, 4)."""

    process, schema = VP(), None

    def __call__(self, x, t):
        return (x.flatten(1) @ normal(12, 12, seed=1)).sin().reshape(x.shape) * (1 + t)


def full_jacobian(denoise, x, t):
    return torch.stack([jacobian(lambda y: denoise(y[None], t)[0].flatten(), row).flatten(1) for row in x])


def test_directions_are_those_of_the_full_jacobian():
    denoise, x, t = Warped(), normal(3, 3, 4), at(0.5)
    found = singular_directions(denoise, x, t, 4, Rng(0, torch.arange(3)), rounds=300)
    _, values, right = torch.linalg.svd(full_jacobian(denoise, x, t))
    torch.testing.assert_close(found.values, values[:, :4], rtol=1e-4, atol=1e-6)
    right = right[:, :4] * right[:, :4].gather(2, right[:, :4].abs().argmax(2, keepdim=True)).sign()
    torch.testing.assert_close(found.right.flatten(2), right, rtol=0, atol=1e-2)
    assert found.right.shape == (3, 4, 3, 4)
    alone = singular_directions(denoise, x[1:2], t, 4, Rng(0, torch.tensor([1])), rounds=300)
    torch.testing.assert_close(alone.right, found.right[1:2])


def three_subspaces() -> LowRankDenoise:
    bases = [torch.linalg.qr(normal(24, r, seed=r))[0] for r in (2, 4, 3)]
    return LowRankDenoise(VP(), LowRankMixture(bases).requires_grad_(False))


def test_rank_is_that_of_the_component():
    """S30, check 6: at small noise, on a point of each component, singular values above 1e-3 of the first."""
    denoise, t = three_subspaces(), at(1e-3)
    x = torch.stack([u @ normal(u.shape[1], seed=9) for u in denoise.model.bases()])
    rng = Rng(0, torch.arange(3))
    with torch.no_grad():
        values = singular_directions(denoise, VP().perturb(x, t, rng), t, 8, rng).values
    assert (values > 1e-3 * values[:, :1]).sum(1).tolist() == [2, 4, 3]
    assert jacobian_rank(denoise, VP().perturb(x, t, rng), t, 8, rng).tolist() == [2, 4, 3]
    torch.testing.assert_close(
        values, torch.linalg.svdvals(full_jacobian(denoise, VP().perturb(x, t, rng), t))[:, :8], rtol=0, atol=1e-8
    )
    times = torch.tensor([1e-3, 0.02, 0.2], dtype=F64)
    curve = intrinsic_dimension(denoise, x, times, 8, rng)
    late = jacobian_rank(denoise, VP().perturb(x, times[2], rng.at(2)), times[2], 8, rng.at(2))
    assert curve[2] == late.double().mean()
    assert curve[0] == curve[1] == 3 and curve[2] > 3.5
    assert curve.min() == 3


def test_energy_rank():
    values = torch.tensor([[3.0, 4.0**0.5, 1e-3, 0], [1, 1, 1, 1], [1, 0, 0, 0]])
    assert energy_rank(values, 0.6).tolist() == [1, 3, 1]
    assert energy_rank(values, 0.99).tolist() == [2, 4, 1]
    assert energy_rank(torch.ones(4), 0.5) == 2


def gaussian(process) -> GaussianDenoise:
    basis = torch.linalg.qr(normal(6, 3))[0]
    return GaussianDenoise(
        process, GaussianLaw(normal(6, seed=1), basis, torch.tensor([4.0, 1.0, 0.3]).double(), at(0.01))
    )


@pytest.mark.parametrize("process", [VP(), Linear()], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("index", [0, 1])
def test_an_edit_moves_the_sample_along_its_direction(process, index):
    """Of Gaussian data the directions are eigenvectors, and the flow says how far a push goes."""
    denoise, program = gaussian(process), compile_solver(process, grid(process, 60, start=0.5), "dpm++2m")
    x, rng = normal(4, 6, seed=2), Rng(0, torch.arange(4))
    moved = edit_along(denoise, x, program, 0.7, rng, index, most=3) - run(denoise, x, program)
    u = denoise.law.basis[:, index]
    u = u * u[u.abs().argmax()].sign()
    reach = 0.7 * sensitivity(denoise.law, process, program.times[:1])[0, index]
    torch.testing.assert_close(moved, (reach * u).expand(4, 6), rtol=0.02, atol=2e-3)


class Recorded:
    """A Denoise that remembers where it was asked."""

    def __init__(self, denoise):
        self.denoise, self.process, self.schema, self.seen = denoise, denoise.process, denoise.schema, []

    def __call__(self, x, t):
        self.seen.append(x)
        return self.denoise(x, t)


def test_a_masked_edit_keeps_the_rest():
    """The Jacobian has rank 3: of the direction that changes entries 1 to 5 most, what changes entry 0 is taken out."""
    law = gaussian(VP()).law
    denoise = Recorded(GaussianDenoise(VP(), GaussianLaw(law.mean, law.basis, law.variances, at(0.0))))
    program = compile_solver(VP(), grid(VP(), 40, start=0.5), "dpm++2m")
    x, rng, keep, t = normal(4, 6, seed=2), Rng(0, torch.arange(4)), torch.arange(6) < 1, program.times[0]

    def pushed(**options):
        """Where the program starts, less x."""
        denoise.seen.clear()
        edit_along(denoise, x, program, 0.5, rng, **options)
        return denoise.seen[-program.nfe] - x

    for v, kept in ((pushed(most=1, keep=keep), True), (pushed(most=1), False)):
        torch.testing.assert_close(v.norm(dim=1), torch.full((4,), 0.5, dtype=F64))
        change = denoise(x + v, t) - denoise(x, t)
        assert (change[:, 0].abs().max() < 1e-9) == kept
        assert change[:, 1:].norm(dim=1).min() > 0.1
    with pytest.raises(ValueError, match="lower most, now 3"):
        edit_along(denoise, x, program, 0.5, rng, most=3, keep=torch.arange(6) < 4)


def test_bad_input_is_refused():
    denoise, x, rng = gaussian(VP()), normal(2, 6), Rng(0, torch.arange(2))
    times = grid(VP(), 5, start=0.5)
    with pytest.raises(ValueError, match="draws noise, which would hide the edit"):
        edit_along(denoise, x, compile_solver(VP(), times, "ancestral"), 1.0, rng)
    for index in (-1, 3):
        with pytest.raises(ValueError, match=f"index {index} does not lie in 0, ..., 2"):
            edit_along(denoise, x, compile_solver(VP(), times, "ddim"), 1.0, rng, index, most=3)
    for most in (0, 7):
        with pytest.raises(ValueError, match=f"most = {most} directions do not lie in 1, ..., 6"):
            singular_directions(denoise, x, at(0.5), most, rng)
    with pytest.raises(ValueError, match="must not detach"):
        singular_directions(lambda y, t: y.detach() + 0 * y, x, at(0.5), 2, rng)
