"""What a training run gives, and the error that ends one."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pandas as pd

from pyrovae.training.batches import Model

Callback = Callable[["FitResult"], bool | None]


@dataclass(frozen=True, repr=False)
class FitResult:
    """A training run, as :func:`fit` returns it; callbacks see what there is of it after every epoch.

    Attributes:
        model: the model, trained in place.
        records: one dict per epoch; :attr:`history` is the same as a DataFrame. Callbacks may add to the last one.
        best_epoch: the epoch with the lowest validation loss, if there was validation.
        stopped_early: whether patience ran out or a callback stopped the run.
        engine: what made the steps in the end: ``"off"`` (Pyro), ``"graph"``, ``"inductor"``, ``"cudagraph"``, or
            ``"cudagraph(graph)"`` for one without machine code.
        compile_seconds: what tracing, compiling, capturing and checking took, which the epochs' ``seconds`` include.
    """

    model: Model
    records: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int | None = None
    stopped_early: bool = False
    engine: str = "off"
    compile_seconds: float = 0.0

    def __repr__(self) -> str:
        end = ", stopped early" if self.stopped_early else ""
        best = "" if self.best_epoch is None else f", best epoch {self.best_epoch}"
        return f"FitResult({type(self.model).__name__}, {len(self.records)} epochs{best}{end})"

    @property
    def history(self) -> pd.DataFrame:
        """A table with one row for every epoch.

        Its columns are ``loss`` and ``val_loss`` (negative bounds, in nats per datum; the latter at the schedules'
        final values), ``beta``, ``learning_rate`` and ``seconds``.
        """
        return pd.DataFrame(self.records).set_index("epoch") if self.records else pd.DataFrame()


class NonFiniteLoss(RuntimeError):
    """The loss became NaN or infinite. The model keeps its last good weights.

    Attributes:
        epoch: epoch of the bad step, from 0.
        step: step within that epoch, from 0.
        run: what was done until then.
    """

    def __init__(self, epoch: int, step: int, cause: str, run: FitResult, kind: str = "loss") -> None:
        super().__init__(
            f"the {kind} is not finite at epoch {epoch}, step {step}: {cause} The model keeps its last good "
            f"weights. Lower learning_rate, set clip_norm, or check the data."
        )
        self.epoch, self.step, self.run = epoch, step, run
