"""The transformers of orbits: words are causal, geometry is equivariant, padding is not seen, everything learns."""

import pytest
import torch
import torch.nn.functional as F

from unisci.networks.orbit_transformer import (
    GROUPS,
    MOST,
    GroupEmbedding,
    OrbitGeometry,
    OrbitTransformerConfig,
    OrbitWords,
    facts_of,
)

V = 7
CONFIG = OrbitTransformerConfig(width=16, layers=2, heads=4, dropout=0.0)


def form() -> torch.Tensor:
    torch.manual_seed(1)
    a = torch.randint(-1, 2, (V, 3, 3)).float()
    a[0] = 0
    a[1, :, 1:] = 0
    return torch.cat([a, torch.rand(V, 3, 1)], -1)


def facts() -> torch.Tensor:
    return facts_of(torch.arange(1.0, V + 1), form())


def filled(net: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    for p in net.parameters():  # the heads start at zero, which would hide what they read
        torch.nn.init.normal_(p, std=0.2)
    return net.eval()


def words() -> OrbitWords:
    return filled(OrbitWords(CONFIG, torch.randn(101, 5), facts()))


def geometry() -> OrbitGeometry:
    return filled(OrbitGeometry(CONFIG, torch.randn(101, 5), facts(), form(), torch.full((101,), 12.0)))


def sentence() -> list[torch.Tensor]:
    """species, counts, group, element, left, before, mask of two samples."""
    return [
        torch.tensor([[8, 22, 38], [11, 17, 0]]),
        torch.tensor([[3, 1, 1], [1, 1, 0]]),
        torch.tensor([221, 225]),
        torch.tensor([[8, 22, 38, 0], [11, 17, 17, 17]]),
        torch.tensor([[3, 1, 1, 0], [1, 3, 2, 1]]),
        torch.tensor([[V, 2, 3, 0], [V, 1, 4, 4]]),
        torch.tensor([[True] * 3 + [False], [True] * 4]),
    ]


def close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.allclose(a, b, atol=1e-5)


def test_words_see_only_what_is_before():
    net, x = words(), sentence()
    element, count, group, wyckoff = net(*x)
    assert [tuple(v.shape) for v in (element, count, group, wyckoff)] == [
        *((2, 4, 101), (2, 3, MOST + 1), (2, GROUPS), (2, 4, V))
    ]
    for k in range(4):  # a later orbit
        later = [v.clone() for v in x]
        later[3][:, k], later[4][:, k], later[5][:, k] = 50, 7, 6
        moved = net(*later)
        assert all(close(a, b) for a, b in zip(moved[:3], (element, count, group), strict=True))
        assert close(moved[3][:, :k], wyckoff[:, :k]) and not close(moved[3][1, k], wyckoff[1, k])
    for s in range(2):  # a later element
        later = [v.clone() for v in x]
        later[0][:, s], later[1][:, s] = 50, 9
        moved = net(*later)
        assert close(moved[0][:, : s + 1], element[:, : s + 1]) and close(moved[1][:, :s], count[:, :s])
        assert not close(moved[0][0, s + 1], element[0, s + 1]) and not close(moved[2], group)
    counted = [v.clone() for v in x]
    counted[1][:, 0] = 9
    assert close(net(*counted)[1][:, 0], count[:, 0])  # the count that is asked for
    named = [v.clone() for v in x]
    named[0][:, 0] = 50
    assert not close(net(*named)[1][:, 0], count[:, 0])  # of which element
    other = net(*x[:2], torch.tensor([1, 2]), *x[3:])
    assert all(close(a, b) for a, b in zip(other[:3], (element, count, group), strict=True))
    assert not close(other[3], wyckoff)


def test_padded_words_change_nothing():
    net, x = words(), sentence()
    plain = net(*x)
    wide = net(*(F.pad(v, (0, 2)) for v in x[:2]), x[2], *(F.pad(v, (0, 3)) for v in x[3:]))
    assert close(wide[0][:, :4], plain[0]) and close(wide[2], plain[2]) and close(wide[3][:, :4], plain[3])
    alone = net(*(v[1:, :2] for v in x[:2]), x[2][1:], *(v[1:] for v in x[3:]))
    assert close(alone[0], plain[0][1:, :3]) and close(alone[2], plain[2][1:]) and close(alone[3], plain[3][1:])
    short = net(*(v[:1] for v in x[:3]), *(v[:1, :3] for v in x[3:]))
    assert close(short[3], plain[3][:1, :3])


def crystals() -> tuple[dict, dict, torch.Tensor, dict]:
    g = torch.Generator().manual_seed(2)
    state = {"free": torch.rand(2, 4, 3, generator=g), "cell": torch.randn(2, 6, generator=g)}
    t = {"free": torch.tensor([0.3, 0.9]), "cell": torch.tensor([0.5, 0.1])}
    given = {"element": torch.tensor([[8, 22, 38, 0], [11, 17, 17, 17]])}
    given |= {"wyckoff": torch.tensor([[5, 2, 1, 0], [0, 1, 4, 4]]), "group": torch.tensor([221, 225])}
    given |= {"species": torch.tensor([[8, 22, 38], [11, 17, 0]]), "counts": torch.tensor([[3, 1, 1], [1, 3, 0]])}
    return state, t, torch.tensor([[True] * 3 + [False], [True] * 4]), given


def test_geometry_is_equivariant_in_the_orbits():
    net, (state, t, mask, given) = geometry(), crystals()
    out, p = net(state, t, mask, given), torch.tensor([2, 3, 1, 0])
    moved = net(
        state | {"free": state["free"][:, p]},
        t,
        mask[:, p],
        given | {k: given[k][:, p] for k in ("element", "wyckoff")},
    )
    assert close(moved["cell"], out["cell"]) and close(moved["free"][mask[:, p]], out["free"][:, p][mask[:, p]])


def test_padded_orbits_and_species_change_nothing():
    net, (state, t, mask, given) = geometry(), crystals()
    out = net(state, t, mask, given)
    wide = given | {k: F.pad(given[k], (0, 2)) for k in ("element", "wyckoff", "species", "counts")}
    moved = net(state | {"free": F.pad(state["free"], (0, 0, 0, 2), value=0.4)}, t, F.pad(mask, (0, 2)), wide)
    assert close(moved["cell"], out["cell"]) and close(moved["free"][:, :4][mask], out["free"][mask])


def test_geometry_lives_on_the_torus_and_moves_what_is_free():
    net, (state, t, mask, given) = geometry(), crystals()
    out = net(state, t, mask, given)
    around = net(state | {"free": state["free"] + torch.tensor([1.0, -2.0, 3.0])}, t, mask, given)
    assert torch.allclose(around["free"], out["free"], atol=1e-4)
    free = (form()[given["wyckoff"]][..., :3] != 0).any(-2)
    assert bool((out["free"][~free] == 0).all()) and bool((out["free"][free & mask[..., None]] != 0).all())
    assert not free[1, 0].any() and free[0, 2].tolist() == [True, False, False]


@pytest.mark.parametrize("field", ["free", "cell"])
def test_geometry_reads_fields_and_times(field):
    net, (state, t, mask, given) = geometry(), crystals()
    out = net(state, t, mask, given)
    for moved in (
        net(state, t | {field: t[field] / 2}, mask, given),
        net(state | {field: state[field] + 0.2}, t, mask, given),
    ):
        assert not close(moved["cell"], out["cell"]) and not close(moved["free"], out["free"])


def test_geometry_guesses_the_size_from_the_elements():
    net, (state, t, mask, given) = geometry(), crystals()
    out = net(state, t, mask, given)["cell"]
    with torch.no_grad():
        net.log_volume[38] += 1
    moved = net(state, t, mask, given)["cell"]
    assert not close(moved[0], out[0]) and close(moved[1], out[1])  # strontium is in the first alone


def test_groups_share_their_crystal_system():
    net = GroupEmbedding(4)
    torch.nn.init.zeros_(net.own.weight)
    out = net(torch.arange(1, 231))
    changes = (out[1:] != out[:-1]).any(1).nonzero()[:, 0] + 2
    assert changes.tolist() == [3, 16, 75, 143, 168, 195]


def test_facts():
    f = facts_of(torch.tensor([2.0]), torch.tensor([[[1.0, 0, 0, 0.25], [2, 0, 0, 0.5], [0, 0, 0, 0]]]))
    expected = [0.6931, 1, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0, 0, 0, -1, 1]
    torch.testing.assert_close(f, torch.tensor([expected]), atol=1e-4, rtol=0)


def test_every_parameter_learns():
    net, x = words(), sentence()
    sum((v**2).sum() for v in net(*x)).backward()
    other, y = geometry(), crystals()
    sum((v**2).sum() for v in other(*y).values()).backward()
    for n in (net, other):
        assert [k for k, p in n.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_a_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="width 30 is not a multiple of heads 4"):
        OrbitTransformerConfig(width=30, heads=4)
