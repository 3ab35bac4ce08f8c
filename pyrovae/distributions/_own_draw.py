"""What a distribution knows about the value that it drew last."""

from typing import Any

import torch
from torch import Tensor


class KeepsLastDraw:
    """Keeps what the last draw was made from, so that its log-density need not be found from the value again: that
    costs an inverse, and loses precision where the map is ill-conditioned.

    A draw is recognised by identity. One made without gradients is not once gradients are wanted.
    """

    _last: tuple[Tensor, Any, bool] | None = None

    def _keep(self, value: Tensor, source: Any) -> Tensor:
        self._last = value, source, torch.is_grad_enabled()
        return value

    def _kept(self, value: Tensor) -> Any:
        """The source of ``value``, or ``None`` if that is not the last draw."""
        if self._last is not None and value is self._last[0] and self._last[2] >= torch.is_grad_enabled():
            return self._last[1]
        return None
