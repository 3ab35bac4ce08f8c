"""Threads take turns: Pyro's handlers and settings, validation, and torch's random numbers are the whole process's.

Whoever runs a model or draws takes a turn, for a step or a block of data, and nobody else's comes in between. What a
thread has changed for longer than a turn, its modes, is taken back before another thread has its turn, and is in force
again when this one has its next. While one thread alone is at work, nothing is taken back, and a turn costs a
microsecond.
"""

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any


class _Thread(threading.local):
    """What is known of this thread."""

    def __init__(self) -> None:
        self.depth = 0  # of turns within turns
        self.modes: list[_Mode] = []


class _Mode:
    """A context manager that can be left and entered again."""

    def __init__(self, make: Callable[[], AbstractContextManager[Any]]) -> None:
        self._make = make

    def enter(self) -> None:
        self._entered = self._make()
        self._entered.__enter__()

    def leave(self) -> None:
        self._entered.__exit__(None, None, None)


class _Turn:
    def __enter__(self) -> None:
        if _thread.depth == 0:
            with _next:  # whoever waits longest holds this, so that a thread which comes back at once waits behind it
                _turn.acquire()
        _thread.depth += 1
        if _in_force is not _thread.modes:
            _hand_over()

    def __exit__(self, *error: object) -> None:
        _thread.depth -= 1
        if _thread.depth == 0:
            _turn.release()


_thread = _Thread()
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
    """Let a thread that waits go first, here in the midst of a turn that is not within another."""
    if _thread.depth == 1 and _next.locked():
        _TURN.__exit__()
        _TURN.__enter__()


@contextmanager
def kept(make: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Add a mode: in the block the context manager that ``make`` gives is in force whenever this thread has a turn."""
    mode = _Mode(make)
    with _TURN:
        mode.enter()
        _thread.modes.append(mode)
    try:
        yield
    finally:
        with _TURN:
            _thread.modes.remove(mode)
            mode.leave()


def _hand_over() -> None:
    """Take back the modes of the thread before, and put this one's in force."""
    global _in_force
    before, _in_force = _in_force, _thread.modes
    for mode in reversed(before):
        mode.leave()
    for mode in _in_force:
        mode.enter()


def _after_fork() -> None:
    """No thread but this one is left in a process that was forked."""
    global _turn, _next
    _turn, _next = threading.Lock(), threading.Lock()
    if _thread.depth:
        _turn.acquire()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
