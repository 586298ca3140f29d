import pytest

from tests.jobs.small import write_weights


@pytest.fixture(scope="session")
def weights(tmp_path_factory) -> str:
    """A weights file of the small untrained model."""
    return write_weights(tmp_path_factory.mktemp("weights") / "small.safetensors")
