"""Links of slots: which states hear of them, and that words are otherwise those of UniGenX."""

import pytest
import torch

from tests.autoregression.test_unigenx import KINDS, SMALL, WORDS, sequences
from unisci.autoregression.linked_unigenx import LINKS, LinkedUniGenX, linked
from unisci.autoregression.unigenx import UniGenX
from unisci.rng import Rng


def model() -> LinkedUniGenX:
    torch.manual_seed(0)
    m = LinkedUniGenX(WORDS, KINDS, SMALL).double()
    for p in m.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return m.eval()


@torch.no_grad()
@pytest.mark.parametrize("which", ["up", "back"])
def test_a_link_is_heard_from_the_state_before_its_slot_on(which):
    """To the last bit; and the state before it hears of it by another table than those after."""
    m, batch, zero = model(), sequences([[0, 1, 2, 2, 1, 0]]), torch.zeros(1, 6, dtype=torch.long)
    word, outs = batch.state["word"], []
    plain = m.hidden(batch)
    for j in range(1, 6):
        links = {"up": zero, "back": zero} | {which: zero + 3 * (torch.arange(6) == j)}
        change = (m.hidden(batch.replace(word=linked(word, words=WORDS, **links))) - plain).abs().amax((0, 2))
        assert float(change[: j - 1].sum()) == 0 and bool((change[j - 1 :] > 1e-9).all()) == (j < 5)
    for up, back in ((3, 0), (0, 3), (3, 3)):
        outs.append(m.hidden(batch.replace(word=linked(word, zero + up, zero + back, WORDS))))
    assert min(float((a - b).abs().max()) for a, b in zip(outs, [*outs[1:], outs[0]], strict=True)) > 1e-6


@torch.no_grad()
def test_it_is_unigenx_with_four_tables():
    """Whose rows of 0 say nothing here; links of words are not heard, far ones are one."""
    m, batch = model(), sequences([[0, 1, 0, 2, 0]])
    plain = UniGenX(WORDS, KINDS, SMALL).double()
    plain.load_state_dict({k: v for k, v in m.state_dict().items() if k in plain.state_dict()})
    for table in (*m.own, *m.coming):
        table.weight[0] = 0
    torch.testing.assert_close(m.hidden(batch), plain.hidden(batch), rtol=0, atol=0)
    link = torch.tensor([[5, 0, 9, 0, 0]])
    heard = m.hidden(batch.replace(word=linked(batch.state["word"], link, link, WORDS)))
    assert torch.equal(heard, m.hidden(batch))
    far = [linked(batch.state["word"], link * 0 + n, link * 0 + n, WORDS) for n in (LINKS - 1, LINKS, 10 * LINKS)]
    assert (
        torch.equal(far[0], far[1])
        and torch.equal(far[0], far[2])
        and bool((far[0] % WORDS == batch.state["word"]).all())
    )


def test_a_cache_changes_nothing():
    m, batch = model(), sequences([[0, 1, 2, 2, 1, 0], [0, 0, 1]])
    link = torch.arange(6).expand(2, -1) * (batch.given["slot"] > 0)
    batch = batch.replace(word=linked(batch.state["word"], link, link + 2 * (link > 0), WORDS))
    on, off = (m.draw(batch, Rng(0, batch.ids), 4, cached=c).state["value"] for c in (True, False))
    torch.testing.assert_close(on, off, rtol=0, atol=1e-9)
