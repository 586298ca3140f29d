"""One battery for all networks of atoms. Which laws each obeys:

                      permutation  translation  O(3)  cell's basis     padding, batch  causal order
    AtomTransformer   exact        exact        yes*  no: reduce       exact           exact
    EGNN              exact        exact        yes   no: reduce       exact           exact
    E3Net             exact        exact        yes   any (unimodular) exact           exact

* of its molecules; the numbers of a crystal do not change under O(3): there is nothing to turn, whatever the network.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws import assert_causal, assert_padding_free, assert_permutes, leaks
from tests.networks.atoms import (
    SLOW,
    SLOW_BOND,
    bond_egnn,
    bond_transformer,
    built,
    e3net,
    each,
    each_with_bonds,
    egnn,
    inputs_for,
    transformer,
)
from tests.space import (
    AXES,
    BONDS,
    MASK_STATE,
    assert_basis_free,
    assert_close,
    assert_translates,
    assert_turns,
    structures,
    symmetric,
)

CLASSES = {"atom": MASK_STATE + 1, "bond": BONDS + 1}


@each
@pytest.mark.parametrize("order", ["", "blocks", "doubled"])
def test_permuting_sites_permutes_the_outputs(make, periodic, order):
    assert_permutes(built(make), inputs_for(make, periodic, [5, 3], order=order), AXES, times=2, tol=1e-9)


@each
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=3), seed=st.integers(0, 999))
@settings(max_examples=5, deadline=None)
def test_the_origin_is_free(make, periodic, sizes, seed):
    assert_translates(built(make), inputs_for(make, periodic, sizes, seed))


@each
@pytest.mark.parametrize("order", ["", "blocks", "doubled"])
def test_padding_and_batch_mates_change_nothing(make, periodic, order):
    assert_padding_free(built(make), inputs_for(make, periodic, [5, 1, 3, 4], order=order), AXES, tol=1e-12)


@each
@pytest.mark.parametrize("order", ["blocks", "doubled"])
def test_nothing_leaks_from_later_blocks(make, periodic, order):
    """Two layers at least: one would hide a leak through a third site."""
    assert_causal(built(make), inputs_for(make, periodic, [6, 5], order=order), AXES, CLASSES)


@each
def test_without_an_order_all_is_seen(make, periodic):
    inputs = inputs_for(make, periodic, [6])
    blocks = inputs_for(make, periodic, [6], order="blocks").order
    net = built(make)
    free = lambda state, t, mask, given, order: net(state, t, mask, given)
    assert leaks(free, inputs._replace(order=blocks), AXES, CLASSES)[0] > 1e-6


@each
def test_nothing_jumps_where_a_difference_passes_half_a_cell(make, periodic):
    """Atoms of symmetric crystals lie there, and rounding would decide."""
    inputs = inputs_for(make, periodic, [4])
    out = []
    for side in (-1e-8, 1e-8):
        position = inputs.state["position"].clone()
        position[0, 1] = position[0, 0] + 0.5 + side
        out.append(built(make)(*inputs._replace(state=inputs.state | {"position": position})))
    assert_close(*out, inputs.mask, 1e-5)


@each
@pytest.mark.parametrize("cell", [[6.0, -6, 0, 6, -6, 6], [-6.0, -6, -6, 0, 0, 0], [50.0, -50, 0, 9, 9, 9]])
def test_extreme_cells_and_coinciding_atoms_stay_finite(make, periodic, cell):
    inputs = inputs_for(make, periodic, [4, 1])
    state = {k: v.clone() for k, v in inputs.state.items()}
    state["position"][0, 1] = state["position"][0, 0]
    if periodic:
        state["cell"] = torch.tensor(cell, dtype=torch.float64).expand(2, -1).clone()
    state["position"].requires_grad_()
    out = built(make)(*inputs._replace(state=state))
    sum((v**2).sum() for v in out.values()).backward()
    assert all(bool(v.isfinite().all()) for v in (*out.values(), state["position"].grad))


@each
def test_the_gradient_reaches_every_weight(make, periodic):
    inputs = inputs_for(make, periodic, [6, 5, 4])
    atom = torch.arange(100).repeat(2)[: inputs.mask.numel()].view(inputs.mask.shape)
    atom[0, 0] = MASK_STATE
    net = built(make)
    net.zero_grad()
    out = net(*inputs._replace(state=inputs.state | {"atom": atom}))
    sum((v**2).sum() for v in out.values()).backward()
    dead = {k for k, p in net.named_parameters() if p.numel() and (p.grad is None or not bool(p.grad.abs().sum() > 0))}
    if not periodic:  # nothing says how the axes of a molecule lie, nor is there a cell
        dead = {k for k in dead if not k.startswith(("to_axes", "to_cell", "to_strain", "time.embed.cell"))}
    assert not dead


@each
def test_an_untrained_network_moves_nothing(make, periodic):
    torch.manual_seed(0)
    if make is e3net and not periodic:
        pytest.skip("built once is enough")
    out = make().double()(*inputs_for(make, periodic, [4]))
    assert all(float(v.detach().abs().max()) == 0 for v in out.values())


@pytest.mark.parametrize("make", [bond_transformer, egnn, bond_egnn, SLOW, SLOW_BOND])
@pytest.mark.parametrize("order", ["", "doubled"])
@pytest.mark.parametrize("seed", [0, 1])
def test_molecules_turn_with_their_frame(make, seed, order):
    assert_turns(built(make), inputs_for(make, False, [5, 3, 1], seed, order))


@each_with_bonds
def test_logits_of_bonds_are_symmetric_and_see_all(make):
    """To the last bit. Each pair's depend on its own bond, on those of other pairs, on atoms, and on positions."""
    inputs, net = inputs_for(make, False, [5, 4]), built(make)
    with torch.no_grad():
        out = net(*inputs)["bond"]
        assert out.shape == (2, 5, 5, BONDS) and torch.equal(out, out.transpose(1, 2))
        swapped = torch.zeros(2, 5, 5).bool()
        swapped[:, 0, 1] = swapped[:, 1, 0] = True
        state, first = inputs.state, torch.arange(5) == 0
        changes = {
            "bond": torch.where(swapped, (state["bond"] + 1) % BONDS, state["bond"]),
            "atom": torch.where(first, (state["atom"] + 1) % MASK_STATE, state["atom"]),
            "position": state["position"] + 0.3 * first[:, None],
        }
        for k, value in changes.items():
            other = net(*inputs._replace(state=state | {k: value}))["bond"]
            for i, j in ((0, 1), (0, 3), (2, 3)):
                assert float((other - out)[:, i, j].abs().min()) > 1e-9, (k, i, j)


@each_with_bonds
def test_all_outputs_read_the_bonds(make):
    inputs, net = inputs_for(make, False, [5, 4]), built(make)
    bond = symmetric((inputs.state["bond"] + 1) % (BONDS + 1))
    with torch.no_grad():
        out, other = net(*inputs), net(*inputs._replace(state=inputs.state | {"bond": bond}))
    assert all(float((out[k] - other[k])[inputs.mask].abs().max()) > 1e-4 for k in out)


@each_with_bonds
def test_a_rank_that_is_told_is_read_and_none_is_as_if_absent(make):
    inputs, net = inputs_for(make, False, [5, 4]), built(make)
    none = torch.full_like(inputs.given["rank"], -1)
    with torch.no_grad():
        out, untold, absent = (net(*inputs._replace(given=g)) for g in (inputs.given, {"rank": none}, {}))
    assert all(torch.equal(untold[k], absent[k]) for k in out)
    assert all(float((out[k] - absent[k])[inputs.mask].abs().max()) > 1e-4 for k in out)


@each_with_bonds
def test_a_network_of_bonds_refuses_a_state_without(make):
    with pytest.raises(ValueError, match=f'has no "bond".*bonds = {BONDS}'):
        built(make)(*structures([3], periodic=False))


@pytest.mark.parametrize("make", [egnn, SLOW])
def test_a_network_of_no_bonds_refuses_them(make):
    with pytest.raises(ValueError, match='has "bond" and the config bonds = 0: set bonds to the number of classes'):
        built(make)(*structures([3], periodic=False, bonds=True))


AXES_RENAMED = torch.tensor([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]], dtype=torch.float64)
SHEARED = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, -1, 1]], dtype=torch.float64)


@pytest.mark.slow
@pytest.mark.parametrize("matrix", [AXES_RENAMED, SHEARED], ids=["renamed", "sheared"])
def test_the_basis_of_the_cell_is_free_for_tensors(matrix):
    assert_basis_free(built(e3net), structures([4, 2, 1]), matrix)


@pytest.mark.parametrize("make", [transformer, egnn])
def test_others_need_reduced_cells(make):
    """Said in their docs; this would tell if it were no longer so."""
    with pytest.raises(AssertionError):
        assert_basis_free(built(make), structures([4, 2]), AXES_RENAMED)


@each
def test_a_cache_is_refused(make, periodic):
    inputs = inputs_for(make, periodic, [3])
    with pytest.raises(ValueError, match="keeps no cache"):
        built(make)(*inputs, cache=object())
