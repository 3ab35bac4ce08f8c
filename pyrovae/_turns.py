"""Threads take turns: Pyro's handlers and settings, validation, and torch's random numbers are the whole process's.

Whoever runs a model or draws takes a turn, for a step or a block of data, and nobody else's comes in between. What a
thread has changed for longer than a turn, its modes, is taken back before another thread has its turn, and is in force
again when this one has its next. While one thread alone is at work, nothing is taken back, and a turn costs a
microsecond.

Ctrl-C waits for the end of a turn, where nothing is half done. Pressed twice it does not wait.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from pyrovae._compat.pyro import handlers, set_handlers

_SIGNALS = (signal.SIGTERM, signal.SIGINT)  # the one that raises is put back last


class _Thread(threading.local):
    """What is known of this thread."""

    def __init__(self) -> None:
        self.depth = 0  # of turns within turns
        self.modes: list[_Mode] = []
        self.handlers: Any = None  # Pyro's, when its turn began


class _Mode:
    """A context manager that can be left and entered again."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make

    def enter(self) -> None:
        self._entered = self._make()
        self._entered.__enter__()

    def leave(self) -> None:
        self._entered.__exit__(None, None, None)


class _Signals:
    """Signals that came to the main thread while it must not be stopped, to be heeded as soon as it may be."""

    def __init__(self) -> None:
        self._before: dict[int, Any] | None = None  # handlers
        self.came: list[int] = []

    def defer(self) -> bool:
        """Put signals off from now on, unless this is done already, or is no matter of this thread."""
        if self._before is not None or threading.current_thread() is not threading.main_thread():
            return False
        self._before = {n: handler for n in _SIGNALS if callable(handler := signal.getsignal(n))}
        for number in self._before:
            signal.signal(number, self._note)
        return True

    def _note(self, number: int, frame: Any) -> None:
        if number not in self.came:
            self.came.append(number)
        elif self._before is not None:
            self.came.remove(number)
            self._before[number](number, frame)

    def end(self) -> None:
        """Put them off no longer."""
        before, self._before = self._before or {}, None
        for number, handler in before.items():
            signal.signal(number, handler)
        self.heed()

    def heed(self) -> None:
        """Let the handlers have what came."""
        while self.came:
            number = self.came.pop(0)
            handler = signal.getsignal(number) if self._before is None else self._before[number]
            try:
                if callable(handler):
                    handler(number, None)
            finally:
                self.heed()


class _Turn:
    def __enter__(self) -> None:
        if _thread.depth:
            _thread.depth += 1
            return
        alone = _signals.defer()
        try:
            with _next:  # whoever waits longest holds this, so that a thread which comes back at once waits behind it
                _turn.acquire()
            _thread.depth, _thread.handlers = 1, handlers()
            if _in_force is not _thread.modes:
                _hand_over()
        except BaseException:
            if _thread.depth:
                _thread.depth = 0
                _turn.release()
            if alone:
                _signals.end()
            raise

    def __exit__(self, kind: type | None = None, *error: object) -> None:
        if _thread.depth > 1:
            _thread.depth -= 1
            return
        if kind is not None:
            set_handlers(_thread.handlers)  # an exception out of the blue can leave some behind
        _thread.depth = 0
        _turn.release()
        if threading.current_thread() is threading.main_thread():
            if not _thread.modes:
                _signals.end()
            elif _signals.came:
                _signals.heed()


_thread, _signals = _Thread(), _Signals()
_turn, _next = threading.Lock(), threading.Lock()
_in_force = _thread.modes
_TURN = _Turn()


def turn() -> AbstractContextManager[None]:
    """Let no other thread of this process run a model or draw in the block: take a turn, as all functions here do for a
    step or a block of data. Needed for what threads draw by themselves, because torch's random numbers are one stream
    for all: ``with pyrovae.turn(): torch.manual_seed(1); model = MyVAE()``. A turn within a turn is the same one.
    """
    return _TURN


def give_way() -> None:
    """Let a thread that waits go first, and Ctrl-C be heeded, in the midst of a turn that is not within another."""
    if _thread.depth == 1 and (_next.locked() or _signals.came):
        try:
            _TURN.__exit__()
        finally:
            _TURN.__enter__()


def heed_signals() -> None:
    """Let a signal that was put off be heeded now, outside of turns."""
    if not _thread.depth and threading.current_thread() is threading.main_thread():
        _signals.heed()


@contextmanager
def kept(make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Add a mode: in the block the context manager that ``make`` gives is in force whenever this thread has a turn."""
    mode = _Mode(make)
    try:
        with _TURN:
            mode.enter()
            _thread.modes.append(mode)
        yield
    finally:
        with _TURN:
            if mode in _thread.modes:
                _thread.modes.remove(mode)
                mode.leave()


def _hand_over() -> None:
    """Take back the modes of the thread before, and put this one's in force."""
    global _in_force
    before, _in_force = _in_force, []
    for mode in reversed(before):
        mode.leave()
    for mode in _thread.modes:
        mode.enter()
    _in_force = _thread.modes


def _after_fork() -> None:
    """No thread but this one is left in a process that was forked."""
    global _turn, _next
    _turn, _next = threading.Lock(), threading.Lock()
    if _thread.depth:
        _turn.acquire()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
