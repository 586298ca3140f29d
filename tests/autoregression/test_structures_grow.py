"""Growing a part: what is known stays, bit for bit; what is drawn is the oracle's; a sample is its own."""

import pytest
import torch

from tests.small_structures import ATOMS, embedded, small_model
from unisci.autoregression.structures import POLISHING
from unisci.batch import Batch
from unisci.domains.molecule import POSITION, Molecule, schema
from unisci.rng import Rng

MODEL = small_model()


def given(seeds=(0, 1)) -> tuple[Batch, torch.Tensor]:
    """Ethanol and methanol, of which carbons and oxygen are known."""
    made = Molecule.batch([embedded("CCO", seeds[0]), embedded("CO", seeds[1])], ATOMS)
    batch = Batch(schema(ATOMS) | {"position": POSITION}, made.state, made.mask, {}, torch.tensor([4, 9]))
    site = torch.arange(made.mask.shape[1])
    return batch, torch.stack([site < 3, site < 2])


@pytest.mark.parametrize("polish", [True, False])
def test_the_known_part_stays(polish):
    batch, known = given()
    out = MODEL.grow(batch, known, Rng(0, batch.ids), 3, polish=polish)
    assert torch.equal(out.state["atom"][known], batch.state["atom"][known])
    both = known[:, :, None] & known[:, None]
    assert torch.equal(out.state["bond"][both], batch.state["bond"][both])
    for x, y, k in zip(out.state["position"], batch.state["position"], known, strict=True):
        torch.testing.assert_close(torch.cdist(x[k], x[k]), torch.cdist(y[k], y[k]), rtol=0, atol=1e-5)
        shift = (x - y)[k]
        torch.testing.assert_close(shift, shift[:1].expand_as(shift), rtol=0, atol=1e-5)  # not turned either
    there = batch.mask
    torch.testing.assert_close(out.state["position"].sum(1), torch.zeros(2, 3), rtol=0, atol=1e-4)
    assert not out.state["position"][~there].any() and torch.equal(out.mask, there)
    assert (out.state["atom"] < len(ATOMS)).all() and torch.equal(out.state["bond"], out.state["bond"].mT)


def test_what_is_not_known_is_drawn_whatever_the_batch_holds_there():
    batch, known = given()
    blank = {k: torch.zeros_like(v) for k, v in batch.state.items()}
    blank["atom"] = torch.where(known, batch.state["atom"], 0)
    both = known[:, :, None] & known[:, None]
    blank["bond"] = torch.where(both, batch.state["bond"], 0)
    blank["position"] = torch.where(known[..., None], batch.state["position"] + 3, 0.0)
    a, b = (MODEL.grow(x, known, Rng(0, x.ids), 3) for x in (batch, batch.replace(**blank)))
    for k in a.state:
        torch.testing.assert_close(a.state[k], b.state[k], rtol=0, atol=1e-4)


def test_a_sample_does_not_depend_on_its_batch():
    batch, known = given()
    whole = MODEL.grow(batch, known, Rng(0, batch.ids), 3)
    part = batch[torch.tensor([1])].trim(6)
    alone = MODEL.grow(part, known[1:, :6], Rng(0, part.ids), 3)
    for k, v in alone.state.items():
        torch.testing.assert_close(v, whole[torch.tensor([1])].trim(6).state[k], rtol=0, atol=1e-4)
    other = MODEL.grow(batch, known, Rng(1, batch.ids), 3)
    assert (other.state["position"] != whole.state["position"]).any()


@pytest.mark.parametrize("polish, calls", [(True, 4 + POLISHING), (False, 4)])
def test_network_calls(monkeypatch, polish, calls):
    batch, known = given()
    count, forward = [], MODEL.denoiser.forward
    monkeypatch.setattr(MODEL.denoiser, "forward", lambda *a, **k: count.append(a[1]) or forward(*a, **k))
    MODEL.grow(batch, known, Rng(0, batch.ids), 4, polish=polish)
    assert len(count) == calls
    for t in count:  # known sites at time 0, as trained
        assert not t["atom"][known].any() and not t["position"][known].any()
    assert float(count[0]["position"].max()) == 1 and (count[-1]["atom"].max() > 0) == (not polish)
