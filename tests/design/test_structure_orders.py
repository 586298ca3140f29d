import torch

from tests.small_structures import MOST, small_model
from unisci.autoregression.site_blocks import check_order
from unisci.design.structure_orders import atom_by_atom, structural
from unisci.rng import Rng

MODEL, RNG = small_model(), Rng(0, torch.arange(200))


def test_atom_by_atom_gives_every_site_a_block_of_its_own():
    order = atom_by_atom(MODEL, RNG)
    mask = order.rank >= 0
    check_order(order, mask)
    assert (order.blocks == mask.sum(1)).all() and int(mask.sum(1).min()) >= 4 and mask.shape[1] <= MOST
    assert int((mask.sum(1) == 6).sum()) == 200  # nearly all molecules of the table have six sites
    assert (order.rank[0] != order.rank[1]).any()


def test_the_structural_order_has_the_sizes_of_the_table():
    order = structural(MODEL, RNG)
    check_order(order, order.rank >= 0)
    assert torch.equal(order.rank, MODEL.profiles.order(RNG).rank)
    sizes = {tuple((row == k).sum().item() for k in range(2)) for row in order.rank}
    assert (1, 6) in sizes and sizes <= {(2, 3), (4, 0), (1, 6)}
