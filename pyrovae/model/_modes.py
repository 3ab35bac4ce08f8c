"""Modes in which a model is run: with its own parameters, in evaluation mode, from a seed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pyro
import torch

from pyrovae._compat.pyro import Messenger
from pyrovae._random import stream
from pyrovae._turns import kept, turn

_own_run = _statements_disabled = False


@contextmanager
def _in_modules() -> Iterator[None]:
    global _own_run
    before, _own_run = _own_run, True
    try:
        with pyro.settings.context(module_local_params=True):
            yield
    finally:
        _own_run = before


def keep_local_parameters() -> AbstractContextManager[None]:
    """Keep Pyro's parameters in their modules instead of the global param store, in every turn of the block, which is
    a run of our own.
    """
    return kept(_in_modules)


@contextmanager
def local_parameters() -> Iterator[None]:
    """The same, for a block that is one turn."""
    with turn(), _in_modules():
        yield


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


def evaluation_mode(module: torch.nn.Module) -> AbstractContextManager[None]:
    """Put a module in evaluation mode in every turn of the block; every submodule is in its own mode otherwise."""
    return kept(partial(_evaluation_mode, module))


@contextmanager
def _evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    modes = {m: m.training for m in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for m, training in modes.items():
            m.training = training


def without_validation() -> AbstractContextManager[None]:
    """Let distributions not check their arguments in any turn of the block."""
    return kept(partial(pyro.distributions.validation_enabled, False))


@contextmanager
def turns_of_inference(module: torch.nn.Module, seed: int | None) -> Iterator[None]:
    """Evaluation mode, no gradients, local parameters and a seed in every turn of the block; put back afterwards."""
    with evaluation_mode(module), torch.no_grad(), keep_local_parameters(), stream(seed):
        yield


@contextmanager
def inference(module: torch.nn.Module, seed: int | None) -> Iterator[None]:
    """The same, for a block that is one turn."""
    with turn(), turns_of_inference(module, seed):
        yield
