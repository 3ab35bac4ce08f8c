"""Schedules of the KL weight: functions of time, where ``fit`` counts time in epochs (fractions included).

``ELBO`` takes any function ``t -> weight``; at ``t = inf`` it must give its final value, which validation uses.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

from pyrovae._checks import at_least, not_negative, positive


@dataclass(frozen=True)
class Schedule:
    """A weight as a function of time.

    Attributes:
        weight: the function.
        ends: the time from which on it has its final value.
    """

    weight: Callable[[float], float]
    ends: float

    def __call__(self, t: float) -> float:
        return self.weight(t)


def linear_warmup(duration: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """From ``start`` to ``end`` in a straight line over ``duration``, then ``end`` (Bowman et al. 2016).

    Args:
        duration: length of the warm-up; epochs, in ``fit``.
        start: weight at time 0.
        end: weight from ``duration`` on.

    Raises:
        ValueError: a duration that is not positive and finite, a weight that is negative, NaN or infinite.
    """
    positive(duration=duration)
    not_negative(start=start, end=end)
    return Schedule(lambda t: end if t >= duration else start + (end - start) * t / duration, duration)


def cosine_warmup(duration: float, *, start: float = 0.0, end: float = 1.0) -> Schedule:
    """As :func:`linear_warmup`, along half a cosine, flat at both ends.

    Args:
        duration: length of the warm-up; epochs, in ``fit``.
        start: weight at time 0.
        end: weight from ``duration`` on.

    Raises:
        ValueError: as of :func:`linear_warmup`.
    """
    positive(duration=duration)
    not_negative(start=start, end=end)

    def weight(t: float) -> float:
        return end if t >= duration else end + (start - end) * (1 + math.cos(math.pi * t / duration)) / 2

    return Schedule(weight, duration)


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
    positive(period=period)
    at_least(1, cycles=cycles)
    not_negative(end=end)
    if not 0 < rise <= 1:
        raise ValueError(f"rise must be in (0, 1]; got {rise}.")

    def weight(t: float) -> float:
        return end if t >= cycles * period else end * min(1.0, (t % period) / (rise * period))

    return Schedule(weight, cycles * period)


def value_at(schedule: Callable[[float], float], t: float, name: str) -> float:
    """The weight ``name`` at time ``t``.

    Raises:
        ValueError: it is negative, NaN or infinite.
    """
    value = float(schedule(t))
    not_negative(**{f"{name}, a schedule, at time t={t:g}": value})
    return value


def has_ended(value: float | Callable[[float], float], t: float) -> bool:
    """Whether a number, or a schedule at time ``t``, has its final value."""
    if isinstance(value, Schedule):
        return t >= value.ends
    return not callable(value) or value(t) == value(math.inf)
