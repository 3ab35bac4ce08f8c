"""Whether anything is trained: parameters that can be, an optimiser that has them, a loss that depends on them."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer


class NothingTrains(ValueError):
    """The loss depends on none of the parameters that the optimiser has."""

    def __init__(self) -> None:
        super().__init__(
            "the loss depends on none of the parameters that the optimiser has, so nothing would be trained: look for "
            "detach(), torch.no_grad(), .item() or .numpy() in the model, and for parameters that it does not use."
        )


def trainable(model: nn.Module) -> list[Tensor]:
    """The parameters that are not frozen.

    Raises:
        ValueError: there are none; parameters or buffers that autograd cannot use.
    """
    name = type(model).__name__
    for kind, tensors in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        if made := [n for n, t in tensors if t.is_inference()]:
            raise ValueError(
                f"{kind} {made[0]!r} of {name} was made under torch.inference_mode and cannot be trained: build the "
                f"model outside of it, or copy it there by copy.deepcopy."
            )
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        frozen = ": all are frozen, so call model.requires_grad_(True)" if any(True for _ in model.parameters()) else ""
        raise ValueError(f"{name} has no parameters to train{frozen}.")
    return parameters


def check_optimizer(optimizer: Optimizer, parameters: Sequence[Tensor], name: str) -> None:
    """Raise a ``ValueError`` unless the optimiser has some of the model's parameters, and takes one loss a step."""
    if not {id(p) for p in parameters} & {id(p) for p in _held(optimizer)}:
        raise ValueError(
            f"the optimiser has none of the parameters of {name} that are trained: make it of those that it is given, "
            f"as in optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS evaluates the loss several times a step, which a stochastic loss does not allow.")


def check_gradients(optimizer: Optimizer) -> None:
    """Raise :class:`NothingTrains` unless a loss has left gradients."""
    if all(p.grad is None for p in _held(optimizer)):
        raise NothingTrains


def _held(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
