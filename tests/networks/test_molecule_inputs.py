"""The geometry, bonds, ranks and condition of molecules, pair by pair by their equations."""

import math

import pytest
import torch
import torch.nn.functional as F

from tests.networks.atoms import SMALL, bond_transformer, built, inputs_for
from tests.space import BONDS, randomised, structures, symmetric
from unisci.networks.atom_transformer import SOFT, AtomTransformer, AtomTransformerConfig
from unisci.networks.edges import differences
from unisci.networks.molecule_inputs import LARGEST, BondHead, MoleculeCondition, MoleculePairs, Paths, RankEmbedding
from unisci.networks.molecule_inputs import hops as count_hops


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


@pytest.mark.parametrize("sites", [1, 3])
def test_states_of_pairs_are_their_equation(sites):
    """The condition is that of the site that looks, or one for all; of both sites the atoms enter alike."""
    torch.manual_seed(0)
    pairs, n, radial = randomised(MoleculePairs(8, 5, 4, BONDS)), 3, 4
    x, atom, c = 2 * rand(1, n, 3), rand(1, n, 8), rand(1, sites, 8)
    bond = symmetric(torch.randint(BONDS + 1, (1, n, n), generator=torch.Generator().manual_seed(0)))
    got = pairs(differences(x, periodic=False), bond, atom, c, bond >= 0)
    for i in range(n):
        for j in range(n):
            r = max(math.dist(x[0, i].tolist(), x[0, j].tolist()), 1e-3)
            step = LARGEST / (radial - 1)
            told = [math.exp(-0.5 * (r / step - k) ** 2) for k in range(radial)] + [math.log(1 + r * r)]
            h = pairs.geometry(torch.tensor(told, dtype=torch.float64)) + pairs.bond(bond[0, i, j])
            h = (
                h
                + pairs.paths(bond, atom, bond >= 0)[0, i, j]
                + pairs.condition(c[0, min(i, sites - 1)])
                + pairs.atom(atom[0, i])
                + pairs.atom(atom[0, j])
            )
            torch.testing.assert_close(got[0, i, j], h + pairs.out(F.silu(h)), rtol=0, atol=1e-10)


def test_paths_are_their_equation():
    """Walk by walk over the known bonds of a chain with a branch: pairs whose bond is masked, or none, have none."""
    torch.manual_seed(0)
    net, n = randomised(Paths(6, 5, BONDS, channels=3)), 6
    bond = torch.zeros(1, n, n, dtype=torch.long)
    for i, j, order in ((0, 1, 1), (1, 2, 2), (2, 3, 1), (1, 4, 3), (3, 5, BONDS)):
        bond[0, i, j] = bond[0, j, i] = order
    atom = rand(1, n, 6)
    w = [[net.bond(bond[0, i, j]) * float(0 < bond[0, i, j] < BONDS) for j in range(n)] for i in range(n)]
    u, zero = F.silu(net.atom(atom[0])), torch.zeros(3, dtype=torch.float64)
    via = lambda a, b, i, j: sum((a[i][k] * u[k] * b[k][j] for k in range(n)), zero)
    p2 = [[via(w, w, i, j) for j in range(n)] for i in range(n)]
    q = [[F.silu(net.mix(v)) for v in row] for row in p2]
    far = [[0, 1, 2, 3, 2, 0], [1, 0, 1, 2, 1, 0], [2, 1, 0, 1, 2, 0], [3, 2, 1, 0, 3, 0], [2, 1, 2, 3, 0, 0], [0] * 6]
    assert count_hops((bond > 0) & (bond < BONDS), bond >= 0)[0].tolist() == far
    got = net(bond, atom, bond >= 0)
    for i in range(n):
        for j in range(n):
            walks = torch.cat([p2[i][j], via(q, w, i, j) + via(q, w, j, i), via(q, q, i, j)])
            expected = net.out(walks) + net.hops(torch.tensor(far[i][j]))
            torch.testing.assert_close(got[0, i, j], expected, rtol=0, atol=1e-10)


def test_paths_longer_than_the_farthest_count_as_none():
    chain = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    assert count_hops((chain == 1)[None], (chain >= 0)[None])[0].tolist() == torch.where(chain <= 6, chain, 0).tolist()


def test_logits_of_bonds_are_their_equation():
    """The sum of both readings of a pair, which see its two sites alike."""
    torch.manual_seed(0)
    head, x, e = randomised(BondHead(6, 5, BONDS)), rand(1, 3, 6), rand(1, 3, 3, 5)
    got = head(x, e)
    assert torch.equal(got, got.transpose(1, 2))
    read = lambda i, j: head.out(F.silu(head.pair(e[0, i, j]) + head.site(x[0, i]) + head.site(x[0, j])))
    for i in range(3):
        for j in range(3):
            torch.testing.assert_close(got[0, i, j], read(i, j) + read(j, i), rtol=0, atol=1e-12)


def test_no_bond_is_likelier_before_training():
    assert not bool(BondHead(6, 5, BONDS).double()(rand(1, 3, 6), rand(1, 3, 3, 5)).any())


def test_ranks():
    """Not told is 0, and stays it: that row has no gradient. Ranks past the last are the last."""
    torch.manual_seed(0)
    ranks = RankEmbedding(4, 3)
    out = ranks(torch.tensor([[-1, 0, 1, 2, 3, 9]]))[0]
    assert not bool(out[0].any()) and torch.equal(out[3], out[4]) and torch.equal(out[3], out[5])
    assert len({tuple(v) for v in out.tolist()}) == 4
    (out**2).sum().backward()
    ((ranks(torch.tensor([[-1]])) - 1) ** 2).sum().backward()
    grad = ranks.rank.weight.grad.abs().sum(1)
    assert float(grad[0]) == 0 and bool((grad[1:] > 0).all())


def test_the_condition_is_of_times_and_size():
    torch.manual_seed(0)
    net, sites = randomised(MoleculeCondition(8)), torch.tensor([3.0, 20.0], dtype=torch.float64)
    t = {"atom": torch.tensor([0.2, 0.7]).double(), "position": torch.tensor([0.9, 0.1]).double()}
    got = net(t, sites)
    size = torch.tensor([[math.log(3) - 3], [math.log(20) - 3]], dtype=torch.float64)
    whole = sum(net.times.embed[k](v) for k, v in t.items()) + net.size(size)
    torch.testing.assert_close(got, net.out(whole)[:, None], rtol=0, atol=1e-12)
    assert torch.equal(net(t | {"bond": torch.ones(2)}, sites), got), "bonds have no time of their own"
    assert not torch.allclose(net({"atom": t["position"], "position": t["atom"]}, sites), got)
    torch.testing.assert_close(net({}, sites), net({"atom": torch.zeros(()), "position": torch.zeros(2)}, sites))
    each = net({k: v[:, None].expand(2, 5) for k, v in t.items()}, sites)
    torch.testing.assert_close(each, got.expand(2, 5, -1), rtol=0, atol=1e-12)


def test_the_number_of_atoms_may_be_told():
    """Where the mask holds a part of the molecule."""
    inputs, net = inputs_for(bond_transformer, False, [5, 3]), built(bond_transformer)
    tell = lambda sites: net(*inputs._replace(given=inputs.given | {"sites": sites}))
    out, same, other = net(*inputs), tell(inputs.mask.sum(1)), tell(inputs.mask.sum(1) + 3)
    assert all(torch.equal(out[k], same[k]) and not torch.equal(out[k], other[k]) for k in out)


@pytest.mark.parametrize("soft", [False, True])
def test_a_force_along_differences_is_a_linear_readout(soft):
    """Weights of 1 on d, or on d / (|d| + c): the mean over all sites, less the mean displacement, which is 0."""
    torch.manual_seed(0)
    net = AtomTransformer(AtomTransformerConfig(**SMALL, bonds=BONDS)).double()
    with torch.no_grad():
        net.to_position.weight.bias[int(soft)] = 1
    inputs = structures([4], periodic=False, bonds=True)
    x = inputs.state["position"][0]
    d = x - x[:, None]
    r = d.norm(dim=-1, keepdim=True).clamp(min=1e-3)
    expected = (d / (r + SOFT) if soft else d).mean(1)
    torch.testing.assert_close(net(*inputs)["position"].detach()[0], expected, rtol=0, atol=1e-12)


def test_networks_of_molecules_refuse_crystals_and_templates():
    with pytest.raises(ValueError, match=r'no "bond".*bonds = 4'):
        built(bond_transformer)(*structures([3]))
    with pytest.raises(ValueError, match="templates are known crystals"):
        AtomTransformerConfig(bonds=4, templates=True)
