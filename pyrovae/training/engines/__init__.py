"""What makes one update after another: Pyro itself, its traced graph, machine code, or a CUDA graph of the whole step.

All draw the same random numbers and follow the same trajectory, up to rounding. Each checks itself against Pyro's own
loss at the start of every epoch, and gives way to it, with one warning, where the model cannot be traced.
"""

from typing import Literal

from pyrovae.training.engines.cudagraph import CudaGraph
from pyrovae.training.engines.eager import Eager, Task
from pyrovae.training.engines.inductor import Auto, Inductor
from pyrovae.training.engines.traced import Traced

Engine = Literal["auto", "off", "graph", "inductor", "cudagraph"]
ENGINES: dict[str, type[Eager]] = {
    "auto": Auto,
    "off": Eager,
    "graph": Traced,
    "inductor": Inductor,
    "cudagraph": CudaGraph,
}


def build(name: str, task: Task, num_steps: int) -> Eager:
    """The engine of this name; ``"auto"`` is a CUDA graph on CUDA, elsewhere what suits the amount of work."""
    if name == "auto" and task.device.type == "cuda":
        name = "cudagraph"
    return ENGINES[name](task, num_steps)


__all__ = ["ENGINES", "Eager", "Engine", "Task", "build"]
