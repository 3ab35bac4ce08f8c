"""Training by stochastic variational inference."""

from pyrovae.training._checkpoint import CheckpointError
from pyrovae.training._fit import fit
from pyrovae.training._lagging import LaggingAdam, lagging_inference
from pyrovae.training._loop import NonFiniteLoss, Run

__all__ = ["CheckpointError", "LaggingAdam", "NonFiniteLoss", "Run", "fit", "lagging_inference"]
