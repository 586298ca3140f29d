"""One battery for all networks of atoms. Which laws each obeys:

                      permutation  translation  O(3)  cell's basis     padding, batch  causal order
    AtomTransformer   exact        exact        *     no: reduce       exact           exact
    EGNN              exact        exact        yes   no: reduce       exact           exact
    E3Net             exact        exact        yes   any (unimodular) exact           exact

* crystals only, whose numbers do not change under O(3): there is nothing to turn, as for the others' crystals.
"""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.laws import assert_causal, assert_padding_free, assert_permutes, leaks
from tests.networks.atoms import SLOW, built, e3net, each, egnn, inputs_for, transformer
from tests.space import AXES, MASK_STATE, assert_basis_free, assert_close, assert_translates, assert_turns, structures

CLASSES = {"atom": MASK_STATE + 1}


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


@pytest.mark.parametrize("make", [egnn, SLOW])
@pytest.mark.parametrize("seed", [0, 1])
def test_molecules_turn_with_their_frame(make, seed):
    assert_turns(built(make), structures([5, 3, 1], seed, periodic=False))


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
