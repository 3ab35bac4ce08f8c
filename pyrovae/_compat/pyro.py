"""Of Pyro: what sites and handlers are made of, where modules keep what they make of parameters, what errors say."""

from typing import Any

from pyro.distributions.util import scale_and_mask  # a log-density times a scale, 0 where it is masked
from pyro.nn import PyroModule
from pyro.poutine import runtime
from pyro.poutine.messenger import Messenger  # whose _pyro_sample sees, and may answer, every sample statement
from pyro.poutine.util import site_is_subsample


def handlers() -> tuple[int, list[Any]]:
    """How many handlers there are, and the plates that have dimensions now."""
    return len(runtime._PYRO_STACK), runtime._DIM_ALLOCATOR._stack.copy()


def set_handlers(before: tuple[int, list[Any]]) -> None:
    """Forget handlers and plates that were not there before."""
    del runtime._PYRO_STACK[before[0] :]
    runtime._DIM_ALLOCATOR._stack[:] = before[1]


def is_sample_site(site: Any) -> bool:
    """Whether a site of a trace, or a message, is random: neither a plate's subsampling nor ``pyro.deterministic``."""
    return site["type"] == "sample" and not (site["infer"].get("_deterministic") or site_is_subsample(site))


def own_mask(p: Any) -> Any:
    """The mask of a ``MaskedDistribution``, a tensor over its batch or a boolean for all of it."""
    return p._mask


def param_statements(module: PyroModule) -> dict[str, Any]:
    """The parameters that param statements of a module's methods have made or registered by now, where Pyro keeps them
    in the module: by name.
    """
    return module._pyro_context.param_state["params"]


def reason(error: Exception) -> str:
    """What an error says, without the table of shapes that Pyro puts under it."""
    return str(error).split("\nTrace Shapes:")[0]
