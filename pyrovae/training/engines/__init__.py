"""What makes one update after another: Pyro itself, its traced graph, machine code, or a CUDA graph of the whole step.

All draw the same random numbers and follow the same trajectory, up to rounding. An :class:`Engine` does a piece of
:class:`Work`, an update or a validation loss, by the best means that are wanted and work.
"""

from typing import Literal

from pyrovae.training.batches import Batches
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
_MIN_CALLS_TO_TRACE = {"train": 200, "validate": 30}  # in the whole run, from which on tracing pays


def build(name: str, task: Task, train: Batches, epochs: int, *, watched: bool = True) -> Engine:
    """What makes the updates: ``"auto"`` is a CUDA graph on CUDA, elsewhere what suits the amount of work."""
    cuda = task.device.type == "cuda"
    means = ENGINES["cudagraph" if name == "auto" and cuda else name]
    calls = epochs * (train.num_steps or 0) if name == "auto" and not cuda else None
    if calls is not None and 0 < calls < _MIN_CALLS_TO_TRACE["train"]:
        means = frozenset()
    return Engine(Update(task, train, recorded=cuda and "capture" in means), means, name, calls, watched)


def for_validation(engine: Engine, held_out: Batches, epochs: int) -> Engine:
    """What computes the validation losses, by the means that have proved themselves in training."""
    calls = epochs * (held_out.num_steps or 0)
    means = engine.means if calls >= _MIN_CALLS_TO_TRACE["validate"] else ()
    limit = None if engine.calls is None else calls
    return Engine(Validation(engine.task, held_out), means, engine.name, limit, engine.watched)


__all__ = ["ENGINES", "Engine", "Name", "NotFinite", "Task", "Update", "build", "for_validation"]
