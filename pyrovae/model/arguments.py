"""A constructor's arguments as JSON, and back: what a file says of how its model is built."""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def capture(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The arguments of a constructor by name as JSON, defaults included; ``None`` where it does not take these."""
    try:
        bound = _signature(cls).bind(*args, **kwargs)
    except TypeError:  # which the constructor is about to say; or this is a copy, whose state comes later
        return None
    given = set(bound.arguments)
    bound.apply_defaults()
    out: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            out |= {key: encode(option) for key, option in value.items()}
        else:
            kept = encode(value)
            if name in given or not not_kept(kept):  # a default that JSON cannot hold is the constructor's own again
                out[f"*{name}" if kind is inspect.Parameter.VAR_POSITIONAL else name] = kept
    return out


def build(cls: type, arguments: Mapping[str, Any]) -> Any:
    """An object of the class from its arguments by name."""
    rest, signature = dict(arguments), _signature(cls)
    bound = signature.bind_partial()
    for name, parameter in signature.parameters.items():
        kept = f"*{name}" if parameter.kind is parameter.VAR_POSITIONAL else name
        if kept in rest and parameter.kind is not parameter.VAR_KEYWORD:
            bound.arguments[name] = rest.pop(kept)
    return cls(*bound.args, **bound.kwargs, **rest)


def takes(cls: type, name: str) -> bool:
    """Whether the constructor has an argument of this name."""
    parameters = _signature(cls).parameters.values()
    return any(p.name == name or p.kind is p.VAR_KEYWORD for p in parameters)


def required(cls: type) -> list[str]:
    """The arguments that the constructor cannot do without."""
    parameters = _signature(cls).parameters.values()
    return [p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]


def encode(value: Any) -> Any:
    """A value as JSON, by value: an object of one key ``$kind`` for what JSON has no kind of, such as tuples; numbers
    of NumPy and torch as Python's; a saved class as how it was constructed; ``{"$not_kept": class}`` for the rest.
    """
    try:
        return _encoded(value)
    except Exception:  # whatever a container of somebody else's does
        return {"$not_kept": type(value).__qualname__}


def decode(kept: Any, model: Callable[[Any], Any]) -> Any:
    """What :func:`encode` was given; ``model`` builds a model from how it was constructed. Only classes that are there
    already are looked up: nothing is imported.

    Raises:
        ValueError, TypeError, KeyError, RuntimeError: not what :func:`encode` gives.
    """
    if isinstance(kept, list):
        return [decode(value, model) for value in kept]
    if not isinstance(kept, dict):
        return kept
    match list(kept.items()):
        case [("$tuple", list(values))]:
            return tuple(decode(value, model) for value in values)
        case [("$dict", list(pairs))]:
            return {decode(key, model): decode(value, model) for key, value in pairs}
        case [("$float", "nan" | "inf" | "-inf" as name)]:
            return float(name)
        case [("$path", str(name))]:
            return Path(name)
        case [("$device", str(name))]:
            return torch.device(name)
        case [("$dtype", str(name))] if isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        case [("$enum", [str(module), str(cls), str(name)])]:
            return find(Enum, module, cls)[name]
        case [("$model", construction)]:
            return model(construction)
    if any(key.startswith("$") for key in kept):
        raise ValueError(f"unknown kind of value: {', '.join(kept)}")
    return {key: decode(value, model) for key, value in kept.items()}


def not_kept(kept: Any) -> str | None:
    """The class of something in an encoded value that could not be kept."""
    found = re.search(r'\{"\$not_kept": "([^"]*)"\}', json.dumps(kept))  # quotes inside strings are escaped
    return found[1] if found else None


def find(base: type, module: str, name: str) -> Any:
    """The subclass of this name, in this module or, where that is called otherwise here (a script's), in the only one.

    Raises:
        ValueError: there is none, or several.
    """
    known = {(c.__module__, c.__qualname__): c for c in _subclasses(base)}  # of a cell run twice, the last
    named = [c for c in known.values() if c.__qualname__ == name]
    if (module, name) in known:
        return known[module, name]
    if not named:
        raise ValueError(f"holds a {name}, which is not defined here: import it first.")
    if len(named) > 1:
        modules = ", ".join(sorted(c.__module__ for c in named))
        raise ValueError(f"holds a {name}, and several modules define one ({modules}): call {name}.load.")
    return named[0]


def _signature(cls: Any) -> inspect.Signature:
    return inspect.signature(MethodType(cls.__init__, cls))  # without self


def _subclasses(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _encoded(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, Enum):
        if value.name in kind.__members__:
            return {"$enum": [kind.__module__, kind.__qualname__, value.name]}
    elif value is None or isinstance(value, bool):
        return value
    elif isinstance(value, (int, str)):
        return int(value) if isinstance(value, int) else str(value)
    elif isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    elif isinstance(value, (np.generic, np.ndarray, Tensor)):
        if not value.ndim and not isinstance(value, nn.Parameter):
            return _encoded(value.item())
    elif isinstance(value, list):
        return [_encoded(item) for item in value]
    elif kind in (tuple, torch.Size):
        return {"$tuple": [_encoded(item) for item in value]}
    elif isinstance(value, Mapping):
        if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encoded(item) for key, item in value.items()}
        return {"$dict": [[_encoded(key), _encoded(item)] for key, item in value.items()]}
    elif isinstance(value, (torch.device, PurePath)):
        return {"$device" if isinstance(value, torch.device) else "$path": str(value)}
    elif isinstance(value, torch.dtype):
        return {"$dtype": str(value).removeprefix("torch.")}
    elif isinstance(value, nn.Module) and hasattr(value, "construction"):
        return {"$model": value.construction}
    return {"$not_kept": kind.__qualname__}
