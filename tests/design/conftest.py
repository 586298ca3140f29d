import pytest

from tests.jobs.small import write_weights
from unisci.design.designer import Designer
from unisci.design.samples import Samples
from unisci.jobs.models import load


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
