"""Ctrl-C and a request to end, put off until a moment at which they can be heeded."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Self

from pyrovae._turns import heed_signals

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Whatever signal Python would heed inside the block, however often it comes, is heeded right after it: torch calls
    back its tracer and the like from places in C++ that an exception does not survive, or the interpreter with it.
    """
    heard: list[int] = sorted(signal.valid_signals(), reverse=True) if _reach_us() else []
    before = {number: handler for number in heard if callable(handler := signal.getsignal(number))}
    came: list[int] = []
    try:
        for number in before:
            signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _raise(list(dict.fromkeys(came)))


class Deferred:
    """Inside the block SIGINT and SIGTERM are remembered; :meth:`pass_on` delivers. A second one is not put off.

    Signals reach the main thread alone: in another one, and where ``active`` is false, nothing is put off. Signals that
    are ignored, as Ctrl-C is by a job in the background, stay so.

    Attributes:
        received: the signal that came, if one did.
    """

    def __init__(self, active: bool) -> None:
        self._signals = _SIGNALS if active and _reach_us() else ()
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        heeded = [number for number in self._signals if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._before = {number: signal.signal(number, self._remember) for number in heeded}
        return self

    def __exit__(self, *error: Any) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        """Let the signal do what it would have done."""
        received, self.received = self.received, None
        self._put_back()
        if received is not None:
            signal.raise_signal(received)
            heed_signals()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _raise(numbers: list[int]) -> None:
    """Every one of them, whatever the handlers of those before do."""
    if numbers:
        try:
            signal.raise_signal(numbers[0])
        finally:
            _raise(numbers[1:])


def _reach_us() -> bool:
    """Whether signals come to this thread: to the main one alone they do."""
    return threading.current_thread() is threading.main_thread()
