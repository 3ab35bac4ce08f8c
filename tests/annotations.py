"""The package's annotations, shapes included, checked at run time: ``make test-types``.

jaxtyping's import hook puts a check around every function. What one refuses by an error of its own is for other tests,
so that arguments are looked at together with the result, once they were accepted.
"""

import random
import re
from collections.abc import Callable
from typing import Any, Self, get_args, runtime_checkable

import numpy as np
from beartype import BeartypeConf, BeartypeHintOverrides, beartype
from beartype._check.code import codemain
from jaxtyping import install_import_hook

# An int is a float, as for mypy, and a number of NumPy's is a number.
CONF = BeartypeConf(hint_overrides=BeartypeHintOverrides({int: int | np.integer, float: float | int | np.number}))


def install() -> None:
    """Check what is imported of pyrovae from now on."""
    # Of a list beartype looks at an item at random, and must leave Python's generator alone, as the package does.
    codemain.getrandbits = random.Random(0).getrandbits
    install_import_hook("pyrovae", "tests.annotations.checked")


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The check around one function. jaxtyping asks for two: of the arguments before a call, and of all after it."""
    hints = function.__annotations__
    if not any(re.fullmatch(r"ret\d+", name) for name in hints):  # in which jaxtyping passes the result
        return lambda *args, **kwargs: None
    if function.__qualname__ in ("LogTerms.__init__", "log_terms.<locals>.terms"):
        return function  # its mappings compute what is looked at
    # beartype knows Self only of whole classes.
    function.__annotations__ = {name: _checkable(hint) for name, hint in hints.items() if hint is not Self}
    return beartype(function, conf=CONF)


def _checkable(hint: Any) -> Any:
    if getattr(hint, "_is_protocol", False):
        runtime_checkable(hint)
    for part in get_args(hint):
        _checkable(part)
    return hint
