"""Modes in which a model is run: with its own parameters, in evaluation mode, from a seed."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import torch

from pyrovae._compat.pyro import Messenger
from pyrovae._random import seeded

_own_run = _statements_disabled = False


@contextmanager
def local_parameters() -> Iterator[None]:
    """Keep Pyro's parameters in their modules instead of the global param store, in a run of our own."""
    global _own_run
    before, _own_run = _own_run, True
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        _own_run = before


@contextmanager
def disable_param_statements() -> Iterator[None]:
    """Skip Pyro's param statements inside the block, in a run of our own, where the parameters are known."""
    global _statements_disabled
    before, _statements_disabled = _statements_disabled, _own_run
    try:
        yield
    finally:
        _statements_disabled = before


def param_statements_disabled() -> bool:
    """Whether a model is being run without param statements."""
    return _statements_disabled


class UnscaledData(Messenger):
    """A handler that takes back the scale N/B of a subsampled data plate (dimension -1), for losses that are per datum
    already.
    """

    def _pyro_sample(self, message: dict[str, Any]) -> None:
        for frame in message["cond_indep_stack"]:
            if frame.dim == -1 and frame.full_size is not None:
                message["scale"] = message["scale"] * frame.size / frame.full_size


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode inside the block; every submodule is in its own mode afterwards."""
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


@contextmanager
def inference(module: torch.nn.Module, seed: int | None) -> Iterator[None]:
    """Enter evaluation mode, without gradients, with local parameters and a seed; all put back afterwards."""
    with evaluation_mode(module), torch.no_grad(), local_parameters(), seeded(seed):
        yield
