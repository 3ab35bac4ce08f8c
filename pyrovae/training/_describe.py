"""What a function or an object is, as text that is the same in every process: code, and values that it works with."""

import dis
import functools
import hashlib
import json
import random
import sys
from collections.abc import Iterator, Mapping, Set
from enum import Enum
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from pyrovae._hash import content_hash

_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, np.random.BitGenerator, random.Random)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, Enum, PurePath)
_MAX_DEPTH = 100  # of objects in objects
_MAX_LOOKED_AT = 10_000  # things at one depth
_LIBRARIES = (Path(torch.__file__).parent, Path(__file__).parents[1])


def fingerprint(value: Any, known: Mapping[int, str] | None = None) -> Any:
    """A value as it is, where it is plain; else its name, and a hash of its content: of a function its code, defaults,
    closure and globals, of a class its methods and attributes, of an object its class, and what pickle would make it
    again from. Code of libraries goes by name, and so does what has no content that could be had (a lock, an open
    file).

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
    if isinstance(value, type) and not any(map(_is_own, value.__mro__)):
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
    own = [(name, _code(m.__code__)) for name, m in _members(type(value)) if isinstance(m, FunctionType)]
    return f"{_name(value)} {_short(own)}" if own else _name(value)


def has_generator(value: Any) -> bool:
    """Whether a value is, holds or works with a generator of random numbers."""
    return any(isinstance(v, _GENERATORS) for v in everything_in(value))


def everything_in(value: Any) -> Iterator[Any]:
    """A value, and what it consists of or works with, however deep; of very many things at one depth the first."""
    level, seen = [value], dict[int, Any]()
    while level:
        yield from level
        seen |= {id(v): v for v in level}
        found = {id(v): v for outer in level for v in _inside(outer) if not isinstance(v, _PLAIN)}
        level = [v for key, v in found.items() if key not in seen][:_MAX_LOOKED_AT]


def _inside(value: Any) -> Iterator[Any]:
    """What a value consists of or works with, one level down."""
    match value:
        case Tensor() | pd.DataFrame() | pd.Series() | ModuleType():
            return
        case np.ndarray():
            yield from (value.shape, *value.flat) if value.dtype == object else ()
        case dict():
            yield from value.items()
            yield from () if type(value) is dict else _state(value)
        case list() | tuple() | set() | frozenset() if type(value).__module__ == "builtins":
            yield from value
        case MethodType():
            yield from (value.__func__, value.__self__)
        case FunctionType():
            yield from _works_with(value).items()
        case type():
            yield from _members(value)
        case _:
            yield type(value)
            yield from _state(value)


def _state(value: Any) -> Iterator[Any]:
    """What pickle would make an object again from; of what it does not take, or not by value, the attributes."""
    try:
        made = value.__reduce_ex__(4)
    except Exception:  # whatever somebody else's class does
        made = ""
    if isinstance(made, tuple):
        yield from (list(part) if isinstance(part, Iterator) else part for part in made)
        return
    yield made
    yield vars(value) if hasattr(value, "__dict__") else None
    yield from value.items() if isinstance(value, Mapping) else ()


def _works_with(function: FunctionType) -> dict[str, Any]:
    """The defaults, attributes, closure and globals of a function by name; of one of a library no globals. Of a module
    it is what the function names.
    """
    code = function.__code__
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    out = {f"closure {name}": _held(cell) for name, cell in cells}
    out |= {"defaults": function.__defaults__, "keywords": function.__kwdefaults__, "attributes": vars(function)}
    if not _is_library(code.co_filename):
        space, read = function.__globals__, list(_instructions(code))
        names = {i.argval for i in read if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
        out |= {f"global {name}": space[name] for name in sorted(names) if name in space}
        attributes = {i.argval for i in read if i.opname in ("LOAD_ATTR", "LOAD_METHOD")}
        out = {name: _named(v, attributes) for name, v in out.items()}
    return out


def _named(value: Any, attributes: Set[str]) -> Any:
    """Of a module that is no library's its attributes of these names; any other value itself."""
    if not isinstance(value, ModuleType) or _is_library(getattr(value, "__file__", "") or "", value.__name__):
        return value
    return {name: _named(v, attributes - {name}) for name, v in sorted(vars(value).items()) if name in attributes}


class _Content:
    """What values hold, as JSON; those that occur again, and those ``known``, by name."""

    def __init__(self, known: Mapping[int, str]) -> None:
        self._known = dict(known)
        self._kept: list[Any] = []

    def of(self, value: Any, depth: int = _MAX_DEPTH) -> Any:
        if isinstance(value, _PLAIN):
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
            case _ if not isinstance(value, (type, np.ndarray)) and hasattr(value, "__array_interface__"):  # a picture
                return of(np.asarray(value))
            case pd.DataFrame() | pd.Series():
                return [repr(value.axes), of(value.to_numpy())]
            case set() | frozenset():
                return sorted(json.dumps(of(v)) for v in value)
            case ModuleType():
                return value.__name__
            case FunctionType() if _is_library(value.__code__.co_filename):
                return [value.__qualname__, *(of(v) for v in _inside(value))]
            case FunctionType():
                return [_code(value.__code__), *(of(v) for v in _inside(value))]
        return [of(v) for v in _inside(value)]


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


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods and attributes of a class by name, those of libraries left out."""
    for base in filter(_is_own, cls.__mro__):
        for name, member in vars(base).items():
            thing = member.__func__ if isinstance(member, (staticmethod, classmethod)) else member
            thing = thing.fget if isinstance(thing, property) else thing
            if isinstance(thing, FunctionType) or not name.startswith("__"):
                yield name, thing


def _instructions(code: CodeType) -> Iterator[dis.Instruction]:
    """Of a function, and of the functions in it."""
    yield from dis.get_instructions(code)
    for inner in code.co_consts:
        yield from _instructions(inner) if isinstance(inner, CodeType) else ()


def _is_own(cls: type) -> bool:
    """Whether a class is no library's. (Modules have several names.)"""
    return not _is_library(getattr(sys.modules.get(cls.__module__), "__file__", "") or "", cls.__module__)


def _is_library(file: str, module: str = "") -> bool:
    if module.split(".")[0] in sys.stdlib_module_names or "site-packages" in file or "dist-packages" in file:
        return True
    return file.startswith("<frozen") or any(Path(file).is_relative_to(folder) for folder in _LIBRARIES)
