from dataclasses import replace
from itertools import pairwise, product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unisci.processes.categorical import (
    Categorical,
    absorbing,
    cosine_keep,
    linear_keep,
    marginal,
    mask_and_replace,
    nothing,
    uniform,
)
from unisci.rng import Rng

F64 = torch.float64


def kernels(classes: int, seed: int = 0) -> dict[str, Categorical]:
    m = torch.rand(classes, generator=torch.Generator().manual_seed(seed), dtype=F64) + 0.05
    found = {
        "absorbing": absorbing(classes),
        "uniform": uniform(classes),
        "marginal": marginal(m),
        "mask and replace": mask_and_replace(classes, 0.3),
    }
    return {k: replace(p, m=p.m.double() / p.m.double().sum()) for k, p in found.items()}


NAMES = list(kernels(3))
# Pairs s < t; the last has s = 0, where the posterior is the prediction itself.
TIMES = [(0.3, 0.7), (0.55, 0.6), (0.05, 0.99), (0.9, 1.0), (0.0, 0.4), (0.0, 1.0)]


def scalar(t: float) -> Tensor:
    return torch.tensor(t, dtype=F64)


def to_t(p: Categorical, t: float) -> Tensor:
    """The matrix q(x_t = j | x_0 = i), (states, states), from the module's equation; the mask stays what it is."""
    a, b, gamma = (float(v) for v in p.level(scalar(t)))
    q = torch.zeros(p.states, p.states, dtype=F64)
    q[: p.classes, : p.classes] = a * torch.eye(p.classes, dtype=F64) + b * p.m.to(F64)
    if p.masked:
        q[: p.classes, -1], q[-1, -1] = gamma, 1
    return q


def between(p: Categorical, s: float, t: float) -> Tensor:
    """The matrix q(x_t = j | x_s = i): each unmasked site is kept, redrawn from m, or masked."""
    (a_s, _, g_s), (a_t, _, g_t) = ([float(v) for v in p.level(scalar(u))] for u in (s, t))
    keep, alive = a_t / a_s, (1 - g_t) / (1 - g_s)
    q = torch.zeros(p.states, p.states, dtype=F64)
    q[: p.classes, : p.classes] = keep * torch.eye(p.classes, dtype=F64) + (alive - keep) * p.m.to(F64)
    if p.masked:
        q[: p.classes, -1], q[-1, -1] = 1 - alive, 1
    return q


@pytest.mark.parametrize("name", NAMES)
def test_kernels_compose_to_the_marginal(name):
    p = kernels(5)[name]
    for s, t in TIMES:
        torch.testing.assert_close(to_t(p, s) @ between(p, s, t), to_t(p, t), rtol=0, atol=1e-12)
        assert float(between(p, s, t).min()) >= -1e-12
        torch.testing.assert_close(between(p, s, t).sum(1), torch.ones(p.states, dtype=F64))
    chain = torch.eye(p.states, dtype=F64)
    for k in range(20):
        chain = chain @ between(p, k / 20, (k + 1) / 20)
    torch.testing.assert_close(chain, to_t(p, 1.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("s", "t"), TIMES)
def test_posterior_is_bayes_over_every_pair(name, s, t):
    p = kernels(5)[name]
    marginal_t, step = to_t(p, t), between(p, s, t)
    for x_0, x_t in product(range(p.classes), range(p.states)):
        evidence = marginal_t[x_0, x_t]
        if evidence < 1e-12:
            continue
        bayes = to_t(p, s)[x_0] * step[:, x_t] / evidence
        probs = torch.nn.functional.one_hot(torch.tensor(x_0), p.classes).to(F64)
        got = p.posterior(torch.tensor([x_t]), probs[None], scalar(t)[None], scalar(s)[None])[0]
        torch.testing.assert_close(got, bayes, rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
@given(data=st.data())
@settings(max_examples=15, deadline=None)
def test_a_predicted_distribution_mixes_the_posteriors(name, data):
    classes = data.draw(st.integers(2, 6))
    p = kernels(classes, data.draw(st.integers(0, 99)))[name]
    t = data.draw(st.one_of(st.just(1.0), st.floats(0.1, 0.999)))  # nearer to 1, 1 - a - gamma is all rounding
    s = data.draw(st.floats(0, 0.95)) * t
    f = torch.tensor(data.draw(st.lists(st.floats(0.01, 1), min_size=classes, max_size=classes)), dtype=F64)
    f = f / f.sum()
    evidence, step = to_t(p, t)[:classes], between(p, s, t)
    x_t = torch.arange(p.states)
    got = p.posterior(x_t, f.expand(p.states, -1), scalar(t).expand(p.states), scalar(s).expand(p.states))
    for k in range(p.states):
        if not bool(evidence[:, k].any()):
            bayes = torch.eye(p.states, dtype=F64)[k]  # what cannot have come about stays as it is
        else:
            weights = torch.where(evidence[:, k] > 0, f / evidence[:, k].clamp(min=1e-300), 0)
            bayes = (weights[:, None] * to_t(p, s)[:classes] * step[:, k]).sum(0)
        torch.testing.assert_close(got[k], bayes / bayes.sum(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_a_chain_of_posteriors_leads_from_the_prior_to_the_clean_class(name):
    """With f the exact p(x_0 | x_t), each reverse matrix carries the marginal at t to the marginal at s."""
    p = kernels(4)[name]
    data = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=F64)
    grid, states = torch.linspace(1, 0, 9).tolist(), torch.arange(p.states)
    law = data @ to_t(p, 1.0)[:4]
    for t, s in pairwise(grid):
        joint = data[:, None] * to_t(p, t)[:4]
        f = (joint / joint.sum(0).clamp(min=1e-300)).T
        f = torch.where(joint.sum(0)[:, None] > 0, f, 1 / 4)
        law = law @ p.posterior(states, f, scalar(t).expand(p.states), scalar(s).expand(p.states))
        torch.testing.assert_close(law, data @ to_t(p, s)[:4], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_likelihood_is_the_column_of_the_kernel(name):
    p = kernels(4)[name]
    states = torch.arange(p.states)
    for t in (0.0, 0.3, 1.0):
        got = p.likelihood(states, scalar(t).expand(p.states))
        torch.testing.assert_close(got, to_t(p, t)[: p.classes].T, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_perturb_draws_from_the_kernel(name):
    p, n = kernels(4)[name], 20000
    rng = Rng(0, torch.arange(4 * n))
    for t in (0.2, 0.8, 1.0):
        clean = torch.arange(4).repeat_interleave(n)
        x_t = p.perturb(clean, torch.full((4 * n,), t), rng)
        counts = torch.stack([torch.bincount(x, minlength=p.states) for x in x_t.split(n)]) / n
        torch.testing.assert_close(counts.double(), to_t(p, t)[:4], rtol=0, atol=4.5 * 0.5 / n**0.5)


@pytest.mark.parametrize("name", NAMES)
def test_perturb_keeps_clean_sites_takes_site_times_and_keeps_pairs_symmetric(name):
    p, rng = kernels(3)[name], Rng(1, torch.arange(50))
    clean = torch.randint(3, (50, 6, 6), generator=torch.Generator().manual_seed(0))
    clean = clean.tril() + clean.tril(-1).transpose(1, 2)
    assert torch.equal(p.perturb(clean, torch.zeros(50), rng, "bond", 2), clean)
    t = torch.zeros(50, 6, 6)
    t[:, 4:], t[:, :, 4:] = 0.9, 0.9
    x_t = p.perturb(clean, t, rng, "bond", 2)
    assert torch.equal(x_t[:, :4, :4], clean[:, :4, :4])
    assert torch.equal(x_t, x_t.transpose(1, 2))
    assert bool((x_t != clean).any())


@pytest.mark.parametrize("name", ["uniform", "marginal"])
def test_no_draw_of_a_kernel_without_mask_is_the_mask(name, monkeypatch):
    """Not even that of the largest uniform number: a + b rounds to 1 exactly, and the number is below."""
    p = kernels(3)[name]
    monkeypatch.setattr(Rng, "words", lambda self, field, step, shape, axes=1: torch.full(shape, 2**32 - 1))
    t = torch.linspace(0, 1, 2001)
    x_t = p.perturb(torch.zeros(2001, dtype=torch.long), t, Rng(0, torch.arange(2001)))
    assert int(x_t.max()) < p.states


@pytest.mark.parametrize("name", NAMES)
def test_prior_is_the_kernel_at_time_1(name):
    p, n = kernels(4)[name], 20000
    x = p.prior(torch.zeros(n, dtype=torch.long), Rng(0, torch.arange(n)))
    counts = torch.bincount(x, minlength=p.states).double() / n
    torch.testing.assert_close(counts, to_t(p, 1.0)[0], rtol=0, atol=4.5 * 0.5 / n**0.5)
    pairs = p.prior(torch.zeros(9, 5, 5, dtype=torch.long), Rng(0, torch.arange(9)), "bond", 2)
    assert torch.equal(pairs, pairs.transpose(1, 2))


@pytest.mark.parametrize("keep", [cosine_keep, linear_keep])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_schedules_fall_from_exactly_1_to_exactly_0(keep, dtype):
    a = keep(torch.linspace(0, 1, 1001, dtype=dtype))
    assert a.dtype == dtype and float(a[0]) == 1 and float(a[-1]) == 0
    assert bool((a.diff() < 0).all())
    assert float(cosine_keep(scalar(0.5))) == pytest.approx(0.70274, abs=1e-5)  # cos, not cos^2


def test_states_and_flags():
    flags = {k: (p.states, p.masked, p.pins) for k, p in kernels(3).items()}
    assert flags == {
        "absorbing": (4, True, True),
        "uniform": (3, False, False),
        "marginal": (3, False, False),
        "mask and replace": (4, True, False),
    }


def test_logits_put_in_what_an_absorbing_site_proves():
    p, x_t = absorbing(3), torch.tensor([[0, 2, 3]])
    logits = torch.randn(1, 3, 3)
    f = p.logits(logits, x_t).softmax(-1)[0]
    assert f[:2].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert torch.equal(f[2], logits[0, 2].softmax(-1))
    assert uniform(3).logits(logits, x_t) is logits


def test_the_loss_counts_noised_sites_that_do_not_show_their_class():
    x_t, t = torch.tensor([[0, 3, 3], [0, 3, 3]]), torch.tensor([0.5, 0.0])
    assert absorbing(3).learnable(x_t, t).tolist() == [[False, True, True], [False] * 3]
    assert mask_and_replace(3).learnable(x_t, t).tolist() == [[True] * 3, [False] * 3]
    by_site = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.0, 0.5]])
    assert absorbing(3).learnable(x_t, by_site).tolist() == [[False, True, False], [False, False, True]]


def test_to_moves_the_noise_distribution():
    p = marginal(torch.tensor([1.0, 3.0]))
    assert p.to("cpu") is p
    moved = p.to("meta")
    assert moved.m.is_meta and not p.m.is_meta and (moved.states, moved.pins) == (2, False)


@pytest.mark.parametrize("m", [[0.5, 0.6], [-0.5, 1.5], [[1.0]]])
def test_m_must_be_a_distribution(m):
    with pytest.raises(ValueError, match="m must be a distribution"):
        Categorical(linear_keep, nothing, torch.tensor(m))
