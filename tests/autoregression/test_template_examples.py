"""Templates of training examples lie as near to their crystals as they can, whichever way the two were set before."""

import numpy as np
import torch

from tests.domains.test_templates import perovskite
from unisci.autoregression.crystals import templates
from unisci.autoregression.template_examples import PART, beside_templates
from unisci.domains.crystal import Crystal
from unisci.domains.templates import TemplateLibrary


def turned(crystal: Crystal, shift: float) -> Crystal:
    """The same perovskite: sites in another order, axes permuted, the origin moved."""
    order = np.array([4, 1, 3, 0, 2])
    return Crystal(crystal.numbers[order], crystal.fractional[order][:, [2, 0, 1]] + shift, crystal.lattice)


CRYSTALS = [turned(perovskite(a, b, 8, 3.7 + 0.01 * a), 0.1 * a) for a in (20, 38, 56) for b in (22, 40, 72)]
LIBRARY = TemplateLibrary.from_crystals(CRYSTALS)


def test_of_one_structure_type_the_template_lies_on_the_crystal():
    batch = beside_templates(CRYSTALS, LIBRARY, 4)
    for k in range(4):
        given = templates(batch, torch.full((len(batch),), k))
        off = given["template_position"] - batch.state["position"]
        assert float((off - off.round()).abs().max()) < 1e-5 and bool((given["template_distance"] > 0).all())


def test_the_maps_parts_come_back_in_order():
    crystals = CRYSTALS * (2 * PART // len(CRYSTALS) + 1)
    library = TemplateLibrary.from_crystals(crystals)
    parts = []

    def noting(call, items):
        parts.extend(items := list(items))
        return map(call, items)

    batch = beside_templates(crystals[:], library, 1, noting)
    assert [len(p) for p in parts] == [PART, PART, len(crystals) - 2 * PART]
    # Each crystal comes many times, so that its template is a copy: never itself, always at distance 0.
    assert float(batch.given["template_distance"].abs().max()) == 0.0
    torch.testing.assert_close(batch.given["template_cell"][:, 0], batch.state["cell"], atol=1e-5, rtol=1e-5)
