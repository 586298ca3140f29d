import pytest
import torch

from tests.laws import Inputs, take
from tests.networks.atoms import built, each, inputs_for
from tests.space import AXES, assert_close
from unisci.order import Order


@each
def test_one_block_is_no_order(make, periodic):
    inputs = inputs_for(make, periodic, [6, 4])
    order = inputs_for(make, periodic, [6, 4], order="blocks").order
    one = type(order)(torch.where(inputs.mask, 0, -1))
    assert_close(built(make)(*inputs._replace(order=one)), built(make)(*inputs), inputs.mask, 1e-12)


@each
@pytest.mark.parametrize("order", ["", "blocks"])
def test_the_mean_displacement_of_the_first_block_is_zero(make, periodic, order):
    inputs = inputs_for(make, periodic, [6, 1], order=order)
    position = built(make)(*inputs)["position"].detach()
    first = inputs.mask if inputs.order is None else inputs.order.rank == 0
    assert float((position * first[..., None]).sum(1).abs().max()) < 1e-12
    assert float(position[1].abs().max()) == 0, "one atom has nowhere to go"
    assert float(position[0].abs().max()) > 1e-4


@each
def test_where_a_site_is_held_the_origin_is_known(make, periodic):
    """Then the displacement has a mean, which only the sites that move are asked for."""
    inputs = inputs_for(make, periodic, [6])
    t = torch.full((1, 6), 0.5, dtype=torch.float64)
    net, free = built(make), inputs._replace(t=inputs.t | {"position": t})
    held = free._replace(t=free.t | {"position": t * (torch.arange(6) > 0)})
    means = [net(*x)["position"].detach().mean(1).abs().max() for x in (free, held)]
    assert means[0] < 1e-12 and means[1] > 1e-5


@each
def test_a_field_without_a_time_is_at_time_zero_and_times_matter(make, periodic):
    inputs = inputs_for(make, periodic, [4])
    net, out = built(make), built(make)(*inputs)
    for k in inputs.t:
        without = {f: v for f, v in inputs.t.items() if f != k}
        a, b = net(*inputs._replace(t=without)), net(*inputs._replace(t=without | {k: torch.zeros(())}))
        assert all(torch.equal(a[f], b[f]) for f in out)
        assert (float((a["atom"] - out["atom"]).detach().abs().max()) > 1e-6) == (k != "bond"), k  # masked, or known


@each
def test_all_blocks_at_once_give_what_each_prefix_gives(make, periodic):
    """The noised copy of a block, beside all clean sites, is told what it is told with the earlier blocks alone; the
    number of sites, which a prefix cannot know, is given to it."""
    both = inputs_for(make, periodic, [6, 5], order="doubled")
    net, n = built(make), 6
    out, rank = net(*both), both.order.rank[:, :n]
    for block in range(3):
        moving, mask = rank == block, (rank >= 0) & (rank <= block)
        index = torch.arange(n) + n * moving
        part = lambda fields, index=index: {k: take(v, AXES[k], index) for k, v in fields.items()}
        given = part(both.given) | {"sites": (rank >= 0).sum(1)}
        prefix = Inputs(part(both.state), part(both.t), mask, given, Order(torch.where(mask, rank, -1)))
        alone = net(*prefix)
        for k in out.keys() - {"cell"}:
            there = moving if AXES[k] == 1 else moving[:, :, None] & mask[:, None]
            torch.testing.assert_close(take(out[k], AXES[k], index)[there], alone[k][there], rtol=0, atol=1e-10)
