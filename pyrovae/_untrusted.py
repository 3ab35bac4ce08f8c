"""What a file held that anybody may have written: JSON that is what it seems, no deeper and larger than it may be."""

import json
import types
import typing
from collections.abc import Mapping
from typing import Any

# What code says of content that it was not written for.
MALFORMED = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RuntimeError, MemoryError)
_MAX_DEPTH = 64  # of JSON, and of containers in a checkpoint


def parsed(text: str | bytes) -> Any:
    """JSON whose objects have no name twice, whose numbers are finite, and which is nested to 64 levels at most.

    Raises:
        ValueError: it is something else.
    """

    def no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(out := dict(pairs)) < len(pairs):
            raise ValueError("an object has a name twice.")
        return out

    def constant(name: str) -> Any:
        raise ValueError(f"{name} is no JSON.")

    try:
        value = json.loads(text, object_pairs_hook=no_name_twice, parse_constant=constant)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    if is_deep(value, len(text)):
        raise ValueError("it is nested too deeply.")
    return value


def is_deep(value: Any, most: int) -> bool:
    """Whether containers are nested to more than 64 levels, or hold more than so many things, counted wherever they
    occur: of a few that hold each other several times over, no end would be.
    """
    level = [value]
    for _ in range(_MAX_DEPTH):
        if not level:
            return False
        most -= len(level)
        if most < 0:
            return True
        inside = [v for v in level if isinstance(v, (dict, list, tuple, set))]
        if sum(map(len, inside)) > most:
            return True
        level = [item for v in inside for item in (v.values() if isinstance(v, Mapping) else v)]
    return bool(level)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value that was read is what an annotation asks for, as far as plain types and containers of them go."""
    origin, inside = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or origin is typing.Literal:
        return hint is Any or value in inside
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, one) for one in inside)
    if hint in (float, int):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    if origin is None:
        return isinstance(value, hint)
    if not isinstance(value, origin):
        return False
    if isinstance(value, Mapping):
        return all(fits(k, inside[0]) and fits(v, inside[1]) for k, v in value.items())
    if origin is tuple and inside[-1:] != (...,):
        return len(value) == len(inside) and all(map(fits, value, inside))
    return all(fits(v, inside[0]) for v in value) if inside else True
