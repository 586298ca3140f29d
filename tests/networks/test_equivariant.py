import math

import pytest
import torch

from tests.networks.atoms import bond_e3net, built
from tests.space import BONDS, structures
from unisci.lattice import cell_matrix, cell_numbers
from unisci.networks.equivariant import E3Net, E3NetConfig, strained


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_no_strain_is_no_change_and_a_pressure_scales_all_edges():
    sites = torch.ones(3)
    cell = rand(3, 6)
    lattice = cell_matrix(cell, sites)
    torch.testing.assert_close(strained(lattice, torch.zeros(3, 3, 3).double()), cell, rtol=0, atol=1e-10)
    grown = strained(lattice, 0.1 * torch.eye(3, dtype=torch.float64).expand(3, 3, 3))
    torch.testing.assert_close(grown, cell_numbers(lattice * math.exp(0.1), sites), rtol=0, atol=1e-10)


def test_a_strain_is_that_of_the_gram_matrix():
    """L exp(S) has the Gram matrix L exp(2 S) L^T."""
    lattice, s = cell_matrix(rand(3, 6), torch.ones(3)), 0.3 * rand(3, 3, 3)
    s = s + s.transpose(1, 2)
    new = cell_matrix(strained(lattice, s), torch.ones(3))
    expected = lattice @ torch.matrix_exp(2 * s) @ lattice.transpose(1, 2)
    torch.testing.assert_close(new @ new.transpose(1, 2), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("l_max", [0, 3])
def test_other_degrees_are_refused(l_max):
    with pytest.raises(ValueError, match="l_max must be 1 or 2"):
        E3NetConfig(l_max=l_max)


@pytest.mark.slow
def test_forces_of_springs_are_learned():
    """F_i = sum_j (x_j - x_i) (r - 2) / r over the pairs of four atoms: vectors that no invariant readout gives."""
    torch.manual_seed(0)
    net = E3Net(E3NetConfig(scalars=8, tensors=4, l_max=1, layers=1, radial=12, cutoff=6.0))
    optimiser, g = torch.optim.Adam(net.parameters(), lr=1e-2), torch.Generator().manual_seed(0)
    mask, atom = torch.ones(16, 4, dtype=torch.bool), torch.zeros(16, 4, dtype=torch.long)
    for _ in range(200):
        x = torch.rand(16, 4, 3, generator=g) * 2.5
        d = x[:, None] - x[:, :, None]
        r = d.norm(dim=-1, keepdim=True).clamp(min=1e-3)
        force = (d * (r - 2) / r).sum(2)
        loss = ((net({"atom": atom, "position": x}, {}, mask, {})["position"] - force) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert float(loss.detach()) < 0.15 * float((force**2).mean())


@pytest.mark.slow
def test_outputs_are_smooth_where_atoms_cross_the_cutoff():
    torch.manual_seed(0)
    net = E3Net(E3NetConfig(scalars=8, tensors=3, radial=5, cutoff=3.0)).double()
    for p in net.parameters():
        p.data += 0.3 * torch.randn_like(p)
    inputs = structures([2], periodic=False)
    at = lambda r: net(
        *inputs._replace(state=inputs.state | {"position": torch.tensor([[[0.0, 0, 0], [r, 0, 0]]]).double()})
    )["atom"].detach()
    step = 1e-4
    inside, edge, outside = at(3 - step), at(3.0), at(3 + step)
    assert float((edge - inside).abs().max()) < 1e-6 and torch.equal(edge, outside)
    assert float((at(2.5) - outside).abs().max()) > 1e-5


@pytest.mark.slow
def test_a_bond_beyond_the_cutoff_sends_no_message_but_is_read():
    """Of three atoms in a row: the bond of the ends, out of reach, changes the logits of that bond alone."""
    net, inputs = built(bond_e3net), structures([3], periodic=False, bonds=True)
    x = torch.tensor([[[0.0, 0, 0], [4, 0, 0], [8, 0, 0]]], dtype=torch.float64)

    @torch.no_grad()
    def out(i: int, j: int, value: int) -> dict[str, torch.Tensor]:
        bond = torch.zeros(1, 3, 3, dtype=torch.long)
        bond[0, i, j] = bond[0, j, i] = value
        return net(*inputs._replace(state=inputs.state | {"position": x, "bond": bond}))

    none, near, far = out(0, 1, 0), out(0, 1, BONDS - 1), out(0, 2, BONDS - 1)
    changed = lambda y: (y["bond"] - none["bond"]).abs().amax(-1)[0].triu(1) > 1e-6
    assert changed(far).nonzero().tolist() == [[0, 2]] and changed(near).nonzero().tolist() == [[0, 1], [0, 2], [1, 2]]
    for k in ("atom", "position"):
        assert torch.equal(far[k], none[k]) and float((near[k] - none[k]).abs().max()) > 1e-6
