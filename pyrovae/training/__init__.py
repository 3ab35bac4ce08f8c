"""Training by stochastic variational inference."""

from pyrovae.training._checkpoint import Checkpoint, CheckpointError
from pyrovae.training._fit import fit
from pyrovae.training._optimizers import LaggingAdam, lagging_inference
from pyrovae.training._result import FitResult, NonFiniteLoss

__all__ = ["Checkpoint", "CheckpointError", "FitResult", "LaggingAdam", "NonFiniteLoss", "fit", "lagging_inference"]
