"""How much of a signal no operator sees, by hand."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.oracles import normal
from unisci.inverse.unseen import unseen


@dataclass(frozen=True, eq=False)
class Rows:
    matrix: Tensor

    def __call__(self, s: Tensor) -> Tensor:
        return (self.matrix * s[:, None]).sum(-1)

    def adjoint(self, residual: Tensor, at: Tensor) -> Tensor:
        return (self.matrix * residual[..., None]).sum(-2)


@given(first=st.integers(1, 3), second=st.integers(1, 3), seed=st.integers(0, 20))
@settings(max_examples=25, deadline=None)
def test_random_rows(first, second, seed):
    """Rows in general position: what is left of 5 directions, whatever the units; the same rows again add nothing."""
    a, b = Rows(normal(first, 5, seed=seed)), Rows(1e-20 * normal(second, 5, seed=seed + 50))
    x = normal(3, 5)
    assert unseen([a, b], x).tolist() == [max(0, 5 - first - second)] * 3
    assert unseen([a, Rows(3 * a.matrix)], x).tolist() == [5 - first] * 3


def test_each_sample_has_its_setting():
    rows = torch.zeros(3, 2, 4)
    rows[0, 0, 0] = rows[1, 0, 1] = rows[1, 1, 2] = 1
    assert unseen([Rows(rows)], torch.zeros(3, 4)).tolist() == [3, 2, 4]


def test_distances_leave_rigid_motions():
    """Points in space by their distances: six directions; a distance fewer than rigid leaves one more."""
    x = {"position": normal(2, 5, 3), "atom": torch.zeros(2, 5, dtype=torch.int64)}
    i, j = torch.triu_indices(5, 5, 1)
    pairs = lambda s: (s["position"][:, i] - s["position"][:, j]).norm(dim=-1)
    few = lambda s: pairs(s)[:, :8]
    assert unseen([pairs], x).tolist() == [6, 6] and unseen([few], x).tolist() == [7, 7]


def test_tolerance_and_refusal():
    rows = Rows(torch.tensor([[1.0, 0.0], [1.0, 1e-3]]))
    assert unseen([rows], torch.zeros(1, 2)).tolist() == [0]
    assert unseen([rows], torch.zeros(1, 2), rtol=0.01).tolist() == [1]
    with torch.inference_mode():
        assert unseen([rows], torch.zeros(1, 2)).tolist() == [0]
    with pytest.raises(ValueError, match="does not depend on the signal"):
        unseen([lambda s: s.detach()], torch.zeros(1, 2))
