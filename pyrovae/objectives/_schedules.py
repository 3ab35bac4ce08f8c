"""Schedules of the KL weight: functions of time, where ``fit`` counts time in epochs (fractions included).

``ELBO`` takes any function ``t -> weight``; at ``t = inf`` it must give its final value, which validation uses.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from pyrovae._checks import require_at_least, require_not_negative, require_positive, require_within

Weight = float | Callable[[float], float]


class Schedule(ABC):
    """A weight as a function of time.

    Attributes:
        ends: the time from which on it has its final value.
    """

    ends: float

    @abstractmethod
    def __call__(self, t: float) -> float:
        """The weight at time ``t``."""


@dataclass(frozen=True)
class _Warmup(Schedule):
    """A rise from ``start`` to ``end``, straight or along half a cosine."""

    ends: float
    start: float
    end: float
    cosine: bool

    def __post_init__(self) -> None:
        require_positive(duration=self.ends)
        require_not_negative(start=self.start, end=self.end)

    def __call__(self, t: float) -> float:
        if t >= self.ends:
            return self.end
        if self.cosine:
            return self.end + (self.start - self.end) * (1 + math.cos(math.pi * t / self.ends)) / 2
        return self.start + (self.end - self.start) * t / self.ends


@dataclass(frozen=True)
class _Cycles(Schedule):
    """Repeated linear rises from 0 to ``end``."""

    period: float
    rise: float
    cycles: int
    end: float

    @property
    def ends(self) -> float:  # type: ignore[override]
        return self.cycles * self.period

    def __call__(self, t: float) -> float:
        return self.end if t >= self.ends else self.end * min(1.0, (t % self.period) / (self.rise * self.period))


def linear_warmup(duration: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """A straight rise from ``start`` to ``end`` over ``duration``, then ``end`` (Bowman et al. 2016).

    Args:
        duration: length of the warm-up; epochs, in ``fit``.
        start: weight at time 0.
        end: weight from ``duration`` on.

    Raises:
        ValueError: a duration that is not positive and finite, a weight that is negative, NaN or infinite.
    """
    return _Warmup(duration, start, end, cosine=False)


def cosine_warmup(duration: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """A rise as of :func:`linear_warmup`, along half a cosine, flat at both ends.

    Args:
        duration: length of the warm-up; epochs, in ``fit``.
        start: weight at time 0.
        end: weight from ``duration`` on.

    Raises:
        ValueError: as of :func:`linear_warmup`.
    """
    return _Warmup(duration, start, end, cosine=True)


def cyclical(period: float, *, rise: float = 0.5, cycles: int = 4, end: float = 1.0) -> Schedule:
    """Repeated linear warm-ups (Fu et al. 2019, arXiv:1903.10145), then ``end``.

    Args:
        period: length of one cycle; epochs, in ``fit``.
        rise: fraction of a cycle spent rising from 0 to ``end``.
        cycles: number of cycles.
        end: the weight reached in every cycle.

    Raises:
        ValueError: a period that is not positive and finite, a rise outside (0, 1], no whole number of cycles from 1
            on, an end that is negative, NaN or infinite.
    """
    require_positive(period=period)
    require_at_least(1, cycles=cycles)
    require_not_negative(end=end)
    require_within("(0, 1]", rise=rise)
    return _Cycles(period, rise, cycles, end)


def value_at(weight: Weight, t: float, name: str) -> float:
    """The value of a weight at time ``t``: of a schedule, or the number that it is.

    Raises:
        ValueError: the schedule's value is no number, negative, NaN or infinite.
    """
    if not callable(weight):
        return float(weight)
    value: Any = weight(t)
    if isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1:
        value = value.item()
    value = float(value) if isinstance(value, bool) else value
    require_not_negative(**{f"{name}, a schedule, at time t={t:g}": value})
    return float(value)


def has_ended(value: Weight, t: float) -> bool:
    """Whether a weight has its final value at time ``t``."""
    if isinstance(value, Schedule):
        return t >= value.ends
    return not callable(value) or value(t) == value(math.inf)
