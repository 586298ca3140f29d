import pytest
import torch

from unisci.batch import Batch, Field, pair_mask

SCHEMA = {
    "atom": Field("site", classes=("C", "N")),
    "position": Field("site", (3,)),
    "bond": Field("pair", classes=("none", "single")),
    "energy": Field("whole"),
    "degree": Field("site"),
}


def example() -> Batch:
    state = {
        "atom": torch.arange(10).reshape(2, 5) % 2,
        "position": torch.arange(30.0).reshape(2, 5, 3),
        "bond": torch.arange(50).reshape(2, 5, 5) % 2,
        "energy": torch.tensor([1.0, 2.0]),
    }
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 0]]).bool()
    return Batch(SCHEMA, state, mask, {"degree": torch.arange(10).reshape(2, 5)}, torch.tensor([7, 9]))


def test_axes_follow_the_kind():
    assert [SCHEMA[k].axes for k in ("energy", "atom", "bond")] == [0, 1, 2]


def test_ids_count_from_0_where_none_are_given():
    assert Batch(SCHEMA, {}, torch.ones(3, 2).bool()).ids.tolist() == [0, 1, 2]


def test_pair_mask_leaves_out_padding_and_the_diagonal():
    m = pair_mask(torch.tensor([[True, True, False]]))[0]
    assert m.int().tolist() == [[0, 1, 0], [1, 0, 0], [0, 0, 0]]


def test_exists_and_sites():
    b = example()
    assert b.sites.tolist() == [3, 4] and len(b) == 2
    assert b.exists("energy").tolist() == [True, True]
    assert torch.equal(b.exists("position"), b.mask)
    assert b.exists("bond").sum((1, 2)).tolist() == [6, 12]


@pytest.mark.parametrize("rows", [torch.tensor([1]), slice(1, 2), torch.tensor([False, True])])
def test_picking_samples_picks_every_field(rows):
    b, one = example(), example()[rows]
    assert one.ids.tolist() == [9] and torch.equal(one.mask, b.mask[1:])
    assert all(torch.equal(one.state[k], b.state[k][1:]) for k in b.state)
    assert torch.equal(one.given["degree"], b.given["degree"][1:])


def test_trim_cuts_each_field_along_its_site_axes():
    b, cut = example(), example().trim(4)
    assert torch.equal(cut.state["atom"], b.state["atom"][:, :4])
    assert torch.equal(cut.state["position"], b.state["position"][:, :4])
    assert torch.equal(cut.state["bond"], b.state["bond"][:, :4, :4])
    assert torch.equal(cut.state["energy"], b.state["energy"])
    assert torch.equal(cut.given["degree"], b.given["degree"][:, :4])


def test_replace_changes_the_named_fields_alone():
    b = example()
    new = b.replace(energy=torch.zeros(2))
    assert new.state["energy"].tolist() == [0, 0] and new.state["atom"] is b.state["atom"]
    assert b.state["energy"].tolist() == [1, 2]
    assert torch.equal(b.to("cpu").ids, b.ids)


def test_errors_name_the_field_and_the_shapes():
    mask = torch.ones(2, 5).bool()
    with pytest.raises(ValueError, match=r"'charge' is not in the schema, which has \['atom'"):
        Batch(SCHEMA, {"charge": torch.zeros(2, 5)}, mask)
    with pytest.raises(ValueError, match=r"'position' has shape \(2, 5\), expected \(2, 5, 3\)"):
        Batch(SCHEMA, {"position": torch.zeros(2, 5)}, mask)
    with pytest.raises(ValueError, match=r"'degree' has shape \(2, 4\), expected \(2, 5\)"):
        Batch(SCHEMA, {}, mask, {"degree": torch.zeros(2, 4)})
