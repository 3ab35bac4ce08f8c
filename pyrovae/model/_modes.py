"""Modes in which a model is run: with its own parameters, in evaluation mode, from a seed."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import pyro
import torch

from pyrovae._checks import HALF, require_precision, unfit
from pyrovae._compat.pyro import Messenger
from pyrovae._compat.torch import full_precision, own_settings
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


@contextmanager
def evaluation_mode(module: torch.nn.Module) -> Iterator[None]:
    """Put a module in evaluation mode for the block, part of a turn; every submodule is in its own mode afterwards."""
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
def strict(model: Any, device: torch.device | None = None) -> Iterator[None]:
    """Evaluation mode with nothing approximate in every turn of the block, whatever the caller has set: no gradients,
    no autocast, no TF32, new tensors where the model is; parameters stay in it. All that is evaluated passes here.

    Args:
        model: the model.
        device: where it will be; by default where it is.

    Raises:
        ValueError: see :func:`check_numbers`.
    """
    check_numbers(model)
    with (
        own_settings(device or model.placement.device),
        torch.no_grad(),
        kept(partial(evaluation_mode, model)),
        kept(full_precision),
        keep_local_parameters(),
    ):
        yield


@contextmanager
def inference(model: Any, seed: int | None) -> Iterator[None]:
    """The same, from a seed, for a block that is one turn, in which others may be given way."""
    with turn(), strict(model), stream(seed):
        yield


def check_numbers(model: Any) -> None:
    """Raise a ``ValueError`` where a model, or torch's default, has numbers of half a precision, or none."""
    require_precision()
    like, name = model.placement, type(model).__name__
    if why := unfit(like.device):
        raise ValueError(
            f"{name} is on the {like.device.type} device, which {why}: move it to 'cpu' or 'cuda', or build it there."
        )
    if like.dtype in HALF:
        raise ValueError(f"{name} has {like.dtype} parameters, in which log-densities are lost: call model.float().")
