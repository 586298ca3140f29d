import pytest
import torch
import torch.nn.functional as F

from tests.laws import no_host_reads
from tests.space import randomised, structures
from unisci.lattice import cell_matrix, wrap
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig, Layer
from unisci.networks.sites import share

SMALL = {"width": 16, "layers": 2, "heads": 4, "edge": 12, "frequencies": 3, "radial": 6}


def network(templates: bool = True, **sizes) -> AtomTransformer:
    torch.manual_seed(0)
    return AtomTransformer(AtomTransformerConfig(**{**SMALL, **sizes}, templates=templates)).double()


@pytest.fixture
def inputs():
    """Four crystals, the second and fourth without a template."""
    return structures([5, 3, 4, 5], templates=True)


def test_shapes(inputs):
    out = network()(*inputs)
    assert {k: tuple(v.shape) for k, v in out.items()} == {"atom": (4, 5, 100), "position": (4, 5, 3), "cell": (4, 6)}


def test_a_layer_is_its_equations():
    """Site by site: attention biased by e_ij, attended geometry, and the mean of the messages over what is seen."""
    torch.manual_seed(0)
    layer, (b, n, width, edge) = randomised(Layer(8, 2, 3)), (2, 4, 8, 3)
    h, e, c = (torch.randn(b, *shape, dtype=torch.float64) for shape in ((n, width), (n, n, edge), (n, width)))
    seen = torch.rand(b, n, n) < 0.6
    seen |= torch.eye(n, dtype=torch.bool)
    hidden = torch.zeros(b, 1, n, n).double().masked_fill(~seen[:, None], -1e4)
    got = layer(h, e, c, hidden, share(seen, torch.float64)[:, :, None])
    norm = lambda x: (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    for k in range(b):
        moved = [m.chunk(6) for m in layer.modulation(c[k])]
        x = torch.stack([norm(h[k, i]) * (1 + m[1]) + m[0] for i, m in enumerate(moved)])
        qkv, own, other = layer.from_x(x).split(layer.sizes, -1)
        q, key, v = qkv.chunk(3, -1)
        for i, m in enumerate(moved):
            who = seen[k, i].nonzero()[:, 0].tolist()
            what, where = [], []
            for head in range(2):
                part = slice(4 * head, 4 * head + 4)
                bias = [layer.from_e(e[k, i, j])[head] for j in who]
                a = torch.stack([q[i, part] @ key[j, part] / 2 + s for j, s in zip(who, bias, strict=True)]).softmax(0)
                what.append(a @ v[who][:, part])
                where.append(a @ e[k, i, who])
            message = [F.silu(own[i] + other[j] + layer.from_e(e[k, i, j])[2:]) for j in who]
            y = h[k, i] + (1 + m[2]) * layer.out(torch.cat([*what, *where, torch.stack(message).mean(0)]))
            y = y + (1 + m[5]) * layer.feed(norm(y) * (1 + m[4]) + m[3])
            torch.testing.assert_close(got[k, i], y, rtol=0, atol=1e-10)


def test_moving_to_the_template_is_a_linear_readout(inputs):
    """Weights of -1 on r_ij and 0 elsewhere: each atom goes to its place in the template, wherever that lies."""
    net = network()
    with torch.no_grad():
        net.to_position.weight.bias[2] = -1
    generator = torch.Generator().manual_seed(0)
    small = 0.1 * torch.randn(4, 5, 3, generator=generator, dtype=torch.float64) * inputs.mask[..., None]
    small = small - small.sum(1, keepdim=True) / inputs.mask.sum(1)[:, None, None] * inputs.mask[..., None]
    origin = torch.tensor([0.3, 0.9, -1.7], dtype=torch.float64)
    template = inputs.state["position"] + small + origin
    got = net(*inputs._replace(given=inputs.given | {"template_position": template}))["position"]
    exists = inputs.given["template_distance"] >= 0
    assert exists.tolist() == [True, False, True, False]
    torch.testing.assert_close(got[exists], small[exists], rtol=0, atol=1e-12)
    assert float(got[~exists].detach().abs().max()) == 0


def test_a_force_along_differences_is_a_linear_readout(inputs):
    """Weights of 1 on sin(2 pi d) / 2 pi: two close atoms move towards each other."""
    net = network(templates=False)
    with torch.no_grad():
        net.to_position.weight.bias[0] = 1
    position = torch.tensor([[[0.99, 0.5, 0.5], [0.01, 0.5, 0.5]]], dtype=torch.float64)
    cut = {k: v[:1, :2] if v.ndim > 1 and k != "cell" else v[:1] for k, v in inputs.state.items()}
    out = net(cut | {"position": position}, {"position": torch.ones(1)}, inputs.mask[:1, :2], {})["position"]
    expected = torch.tensor([[0.01, 0, 0], [-0.01, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(out[0], expected, rtol=0, atol=1e-4)


def test_the_number_of_sites_may_be_told(inputs):
    """A part of a crystal has the cell of the whole: "sites" is what its numbers are taken for."""
    net = randomised(network())
    out = net(*inputs)
    same = net(*inputs._replace(given=inputs.given | {"sites": inputs.mask.sum(1)}))
    other = net(*inputs._replace(given=inputs.given | {"sites": inputs.mask.sum(1) + 3}))
    assert all(torch.equal(out[k], same[k]) and not torch.equal(out[k], other[k]) for k in out)


def test_molecules_and_bad_widths_are_refused(inputs):
    state = {k: v for k, v in inputs.state.items() if k != "cell"}
    with pytest.raises(ValueError, match='no "cell"'):
        network()(*inputs._replace(state=state))
    with pytest.raises(ValueError, match="width 10 is not a multiple of heads 4"):
        AtomTransformerConfig(width=10, heads=4)


def test_nothing_waits_for_the_device(inputs):
    away = lambda fields: {k: v.to("meta") for k, v in fields.items()}
    net = network().to("meta")
    there = (away(inputs.state), away(inputs.t), inputs.mask.to("meta"), away(inputs.given))
    with no_host_reads("meta"), torch.no_grad():
        net(*there)


def test_autocast_leaves_distances_exact(inputs):
    """bfloat16 in the products of the cell would misplace atoms by tenths of an angstrom."""
    net = randomised(network()).float()
    seen = []
    net.pairs.geometry.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    single = inputs._replace(
        state={k: v.float() if v.is_floating_point() else v for k, v in inputs.state.items()},
        t={k: v.float() for k, v in inputs.t.items()},
        given={k: v.float() for k, v in inputs.given.items()},
    )
    net(*single)
    with torch.autocast("cpu", torch.bfloat16):
        out = net(*single)
    torch.testing.assert_close(seen[0], seen[1], rtol=0, atol=1e-6)
    assert all(bool(v.isfinite().all()) for v in out.values())


@pytest.mark.slow
def test_eight_crystals_are_learned_by_heart():
    """Distinct elements at random places in random cells: the composition alone tells structure and cell. Displacements
    at noise of .01 to .1 and noised cells are undone at an error far under that of no answer, about .8 and 1."""
    g = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    atom = torch.stack([torch.randperm(100, generator=g)[:5] for _ in range(8)]).repeat(4, 1)
    position, cell = (torch.rand(8, *shape, generator=g).repeat(4, *(1,) * len(shape)) for shape in ((5, 3), (6,)))
    net = AtomTransformer(AtomTransformerConfig(width=48, layers=2, heads=4, edge=16, frequencies=4, radial=8))
    optimiser, mask, steps = torch.optim.AdamW(net.parameters()), torch.ones(32, 5, dtype=torch.bool), 250

    def errors():
        t = torch.rand(32, generator=g)
        sigma = (0.01 * 10**t)[:, None, None]
        x = position + sigma * torch.randn(position.shape, generator=g)
        target = wrap(position - x) / sigma
        noisy = cell + t[:, None] * torch.randn(cell.shape, generator=g)
        out = net({"atom": atom, "position": x, "cell": noisy}, {"position": t, "cell": t}, mask, {})
        square = (out["position"] - target + target.mean(1, keepdim=True)) ** 2
        return torch.stack([square.mean(), ((out["cell"] - cell) ** 2).mean()])

    untrained = errors().detach()
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 4e-3 * min(1, (step + 1) / 20, (steps - step) / 100)
        optimiser.zero_grad()
        errors().sum().backward()
        optimiser.step()
    with torch.no_grad():
        position_error, cell_error = torch.stack([errors() for _ in range(4)]).mean(0) / untrained
    assert position_error < 0.3 and cell_error < 0.05, f"position {position_error:.3f}, cell {cell_error:.3f}"


def test_cells_beyond_all_bounds_are_clamped(inputs):
    net = randomised(network())
    far = inputs._replace(state=inputs.state | {"cell": torch.full((4, 6), 1e6, dtype=torch.float64)})
    near = inputs._replace(state=inputs.state | {"cell": torch.full((4, 6), 6.0, dtype=torch.float64)})
    assert all(torch.equal(a, b) for a, b in zip(net(*far).values(), net(*near).values(), strict=True))
    assert bool(cell_matrix(near.state["cell"], inputs.mask.sum(1)).isfinite().all())
