"""Training objectives: functions of ``LogTerms`` in the form of ``pyro.infer.ELBO``, so ``SVI`` takes them too."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.capacity import CapacityELBO
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.schedules import Schedule, cosine_warmup, cyclical, linear_warmup
from pyrovae.objectives.total_correlation import BetaTCVAE, RateParts

__all__ = [
    "ELBO",
    "IWAE",
    "BetaTCVAE",
    "CapacityELBO",
    "Objective",
    "RateParts",
    "Schedule",
    "cosine_warmup",
    "cyclical",
    "linear_warmup",
]
