"""Rankers learn from the library itself: what they are shown, in what batches, and that they then choose well."""

import numpy as np
import pytest
import torch

from tests.autoregression.test_retrieval import caesium_chloride
from tests.domains.test_templates import perovskite, rock_salt
from unisci.autoregression import ranker_training
from unisci.autoregression.ranker_training import HIDDEN, examples, hide, shuffled, train_ranker
from unisci.autoregression.retrieval import Retriever, fits, propose
from unisci.domains.candidates import CandidateReader
from unisci.domains.elements import element_features
from unisci.domains.templates import TemplateLibrary

FEATURES = torch.from_numpy(element_features())
SALTS = [rock_salt(a, x) for a in (3, 11, 19, 12, 20) for x in (17, 35, 53)]
LARGE = [caesium_chloride(a, x) for a in (37, 55, 81) for x in (17, 35, 53)]
CELLS = [perovskite(a, b, 8, 3.9) for a in (38, 56) for b in (22, 40)]


def test_examples_are_what_proposals_and_fits_say(monkeypatch):
    monkeypatch.setattr(ranker_training, "BATCH", 4)  # read in parts, which changes nothing
    crystals = [SALTS[0], CELLS[0], *SALTS[1:6], *CELLS[1:]]
    reader = CandidateReader(TemplateLibrary.from_crystals(crystals))
    data = examples(reader)
    assert [len(fit) for _, fit in data] == [6, 4]
    for (inputs, fit), n in zip(data, (2, 3), strict=True):
        rows = [i for i, c in enumerate(crystals) if len(np.unique(c.numbers)) == n]
        found, expected = propose(reader, [crystals[i].numbers for i in rows], [[i] for i in rows])
        for a, b in zip(inputs, expected, strict=True):
            torch.testing.assert_close(a.to(b.dtype), b, rtol=2e-3, atol=1e-4)
        assert inputs[4].dtype == torch.float16
        for b, i in enumerate(rows):
            assert i not in {c.row for c in found[b]}
            own = torch.from_numpy(fits(reader, crystals[i], found[b])).float()
            torch.testing.assert_close(fit[b, : len(own)], own)
            assert float(fit[b, len(own) :].abs().sum()) == 0


def test_where_nothing_fits_there_is_nothing_to_learn():
    reader = CandidateReader(TemplateLibrary.from_crystals([rock_salt(11, 17), caesium_chloride(55, 35), CELLS[0]]))
    assert examples(reader) == []
    with pytest.raises(ValueError, match="no crystal has a template that fits"):
        train_ranker([], FEATURES, 1, 0)


def test_every_epoch_deals_each_row_once_in_new_batches_of_one_group(monkeypatch):
    monkeypatch.setattr(ranker_training, "BATCH", 4)
    group = lambda first, n: ((torch.arange(first, first + n),), torch.arange(first, first + n).float())
    data = [group(0, 10), group(100, 7)]
    dealt = list(shuffled(data, 2, 0))
    assert [s for s, _ in dealt] == pytest.approx([k / 10 for k in range(10)])
    batches = [fit.int().tolist() for _, (_, fit) in dealt]
    assert all(inputs[0].tolist() == rows for (_, (inputs, _)), rows in zip(dealt, batches, strict=True))
    assert all(len({r >= 100 for r in rows}) == 1 and len(rows) <= 4 for rows in batches)
    for epoch in (batches[:5], batches[5:]):
        assert sorted(r for rows in epoch for r in rows) == [*range(10), *range(100, 107)]
    assert {frozenset(b) for b in batches[:5]} != {frozenset(b) for b in batches[5:]}
    order = [[rows[0] >= 100 for rows in part] for part in (batches[:5], batches[5:])]
    assert any(sorted(o) != o for o in order)  # groups come mixed, not one after the other
    again = [fit.int().tolist() for _, (_, fit) in shuffled(data, 2, 0)]
    assert again == batches != [fit.int().tolist() for _, (_, fit) in shuffled(data, 2, 1)]


def test_a_trained_ranker_knows_what_chemistry_does_not_say(monkeypatch):
    """Large cations sit in the structure of CsCl: no distance in chemistry says so, the examples do."""
    monkeypatch.setattr(ranker_training, "BATCH", 8)
    held = [caesium_chloride(55, 35), rock_salt(11, 35), caesium_chloride(37, 17), rock_salt(20, 53)]
    names = {c.formula for c in held}
    library = TemplateLibrary.from_crystals([c for c in [*SALTS, *LARGE] if c.formula not in names])
    ranker = train_ranker(examples(CandidateReader(library)), FEATURES, 30, 0)
    assert not ranker.training
    for c, (template,) in zip(held, Retriever(library, [ranker]).retrieve([c.numbers for c in held], 1), strict=True):
        alone = TemplateLibrary.from_crystals([template.crystal])
        assert float(fits(CandidateReader(alone), c, alone.nearest(c.numbers, 1))[0]) > 0.9


def test_a_ranker_belongs_to_its_seed():
    data = examples(CandidateReader(TemplateLibrary.from_crystals([*SALTS[:6], *CELLS])))
    one, same, other = (train_ranker(data, FEATURES, 2, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[k], same[k]) for k in one)
    assert not torch.equal(one["own.weight"], other["own.weight"])


def test_the_rate_falls_to_zero_on_a_cosine(monkeypatch):
    rates = []
    step = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW, "step", lambda self, *a: rates.append(self.param_groups[0]["lr"]) or step(self, *a)
    )
    train_ranker(examples(CandidateReader(TemplateLibrary.from_crystals(SALTS[:4]))), FEATURES, 4, 0)
    expected = [ranker_training.LR * (1 + np.cos(np.pi * k / 4)) / 2 for k in range(4)]
    assert rates == pytest.approx(expected)


def test_some_candidates_are_hidden_and_what_then_fits_nothing_is_left_out():
    torch.manual_seed(0)
    numbers = torch.arange(3000)[:, None].expand(-1, 8)
    exists = torch.ones(3000, 8, dtype=torch.bool)
    exists[:, 7] = False
    fit = torch.zeros(3000, 8)
    fit[:, 0], fit[:, 1] = 1.0, 0.1  # only the first is of use
    (rows, seen), kept = hide((numbers, exists), fit)
    assert bool(seen[:, 0].all()) and not bool(seen[:, 7].any())
    assert len(rows) == len(seen) == len(kept) == pytest.approx(3000 * (1 - HIDDEN), rel=0.05)
    # u = 2 HIDDEN U are hidden, and the first stays with 1 - u: E[u (1 - u)] / E[1 - u] = .18 / .7
    assert 1 - float(seen[:, 1:7].float().mean()) == pytest.approx(0.257, abs=0.02)
    assert torch.equal(kept, torch.stack([seen[:, k] * fit[0, k] for k in range(8)], 1))
    lost = 6 - seen[:, 1:7].sum(1)
    assert float((lost == 0).float().mean()) > 0.2 and int(lost.max()) == 6  # from none of a list to nearly all
    nothing = (numbers[:2], torch.zeros(2, 8, dtype=torch.bool))
    assert hide(nothing, fit[:2])[1] is not None
