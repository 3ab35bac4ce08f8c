"""Checks of what users pass in: every error names the argument, what came, and the fix."""

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

T = TypeVar("T")
_LOOK = 4096  # data looked at at once
ARRAYS = (Tensor, np.ndarray, pd.DataFrame, pd.Series)


def lookup(registry: Mapping[str, T], name: str, kind: str) -> T:
    """The entry called ``name`` (hyphens and case do not matter), or a ``ValueError`` listing the names."""
    key = str(name).lower().replace("-", "_").replace(" ", "_")
    if key in registry:
        return registry[key]
    close = difflib.get_close_matches(key, registry, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise ValueError(f"unknown {kind} {name!r}.{hint} Registered: {', '.join(registry)}.")


def at_least(minimum: int, **arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is an integer not under ``minimum``."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer of at least {minimum}; got {value!r}.")
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}; got {value}.")


def not_negative(**arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is a finite number, 0 or more."""
    for name, value in arguments.items():
        try:
            fine = not isinstance(value, str) and 0 <= float(value) < math.inf
        except (TypeError, ValueError):
            fine = False
        if not fine:
            raise ValueError(f"{name} must not be negative, NaN or infinite; got {value!r}.")


def positive(**arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is above 0 and finite."""
    for name, value in arguments.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite; got {value}.")


def one_of(allowed: Sequence[str], **arguments: Any) -> None:
    """Raise a ``ValueError`` unless every named argument is one of the ``allowed``."""
    for name, value in arguments.items():
        if value not in allowed:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}.")


def resolve_device(device: str | torch.device | None = "auto") -> torch.device:
    """``"auto"`` is CUDA when present, else the CPU; a device that is not there raises ``ValueError``."""
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device {device!r} is not a torch device; use 'auto', 'cpu' or 'cuda'.") from error
    if resolved.type == "cuda":
        count = torch.cuda.device_count()
        if (resolved.index or 0) >= count:
            raise ValueError(
                f"device {str(device)!r} is not there: torch sees {count} CUDA device(s). Use device='auto' or 'cpu'."
            )
    return resolved


def as_tensor(value: Any, name: str) -> Tensor:
    """A tensor from a tensor, array, DataFrame or Series, with no check of its contents."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (pd.DataFrame, pd.Series)):
        value = value.to_numpy()
    try:
        return torch.as_tensor(np.require(value, requirements="W"))  # pandas gives read-only views
    except TypeError as error:
        raise ValueError(
            f"{name} must be a tensor, array or DataFrame of numbers; got {type(value).__name__} "
            f"with dtype {np.asarray(value).dtype}."
        ) from error


def as_data(
    value: Any, name: str, event_shape: torch.Size | tuple[int, ...] | None = None, *, integers: bool = False
) -> Tensor:
    """Data ``(N, *event_shape)`` as a float32 (or float64) tensor, checked; of an integer dtype if ``integers``.

    Raises:
        ValueError: boolean data, integers unless they may be, an empty set, a wrong shape, NaN or infinite values.
    """
    x = as_tensor(value, name)
    if not (x.is_floating_point() or (integers and x.dtype != torch.bool)):
        raise ValueError(
            f"{name} has dtype {str(x.dtype).removeprefix('torch.')}; a floating dtype is needed. "
            f"For 8-bit images pass x.float() / 255, for counts or flags x.float()."
        )
    if x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if not isinstance(value, Tensor) and x.dtype == torch.float64:
        x = x.float()  # arrays and DataFrames are float64 by accident; a float64 tensor is a choice
    if x.dim() == 0 or x.shape[0] == 0 or x.numel() == 0:
        raise ValueError(f"{name} is empty: it has shape {tuple(x.shape)}. Pass at least one datum.")
    if event_shape is not None and tuple(x.shape[1:]) != tuple(event_shape):
        fix = ""
        if tuple(x.shape) == tuple(event_shape):
            fix = " For a single datum pass x.unsqueeze(0)."
        elif x[0].numel() == torch.Size(event_shape).numel():
            fix = f" Pass x.reshape(-1, {', '.join(map(str, event_shape))})."
        raise ValueError(
            f"{name} has shape {tuple(x.shape)}; the model needs (N, {', '.join(map(str, event_shape))}).{fix}"
        )
    bad, first = 0, None
    for start in range(0, len(x), _LOOK):  # in pieces: a mask of the whole would be a good part of the data
        finite = torch.isfinite(x[start : start + _LOOK])
        if not bool(finite.all()):
            bad += int((~finite).sum())
            first = start + int((~finite).reshape(len(finite), -1).any(1).nonzero()[0]) if first is None else first
    if bad:
        raise ValueError(
            f"{name} holds {bad} NaN or infinite value(s), the first in row {first}. Drop or impute such rows."
        )
    return x


def as_covariates(covariates: tuple[Any, ...], n: int | None, like: Tensor) -> tuple[Any, ...]:
    """Arrays, DataFrames and tensors as tensors on the model's device, floats in its precision; the rest unchanged.

    Args:
        covariates: what the user passed after ``x``.
        n: rows each must have; ``None`` if not known.
        like: a tensor of the model's device and dtype.

    Raises:
        ValueError: a covariate of another length.
    """
    out = []
    for i, c in enumerate(covariates):
        if isinstance(c, ARRAYS):
            c = as_tensor(c, f"covariate {i}")
            c = c.to(like if c.is_floating_point() else like.device)
            if n is not None and c.dim() and len(c) != n:
                raise ValueError(f"covariate {i} has {len(c)} rows and x has {n}; they must match.")
        out.append(c)
    return tuple(out)
