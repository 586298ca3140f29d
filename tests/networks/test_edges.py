import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unisci.lattice import cell_matrix
from unisci.networks.edges import (
    differences,
    distances,
    fourier,
    images,
    radial,
    shortest,
    spacing,
    squares,
    to_edge_index,
    wrap,
)

CUBIC = torch.eye(3, dtype=torch.float64)[None]


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def reduced(count: int, seed: int) -> torch.Tensor:
    """Random Niggli-reduced lattices (count, 3, 3), among them the most skewed: all angles 60 or 120 degrees."""
    spglib = pytest.importorskip("spglib")
    raw = torch.randn(count, 3, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3
    raw[0] = torch.tensor([[1, 1, 0], [1, 0, 1], [0, 1, 1]])
    raw[1] = torch.tensor([[2, 0, 0], [-1, 3**0.5, 0], [0, 0, 9]])
    raw[2] = torch.tensor([[-1, 1, 1], [1, -1, 1], [1, 1, -1]])
    out = torch.stack([torch.from_numpy(spglib.niggli_reduce(m.numpy())) for m in raw])
    return torch.linalg.cholesky(out @ out.transpose(1, 2))


@pytest.mark.parametrize("seed", [0, 1])
def test_27_images_are_enough_in_reduced_cells(seed):
    """By comparison with 125, and 343, for all of many differences. In a cell that is not reduced they are not."""
    lattice = reduced(40, seed)
    d = wrap(rand(40, 12, 12, 3, seed=seed))
    r = distances(d, lattice)
    for reach in (2, 3):
        more = squares(d, lattice, images([reach] * 3, d)).amin(-1).sqrt()
        torch.testing.assert_close(r, more, rtol=0, atol=1e-9)
    skewed = torch.tensor([[1.0, 0, 0], [3, 1, 0], [0, 0, 1]], dtype=torch.float64) @ lattice
    far = squares(d, skewed, images([4] * 3, d)).amin(-1).sqrt()
    assert float((distances(d, skewed) - far).max()) > 0.1


def test_shortest_vectors_have_the_shortest_length_and_end_at_the_other_atom():
    lattice, f = reduced(6, 2), rand(6, 5, 3)
    d = differences(f, periodic=True)
    vector = shortest(d, lattice)
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(vector.norm(dim=-1)[:, off], distances(d, lattice)[:, off], rtol=0, atol=1e-10)
    cells = (vector @ lattice.inverse()[:, None]) - (
        f[:, None] - f[:, :, None]
    )  # f_j - f_i, a whole number of cells off
    torch.testing.assert_close(cells, cells.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(shortest(d), d)


def test_single_precision_is_exact_enough():
    lattice, f = reduced(20, 3), rand(20, 8, 3) * 5
    exact = distances(differences(f, True), lattice)
    got = distances(differences(f.float(), True), lattice.float())
    assert float((got - exact).abs().max()) < 2e-3
    off = ~torch.eye(8, dtype=torch.bool)
    assert float(((got - exact).abs() / exact)[:, off].max()) < 1e-4


def test_differences_by_hand():
    f = torch.tensor([[[0.1, 0.9, 0.0], [0.8, 0.2, 3.25]]], dtype=torch.float64)
    expected = torch.tensor([-0.3, 0.3, 0.25], dtype=torch.float64)
    d = differences(f, periodic=True)
    torch.testing.assert_close(d[0, 0, 1], expected)
    torch.testing.assert_close(d[0, 1, 0], -expected)
    torch.testing.assert_close(differences(f, periodic=False)[0, 0, 1], f[0, 1] - f[0, 0])
    torch.testing.assert_close(distances(d, 2 * CUBIC)[0, 0, 1], 2 * expected.norm())
    torch.testing.assert_close(distances(d)[0, 0, 1], expected.norm())


def test_the_derivative_of_the_distance_to_oneself_is_zero():
    f = torch.zeros(1, 2, 3, dtype=torch.float64, requires_grad=True)
    for lattice in (None, CUBIC):
        distances(differences(f, lattice is not None), lattice).sum().backward()
        assert torch.equal(f.grad, torch.zeros_like(f))


def test_spacing_is_the_edge_of_the_cube_of_one_site():
    lattice = torch.tensor([[[2.0, 0, 0], [5, 2, 0], [-3, 1, 2]], [[0, 3.0, 0], [3, 0, 0], [0, 0, 3]]])
    torch.testing.assert_close(spacing(lattice, torch.tensor([8, 1])), torch.tensor([1.0, 3.0]))


def test_features_by_hand():
    x = fourier(torch.tensor([[0.25, 0.0, 0.1]]), 2)[0]
    angles = 2 * math.pi * torch.tensor([0.25, 0.5, 0, 0, 0.1, 0.2])
    torch.testing.assert_close(x, torch.cat([angles.sin(), angles.cos()]))
    g = radial(torch.tensor([0.0, 1.5]), 4, 3.0)
    torch.testing.assert_close(g[0], torch.exp(-0.5 * torch.arange(4.0) ** 2))
    torch.testing.assert_close(g[1], torch.exp(-0.5 * (1.5 - torch.arange(4.0)) ** 2))


@given(st.integers(0, 999))
@settings(max_examples=20, deadline=None)
def test_features_know_no_cells(seed):
    d = rand(4, 3, seed=seed)
    cells = torch.randint(-3, 4, d.shape, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(fourier(d + cells, 8), fourier(d, 8), rtol=0, atol=1e-11)
    assert float(wrap(d + cells).abs().max()) <= 0.5


def test_neighbours_of_simple_crystals():
    """Simple cubic: 6 at 1, 12 at sqrt 2, 8 at sqrt 3, 6 at 2; face-centred: 12; body-centred: 8 and 6."""
    f, mask = torch.zeros(1, 1, 3, dtype=torch.float64), torch.ones(1, 1, dtype=torch.bool)
    for cutoff, count in ((0.9, 0), (1.1, 6), (1.5, 18), (1.8, 26), (2.1, 32)):
        assert to_edge_index(f, mask, CUBIC, cutoff).index.shape == (2, count)
    fcc = torch.tensor([[[0, 1.0, 1], [1, 0, 1], [1, 1, 0]]], dtype=torch.float64)
    bcc = torch.tensor([[[-1.0, 1, 1], [1, -1, 1], [1, 1, -1]]], dtype=torch.float64)
    assert to_edge_index(f, mask, fcc, 1.5).index.shape[1] == 12
    assert to_edge_index(f, mask, bcc, 1.8).index.shape[1] == 8
    assert to_edge_index(f, mask, bcc, 2.1).index.shape[1] == 14


@pytest.mark.parametrize("seed", range(4))
def test_edges_are_those_of_a_search_through_many_images(seed):
    """In a skewed cell too, which is not reduced, and with sites outside the cell and padding."""
    generator = torch.Generator().manual_seed(seed)
    sizes, cutoff = torch.tensor([3, 1, 4]), 4.0
    mask = torch.arange(4) < sizes[:, None]
    f = rand(3, 4, 3, seed=seed) * 3 - 1
    lattice = cell_matrix(2 * torch.randn(3, 6, generator=generator, dtype=torch.float64), sizes)
    edges = to_edge_index(f, mask, lattice, cutoff)
    nodes = mask.nonzero().tolist()
    found = {(*e, *s) for e, s in zip(edges.index.T.tolist(), edges.shift.long().tolist(), strict=True)}
    assert len(found) == edges.index.shape[1], "an edge twice"
    shifts = images([11, 11, 11], f)
    expected = set()
    for target, (b, i) in enumerate(nodes):
        for source, (other, j) in enumerate(nodes):
            if b == other:
                vector = (f[b, j] - f[b, i] + shifts) @ lattice[b]
                near = (vector.norm(dim=-1) <= cutoff) & ((i != j) | (shifts != 0).any(-1))
                expected |= {(source, target, *s) for s in shifts[near].long().tolist()}
    assert found == expected and len(found) > 20
    assert edges.sample.tolist() == [b for b, _ in nodes]


def test_edges_of_molecules():
    x = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [3, 0, 0]], [[0.0, 0, 0], [0.5, 0, 0], [0.7, 0, 0]]])
    mask = torch.tensor([[True, True, True], [True, True, False]])
    edges = to_edge_index(x, mask, None, 1.5)
    assert sorted(edges.index.T.tolist()) == [[0, 1], [1, 0], [3, 4], [4, 3]]
    assert torch.equal(edges.shift, torch.zeros(4, 3)) and edges.sample.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize("cutoff", [0.0, -1.0, float("nan")])
def test_a_cutoff_that_is_not_positive_is_refused(cutoff):
    with pytest.raises(ValueError, match="cutoff must be a positive distance"):
        to_edge_index(torch.zeros(1, 1, 3), torch.ones(1, 1, dtype=torch.bool), None, cutoff)
