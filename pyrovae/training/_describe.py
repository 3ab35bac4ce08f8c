"""What a function or an object is, as text that is the same in every process: code, and values that it works with."""

import dis
import functools
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from pyrovae._hash import content_hash

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_MAX_DEPTH = 12  # of objects in objects
_MAX_LOOKED_AT = 10_000  # things, in search of a generator
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])


def fingerprint(value: Any, known: Mapping[int, str] | None = None) -> Any:
    """A value as it is, where it is plain; else its name, and a hash of its content: of a function its code, defaults,
    closure and globals, of an object its class, with the code of its methods, and its attributes. Code of libraries
    goes by name.

    Args:
        value: anything.
        known: names for objects that are not looked into, by their id.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (tuple, list)) and all(isinstance(v, (int, float)) for v in value):
        return list(value)
    if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, (type, ModuleType)):
        return _name(value)
    return f"{_name(value)} {_short(_Content(known or {}).of(value))}"


def code_fingerprint(value: Any) -> str:
    """The name of a function or an object, and a hash of its code alone, unless that is a library's, whatever values it
    works with.
    """
    while isinstance(value, (functools.partial, MethodType)):
        value = value.func if isinstance(value, functools.partial) else value.__func__
    if isinstance(value, FunctionType):
        return f"{_name(value)} {_short(_code(value.__code__))}"
    own = _methods(type(value))
    return f"{_name(value)} {_short(own)}" if len(own) > 1 else _name(value)


def has_generator(value: Any) -> bool:
    """Whether a value is or holds a generator of random numbers, in attributes, containers, closure or globals."""
    level, seen = [value], dict[int, Any]()
    for _ in range(_MAX_DEPTH):
        if any(isinstance(v, _GENERATORS) for v in level):
            return True
        seen |= {id(v): v for v in level}
        level = [v for outer in level for v in _inside(outer) if id(v) not in seen][:_MAX_LOOKED_AT]
    return False


def _inside(value: Any) -> Iterator[Any]:
    """What a value works with, one level down."""
    match value:
        case Tensor() | np.ndarray() | pd.DataFrame() | pd.Series() | str() | bytes() | type() | ModuleType():
            return
        case Mapping():
            yield from value.values()
        case list() | tuple() | set() | frozenset():
            yield from value
        case functools.partial():
            yield from (value.func, *value.args, *value.keywords.values())
        case MethodType():
            yield from (value.__func__, value.__self__)
        case BuiltinFunctionType():
            yield value.__self__
        case FunctionType():
            yield from _works_with(value).values()
        case _:
            yield from vars(value).values() if hasattr(value, "__dict__") else ()


def _works_with(function: FunctionType) -> dict[str, Any]:
    """The defaults, closure and globals of a function by name; of one of a library its closure alone."""
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    out = {f"closure {name}": _held(cell) for name, cell in cells}
    out |= {"defaults": function.__defaults__, "keywords": function.__kwdefaults__}
    if not _is_library(code.co_filename):
        space = function.__globals__
        out |= {f"global {name}": space[name] for name in sorted(_globals(code)) if name in space}
    return out


class _Content:
    """What values hold, as JSON; those that occur again, and those ``known``, by name."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self._known = dict(known)
        self._kept: list[Any] = []

    def of(self, value: Any, depth: int = _MAX_DEPTH) -> Any:
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, Enum, PurePath)):
            return repr(value)
        if id(value) in self._known:
            return self._known[id(value)]
        self._known[id(value)] = f"number {len(self._kept)}"
        self._kept.append(value)  # or another might get its id
        return [_name(value), self._of(value, depth - 1)] if depth else _name(value)

    def _of(self, value: Any, depth: int) -> Any:
        of = functools.partial(self.of, depth=depth)
        match value:
            case Tensor():
                return [str(value.dtype), content_hash(value.detach().to_dense()) if not value.is_meta else ""]
            case np.ndarray() if value.dtype != object:
                return [str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
            case _ if hasattr(value, "__array_interface__"):  # a picture, say
                return of(np.asarray(value))
            case pd.DataFrame() | pd.Series():
                return [repr(value.axes), of(value.to_numpy())]
            case nn.Module():
                return [str(value), _methods(type(value)), of(dict(value.state_dict()))]
            case Mapping():
                return sorted((json.dumps(of(k)), of(v)) for k, v in value.items())
            case set() | frozenset():
                return sorted(json.dumps(of(v)) for v in value)
            case list() | tuple() | np.ndarray():
                return [of(v) for v in value]
            case torch.dtype() | torch.device() | slice() | range():
                return repr(value)
            case FunctionType():
                code = value.__qualname__ if _is_library(value.__code__.co_filename) else _code(value.__code__)
                return [code, {name: of(v) for name, v in _works_with(value).items()}]
            case type():
                return _methods(value)
            case ModuleType():
                return value.__name__
            case functools.partial() | MethodType() | BuiltinFunctionType():
                return [of(v) for v in _inside(value)]
        return [_methods(type(value)), *(of(v) for v in _inside(value))]


def _held(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # empty still
        return None


def _name(value: Any) -> str:
    return str(getattr(value, "__qualname__", type(value).__qualname__))


def _short(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()[:8]


def _code(code: CodeType) -> list[Any]:
    """Instructions, names and constants, without places and lines."""
    constants = [_code(c) if isinstance(c, CodeType) else _constant(c) for c in code.co_consts]
    return [code.co_code.hex(), code.co_names, code.co_varnames, constants]


def _constant(value: Any) -> Any:
    """Sets of constants have another order in every process."""
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def _methods(cls: type) -> list[Any]:
    """The name and the code of a class; of those of libraries the name alone. (Modules have several names.)"""
    out: list[Any] = [cls.__qualname__]
    for base in cls.__mro__:
        if not _is_library(getattr(sys.modules.get(base.__module__), "__file__", "") or "", base.__module__):
            found = {n: getattr(m, "__func__", getattr(m, "fget", m)) for n, m in vars(base).items()}
            out.append({n: _code(f.__code__) for n, f in found.items() if isinstance(f, FunctionType)})
    return out


def _globals(code: CodeType) -> set[str]:
    """The names of the globals that a function reads, and the functions in it."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(_globals(c) for c in code.co_consts if isinstance(c, CodeType)))


def _is_library(file: str, module: str = "") -> bool:
    if module.split(".")[0] in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file:
        return True
    return file.startswith("<frozen") or any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)
