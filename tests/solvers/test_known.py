"""Answers given already: where they are taken from memory, and where not."""

import pytest
import torch

from tests.oracles import GaussianOracle
from unisci.processes.gaussian import VP
from unisci.solvers.known import Known

DENOISE, X, T, CLEAN = GaussianOracle(VP(), 0.3, 0.5), torch.ones(2, 3), torch.tensor(0.5), torch.zeros(2, 3)


def test_everywhere():
    known = Known.of(DENOISE, CLEAN)
    assert known.process is DENOISE.process and known.schema is DENOISE.schema
    assert known(X, T) is CLEAN and known(2 * X, T) is CLEAN


def test_at_one_state():
    """A copy of the state is another state, as values are not compared."""
    known = Known(DENOISE.process, None, CLEAN, X, DENOISE)
    assert known(X, T) is CLEAN
    for other in (X.clone(), 2 * X):
        assert torch.equal(known(other, T), DENOISE(other, T))
    refusing = Known(DENOISE.process, None, CLEAN, X)
    assert refusing(X, T) is CLEAN
    with pytest.raises(RuntimeError, match="known at one state alone"):
        refusing(X.clone(), T)
