"""Distributions and transforms that Pyro, torch and zuko do not have."""

from pyrovae.distributions import kl as kl  # registers closed forms
from pyrovae.distributions.bernoulli import IndependentBernoulli
from pyrovae.distributions.flow import Flow
from pyrovae.distributions.levels import Levels
from pyrovae.distributions.normals import product_of_normals, residual_normal
from pyrovae.distributions.sylvester import SylvesterTransform

__all__ = [
    "Flow",
    "IndependentBernoulli",
    "Levels",
    "SylvesterTransform",
    "product_of_normals",
    "residual_normal",
]
