"""Training by stochastic variational inference."""

from pyrovae.training.fit import fit
from pyrovae.training.loop import NonFiniteLoss, Run

__all__ = ["NonFiniteLoss", "Run", "fit"]
