"""Retrieval with a ranker: it learns which templates fit, sees what is there, and does without where there is none."""

import numpy as np
import torch

from tests.domains.test_templates import LIBRARY, perovskite, rock_salt
from unisci.autoregression.retrieval import (
    SIMILAR,
    Proposals,
    Retriever,
    expected_best,
    fits,
    propose,
    untrained_ranker,
)
from unisci.domains.candidates import CANDIDATES, FACTS, VOTES, CandidateReader
from unisci.domains.crystal import Crystal
from unisci.domains.elements import element_features
from unisci.domains.pair_densities import RADII
from unisci.domains.templates import TemplateLibrary
from unisci.networks.template_ranker import TemplateRanker, ranking_loss


def caesium_chloride(a: int, b: int, length: float = 4.0) -> Crystal:
    return Crystal([a, b], [[0, 0, 0], [0.5, 0.5, 0.5]], np.eye(3) * length)


def test_without_rankers_the_nearest_come_first():
    formulas = [np.array([19, 17]), np.array([22, 56, 8, 8, 8]), np.array([1, 1, 8])]
    found = Retriever(LIBRARY).retrieve(formulas, 2)
    assert [[t.row for t in f] for f in found] == [[0, 2], [3, 4], []]


def test_what_the_ranker_reads():
    reader = CandidateReader(LIBRARY)
    formulas = [np.array([19, 17]), np.array([22, 56, 8, 8, 8]), np.array([1, 1, 1, 8])]
    found, (elements, share, touching, theirs, density, facts, exists) = propose(reader, formulas, [[0], [], []])
    assert exists.sum(1).tolist() == [2, 2, 0] and [len(f) for f in found] == [2, 2, 0]
    assert elements.tolist() == [[17, 19, 0], [22, 56, 8], [8, 1, 0]]
    torch.testing.assert_close(share.sum(1), torch.ones(3))
    spacing = (reader.library.atomic_volumes[[17, 19]].mean()) ** (1 / 3)
    torch.testing.assert_close(touching[0, :2, :2], torch.tensor([[2.0, 3.2], [3.2, 4.4]]) / spacing)  # atomic radii
    assert float(touching[0, 2].abs().max()) == 0
    assert theirs.shape == (3, CANDIDATES, 3) and theirs[1, 0].tolist() == [22, 38, 8]
    assert density.shape == (3, CANDIDATES, 3, 3, len(RADII)) and facts.shape == (3, CANDIDATES, FACTS)
    assert bool(facts.isfinite().all()) and float(facts[0, 0, len(VOTES)]) == 0.0  # its distance above the nearest


def test_candidates_alike_vote_for_each_other():
    library = TemplateLibrary.from_crystals([caesium_chloride(11, 17), rock_salt(19, 17), rock_salt(37, 17)])
    found, (*_, facts, _) = propose(CandidateReader(library), [np.array([55, 17])])
    votes = {c.row: float(facts[0, i, 5]) for i, c in enumerate(found[0])}
    assert votes[1] > votes[0] and votes[2] > votes[0]


def test_polymorphs_are_told_from_other_templates():
    """Of KCl's candidates one is KCl itself, in the structure of CsCl; NaCl and RbCl lie in the other."""
    library = TemplateLibrary.from_crystals([caesium_chloride(19, 17), rock_salt(11, 17), caesium_chloride(37, 17)])
    found, (*_, facts, _) = propose(CandidateReader(library), [np.array([19, 17])])
    same, close, loose, exchanged = facts[0, : len(found[0]), len(VOTES) + 3 : len(VOTES) + 7].T
    rows = torch.tensor([c.row for c in found[0]])
    assert torch.equal(same == 1, rows == 0)
    torch.testing.assert_close(close[rows != 1], torch.ones(2), atol=1e-2, rtol=0)
    assert float(close[rows == 1]) < float(loose[rows == 1]) < 0.5
    assert exchanged.tolist() == [0.0 if row == 0 else 0.5 for row in rows]
    *_, facts, _ = propose(CandidateReader(library), [np.array([3, 17])])[1]
    assert float(facts[0, :3, len(VOTES) + 3 : len(VOTES) + 6].abs().max()) == 0


def test_fits_are_one_for_the_same_structure():
    reader, salt = CandidateReader(LIBRARY), rock_salt(19, 17, 4.4)
    found = LIBRARY.nearest(salt.numbers, 3)
    np.testing.assert_allclose(fits(reader, salt, found), 1, atol=1e-3)
    assert (fits(reader, caesium_chloride(19, 17), found) < 0.1).all()
    assert fits(reader, salt, []).shape == (0,)


def trained(proposals: Proposals, fit: torch.Tensor, seed: int) -> TemplateRanker:
    torch.manual_seed(seed)
    ranker = untrained_ranker(torch.from_numpy(element_features()), embedding=4, width=16)
    optimiser = torch.optim.Adam(ranker.parameters(), 3e-3)
    for _ in range(60):
        optimiser.zero_grad()
        ranking_loss(ranker(*proposals.inputs), fit).backward()
        optimiser.step()
    return ranker


def test_rankers_learn_which_templates_fit():
    """Large cations sit in the structure of CsCl: no distance in chemistry says so, the examples do."""
    large, small = [37, 55, 81], [3, 11, 19, 12, 20]
    crystals = [caesium_chloride(a, x) for a in large for x in (17, 35, 53)]
    crystals += [rock_salt(a, x) for a in small for x in (17, 35, 53)]
    held = [caesium_chloride(55, 35), rock_salt(11, 35), caesium_chloride(37, 17), rock_salt(20, 53)]
    names = {c.formula for c in held}
    crystals = [c for c in crystals if c.formula not in names]
    library = TemplateLibrary.from_crystals(crystals)
    reader = CandidateReader(library)
    proposals = propose(reader, [c.numbers for c in crystals], [[i] for i in range(len(crystals))])
    fit = torch.zeros(len(crystals), CANDIDATES)
    for i, (c, found) in enumerate(zip(crystals, proposals.candidates, strict=True)):
        fit[i, : len(found)] = torch.from_numpy(fits(reader, c, found)).float()
    rankers = [trained(proposals, fit, seed) for seed in range(3)]
    chosen = Retriever(library, rankers).retrieve([c.numbers for c in held], 1)
    for c, (template,) in zip(held, chosen, strict=True):
        assert template.crystal.formula == c.formula
        alone = TemplateLibrary.from_crystals([template.crystal])
        assert float(fits(CandidateReader(alone), c, alone.nearest(c.numbers, 1))[0]) > 0.9


def test_perovskites_take_their_own():
    assert Retriever(LIBRARY).retrieve([perovskite(56, 22, 8).numbers], 1)[0][0].row == 3


def test_copies_of_one_prototype_share_their_probability_and_several_are_several():
    p = np.array([0.3, 0.25, 0.24, 0.21])  # the three others are one structure
    q = np.full((4, 4), 1e6)
    q[1:, 1:] = 0
    np.fill_diagonal(q, 0)
    assert expected_best(p, q, 3) == [1, 0, 2]
    assert expected_best(p, q, 9) == [1, 0, 2, 3] and expected_best(p[:0], q[:0, :0], 2) == []
    apart = np.where(np.eye(4) > 0, 0, 1e6)
    assert expected_best(p, apart, 4) == [0, 1, 2, 3]


def test_the_best_of_k_is_expected_to_fit_best():
    """Greedy choice against all pairs: at least 1 - 1/e of the optimum (Nemhauser et al. 1978), here near to it."""
    rng = np.random.default_rng(0)
    p, x = rng.dirichlet(np.ones(8)), rng.normal(size=(8, 2)) * 15
    q = ((x[:, None] - x) ** 2).sum(-1)
    value = lambda chosen: float(np.exp(-q[list(chosen)] / SIMILAR).max(0) @ p)
    pairs = [value((i, j)) for i in range(8) for j in range(i)]
    assert value(expected_best(p, q, 2)) > 0.95 * max(pairs) > 1.2 * np.mean(pairs)
