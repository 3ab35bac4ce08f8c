"""What a run is, as far as numbers and names can say it: a checkpoint of another one is refused."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

from pyro.infer import ELBO as PyroELBO

from pyrovae._distributed import num_processes
from pyrovae.training.batches import Batches
from pyrovae.training.engines import Task

_TIMES_COMPARED = (0.0, 0.5, 1.0, 3.0, 10.0, 30.0, 100.0, 300.0, math.inf)  # of schedules, in epochs


def identity(
    task: Task, train: Batches, held_out: Batches | None, scheduler: Any, *, batch_size: int, seed: int | None
) -> dict[str, Any]:
    """Everything that must be as it was for a run to go on: numbers, strings, and containers of them.

    Raises:
        ValueError: a ``DataLoader`` whose order a checkpoint could not keep.
    """
    if train.own_generator:
        raise ValueError(
            "the DataLoader draws from a generator of its own, whose state checkpoints do not keep: leave out "
            "generator=, and seed by fit(seed=...)."
        )
    model, objective, optimizer = task.model, task.objective, task.optimizer
    return {
        "model": {
            **{key: model.construction[key] for key in ("class", "arguments")},
            "weights": {name: list(value.shape) for name, value in model.state_dict().items()},
            "parts": {name: str(m) for name, m in model.named_modules() if not list(m.children())},
        },
        "data": train.hash(),
        "validation": None if held_out is None else held_out.hash(),
        "batch_transform": _fingerprint(train.transform),
        "num_steps": train.num_steps,
        "objective": None if objective is None else _describe(objective, vars(objective)),
        "optimizer": _describe(optimizer, optimizer.defaults),
        "lr_schedule": None if scheduler is None else _describe(scheduler, scheduler.state_dict()),
        "batch_size": batch_size,
        "clip_norm": task.clip_norm,
        "seed": seed,
        "precision": "bfloat16" if task.autocast else "float32",
        "processes": num_processes(),
    }


def _fingerprint(function: Any) -> str | None:
    """Name and bytecode of a function, as far as it has such: not what it closes over."""
    if function is None:
        return None
    name, code = getattr(function, "__qualname__", type(function).__qualname__), getattr(function, "__code__", None)
    if code is None:
        return name
    return f"{name} {hashlib.sha256(code.co_code + repr(code.co_consts).encode()).hexdigest()[:8]}"


def _describe(thing: Any, attributes: Mapping[str, Any]) -> dict[str, Any]:
    """The class and the settings of an objective, optimiser or scheduler, as far as they are numbers or schedules."""
    out: dict[str, Any] = {"class": type(thing).__qualname__}
    for name, value in attributes.items():
        if name.startswith("_"):
            continue
        if value is None or isinstance(value, (bool, int, float, str)):
            out[name] = value
        elif isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
            out[name] = list(value)
        elif isinstance(thing, PyroELBO) and callable(value):
            out[name] = [float(value(t)) for t in _TIMES_COMPARED]
    return out
