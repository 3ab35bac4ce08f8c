"""The state of a model that a file must bring back: tensors by name, and everything else that is public."""

import hashlib
import json
import re
from collections.abc import Mapping
from enum import Enum
from functools import cached_property
from inspect import getattr_static
from pathlib import PurePath
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions.utils import lazy_property
from torch.nn.parameter import is_lazy

from pyrovae._arguments import encode
from pyrovae._compat.torch import is_compiled, is_made_by_hook, uncompiled
from pyrovae._model_files import digest

_JSON_TYPES = (bool, int, float, str, type(None), np.generic, torch.dtype, torch.device, PurePath, Enum, list, Mapping)
NOT_IN_STATE = ("training", "event_shape", "columns", "validated_on")  # in the header, or a matter of the moment


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers by name, those that ``state_dict`` leaves out as well."""
    found = model.state_dict(keep_vars=True) | dict(model.named_buffers(remove_duplicate=False))
    for name, value in found.items():
        if is_lazy(value) or not isinstance(value, Tensor):
            why = "lazy: use the layer that is told its sizes" if is_lazy(value) else "no tensor: keep it in a buffer"
            raise ValueError(f"{name} of {type(model).__name__} cannot be kept in a file, because it is {why}.")
    return {uncompiled(name): value for name, value in found.items()}


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shapes of :func:`tensors`, by name."""
    return {name: tuple(value.shape) for name, value in tensors(model).items()}


def modules(model: nn.Module) -> dict[str, nn.Module]:
    """The model, by the name ``""``, and its parts, without the wrappers of ``torch.compile``."""
    every = model.named_modules()
    return {uncompiled(f"{path}.").strip("."): m for path, m in every if not is_compiled(m)}


def state_of(model: nn.Module) -> dict[str, Any]:
    """The classes of parts, ties of tensors and public attributes of a model, as JSON by name.

    What JSON cannot hold is ``{"$not_kept": class, "content": text}``, where the text is a digest or, of the model's
    own parts and tensors, their first name.
    """
    parts, ours = modules(model), tensors(model)
    names = {id(part): uncompiled(f"{path}.").strip(".") for path, part in model.named_modules()}
    for name, value in ours.items():
        names.setdefault(id(value), name)

    def special(value: Any) -> Any:
        if id(value) in names:
            content = names[id(value)]
        elif isinstance(value, _JSON_TYPES) or type(value) in (tuple, torch.Size) or getattr(value, "ndim", None) == 0:
            return None  # as an argument would be
        else:
            content = hashlib.sha256(json.dumps(described(value)).encode()).hexdigest()[:12]
        return {"$not_kept": type(value).__qualname__, "content": content}

    def described(value: Any) -> Any:
        match value:
            case Tensor():
                return digest({}, {"": value})
            case np.ndarray() if value.dtype != object:
                return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
            case nn.Module():
                return [state_of(value), digest({}, tensors(value))]
            case tuple() | np.ndarray():
                return encode(list(value), special)
            case set() | frozenset():
                return sorted(map(repr, value))
            case _ if hasattr(value, "__dict__") and not isinstance(value, (type, FunctionType, ModuleType)):
                if public := _attributes(value):
                    return encode(list(public.items()), special)
        return re.sub(" at 0x[0-9a-f]+", "", repr(value))

    out: dict[str, Any] = {path: {"$not_kept": type(part).__qualname__} for path, part in parts.items()}
    out |= {name: {"$not_kept": "tensor", "content": names[id(value)]} for name, value in ours.items()}
    for path, part in parts.items():
        for name, value in _attributes(part).items():
            if not is_made_by_hook(part, name) and name not in (NOT_IN_STATE if part is model else NOT_IN_STATE[:1]):
                out[f"{path}.{name}".lstrip(".")] = encode(value, special)
    return out


def _attributes(value: Any) -> dict[str, Any]:
    """The public attributes of a value, without those that are computed when they are asked for."""
    lazy = (cached_property, lazy_property)
    public = {name: v for name, v in vars(value).items() if not name.startswith("_")}
    return {name: v for name, v in public.items() if not isinstance(getattr_static(type(value), name, None), lazy)}
