"""How a model is run: with its own parameters, and in evaluation mode."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch


@contextmanager
def local_parameters() -> Iterator[None]:
    """Keep Pyro's parameters in their modules instead of the global param store."""
    with pyro.settings.context(module_local_params=True):
        yield


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """``module.eval()`` inside the block; every submodule's own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training
