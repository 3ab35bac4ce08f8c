"""Ctrl-C and a request to end, put off until a moment at which the state can be saved."""

import os
import signal
import threading
from types import FrameType
from typing import Any, Self

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Deferred:
    """Inside the block SIGINT and SIGTERM are remembered; :meth:`pass_on` delivers. A second one is not put off.

    Signals reach the main thread alone: in another one, and where ``active`` is false, nothing is put off. Signals that
    are ignored, as Ctrl-C is by a job in the background, stay so.

    Attributes:
        received: the signal that came, if one did.
    """

    def __init__(self, active: bool) -> None:
        self._signals = _SIGNALS if active and threading.current_thread() is threading.main_thread() else ()
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        heeded = [number for number in self._signals if signal.getsignal(number) is not signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._remember) for number in heeded}
        return self

    def __exit__(self, *error: Any) -> None:
        self.pass_on()

    def pass_on(self) -> None:
        """Let the signal do what it would have done."""
        received, self.received = self.received, None
        self._put_back()
        if received is not None:
            os.kill(os.getpid(), received)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._put_back()

    def _put_back(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
