"""Optimisers: of parameters that can be trained and that the loss depends on, and one against a lagging encoder."""

import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.optim.lr_scheduler import LRScheduler

from pyrovae._checks import require_at_least, require_instance, require_positive, require_tensors, shown
from pyrovae.training.batches import Model


class NothingTrains(ValueError):
    """The loss depends on none of the parameters that the optimiser has."""

    def __init__(self) -> None:
        super().__init__(
            "the loss depends on none of the parameters that the optimiser has, so nothing would be trained: look for "
            "detach(), torch.no_grad(), .item() or .numpy() in the model, and for parameters that it does not use."
        )


def trainable(model: Model) -> list[Tensor]:
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


def make_optimizer(model: Model, make: Callable[[Any], Optimizer] | None, learning_rate: float) -> Optimizer:
    """Make the optimiser of the parameters that are not frozen: Adam, if none is given.

    Raises:
        TypeError: ``make`` gives no optimiser.
        ValueError: no parameters (see :func:`trainable`), an optimiser that has none of them, others, or one twice, or
            that takes several losses a step.
    """
    parameters = trainable(model)
    if make is None:
        require_positive(learning_rate=learning_rate)
        fused = model.placement.device.type in ("cpu", "cuda")
        optimizer: Optimizer = torch.optim.Adam(parameters, lr=learning_rate, fused=fused)
    else:
        optimizer = make(parameters)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"optimizer must give a torch.optim.Optimizer; it gave {shown(optimizer)}.")
    held, own = Counter(id(p) for p in _held(optimizer)), {id(p): name for name, p in model.named_parameters()}
    if not any(id(p) in held for p in parameters):
        raise ValueError(
            f"the optimiser has none of the parameters of {type(model).__name__} that are trained: make it of those "
            f"that it is given, as in optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-3)."
        )
    if foreign := len(held.keys() - own.keys()):
        raise ValueError(
            f"the optimiser has {foreign} parameter(s) that are not {type(model).__name__}'s: make it of those that it "
            f"is given."
        )
    if twice := [own[i] for i, count in held.items() if count > 1]:
        raise ValueError(f"the optimiser has {twice[0]} twice, and would update it twice a step: name it once.")
    if left_out := [own[id(p)] for p in parameters if id(p) not in held]:
        some = ", ".join(left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        warnings.warn(
            f"the optimiser leaves out {len(left_out)} of {len(parameters)} parameters of {type(model).__name__}, "
            f"which stay as they are: {some}. Where that is meant, freeze them by requires_grad_(False).",
            stacklevel=3,
        )
    if isinstance(optimizer, LBFGS):
        raise ValueError("LBFGS evaluates the loss several times a step, which a stochastic loss does not allow.")
    return optimizer


def make_scheduler(optimizer: Optimizer, make: Callable[[Optimizer], LRScheduler]) -> LRScheduler:
    """Make the scheduler of an optimiser's learning rates.

    Raises:
        TypeError: ``make`` gives no scheduler.
        ValueError: it gives one of another optimiser.
    """
    scheduler = make(optimizer)
    if not isinstance(scheduler, LRScheduler):
        raise TypeError(f"lr_schedule must give a scheduler of torch.optim.lr_scheduler; it gave {shown(scheduler)}.")
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise ValueError("lr_schedule gives a scheduler of another optimiser: make it of the one that it is given.")
    return scheduler


def check_gradients(optimizer: Optimizer) -> None:
    """Raise :class:`NothingTrains` unless a loss has left gradients."""
    if all(p.grad is None for p in _held(optimizer)):
        raise NothingTrains


def _held(optimizer: Any) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _as_list(parameters: Any, name: str) -> list[Tensor]:
    if isinstance(parameters, (Tensor, str)) or hasattr(parameters, "ndim") or not isinstance(parameters, Iterable):
        raise TypeError(f"{name} must be several tensors, such as module.parameters(); got {shown(parameters)}.")
    each = list(parameters)
    require_tensors(**{f"{name}[{i}]": p for i, p in enumerate(each)})
    return each


class LaggingAdam(torch.optim.Adam):
    """Adam that leaves some parameters alone save at every k-th step, for the first so many steps.

    Args:
        parameters: all of them.
        slow: those that wait.
        every: k.
        steps: for how many steps; then all parameters are updated at every step.
        learning_rate: of Adam.

    Raises:
        ValueError: none of ``slow`` is among ``parameters``, or all are.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        slow: Iterable[Tensor],
        *,
        every: int,
        steps: int,
        learning_rate: float = 1e-3,
    ) -> None:
        require_at_least(1, every=every)
        require_at_least(0, steps=steps)
        require_positive(learning_rate=learning_rate)
        everything, waiting = _as_list(parameters, "parameters"), _as_list(slow, "slow")
        chosen = {id(p) for p in waiting}
        fast = [p for p in everything if id(p) not in chosen]
        waiting = [p for p in everything if id(p) in chosen]
        if not fast or not waiting:
            which = "all" if waiting else "none"
            raise ValueError(f"{which} of the trained parameters are in the modules given as slow: pass the decoder's.")
        fused = all(p.device.type in ("cpu", "cuda") for p in everything)
        super().__init__([{"params": fast}, {"params": waiting}], lr=learning_rate, fused=fused)
        self.param_groups[1]["steps_done"] = 0  # among what checkpoints keep
        self.defaults |= {"every": every, "steps": steps}  # among what a checkpoint compares

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the slow parameters' gradients are dropped at the steps in between."""
        group = self.param_groups[1]
        group["steps_done"] += 1
        every, steps = self.defaults["every"], self.defaults["steps"]
        if group["steps_done"] <= steps and group["steps_done"] % every:
            for p in group["params"]:
                p.grad = None
        return super().step(closure)


def lagging_inference(
    *slow: nn.Module | Tensor, every: int = 5, steps: int = 1000, learning_rate: float = 1e-3
) -> Callable[[Any], torch.optim.Optimizer]:
    """Aggressive training of the encoder against posterior collapse (He et al. 2019, arXiv:1901.05534), for
    ``fit(..., optimizer=lagging_inference(vae.decoder, every=5, steps=2000))``.

    For the first ``steps`` steps the decoder is updated at every ``every``-th one only, so that the posterior keeps
    up with it. In the paper the inner loop lasts until the bound stops rising, and the phase until the mutual
    information does; here both lengths are given, and the encoder moves along with the decoder at the ``every``-th
    step. Works with every ``compile`` and with checkpoints.

    Args:
        slow: the generative part: the decoder, and the prior if it is learnt.
        every: k; 1 is plain Adam.
        steps: length of the phase, in steps (batches).
        learning_rate: of Adam.

    Returns:
        A function from parameters to the optimiser.

    Raises:
        ValueError: bad arguments; from the function, if ``slow`` holds none or all of the parameters.
    """
    require_at_least(1, every=every)
    require_at_least(0, steps=steps)
    require_positive(learning_rate=learning_rate)
    if not slow:
        raise ValueError("lagging_inference needs the modules whose updates wait: lagging_inference(vae.decoder).")
    for part in slow:
        require_instance(nn.Module | Tensor, slow=part)
    waiting = [p for part in slow for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return lambda parameters: LaggingAdam(parameters, waiting, every=every, steps=steps, learning_rate=learning_rate)
