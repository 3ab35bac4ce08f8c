import copy
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import pyro
import pytest
import torch

if os.environ.get("PYROVAE_CHECK_TYPES"):
    from tests.annotations import install

    install()

import pyrovae as pv

matplotlib.use("Agg")
torch.set_num_threads(int(os.environ.get("PYROVAE_TEST_THREADS", "1")))  # workers share the cores


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)  # so that all workers end together
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def shares(test: str) -> str:
    """What a test shares with others, of those things that take long to make; else its own name."""
    for file in ("test_distributed.py", "test_vqvae.py"):
        if file in test:
            return file
    if "[flow_posterior.py]" in test or "test_report_on_saved_models" in test:
        return "flow_posterior.py"
    trained = re.search(r"::test_digits\w*(\[\w+\])$", test)
    return f"digits_vae{trained[1]}" if trained else test


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """One worker for the tests that share something; the workers take tests one by one, in order."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return shares(nodeid)

    return Scheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.fixture(autouse=True)
def _fresh() -> None:
    """No test sees another's random state, what plain Pyro left in its global store, or that ``torch.compile`` has
    switched off validation for the whole process.
    """
    torch.manual_seed(0)
    pyro.clear_param_store()
    torch.distributions.Distribution.set_default_validate_args(__debug__)


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


@pytest.fixture(scope="session")
def digits_vae() -> Callable[[str], pv.VAE]:
    """A VAE of two latents by the name of its posterior, trained on digits once."""
    trained: dict[str, pv.VAE] = {}

    def of(posterior: str) -> pv.VAE:
        if posterior not in trained:
            data = pv.datasets.load("digits", binarize="static")
            torch.manual_seed(0)
            trained[posterior] = pv.VAE(data.event_shape, 2, posterior=posterior, hidden=(64,))
            pv.fit(trained[posterior], data, epochs=40, progress=False, seed=0, device="cpu")
            torch.manual_seed(0)
        return copy.deepcopy(trained[posterior])

    return of
