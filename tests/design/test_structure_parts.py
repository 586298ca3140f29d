"""What is given of a molecule comes back as it was."""

import numpy as np
import pytest

from tests.small_structures import embedded, small_model
from unisci.design.structure_parts import around, grown, moved, named, shapes
from unisci.rng import Rng


def stream(ids):
    return Rng(0, ids)


def test_moved_is_a_translation_onto_the_fragment():
    rng = np.random.default_rng(0)
    fragment, rest, shift = rng.normal(size=(3, 3)), rng.normal(size=(2, 3)), np.array([1.0, -2, 3])
    found = moved(np.concatenate([fragment, rest]) + shift, fragment)
    np.testing.assert_allclose(found, np.concatenate([fragment, rest]), atol=1e-12)
    assert (found[:3] == fragment).all()


def test_a_fragment_is_held_in_every_molecule():
    model, fragment = small_model(), embedded("CO").with_positions(embedded("CO").positions + 5)
    made = grown(model, fragment, 5, None, stream, 2)
    assert len({len(m.atoms) for m in made}) > 1 and min(len(m.atoms) for m in made) > 6
    for m in made:
        assert m.atoms[:6] == fragment.atoms and (m.bonds[:6, :6] == fragment.bonds).all()
        assert (m.positions[0, :6] == fragment.positions[0]).all()
    assert [len(m.atoms) for m in grown(model, fragment, 3, 9, stream, 2)] == [9] * 3


def test_graphs_are_at_the_positions_given():
    arrays = [embedded("CO").positions[0] + 7, embedded("C").positions[0]]
    made = named(small_model(), arrays, 2, stream, 2)
    assert [len(m.atoms) for m in made] == [6, 6, 5, 5]
    for m, x in zip(made, np.repeat(np.arange(2), 2), strict=True):
        assert (m.positions[0] == arrays[x]).all()
    assert made[0].to_text() != made[1].to_text()


def test_room_around_a_fragment_is_empty():
    whole = around(embedded("C"), 8)
    assert len(whole.atoms) == 8 and whole.bonds.sum() == embedded("C").bonds.sum()
    assert not whole.positions[0, 5:].any()


@pytest.mark.parametrize("bad", [[], np.zeros((3, 2)), [np.zeros((30, 3))], np.full((2, 3), np.nan)])
def test_what_is_no_shape_is_refused(bad):
    with pytest.raises(ValueError, match="positions"):
        shapes(bad, 20)
