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
        self._static: list[Tensor] = []
        self._static_values: list[Tensor] = []
        self._captured: Any = None
        if task.device.type != "cuda":
            self._give_up(Untraceable(f"CUDA graphs need a CUDA device, and the model is on {task.device}"))
        else:
            _make_capturable(task.optimizer, task.device)
            self._stream = torch.cuda.Stream(task.device)

    def __call__(self, *raw: Tensor) -> None:
        if self._given_up or (self._shape is not None and [(t.shape, t.dtype) for t in raw] != self._shape):
            return super().__call__(*raw)
        if self._unchecked and self._function is not None:
            self._check(*raw)
            if self._given_up:
                return super().__call__(*raw)
        if self._graph is None or self._captured is not self._function:
            if self._warm < _WARM_UP:
                self._warm += 1
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):
                    super().__call__(*raw)
                torch.cuda.current_stream().wait_stream(self._stream)
                return None
            try:
                self._capture(*raw)
            except Exception as error:
                self._graph = None
                self._give_up(error)
                return super().__call__(*raw)
        for static, value in zip(self._static, raw, strict=True):
            static.copy_(value)
        for static, name in zip(self._static_values, self._values, strict=True):
            static.fill_(getattr(self.task.objective, name))
        assert self._graph is not None
        self._graph.replay()
        return None

    def _capture(self, *raw: Tensor) -> None:
        self._static = [t.clone() for t in raw]
        torch.cuda.synchronize()
        self._graph = torch.cuda.CUDAGraph()
        self.task.optimizer.zero_grad(set_to_none=True)
        with torch.cuda.graph(self._graph, stream=self._stream):
            loss = self._run(*self._static)
            self.task.update()
            self.total += loss
        self._captured = self._function

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        try:
            return compiled(module, *inputs)
        except Exception:  # without Triton: more and smaller kernels, still one launch
            return module

    def _scheduled(self) -> list[Tensor]:
        if not self._static_values:
            self._static_values = [torch.zeros((), dtype=torch.float32, device=self.task.device) for _ in self._values]
        if not torch.cuda.is_current_stream_capturing():
            for static, name in zip(self._static_values, self._values, strict=True):
                static.fill_(getattr(self.task.objective, name))
        return self._static_values


def _make_capturable(optimizer: torch.optim.Optimizer, device: torch.device) -> None:
    """Keep step counts and learning rates on the device, where schedulers fill them in place."""
    for group in optimizer.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        if not isinstance(group["lr"], Tensor):
            group["lr"] = torch.tensor(float(group["lr"]), device=device)
    for state in optimizer.state.values():
        if isinstance(state.get("step"), Tensor):
            state["step"] = state["step"].to(device)
