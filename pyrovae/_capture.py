"""CUDA graphs: work on a device that is recorded once, and launched as a whole from then on."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pyrovae._compat.torch import tree_flatten, tree_map_only, tree_unflatten

_WARM_UP_CALLS = 3  # on the recording stream before it records, as CUDA graphs need


class CannotRecord(Exception):
    """Work that cannot be recorded, because of the exception that it holds; nothing of it was done."""


class Capture:
    """``function`` of tensors on a CUDA device, recorded after a few calls and then replayed.

    The function must do the same work at every call, on memory that stays where it is: it reads no value, and what it
    changes besides its results it changes in place. Random numbers are those that it would draw itself. Its results
    are overwritten by the next call.

    Args:
        function: takes tensors of the same shapes every time; returns tensors, or a nest of them.
        device: where it computes.

    Attributes:
        graph: what calls replay, once it is recorded.
    """

    def __init__(self, function: Callable[..., Any], device: torch.device) -> None:
        self._function, self._device = function, device
        self._stream = torch.cuda.Stream(device)
        self._calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._results: Any = None

    def __call__(self, *inputs: Any) -> Any:
        """What ``function`` gives, and does.

        Raises:
            CannotRecord: from whatever the device says.
        """
        leaves, spec = tree_flatten(inputs)
        with torch.cuda.device(self._device):
            if self._calls < _WARM_UP_CALLS:
                self._calls += 1
                self._stream.wait_stream(torch.cuda.current_stream())
                with torch.cuda.stream(self._stream):
                    results = self._function(*inputs)
                torch.cuda.current_stream().wait_stream(self._stream)
                return results
            if self.graph is None:
                self.graph = self._recorded(leaves, spec)
            for own, given in zip(self._inputs, leaves, strict=True):
                own.copy_(given)
            self.graph.replay()
        return self._results

    def _recorded(self, leaves: list[Tensor], spec: Any) -> torch.cuda.CUDAGraph:
        self._inputs = [t.clone() for t in leaves]
        generator = torch.cuda.default_generators[torch.cuda.current_device()]
        state = generator.get_state()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        try:
            # Other threads, those of a loader that pins memory say, may go on.
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._results = self._function(*tree_unflatten(self._inputs, spec))
        except Exception as error:
            # A recording that breaks off leaves the generator waiting for it.
            generator.graphsafe_set_state(torch.Generator(self._device))
            generator.set_state(state)
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise CannotRecord(error) from error
        return graph


def replayed(function: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """``function`` of tensors, from its fourth call on by one CUDA graph where that can be had; results are fresh."""
    if device.type != "cuda":
        return function
    capture: Capture | None = Capture(function, device)

    def run(*inputs: Any) -> Any:
        nonlocal capture
        if capture is not None:
            try:
                return tree_map_only(Tensor, torch.clone, capture(*inputs))
            except CannotRecord:
                capture = None
        return function(*inputs)

    return run
