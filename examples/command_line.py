"""Types of numbers on a command line: a bad one is refused in a sentence, with exit code 2."""

import argparse
import math
from collections.abc import Callable


def at_least(low: int) -> Callable[[str], int]:
    """The type of an argument that is an integer from ``low`` on."""

    def integer(text: str) -> int:
        if not text.strip().lstrip("-").isdigit() or int(text) < low:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {low}; got {text!r}")
        return int(text)

    return integer


def number(*, zero: bool) -> Callable[[str], float]:
    """The type of an argument that is a number above 0, or also 0."""

    def real(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (0 < value < math.inf or (zero and value == 0)):
            raise argparse.ArgumentTypeError(f"must be a number {'from 0 on' if zero else 'above 0'}; got {text!r}")
        return value

    return real
