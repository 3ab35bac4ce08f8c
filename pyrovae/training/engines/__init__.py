"""What makes one update after another: Pyro itself, its traced graph, machine code, or a CUDA graph of the whole step.

All draw the same random numbers and follow the same trajectory, up to rounding. An :class:`Engine` does a piece of
:class:`Work`, an update or a validation loss, by the best means that are wanted and work.
"""

from typing import Literal

from pyrovae.training.engines._engine import Engine, Means
from pyrovae.training.engines._task import Task
from pyrovae.training.engines._work import NotFinite, Update, Validation

Name = Literal["auto", "off", "graph", "inductor", "cudagraph"]
ENGINES: dict[str, frozenset[Means]] = {
    "auto": frozenset({"graph", "code"}),
    "off": frozenset(),
    "graph": frozenset({"graph"}),
    "inductor": frozenset({"graph", "code"}),
    "cudagraph": frozenset({"graph", "code", "capture"}),
}
_WORTHWHILE = 30  # validation batches in all from which on tracing pays


def build(name: str, task: Task, num_steps: int) -> Engine:
    """What makes the updates: ``"auto"`` is a CUDA graph on CUDA, elsewhere what suits the amount of work."""
    cuda = task.device.type == "cuda"
    means = ENGINES["cudagraph" if name == "auto" and cuda else name]
    calls = num_steps if name == "auto" and not cuda else None
    return Engine(task, Update(task, recorded=cuda and "capture" in means), means, name, calls, task.batch_size)


def for_validation(engine: Engine, work: Validation, num_calls: int, batch_size: int | None) -> Engine:
    """What computes so many validation losses, by the means that have proved themselves in training."""
    means = engine.means if num_calls >= _WORTHWHILE else ()
    return Engine(engine.task, work, means, engine.name, None if engine.calls is None else num_calls, batch_size)


__all__ = ["ENGINES", "Engine", "Name", "NotFinite", "Task", "Update", "Validation", "build", "for_validation"]
