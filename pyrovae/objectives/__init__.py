"""Training objectives: functions of ``LogTerms`` in the form of ``pyro.infer.ELBO``, so ``SVI`` takes them too."""

from pyrovae.objectives.base import Objective
from pyrovae.objectives.elbo import ELBO
from pyrovae.objectives.iwae import IWAE
from pyrovae.objectives.schedules import Schedule, cosine_warmup, cyclical, linear_warmup

__all__ = ["ELBO", "IWAE", "Objective", "Schedule", "cosine_warmup", "cyclical", "linear_warmup"]
