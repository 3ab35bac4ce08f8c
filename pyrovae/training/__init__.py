"""Training by stochastic variational inference."""

from pyrovae.training.checkpoint import CheckpointError
from pyrovae.training.fit import fit
from pyrovae.training.loop import NonFiniteLoss, Run

__all__ = ["CheckpointError", "NonFiniteLoss", "Run", "fit"]
