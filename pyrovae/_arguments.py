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

ANY_NUMBER = 1_000_000  # of arguments, for a function that takes any number


def capture(cls: type, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any] | None:
    """A constructor's arguments by name, defaults included, as JSON; ``None`` where it does not take such.

    Further positional ones are kept under the name with its star, ``"*args"``.
    """
    try:
        bound = _signature(cls).bind(*args, **kwargs)
    except TypeError:  # the constructor is about to say so; or this is a copy, whose state comes later
        return None
    given = set(bound.arguments)
    bound.apply_defaults()
    out: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        parameter = bound.signature.parameters[name]
        if parameter.kind is parameter.VAR_KEYWORD:
            out |= {key: encode(option) for key, option in value.items()}
        elif not not_kept(kept := encode(value)) or name in given:  # other defaults are the constructor's own again
            out[_key(parameter)] = kept
    return out


def build(cls: type, arguments: Mapping[str, Any]) -> Any:
    """Call a constructor with arguments by name, as :func:`capture` names them."""
    rest, signature = dict(arguments), _signature(cls)
    bound = signature.bind_partial()
    for name, parameter in signature.parameters.items():
        if (key := _key(parameter)) in rest and parameter.kind is not parameter.VAR_KEYWORD:
            bound.arguments[name] = rest.pop(key)
    return cls(*bound.args, **bound.kwargs, **rest)


def parameters(cls: type) -> tuple[list[str], bool, list[str]]:
    """The names that a constructor takes, whether it takes any others, and the names that it cannot do without."""
    every = _signature(cls).parameters.values()
    named = [p for p in every if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in every)
    return [p.name for p in named], takes_any, [p.name for p in named if p.default is p.empty]


def num_after_first(function: Callable[..., Any]) -> tuple[int, int]:
    """How many positional arguments a function needs after its first, and how many it takes."""
    every = inspect.signature(function).parameters.values()
    positional = [p for p in every if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    most = ANY_NUMBER if any(p.kind is p.VAR_POSITIONAL for p in every) else len(positional) - 1
    return len([p for p in positional if p.default is p.empty]) - 1, most


def encode(value: Any, special: Callable[[Any], Any] = lambda value: None) -> Any:
    """A value as JSON, copied.

    What JSON has no kind of is an object of one key: ``{"$tuple": [...]}``, ``$dict`` (keys that are no strings),
    ``$float`` (NaN, infinity), ``$dtype``, ``$device``, ``$path``, ``$enum``, ``$model`` (its ``construction``), and
    ``{"$not_kept": class}`` for all else. Numbers of NumPy and torch become Python's. What ``special`` gives for a
    value, if not ``None``, is taken in place of all this.
    """
    try:
        return _encoded(value, special)
    except Exception:  # whatever somebody else's container does
        return {"$not_kept": type(value).__qualname__}


def decode(kept: Any, model: Callable[[Any], Any]) -> Any:
    """What :func:`encode` was given; ``model`` builds a model from its ``construction``. Nothing is imported.

    Raises:
        Exception: ``kept`` is not what :func:`encode` gives.
    """
    match kept if not isinstance(kept, dict) else list(kept.items()):
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
        case _ if isinstance(kept, dict):
            if any(key.startswith("$") for key in kept):
                raise ValueError(f"a value of unknown kind, {', '.join(kept)}")
            return {key: decode(value, model) for key, value in kept.items()}
    return [decode(value, model) for value in kept] if isinstance(kept, list) else kept


def not_kept(kept: Any) -> str | None:
    """The class of something in an encoded value that could not be kept."""
    found = re.search(r'\{"\$not_kept": "([^"]*)"', json.dumps(kept))  # quotes inside strings are escaped
    return found[1] if found else None


def find(base: type, module: str, name: str) -> Any:
    """The subclass of this name in this module or, as the module of a script or notebook has other names, in any.

    Raises:
        ValueError: there is none, or several.
    """
    known = {(c.__module__, c.__qualname__): c for c in _subclasses(base)}  # of a cell run twice, the last
    if (module, name) in known:
        return known[module, name]
    match [c for c in known.values() if c.__qualname__ == name]:
        case [cls]:
            return cls
        case []:
            raise ValueError(f"holds a {name}, which is not defined here: import it, then call {name}.load.")
        case several:
            modules = ", ".join(sorted(c.__module__ for c in several))
            raise ValueError(f"holds a {name}, and several modules define one ({modules}): call {name}.load.")


def _encoded(value: Any, special: Callable[[Any], Any]) -> Any:
    if (found := special(value)) is not None:
        return found
    match value:
        case Enum() if value.name in type(value).__members__:
            return {"$enum": [type(value).__module__, type(value).__qualname__, value.name]}
        case None | bool():
            return value
        case int():
            return int(value)
        case str():
            return str(value)
        case float():
            return float(value) if math.isfinite(value) else {"$float": str(float(value))}
        case np.generic() | np.ndarray() | Tensor() if not (value.ndim or isinstance(value, nn.Parameter)):
            return _encoded(value.item(), special)
        case list():
            return [_encoded(item, special) for item in value]
        case tuple() if type(value) in (tuple, torch.Size):
            return {"$tuple": [_encoded(item, special) for item in value]}
        case Mapping() if all(type(key) is str and not key.startswith("$") for key in value):
            return {key: _encoded(item, special) for key, item in value.items()}
        case Mapping():
            return {"$dict": [[_encoded(key, special), _encoded(item, special)] for key, item in value.items()]}
        case torch.dtype():
            return {"$dtype": str(value).removeprefix("torch.")}
        case torch.device():
            return {"$device": str(value)}
        case PurePath():
            return {"$path": str(value)}
        case nn.Module() if "_constructed" in vars(value):
            return {"$model": value.construction}
    return {"$not_kept": type(value).__qualname__}


def _key(parameter: inspect.Parameter) -> str:
    return f"*{parameter.name}" if parameter.kind is parameter.VAR_POSITIONAL else parameter.name


def _signature(cls: Any) -> inspect.Signature:
    return inspect.signature(MethodType(cls.__init__, cls))  # without self


def _subclasses(cls: Any) -> Iterator[Any]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)
