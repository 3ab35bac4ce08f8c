"""The whole step as one CUDA graph: from the rows of the batch to the updated weights, in a single launch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from pyrovae._graph import compiled
from pyrovae.training.engines.eager import Task
from pyrovae.training.engines.traced import Traced, Untraceable

_WARM_UP = 3  # steps on a side stream before capture, as CUDA graphs need


class CudaGraph(Traced):
    """Gathering the batch, its transform, loss, gradients, clipping, optimiser and the sum of losses in one graph.

    Inside, the traced step is compiled where Triton is there. Learning rate and scheduled values are tensors on the
    device that are filled before a launch. Random numbers are those that the other engines draw on that device.
    """

    name = "cudagraph"

    def __init__(self, task: Task, num_steps: int = 0) -> None:
        super().__init__(task, num_steps)
        self._warm = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._captured: Any = None  # what the graph was made of
        self._static: list[Tensor] = []  # the batch, as far as it comes from outside
        self._static_values: list[Tensor] = []
        self._filled: list[float] = []
        if task.device.type != "cuda":
            self._give_up(Untraceable(f"CUDA graphs need a CUDA device, and the model is on {task.device}"))
        else:
            self._with_optimizer = _make_capturable(task.optimizer, task.device)
            self._stream = torch.cuda.Stream(task.device)

    def __call__(self, *raw: Tensor) -> None:
        if self._given_up or not self._is_full(*raw):
            return super().__call__(*raw)
        with torch.cuda.device(self.task.device):
            return self._step(*raw)

    def _step(self, *raw: Tensor) -> None:
        if self._warm < _WARM_UP:
            self._warm += 1
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                super().__call__(*raw)
            torch.cuda.current_stream().wait_stream(self._stream)
            return None
        if self._unchecked:
            self._check(*raw)
        if not self._given_up and self._captured != self._made_of():
            try:
                self._capture(*raw)
            except Exception as error:
                self._graph = None
                self._give_up(error)
        if self._given_up or self._graph is None:
            return super().__call__(*raw)
        for static, value in zip(self._static, raw, strict=True):
            static.copy_(value)
        self._fill()
        self._graph.replay()
        if not self._with_optimizer:
            for p, gradient in zip(self._trained, self._gradients, strict=True):
                p.grad = gradient
            self.task.update()
        return None

    def _made_of(self) -> Any:
        """The traced step, its buffers, and the optimiser's settings that are numbers: a graph holds them all."""
        groups = self.task.optimizer.param_groups if self._with_optimizer else []
        numbers = [
            {name: v for name, v in group.items() if name != "params" and not isinstance(v, Tensor)} for group in groups
        ]
        return self._function, [buffer.data_ptr() for buffer in self.task.model.buffers()], numbers

    def _capture(self, *raw: Tensor) -> None:
        if self._replaced:
            names = ", ".join(sorted(self._replaced))
            raise Untraceable(f"the model replaces its buffer {names} as it runs; change it in place, by copy_() say")
        self._static = [t.clone() for t in raw]
        self._fill()
        self.task.optimizer.zero_grad(set_to_none=True)  # gradients live in the graph's own memory
        made_of = self._made_of()
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, those of a loader that pins memory say, may go on.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            loss, self._gradients = self._run(*self._static)
            if self._with_optimizer:
                for p, gradient in zip(self._trained, self._gradients, strict=True):
                    p.grad = gradient
                self.task.update()
            self.total += loss
        self._captured = made_of

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        try:
            return compiled(module, *inputs)
        except Exception:  # without Triton: more and smaller kernels, still one launch
            return module

    def _scheduled(self) -> list[Tensor]:
        if not torch.cuda.is_current_stream_capturing():
            self._fill()
        return self._static_values

    def _fill(self) -> None:
        """The scheduled values of this step, on the device."""
        values = [float(getattr(self.task.objective, name)) for name in self._values]
        if len(self._static_values) != len(values):
            self._static_values = [torch.zeros((), device=self.task.device) for _ in values]
            self._filled = []
        if values != self._filled:
            for static, value in zip(self._static_values, values, strict=True):
                static.fill_(value)
            self._filled = values


def _make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> bool:
    """Keep step counts and learning rates on the device, where schedulers fill them in place.

    Returns:
        Whether the optimiser can be part of a graph: of torch's own those that say so, and plain SGD. Others may keep
        numbers in Python, which a graph would never see change.
    """
    torchs = type(optimizer).__module__.startswith("torch.optim")
    capturable = torchs and all("capturable" in group for group in optimizer.param_groups)
    if not capturable:
        return type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32).to(device)
    optimizer._warned_capturable_if_run_uncaptured = True  # the first steps are meant to run as they are
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)
    return True
