import os
from pathlib import Path

import matplotlib
import pyro
import pytest
import torch

if os.environ.get("PYROVAE_CHECK_TYPES"):
    from tests.annotations import install

    install()

matplotlib.use("Agg")
torch.set_num_threads(int(os.environ.get("PYROVAE_TEST_THREADS", "1")))  # workers share the cores


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """No test sees another's random state or what plain Pyro left in its global store."""
    torch.manual_seed(0)
    pyro.clear_param_store()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def real_data() -> Path:
    """The folder with real data sets, maybe not all: a test that needs one that is not there is skipped, visibly."""
    root = os.environ.get("PYROVAE_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("PYROVAE_DATA is not set to a folder with the data sets")
    return Path(root)
