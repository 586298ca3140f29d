import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.lattice import MEAN, STD, cell_matrix, cell_numbers

SIZES = torch.tensor([1, 2, 5, 20, 64])


@given(st.integers(0, 9999), st.floats(0.1, 4.0))
@settings(max_examples=40, deadline=None)
def test_numbers_to_cells_and_back(seed, spread):
    generator = torch.Generator().manual_seed(seed)
    cell = spread * torch.randn(5, 6, generator=generator, dtype=torch.float64)
    lattice = cell_matrix(cell, SIZES)
    torch.testing.assert_close(cell_numbers(lattice, SIZES), cell, rtol=0, atol=1e-11)
    torch.testing.assert_close(cell_matrix(cell_numbers(lattice, SIZES), SIZES), lattice, rtol=1e-12, atol=0)
    assert torch.equal(lattice.triu(1), torch.zeros_like(lattice)), "not lower triangular"
    assert bool((lattice.diagonal(dim1=1, dim2=2) > 0).all())


def test_a_cell_by_hand():
    """L = [[a, 0, 0], [u a, b, 0], [v a, w b, c]] of 8 sites: lengths for one site are halved."""
    lattice = torch.tensor([[[4.0, 0, 0], [1, 6, 0], [-2, 3, 10]]], dtype=torch.float64)
    raw = torch.tensor([[2.0, 3, 5, 0, 0, 0]], dtype=torch.float64).log()
    raw[0, 3:] = torch.tensor([1 / 4, -2 / 4, 3 / 6])
    expected = (raw - raw.new_tensor(MEAN)) / raw.new_tensor(STD)
    torch.testing.assert_close(cell_numbers(lattice, torch.tensor([8])), expected)


def test_numbers_of_a_supercell_differ_only_by_its_shape():
    """Twice as long along all axes with eight times the sites: the same numbers."""
    lattice = cell_matrix(torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), SIZES[:3])
    small, large = cell_numbers(lattice, SIZES[:3]), cell_numbers(2 * lattice, 8 * SIZES[:3])
    torch.testing.assert_close(small, large, rtol=0, atol=1e-5)


def test_both_ways_have_derivatives():
    generator = torch.Generator().manual_seed(0)
    cell = torch.randn(2, 6, generator=generator, dtype=torch.float64, requires_grad=True)
    sites = torch.tensor([3, 7])
    assert torch.autograd.gradcheck(lambda c: cell_matrix(c, sites), cell)
    there_and_back = lambda c: cell_numbers(cell_matrix(c, sites) * 1.1, sites)
    jacobian = torch.autograd.functional.jacobian(lambda c: there_and_back(c).sum(0), cell)
    torch.testing.assert_close(jacobian[:, 0], torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_precision_is_kept(dtype):
    cell = torch.zeros(2, 6, dtype=dtype)
    lattice = cell_matrix(cell, torch.tensor([1, 2]))
    assert lattice.dtype == cell_numbers(lattice, torch.tensor([1, 2])).dtype == dtype


def test_constants_are_those_of_mp20():
    """Measured on the 16,866 training rows, Niggli reduced by spglib; sizes above one thing, shapes another."""
    mean, std = [0.851, 0.909, 1.159, 0.077, 0.078, -0.032], [0.247, 0.223, 0.336, 0.336, 0.333, 0.309]
    torch.testing.assert_close(torch.tensor(MEAN), torch.tensor(mean), rtol=0, atol=5.1e-3)
    torch.testing.assert_close(torch.tensor(STD), torch.tensor(std), rtol=0, atol=5.1e-3)
