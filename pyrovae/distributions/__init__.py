"""Distributions and transforms that Pyro, torch and zuko do not have."""

from pyrovae.distributions import kl as kl  # registers closed forms
from pyrovae.distributions._capabilities import Capabilities, capabilities
from pyrovae.distributions.ar1 import AR1
from pyrovae.distributions.autoregressive import Autoregressive
from pyrovae.distributions.bernoulli import IndependentBernoulli
from pyrovae.distributions.charts import Chart, register_chart
from pyrovae.distributions.continuous_bernoulli import ContinuousBernoulli
from pyrovae.distributions.discretized_logistic import DiscretizedLogistic
from pyrovae.distributions.flow import Flow
from pyrovae.distributions.levels import Levels
from pyrovae.distributions.multivariate_normal import MultivariateNormal
from pyrovae.distributions.normals import product_of_normals, residual_normal
from pyrovae.distributions.point_mass import PointMass
from pyrovae.distributions.sylvester import SylvesterTransform

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
