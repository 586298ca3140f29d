import contextlib

import pytest

from tests.jobs.small import write_weights
from unisci.design import crystal_samples, crystal_scores
from unisci.design.designer import Designer
from unisci.design.samples import Samples
from unisci.jobs.models import load
from unisci.metrics.workers import Answer


@pytest.fixture(scope="session")
def designer(tmp_path_factory) -> Designer:
    """A designer of the small untrained model."""
    return load(write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors"))


@pytest.fixture(scope="session")
def drawn(designer) -> Samples:
    """Forty samples, valid and invalid ones."""
    samples = designer.generate(40)
    assert 5 < len(samples.valid()) < 35
    return samples


@pytest.fixture
def no_processes(monkeypatch):
    """Starting workers takes seconds: the same work in this process."""

    class Here(contextlib.nullcontext):
        def __init__(self, count=2, prepare=None):
            super().__init__(self)
            assert count == 2 and callable(prepare)

        def map(self, function, tasks):
            return [Answer(function(*task), None) for task in tasks]

    for module in (crystal_samples, crystal_scores):
        monkeypatch.setattr(module, "Workers", Here)
