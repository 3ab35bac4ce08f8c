"""Modules that give the same at every draw, run once outside ``vmap`` and played back inside: an encoder."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._compat.torch import tree_flatten, tree_unflatten

_PLAIN = (int, float, bool, str, type(None))


@dataclass(frozen=True)
class Playback:
    """The outputs of some modules for B data, call by call.

    Attributes:
        modules: the modules.
        outputs: what each of their calls returned: its structure, and for every leaf the dimension of the data
            (``None`` where there is none) and what is not a tensor of the data.
        rows: those leaves that are tensors of the data, ``(B, ...)``.
    """

    modules: tuple[nn.Module, ...] = ()
    outputs: tuple[tuple[tuple[Any, tuple[tuple[int | None, Any], ...]], ...], ...] = ()
    rows: tuple[Tensor, ...] = ()

    @contextmanager
    def of(self, rows: Sequence[Tensor]) -> Iterator[None]:
        """Let the modules return what they gave for one datum, ``rows`` without the data's dimension, and not run."""
        left = iter(rows)
        before = [module.__dict__.get("forward") for module in self.modules]
        for module, calls in zip(self.modules, self.outputs, strict=True):
            results = []
            for spec, leaves in calls:
                values = [constant if d is None else next(left).unsqueeze(d) for d, constant in leaves]
                results.append(tree_unflatten(values, spec))
            module.__dict__["forward"] = partial(_next, iter(results))
        try:
            yield
        finally:
            for module, forward in zip(self.modules, before, strict=True):
                module.__dict__.pop("forward")
                if forward is not None:
                    module.__dict__["forward"] = forward


def record(
    candidates: Mapping[str, nn.Module], run: Callable[[int, int], Any], run_on_all: Callable[[], Any]
) -> Playback:
    """Run what can be played back.

    A module can be, if its outputs are tensors with at most one dimension for the data, and depend neither on what is
    fitted nor on the draws nor on their number. Of nested ones the outermost is taken.

    Args:
        candidates: modules by their path.
        run: ``run(n, k)`` runs the program on n copies of one datum with k particles, and with gradients of what is
            fitted.
        run_on_all: runs it on all data.
    """
    one, again, two = (_outputs(candidates.values(), partial(run, n, k)) for n, k in ((1, 2), (1, 3), (2, 2)))
    chosen: dict[str, nn.Module] = {}
    dims: dict[nn.Module, list[list[int | None]]] = {}
    for path, module in sorted(candidates.items()):
        if any(path.startswith(f"{outer}.") for outer in chosen):
            continue
        calls = [_data_dims(*outputs) for outputs in zip(one[module], again[module], two[module], strict=False)]
        if calls and len(calls) == len(one[module]) == len(again[module]) == len(two[module]) and None not in calls:
            chosen[path], dims[module] = module, calls  # type: ignore[assignment]
    outputs = _outputs(chosen.values(), run_on_all)
    rows: list[Tensor] = []
    played = []
    for module in chosen.values():
        calls_of = []
        for output, found in zip(outputs[module], dims[module], strict=True):
            leaves, spec = tree_flatten(output)
            calls_of.append(
                (spec, tuple((d, None if d is not None else v) for d, v in zip(found, leaves, strict=True)))
            )
            rows += [v.detach().movedim(d, 0) for d, v in zip(found, leaves, strict=True) if d is not None]
        played.append(tuple(calls_of))
    return Playback(tuple(chosen.values()), tuple(played), tuple(rows))


def _outputs(modules: Any, run: Callable[[], Any]) -> dict[nn.Module, list[Any]]:
    """What the modules return while ``run`` runs, call by call."""
    found: dict[nn.Module, list[Any]] = {module: [] for module in modules}
    with ExitStack() as stack:
        for module in found:
            hook = module.register_forward_hook(lambda module, inputs, output: found[module].append(output))
            stack.callback(hook.remove)
        run()
    return found


def _data_dims(one: Any, again: Any, two: Any) -> list[int | None] | None:
    """The data's dimension of every leaf of an output, for one datum, for the same one, and for two copies of it;
    ``None`` where it cannot be played back.
    """
    (a, spec), (b, spec_again), (c, spec_two) = map(tree_flatten, (one, again, two))
    if not spec == spec_again == spec_two:
        return None
    found: list[int | None] = []
    for u, v, w in zip(a, b, c, strict=True):
        if not isinstance(u, Tensor):
            if not isinstance(u, _PLAIN) or not u == v == w:
                return None
            found.append(None)
            continue
        if any(not isinstance(t, Tensor) or t.requires_grad for t in (u, v, w)) or u.shape != v.shape:
            return None
        if u.dim() != w.dim() or not torch.equal(u, v):
            return None
        differ = [d for d in range(u.dim()) if u.shape[d] != w.shape[d]]
        if len(differ) > 1 or any((u.shape[d], w.shape[d]) != (1, 2) for d in differ):
            return None
        found.append(differ[0] if differ else None)
    return found


def _next(results: Iterator[Any], *args: Any, **kwargs: Any) -> Any:
    return next(results)
