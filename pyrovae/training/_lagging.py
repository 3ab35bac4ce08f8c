"""Against a lagging encoder: many updates of it for one of the decoder."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_positive


class LaggingAdam(torch.optim.Adam):
    """Adam that leaves some parameters alone save at every k-th step, for the first so many steps.

    Args:
        parameters: all of them.
        slow: those that wait.
        every: k.
        steps: for how many steps; then all parameters are updated at every step.
        learning_rate: of Adam.

    Raises:
        ValueError: none of ``slow`` is among ``parameters``, or all are.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        slow: Iterable[Tensor],
        *,
        every: int,
        steps: int,
        learning_rate: float = 1e-3,
    ) -> None:
        require_at_least(1, every=every)
        require_at_least(0, steps=steps)
        require_positive(learning_rate=learning_rate)
        chosen = {id(p) for p in slow}
        everything = list(parameters)
        fast = [p for p in everything if id(p) not in chosen]
        waiting = [p for p in everything if id(p) in chosen]
        if not fast or not waiting:
            which = "all" if waiting else "none"
            raise ValueError(f"{which} of the trained parameters are in the modules given as slow: pass the decoder's.")
        fused = all(p.device.type in ("cpu", "cuda") for p in everything)
        super().__init__([{"params": fast}, {"params": waiting}], lr=learning_rate, fused=fused)
        self.param_groups[1]["steps_done"] = 0  # among what checkpoints keep
        self.defaults |= {"every": every, "steps": steps}  # among what a checkpoint compares

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update; the slow parameters' gradients are dropped at the steps in between."""
        group = self.param_groups[1]
        group["steps_done"] += 1
        every, steps = self.defaults["every"], self.defaults["steps"]
        if group["steps_done"] <= steps and group["steps_done"] % every:
            for p in group["params"]:
                p.grad = None
        return super().step(closure)


def lagging_inference(
    *slow: nn.Module | Tensor, every: int = 5, steps: int = 1000, learning_rate: float = 1e-3
) -> Callable[[Any], torch.optim.Optimizer]:
    """Aggressive training of the encoder against posterior collapse (He et al. 2019, arXiv:1901.05534), for
    ``fit(..., optimizer=lagging_inference(vae.decoder, every=5, steps=2000))``.

    For the first ``steps`` steps the decoder is updated at every ``every``-th one only, so that the posterior keeps
    up with it. In the paper the inner loop lasts until the bound stops rising, and the phase until the mutual
    information does; here both lengths are given, and the encoder moves along with the decoder at the ``every``-th
    step. Works with every ``compile`` and with checkpoints.

    Args:
        slow: the generative part: the decoder, and the prior if it is learnt.
        every: k; 1 is plain Adam.
        steps: length of the phase, in steps (batches).
        learning_rate: of Adam.

    Returns:
        A function from parameters to the optimiser.

    Raises:
        ValueError: bad arguments; from the function, if ``slow`` holds none or all of the parameters.
    """
    require_at_least(1, every=every)
    require_at_least(0, steps=steps)
    require_positive(learning_rate=learning_rate)
    if not slow:
        raise ValueError("lagging_inference needs the modules whose updates wait: lagging_inference(vae.decoder).")
    waiting = [p for part in slow for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
    return lambda parameters: LaggingAdam(parameters, waiting, every=every, steps=steps, learning_rate=learning_rate)
