"""Distributions and transforms that Pyro, torch and zuko do not have."""

from pyrovae.distributions import kl as kl  # registers closed forms
from pyrovae.distributions.ar1 import AR1
from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.bernoulli import IndependentBernoulli
from pyrovae.distributions.flow import Flow
from pyrovae.distributions.levels import Levels
from pyrovae.distributions.sylvester import SylvesterTransform

__all__ = ["AR1", "Autoregressive", "Flow", "IndependentBernoulli", "Levels", "SylvesterTransform"]
