"""The step as machine code."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from pyrovae._graph import compiled, is_worthwhile
from pyrovae.training.engines.traced import Traced


class Inductor(Traced):
    """The traced loss and its gradients, compiled by inductor; the optimiser is torch's own fused kernel.

    Compiling takes 5 to 30 seconds. It needs a C++ compiler, on CUDA Triton.
    """

    name = "inductor"

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        return compiled(module, *inputs)


class Auto(Traced):
    """The traced graph, compiled where there is work enough for that to pay."""

    name = "auto"
    _compiled = False

    @property
    def in_use(self) -> str:
        return "off" if self._given_up else "inductor" if self._compiled else "graph"

    def _lower(self, module: GraphModule, *inputs: Tensor) -> Callable[..., Any]:
        self._compiled = is_worthwhile(module, self.num_steps)
        if self._compiled:
            try:
                return compiled(module, *inputs)
            except Exception:  # nobody asked for it: without a compiler the graph is what there is
                self._compiled = False
        return module
