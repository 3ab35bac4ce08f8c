"""A bound on what a constructor computes that a file calls."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from pyrovae._compat.torch import DispatchMode, storage_id, tree_leaves, tree_map_only

_BYTES, _TIMES = 64 * 2**20, 32  # of new tensors: so many, and those of the weights so many times
_OPERATIONS, _OPERATIONS_EACH = 20_000, 200  # and for each tensor of the weights


class TooMuch(ValueError):
    """A constructor computes far more than its weights take."""


class Bounded(DispatchMode):
    """Inside the block this thread computes, on tensors, about what it takes to build a model of such weights.

    Every operation is tried on the meta device first, so that what is too much is never done.

    Args:
        weights: of the model, by name.

    Raises:
        TooMuch: from within the block, at the operation that is one too many.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._bytes = _BYTES + _TIMES * sum(t.numel() * t.element_size() for t in weights.values())
        self._operations = _OPERATIONS + _OPERATIONS_EACH * len(weights)
        self._known: dict[Any, int] = {}  # bytes by operation and shapes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        self._operations -= 1
        leaves = tree_leaves((args, kwargs))
        key = func, *((t.shape, t.dtype, t.device.type) if isinstance(t, Tensor) else str(t) for t in leaves)
        if key not in self._known:
            self._known[key] = _bytes_of(func, args, kwargs)
        self._bytes -= self._known[key]
        if self._bytes < 0 or self._operations < 0:
            raise TooMuch("its constructor computes far more than weights of this size take")
        return func(*args, **kwargs)


def _bytes_of(func: Any, args: Any, kwargs: Any) -> int:
    """Memory that an operation will take for its results; 0 on the meta device, or where that cannot say."""
    inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
    if "meta" in (str(kwargs.get("device", "")), *(t.device.type for t in inputs)):
        return 0
    args, kwargs = tree_map_only(Tensor, lambda t: t.to("meta"), (args, kwargs))
    if not inputs or "device" in kwargs:
        kwargs = {**kwargs, "device": "meta"}
    try:
        out = func(*args, **kwargs)
    except (NotImplementedError, RuntimeError, TypeError):  # results whose shape depends on values
        return 0
    known = {storage_id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
    new = {storage_id(t): t for t in tree_leaves(out) if isinstance(t, Tensor)}
    return sum(t.untyped_storage().nbytes() for key, t in new.items() if key not in known)
