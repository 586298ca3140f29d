"""Divergences against the trace of the Jacobian, fields with pairs and padding among them (S44)."""

import pytest
import torch

from tests.oracles import normal
from unisci.batch import Field
from unisci.rng import Rng
from unisci.solvers.divergence import divergence, exact, hutchinson, prepare

F64 = torch.float64
SCHEMA = {"atom": Field("site", (2,)), "bond": Field("pair", ()), "cell": Field("whole", (3,))}
AXES = {k: f.axes for k, f in SCHEMA.items()}
MASK = torch.tensor([[1, 1, 1], [1, 1, 0]], dtype=torch.bool)


def field(x):
    """Every coordinate depends on all others of its sample, bonds symmetrically; padding is not masked."""
    atom, bond, cell = x["atom"], x["bond"], x["cell"]
    pull = atom.sin().sum((1, 2)) + (bond**2).sum((1, 2)) + cell.prod(1)
    out = (bond * (atom @ atom.transpose(1, 2))).cos() * pull[:, None, None]
    return {
        "atom": atom**2 * pull[:, None, None] + bond @ atom,
        "bond": out + out.transpose(1, 2),
        "cell": cell.flip(1) * cell**2 * pull[:, None],
    }


def state(requires_grad=True):
    x = {"atom": normal(2, 3, 2), "bond": normal(2, 3, 3, seed=1), "cell": normal(2, 3, seed=2)}
    x["bond"] = x["bond"] + x["bond"].transpose(1, 2)
    return {k: v.requires_grad_(requires_grad) for k, v in x.items()}


def by_hand(b: int) -> float:
    """The trace over the coordinates of sample b: sites and pairs that exist, a pair moved as one."""
    x = {k: v[b : b + 1] for k, v in state(False).items()}
    n = int(MASK[b].sum())
    places = [("atom", (0, i, c)) for i in range(n) for c in range(2)] + [("cell", (0, c)) for c in range(3)]
    places += [("bond", (0, i, j)) for i in range(n) for j in range(i)]
    trace = 0.0
    for k, place in places:
        tangent = {name: torch.zeros_like(v) for name, v in x.items()}
        tangent[k][place] = 1
        if k == "bond":
            tangent[k][0, place[2], place[1]] = 1
        _, moved = torch.func.jvp(field, (x,), (tangent,))
        trace += moved[k][place].item()
    return trace


def test_exact_is_the_trace():
    x = state()
    out = divergence(field(x), x, prepare(exact, x, AXES, MASK))
    assert len(list(exact(x, AXES))) == 6 + 3 + 3
    torch.testing.assert_close(out, torch.tensor([by_hand(0), by_hand(1)], dtype=F64), rtol=1e-10, atol=1e-10)


def test_exact_on_a_bare_tensor():
    x = normal(4, 3).requires_grad_()
    weight = normal(3, 3, seed=1)
    out = divergence((x @ weight).tanh(), x, prepare(exact, x, 0, None))
    jacobian = torch.autograd.functional.jacobian(lambda v: (v @ weight).tanh(), x)
    torch.testing.assert_close(out, torch.stack([jacobian[b, :, b].trace() for b in range(4)]))


@pytest.mark.parametrize("bare", [True, False])
def test_hutchinson_is_unbiased(bare):
    """The mean of 4000 probes within 3 standard errors; and k probes at once are their mean."""
    if bare:
        x, axes, mask = normal(2, 3).requires_grad_(), 0, None
        weight = normal(3, 3, seed=1)
        call = lambda x: (x @ weight).sin() * x.sum(1, keepdim=True)
    else:
        x, axes, mask, call = state(), AXES, MASK, field
    want = divergence(call(x), x, prepare(exact, x, axes, mask))
    n = 4000
    rows = torch.arange(2).repeat_interleave(n)
    many = (
        {k: v.detach()[rows].requires_grad_() for k, v in x.items()} if not bare else x.detach()[rows].requires_grad_()
    )
    many_mask = None if mask is None else mask[rows]
    rng = Rng(0, torch.arange(2 * n))
    drawn = divergence(call(many), many, prepare(hutchinson(rng), many, axes, many_mask)).reshape(2, n)
    error = drawn.std(1) / n**0.5
    assert (error > 0).all() and ((drawn.mean(1) - want).abs() < 3 * error).all()
    two = divergence(call(many), many, prepare(hutchinson(rng, 2), many, axes, many_mask)).reshape(2, n)
    assert (two.std(1) / drawn.std(1) - 0.5**0.5).abs().max() < 0.05
    assert ((two.mean(1) - want).abs() < 3 * error).all()


def test_probes_are_the_same_each_time_and_symmetric():
    x, rng = state(False), Rng(0, torch.arange(2))
    first, again, other = (next(hutchinson(r)(x, AXES)) for r in (rng, rng, Rng(1, torch.arange(2))))
    assert all(torch.equal(first[k], again[k]) for k in x)
    assert any(not torch.equal(first[k], other[k]) for k in x)
    assert torch.equal(first["bond"], first["bond"].transpose(1, 2))
    assert all(((v == 1) | (v == -1)).all() for v in first.values())
    with pytest.raises(ValueError, match="at least one probe, got 0"):
        hutchinson(rng, 0)


def test_probes_leave_out_what_does_not_exist():
    """Whatever stands in the padding or on the diagonal adds no noise; a pair is pulled once, and moves as one."""
    (probe,) = prepare(hutchinson(Rng(0, torch.arange(2))), state(False), AXES, MASK)
    assert (probe.inward["atom"][1, 2] == 0).all() and (probe.inward["atom"][MASK].abs() == 1).all()
    assert probe.inward["bond"].abs().sum((1, 2)).tolist() == [6, 2]
    assert probe.outward["bond"].abs().sum((1, 2)).tolist() == [3, 1]
    assert (probe.outward["bond"].triu() == 0).all()
