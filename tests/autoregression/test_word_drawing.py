"""Drawing words: the law they are drawn from, where they stop, and that a cache changes nothing."""

import dataclasses

import pytest
import torch

from tests.autoregression.test_unigenx import model, sequences
from tests.oracles import normal
from unisci.autoregression.word_drawing import draw_words, nucleus
from unisci.rng import Rng


def test_the_nucleus():
    """The smallest set of words that holds top_p; the first word always stays."""
    logits = torch.tensor([0.5, 0.2, 0.2, 0.1]).double().log()[None]
    both = torch.cat([logits, logits.flip(1)])
    torch.testing.assert_close(nucleus(both), both.exp())
    kept = {0.3: [1, 0, 0, 0], 0.6: [5 / 7, 2 / 7, 0, 0], 0.8: [5 / 9, 2 / 9, 2 / 9, 0], 0.95: [0.5, 0.2, 0.2, 0.1]}
    for top_p, expected in kept.items():
        torch.testing.assert_close(nucleus(logits, top_p=top_p)[0], torch.tensor(expected).double())
    p = torch.tensor([0.25, 0.04, 0.04, 0.01]).double()
    torch.testing.assert_close(nucleus(logits, 0.5)[0], p / p.sum())
    for wrong in ({"temperature": 0.0}, {"top_p": 0.0}, {"top_p": 1.1}):
        with pytest.raises(ValueError, match="need temperature > 0 and 0 < top_p <= 1"):
            nucleus(logits, **wrong)


@pytest.mark.parametrize("prefix", [[[0]] * 40, [[0, 0, 1]] * 40, [[0, 0, 2, 0, 1, 0]] * 40])
def test_a_cache_changes_nothing_and_a_sample_is_its_own(prefix):
    m, batch = model(std=0.3), sequences(prefix)
    batch = dataclasses.replace(batch, ids=torch.arange(40) + 7)
    words = draw_words(m, batch, Rng(1, batch.ids), 2, 9)
    assert torch.equal(words, draw_words(m, batch, Rng(1, batch.ids), 2, 9, cached=False))
    rows = torch.tensor([30, 4])
    assert torch.equal(words[rows], draw_words(m, batch[rows], Rng(1, batch.ids[rows]), 2, 12)[:, :9])
    assert not torch.equal(words, draw_words(m, batch, Rng(2, batch.ids), 2, 9))
    stopped = (words == 2).cummax(1).values
    assert bool((words[stopped] == 2).all()) and 5 < int(stopped.any(1).sum()) < 40
    assert len(words[~stopped].unique()) == 6


def test_words_are_drawn_from_what_the_state_before_says():
    """In the mean over rows the shares of the second word are its probabilities given the prefix and the first."""
    m, n = model(std=0.3), 4000
    one = sequences([[0, 1]])
    batch = one[torch.zeros(n, dtype=torch.long)]
    batch = dataclasses.replace(batch, ids=torch.arange(n))
    words = draw_words(m, batch, Rng(0, batch.ids), 6, 2)
    with torch.no_grad():
        first = m.to_word(m.hidden(_longer(one, [0]))[:, -1]).softmax(-1)[0]
        assert float((words[:, 0].bincount(minlength=7) / n - first).abs().max()) < 0.03
        seen = int(words[:, 0].bincount(minlength=6)[:6].argmax())
        second = m.to_word(m.hidden(_longer(one, [seen, 0]))[:, -1]).softmax(-1)[0]
    after = words[words[:, 0] == seen, 1]
    assert float((after.bincount(minlength=7) / len(after) - second).abs().max()) < 0.06


def _longer(batch, words):
    """The sequence with words behind it; the last is only a place to speak of."""
    more = sequences([[0, 1] + [0] * len(words)])
    more.state["word"][0] = torch.cat([batch.state["word"][0], torch.tensor(words)])
    more.state["value"][0, :2] = batch.state["value"][0]
    return more


def test_the_law_is_asked_and_prefixes_are_of_one_length():
    m, batch = model(), sequences([[0, 1]] * 6)
    only = lambda logits: torch.nn.functional.one_hot(torch.full(logits.shape[:1], 4), logits.shape[1]).double()
    assert bool((draw_words(m, batch, Rng(0, batch.ids), 2, 5, only) == 4).all())
    uneven = sequences([[0, 1], [0]])
    with pytest.raises(ValueError, match="must all have the 2 positions"):
        draw_words(m, uneven, Rng(0, uneven.ids), 2, 5)
    probabilities = nucleus(normal(3, 7), 0.7, 0.9)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(3).double())
