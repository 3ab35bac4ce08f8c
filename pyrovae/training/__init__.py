"""Training by stochastic variational inference."""

from pyrovae.training.checkpoint import CheckpointError
from pyrovae.training.fit import fit
from pyrovae.training.lagging import LaggingAdam, lagging_inference
from pyrovae.training.loop import NonFiniteLoss, Run

__all__ = ["CheckpointError", "LaggingAdam", "NonFiniteLoss", "Run", "fit", "lagging_inference"]
