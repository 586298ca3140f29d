"""The ranker: blind to the order of species and to padding, and its loss is what it says."""

import numpy as np
import pytest
import torch

from unisci.domains.pair_densities import RADII, density_distance
from unisci.networks.template_ranker import CONTACTS, TemplateRanker, _apart, ranking_loss

FACTS = 14


def ranker() -> TemplateRanker:
    torch.manual_seed(0)
    r = TemplateRanker(torch.randn(101, 5), torch.from_numpy(RADII), FACTS).eval()
    for p in r.parameters():
        torch.nn.init.normal_(p, std=0.15)
    return r


def inputs(b: int = 3, k: int = 4, s: int = 3) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    share = torch.rand(b, s, generator=g)
    return [
        torch.randint(1, 101, (b, s), generator=g),
        share / share.sum(1, keepdim=True),
        torch.rand(b, s, s, generator=g) * 2,
        torch.randint(1, 101, (b, k, s), generator=g),
        torch.rand(b, k, s, s, len(RADII), generator=g),
        torch.randn(b, k, FACTS, generator=g),
        torch.ones(b, k, dtype=torch.bool),
    ]


def test_species_may_come_in_any_order():
    r, (elements, share, touching, theirs, density, facts, exists) = ranker(), inputs()
    p = torch.tensor([2, 0, 1])
    touch, g = touching[:, p][:, :, p], density[:, :, p][:, :, :, p]
    moved = r(elements[:, p], share[:, p], touch, theirs[:, :, p], g, facts, exists)
    torch.testing.assert_close(
        moved, r(elements, share, touching, theirs, density, facts, exists), rtol=1e-5, atol=1e-4
    )


def test_the_sides_of_a_pair_are_told_apart():
    r, x = ranker(), inputs()
    turned = [*x[:4], x[4].transpose(2, 3), *x[5:]]
    assert float((r(*turned) - r(*x)).detach().abs().min()) > 1e-4


def test_padded_species_and_missing_candidates_change_nothing():
    r, (elements, share, touching, theirs, density, facts, exists) = ranker(), inputs()
    pad = torch.nn.functional.pad
    wide = [pad(elements, (0, 2)), pad(share, (0, 2)), pad(touching, (0, 2, 0, 2)), pad(theirs, (0, 2))]
    same = r(elements, share, touching, theirs, density, facts, exists)
    torch.testing.assert_close(r(*wide, pad(density, (0, 0, 0, 2, 0, 2)), facts, exists), same, rtol=1e-5, atol=1e-4)
    fewer = exists.clone()
    fewer[1, 2:] = False
    scores = r(elements, share, touching, theirs, density, facts, fewer)
    assert scores[1, 2:].tolist() == [-torch.inf] * 2
    alone = r(elements, share, touching, theirs[:, :2], density[:, :2], facts[:, :2], exists[:, :2])
    torch.testing.assert_close(scores[1, :2], alone[1], rtol=1e-5, atol=1e-4)
    assert float((scores[1, :2] - same[1, :2]).detach().abs().min()) > 1e-4  # candidates that are there are seen


def test_candidates_may_come_in_any_order():
    r, (elements, share, touching, theirs, density, facts, exists) = ranker(), inputs()
    p = torch.tensor([3, 1, 0, 2])
    moved = r(elements, share, touching, theirs[:, p], density[:, p], facts[:, p], exists)
    torch.testing.assert_close(
        moved, r(elements, share, touching, theirs, density, facts, exists)[:, p], rtol=1e-5, atol=1e-4
    )


def test_densities_are_read_where_atoms_touch():
    _, _, touching, _, density, _, _ = inputs(1, 2, 2)
    line = torch.from_numpy(3 * RADII - 0.5).float().expand_as(density)
    expected = 3 * (touching[:, None, ..., None] * torch.linspace(*CONTACTS)).clamp(RADII[0], RADII[-1]) - 0.5
    got = ranker()._at_contact(line, touching)
    torch.testing.assert_close(got, expected.expand_as(got), rtol=1e-4, atol=1e-4)


def test_candidates_are_as_far_apart_as_their_pair_densities():
    _, share, _, _, density, _, _ = inputs(1)
    g, c = density[0].double().numpy(), share[0].double().numpy()
    expected = [[density_distance(a, b, c) for b in g] for a in g]
    np.testing.assert_allclose(_apart(density, share)[0], expected, rtol=1e-4, atol=1e-4)


def test_every_parameter_learns():
    r, x = ranker(), inputs()
    ranking_loss(r(*x), torch.rand(3, 4)).backward()
    assert [k for k, p in r.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)] == []


def test_the_loss_is_the_expected_fit():
    scores, fit = torch.tensor([[0.0, torch.log(torch.tensor(3.0))]]), torch.tensor([[1.0, 0.2]])
    expected = -torch.log(torch.tensor(0.25 * 1 + 0.75 * 0.2))
    assert float(ranking_loss(scores, fit)) == pytest.approx(float(expected), rel=1e-5)
