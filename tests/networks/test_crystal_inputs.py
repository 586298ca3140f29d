import pytest
import torch

from tests.space import MASK_STATE, randomised, structures
from unisci.lattice import wrap
from unisci.networks.atom_transformer import AtomTransformer, AtomTransformerConfig
from unisci.networks.crystal_inputs import Condition, Template
from unisci.networks.edges import differences

SMALL = {"width": 16, "layers": 2, "heads": 4, "edge": 12, "frequencies": 3, "radial": 6}


def network(templates: bool = True, **sizes) -> AtomTransformer:
    torch.manual_seed(0)
    return AtomTransformer(AtomTransformerConfig(**{**SMALL, **sizes}, templates=templates)).double()


@pytest.fixture
def inputs():
    """Four crystals, the second and fourth without a template."""
    return structures([5, 3, 4, 5], templates=True)


def test_no_template_is_the_same_whichever_way_it_is_said(inputs):
    net = randomised(network())
    none = -torch.ones(4, dtype=torch.float64)
    nothing = net(*inputs._replace(given={}))
    junk = {"template_position": torch.full((4, 5, 3), torch.nan), "template_cell": torch.full((4, 6), torch.nan)}
    said = net(*inputs._replace(given=inputs.given | {"template_distance": none}))
    without_values = net(*inputs._replace(given=junk | {"template_distance": none}))
    mixed = net(*inputs)
    for k in nothing:
        torch.testing.assert_close(said[k], nothing[k], rtol=0, atol=1e-12)
        torch.testing.assert_close(without_values[k], nothing[k], rtol=0, atol=1e-12)
        torch.testing.assert_close(mixed[k][1::2], nothing[k][1::2], rtol=0, atol=1e-12)
        assert float((mixed[k] - nothing[k])[0::2].detach().abs().amax()) > 1e-4


def test_what_is_said_of_no_template_leaves_derivatives_finite(inputs):
    net = randomised(network())
    junk = {"template_position": torch.full((4, 5, 3), torch.nan), "template_cell": torch.full((4, 6), torch.nan)}
    given = junk | {"template_distance": -torch.ones(4, dtype=torch.float64)}
    sum(v.sum() for v in net(*inputs._replace(given=given)).values()).backward()
    assert all(bool(p.grad.isfinite().all()) for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("key", ["template_position", "template_cell", "template_distance"])
def test_all_of_the_template_matters(inputs, key):
    net = randomised(network())
    changed = {key: inputs.given[key] + torch.rand(inputs.given[key].shape, dtype=torch.float64)}
    out, other = net(*inputs), net(*inputs._replace(given=inputs.given | changed))
    assert all(float((out[k] - other[k]).detach().abs().max()) > 1e-5 for k in out)


def test_the_template_may_lie_anywhere_and_only_its_difference_to_now_is_read(inputs):
    net, given = randomised(network()), inputs.given
    generator = torch.Generator().manual_seed(0)
    cells = torch.randint(-2, 3, given["template_position"].shape, generator=generator)
    moved = given["template_position"] + cells + torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    out, same = net(*inputs), net(*inputs._replace(given=given | {"template_position": moved}))
    for k in out:
        torch.testing.assert_close(
            same[k][inputs.mask] if k != "cell" else same[k],
            out[k][inputs.mask] if k != "cell" else out[k],
            rtol=0,
            atol=1e-9,
        )
    d = differences(inputs.state["position"], periodic=True)
    at_home = Template.of(given | {"template_position": inputs.state["position"]}, d, inputs.mask.sum(1))
    assert float(at_home.residual.abs().max()) < 1e-12
    template = Template.of(given, d, inputs.mask.sum(1))
    expected = wrap(differences(given["template_position"], True) - d)
    torch.testing.assert_close(template.residual[0::2], expected[0::2], rtol=0, atol=1e-12)


def test_half_a_template_is_refused(inputs):
    with pytest.raises(ValueError, match=r"needs \['template_cell', 'template_distance'\]"):
        network()(*inputs._replace(given={"template_position": inputs.given["template_position"]}))


def test_a_network_without_templates_reads_none(inputs):
    net = randomised(network(templates=False))
    out, other = net(*inputs), net(*inputs._replace(given={}))
    assert all(torch.equal(out[k], other[k]) for k in out)


def test_volumes_by_hand():
    """Rock salt of 20 and 40 cubic angstrom: the mean is 30 a site; a cell of 60 for two sites agrees with it."""
    volumes = torch.full((100,), 5.0, dtype=torch.float64)
    volumes[3], volumes[7] = 20, 40
    condition = Condition(8, 100, False, volumes).double()
    lattice = torch.diag(torch.tensor([3.0, 4, 5], dtype=torch.float64))[None]
    sites, everyone = torch.tensor([2.0], dtype=torch.float64), torch.ones(1, 1, 2, dtype=torch.bool)
    told = lambda atoms, sight: condition._volume(torch.tensor([atoms]), lattice, sites, sight)[0].detach()
    torch.testing.assert_close(told([3, 7], everyone), torch.tensor([[0.0, 1]]).double(), rtol=0, atol=1e-12)
    one = torch.tensor([[torch.tensor(40 / 30.0).log() / 3, 0.5]]).double()
    torch.testing.assert_close(told([MASK_STATE, 7], everyone), one, rtol=0, atol=1e-6)
    torch.testing.assert_close(told([MASK_STATE] * 2, everyone), torch.zeros(1, 2).double())
    own = torch.eye(2, dtype=torch.bool)[None]
    expected = torch.tensor([[20 / 30.0, 1], [40 / 30.0, 1]]).double()
    expected[:, 0] = expected[:, 0].log() / 3
    torch.testing.assert_close(told([3, 7], own), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("volumes", [torch.ones(99), torch.zeros(100), torch.full((100,), torch.nan)])
def test_bad_volumes_are_refused(volumes):
    with pytest.raises(ValueError, match="volumes must be 100 positive numbers"):
        AtomTransformer(AtomTransformerConfig(**SMALL), volumes)
