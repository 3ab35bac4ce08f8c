"""Training objectives: functions of ``LogTerms`` in the form of ``pyro.infer.ELBO``, so ``SVI`` takes them too."""

from pyrovae.objectives._base import Objective
from pyrovae.objectives._capacity import CapacityELBO
from pyrovae.objectives._elbo import ELBO
from pyrovae.objectives._iwae import CIWAE, IWAE, MIWAE, PIWAE
from pyrovae.objectives._schedules import Schedule, cosine_warmup, cyclical, linear_warmup
from pyrovae.objectives._total_correlation import BetaTCVAE, RateParts

__all__ = [
    "CIWAE",
    "ELBO",
    "IWAE",
    "MIWAE",
    "PIWAE",
    "BetaTCVAE",
    "CapacityELBO",
    "Objective",
    "RateParts",
    "Schedule",
    "cosine_warmup",
    "cyclical",
    "linear_warmup",
]
