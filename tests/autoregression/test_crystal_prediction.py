"""Candidates of a formula: each its own, in the order that is told, whole even where the model fails."""

import numpy as np
import pytest
import torch

from tests.small_crystals import KNOWN, PEROVSKITE, SALT, small_generator
from unisci.autoregression.crystal_prediction import Proposal, draw, predict, ranked, refine, refined, surprise
from unisci.autoregression.retrieval import Retriever
from unisci.domains.crystal import Crystal, CrystalError
from unisci.domains.symmetry import spacegroup
from unisci.domains.templates import Template, TemplateLibrary
from unisci.rng import Rng

G = small_generator()
FORMULAS = [np.array([11, 17]), np.array([38, 22, 8, 8, 8]), np.array([11, 11, 17, 17])]
RETRIEVER = Retriever(TemplateLibrary.from_crystals(KNOWN))


def near(a: Crystal, b: Crystal) -> bool:
    gap = a.fractional - b.fractional
    return np.allclose(a.lattice, b.lattice, atol=1e-4) and np.abs(gap - gap.round()).max() < 1e-4


def test_draws_have_the_formula_and_do_not_depend_on_their_batch():
    rng = Rng(0, torch.tensor([5, 6, 7]))
    made = draw(G, FORMULAS, rng, steps=3)
    for proposal, numbers in zip(made, FORMULAS, strict=True):
        assert sorted(proposal.crystal.numbers) == sorted(numbers) and proposal.template is None
        assert proposal.fault is None and -50 < proposal.log_probability < 0
    alone = draw(G, FORMULAS[1:2], rng[torch.tensor([1])], steps=3)[0]
    assert near(alone.crystal, made[1].crystal) and alone.log_probability == pytest.approx(made[1].log_probability)


def test_of_several_tries_the_likeliest_is_taken():
    many = [FORMULAS[1]] * 30
    rng = Rng(0, torch.arange(30))
    one, eight = (np.array([p.log_probability for p in draw(G, many, rng, steps=1, tries=k)]) for k in (1, 8))
    assert eight.min() > one.max() - 1e-5 and one.min() < one.max() - 0.1


def test_a_formula_that_comes_to_no_end_is_made_without_symmetry():
    only = torch.arange(231) == 225  # holds NaCl, not SrTiO3
    made = draw(G, FORMULAS[:2], Rng(0, torch.arange(2)), steps=1, groups=only)
    assert spacegroup(made[0].crystal) == 225
    assert sorted(made[1].crystal.numbers) == sorted(FORMULAS[1])
    assert np.isfinite(made[0].log_probability) and made[1].log_probability == -np.inf


def test_refining_keeps_elements_and_symmetry_and_moves_the_cell():
    proposals = [Proposal(SALT, 0.0), Proposal(PEROVSKITE, 0.0, Template(PEROVSKITE, 1, 0.5))]
    out = refine(G, proposals, Rng(0, torch.arange(2)), steps=2)
    for crystal, proposal in zip(out, proposals, strict=True):
        assert np.array_equal(crystal.numbers, proposal.crystal.numbers)
        assert spacegroup(crystal) == spacegroup(proposal.crystal)
        assert not np.allclose(crystal.lattice, proposal.crystal.lattice, atol=1e-3)


def test_candidates_are_templates_and_draws_by_turns():
    found = predict(G, RETRIEVER, FORMULAS, Rng(0, torch.arange(3)), 4, tries=1)
    assert [[p.template is None for p in ps] for ps in found] == [
        [False, True, True, True],  # one template: its other even place is drawn
        [False, True, True, True],
        [True, True, True, True],
    ]
    alone = predict(G, RETRIEVER, FORMULAS[1:2], Rng(0, torch.tensor([1])), 4, tries=1)[0]
    assert all(near(a.crystal, b.crystal) for a, b in zip(alone, found[1], strict=True))
    assert all(p.template is None for ps in predict(G, None, FORMULAS, Rng(0, torch.arange(3)), 1) for p in ps)


def test_ranked_templates_keep_their_order_and_draws_follow_by_probability():
    template = Template(SALT, 0, 0.1)
    given = [
        Proposal(SALT, 0.0, template),
        Proposal(SALT, -3.0),
        Proposal(PEROVSKITE, 0.0, template),
        Proposal(SALT, -1.0),
    ]
    assert ranked(given) == [given[0], given[2], given[3], given[1]]


def test_surprise_is_finite_where_the_model_knows_the_positions():
    wurtzite = Crystal(
        [11, 11, 17, 17],
        [[1 / 3, 2 / 3, 0], [2 / 3, 1 / 3, 0.5], [1 / 3, 2 / 3, 0.375], [2 / 3, 1 / 3, 0.875]],
        [[4.5, 0, 0], [-2.25, 2.25 * 3**0.5, 0], [0, 0, 7.4]],
    )
    supercell = Crystal(
        [11, 11, 17, 17], [[0] * 3, [0, 0, 0.5], [0.5, 0.5, 0.25], [0.5, 0.5, 0.75]], np.diag([4, 4, 8.0])
    )
    found = surprise(G, [SALT, wurtzite, supercell])
    assert found.isfinite().tolist() == [True, False, False] and float(found[0]) > 0


def test_a_table_without_the_general_position_is_told_of():
    from dataclasses import replace

    from unisci.autoregression.orbits import OrbitModel
    from unisci.domains.elements import element_features
    from unisci.domains.orbit_batches import WyckoffTable
    from unisci.domains.wyckoff import Orbits
    from unisci.networks.orbit_transformer import OrbitTransformerConfig

    table = WyckoffTable.of([Orbits.of(SALT)])
    features = torch.from_numpy(element_features())
    orbits = OrbitModel(OrbitTransformerConfig(8, 1, 1), table, features, torch.full((101,), 16.0)).eval()
    with pytest.raises(CrystalError, match="without symmetry"):
        draw(replace(G, orbits=orbits, table=table), FORMULAS[1:2], Rng(0, torch.arange(1)), steps=1)


def test_templates_stay_as_they_are_and_draws_are_refined():
    proposals = [Proposal(SALT, -1.0), Proposal(PEROVSKITE, 0.0, Template(PEROVSKITE, 1, 0.5)), Proposal(SALT, -2.0)]
    rng = Rng(0, torch.arange(3))
    out = refined(G, proposals, rng, steps=2)
    assert out[1] is PEROVSKITE
    drawn = refine(G, [proposals[0], proposals[2]], rng[torch.tensor([0, 2])], steps=2)
    assert near(out[0], drawn[0]) and near(out[2], drawn[1]) and not near(out[0], SALT)
