"""Distributions and transforms that Pyro, torch and zuko do not have."""

from pyrovae.distributions import _kl as _kl  # registers closed forms
from pyrovae.distributions._ar1 import AR1
from pyrovae.distributions._autoregressive import Autoregressive
from pyrovae.distributions._bernoulli import ContinuousBernoulli, IndependentBernoulli
from pyrovae.distributions._capabilities import Capabilities, capabilities
from pyrovae.distributions._charts import Chart, register_chart
from pyrovae.distributions._discrete import DiscretizedLogistic, Levels, PointMass
from pyrovae.distributions._flow import Flow
from pyrovae.distributions._normals import MultivariateNormal, product_of_normals, residual_normal
from pyrovae.distributions._sylvester import SylvesterTransform

__all__ = [
    "AR1",
    "Autoregressive",
    "Capabilities",
    "Chart",
    "ContinuousBernoulli",
    "DiscretizedLogistic",
    "Flow",
    "IndependentBernoulli",
    "Levels",
    "MultivariateNormal",
    "PointMass",
    "SylvesterTransform",
    "capabilities",
    "product_of_normals",
    "register_chart",
    "residual_normal",
]
