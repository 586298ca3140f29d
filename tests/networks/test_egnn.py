import torch
import torch.nn.functional as F

from tests.space import BONDS, randomised, structures
from unisci.lattice import cell_matrix, cell_numbers
from unisci.networks.egnn import EGNN, EGNNConfig, Frame, Layer


def network(**sizes) -> EGNN:
    torch.manual_seed(0)
    return EGNN(EGNNConfig(**{"width": 16, "layers": 2, "frequencies": 3, "radial": 6, **sizes})).double()


def test_fields_out_are_fields_in():
    for periodic in (True, False):
        inputs = structures([4, 2], periodic=periodic)
        out = network()(*inputs)
        assert out.keys() == inputs.state.keys()
        assert out["atom"].shape == (2, 4, 100) and out["position"].shape == (2, 4, 3)


def test_a_step_of_the_paper_by_hand():
    """x_i += mean_j (x_i - x_j) phi_x(m_ij): with phi_x = tanh b everywhere two atoms part along their line, and the
    mean is over the two sites that each sees, itself too."""
    net = network(layers=1)
    with torch.no_grad():
        net.layers[0].step[-1].bias.fill_(0.5)
    inputs = structures([2], periodic=False)
    x = torch.tensor([[[0.0, 0, 0], [1, 2, 0]]], dtype=torch.float64)
    out = net(*inputs._replace(state=inputs.state | {"position": x}))["position"].detach()
    half = torch.tanh(torch.tensor(0.5, dtype=torch.float64)) / 2
    torch.testing.assert_close(out[0], half * torch.stack([x[0, 0] - x[0, 1], x[0, 1] - x[0, 0]]))


def test_a_layer_is_its_equations():
    """m_ij of both ends and their geometry, the mean of m_ij over j into h_i; here i sees all but the last j."""
    torch.manual_seed(0)
    layer, n = randomised(Layer(6, 4)), 3
    h, d, features = (torch.randn(1, *shape, dtype=torch.float64) for shape in ((n, 6), (n, n, 3), (n, n, 4)))
    mean = torch.tensor([0.5, 0.5, 0], dtype=torch.float64).expand(1, n, 1, n)
    got, step = layer(h, d, features, mean)
    x = layer.norm(h)[0]
    for i in range(n):
        m = [layer.own(x[i]) + layer.other(x[j]) + layer.pair(features[0, i, j]) for j in range(2)]
        m = [F.silu(layer.message(F.silu(v))) for v in m]
        expected = h[0, i] + layer.feed(torch.cat([x[i], (m[0] + m[1]) / 2]))
        torch.testing.assert_close(got[0, i], expected, rtol=0, atol=1e-12)
        moved = sum(-d[0, i, j] * torch.tanh(layer.step(m[j])) for j in range(2)) / 2
        torch.testing.assert_close(step[0, i], moved, rtol=0, atol=1e-12)


def test_later_layers_see_moved_atoms():
    """Two layers of pure steps: the second acts on the differences that the first has stretched."""
    net = network(layers=2)
    with torch.no_grad():
        for layer in net.layers:
            layer.step[-1].bias.fill_(0.5)
    inputs = structures([2], periodic=False)
    x = torch.tensor([[[0.0, 0, 0], [1, 0, 0]]], dtype=torch.float64)
    out = net(*inputs._replace(state=inputs.state | {"position": x}))["position"].detach()
    stretch = 1 + torch.tanh(torch.tensor(0.5, dtype=torch.float64))
    torch.testing.assert_close(out[0, 1, 0], (stretch**2 - 1) / 2)


def test_the_lattice_enters_through_its_gram_matrix():
    """DiffCSP: without L L^T the network is not told the cell. Its scale is told too, or no volume could be found."""
    inputs, net = structures([4, 3]), randomised(network())
    lattice = cell_matrix(inputs.state["cell"], inputs.mask.sum(1))
    larger = inputs.state | {"cell": cell_numbers(1.1 * lattice, inputs.mask.sum(1))}
    out, other = net(*inputs), net(*inputs._replace(state=larger))
    assert all(float((out[k] - other[k]).detach().abs().max()) > 1e-5 for k in out)
    d, r, told = Frame.of(inputs.state, inputs.mask.sum(1)).pairs(inputs.state["position"], 3)
    a, b, c = lattice[0]
    expected = torch.asinh(torch.stack([a @ a, b @ a, b @ b, c @ a, c @ b, c @ c]))
    torch.testing.assert_close(told[0, ..., :6], expected.expand(4, 4, 6))
    assert d.shape == (2, 4, 4, 3) and r.shape == (2, 4, 4)


def test_a_molecule_is_told_nothing_of_axes():
    d, _, told = Frame(None, 0.0).pairs(torch.rand(1, 3, 3), 2)
    assert told.shape == (1, 3, 3, 18) and not bool(told.any())
    torch.testing.assert_close(d, -d.transpose(1, 2))


def test_the_bond_is_a_part_of_the_geometry():
    """At each layer, beside the distances of the atoms as they have moved; the head reads those of the last."""
    net, inputs, seen = randomised(network(bonds=BONDS)), structures([4, 3], periodic=False, bonds=True), []
    for module in (*(layer.pair for layer in net.layers), net.to_bond.pair):
        module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(*inputs)
    told = net.bond(inputs.state["bond"])
    assert len(seen) == 3 and all(torch.equal(features[..., -6:], told) for features in seen)
    assert torch.equal(seen[2], seen[1]) and not torch.equal(seen[1], seen[0])


def test_without_bonds_there_are_no_weights_for_them():
    """So that weights from before fit, and are drawn as before."""
    plain, bonded = network(), network(bonds=BONDS)
    more = {k.split(".")[0] for k in bonded.state_dict().keys() - plain.state_dict().keys()}
    assert more == {"bond", "rank", "to_bond"} and not plain.state_dict().keys() - bonded.state_dict().keys()
    assert torch.equal(plain.to_atom.weight, bonded.to_atom.weight)
