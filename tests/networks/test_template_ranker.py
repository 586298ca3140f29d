"""The ranker: blind to the order of species and to padding, and its loss is what it says."""

import pytest
import torch

from unisci.networks.template_ranker import INPUTS, RADII, TemplateRanker, ranking_loss


def ranker() -> TemplateRanker:
    torch.manual_seed(0)
    r = TemplateRanker(torch.randn(101, 5)).eval()
    for p in r.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return r


def inputs(b: int = 3, k: int = 4, s: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    share = torch.rand(b, s, generator=g)
    return [
        torch.randint(1, 101, (b, s), generator=g),
        share / share.sum(1, keepdim=True),
        torch.randint(1, 101, (b, k, s), generator=g),
        torch.rand(b, k, s, s, RADII, generator=g),
        torch.randn(b, k, INPUTS, generator=g),
        torch.ones(b, k, dtype=torch.bool),
    ]


def test_species_may_come_in_any_order():
    r, (elements, share, theirs, density, facts, exists) = ranker(), inputs()
    p = torch.tensor([2, 0, 1])
    moved = r(elements[:, p], share[:, p], theirs[:, :, p], density[:, :, p][:, :, :, p], facts, exists)
    torch.testing.assert_close(moved, r(elements, share, theirs, density, facts, exists), rtol=1e-5, atol=1e-4)


def test_the_sides_of_a_pair_are_told_apart():
    r, x = ranker(), inputs()
    turned = [*x[:3], x[3].transpose(2, 3), *x[4:]]
    assert float((r(*turned) - r(*x)).abs().min()) > 1e-4


def test_padded_species_and_missing_candidates_change_nothing():
    r, (elements, share, theirs, density, facts, exists) = ranker(), inputs()
    pad = torch.nn.functional.pad
    wide = [pad(elements, (0, 2)), pad(share, (0, 2)), pad(theirs, (0, 2)), pad(density, (0, 0, 0, 2, 0, 2))]
    same = r(elements, share, theirs, density, facts, exists)
    torch.testing.assert_close(r(*wide, facts, exists), same, rtol=1e-5, atol=1e-4)
    fewer = exists.clone()
    fewer[1, 2:] = False
    scores = r(elements, share, theirs, density, facts, fewer)
    assert scores[1, 2:].tolist() == [-torch.inf] * 2
    torch.testing.assert_close(scores[1, :2], same[1, :2], rtol=1e-5, atol=1e-4)


def test_every_parameter_learns():
    r, x = ranker(), inputs()
    ranking_loss(r(*x), torch.rand(3, 4)).backward()
    assert [k for k, p in r.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_the_loss_is_the_expected_fit():
    scores, fit = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]), torch.tensor([[1.0, 0.2]])
    expected = -torch.log(torch.tensor(0.25 * 1 + 0.75 * 0.2))
    assert float(ranking_loss(scores, fit)) == pytest.approx(float(expected), rel=1e-5)
