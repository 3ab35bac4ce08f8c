"""Approximate posteriors: modules that turn a context ``(..., C)`` into a distribution over ``(Z,)``.

Every family is built as ``cls(latent_dim=Z, context_dim=C)``; its options are keyword-only. To add one,
write its file, add its line to ``POSTERIORS`` and its case to ``tests/cases.py``.
"""

from torch import nn

from pyrovae._parts import Registry
from pyrovae.posteriors._autoregressive import IAF, NeuralSpline, NeuralSplineCoupling, RealNVP
from pyrovae.posteriors._base import FlowPosterior, Posterior, softplus_scale
from pyrovae.posteriors._full_rank import FullRankNormal
from pyrovae.posteriors._low_rank import LowRankNormal
from pyrovae.posteriors._mean_field import MeanFieldNormal
from pyrovae.posteriors._mixture import Mixture
from pyrovae.posteriors._naf import NeuralAutoregressive
from pyrovae.posteriors._planar import Planar
from pyrovae.posteriors._radial import Radial
from pyrovae.posteriors._sylvester import HouseholderSylvester, OrthogonalSylvester, TriangularSylvester

POSTERIORS: Registry[Posterior] = Registry(
    "posterior",
    nn.Module,
    mean_field=MeanFieldNormal,
    full_rank=FullRankNormal,
    low_rank=LowRankNormal,
    mixture=Mixture,
    planar=Planar,
    radial=Radial,
    sylvester=OrthogonalSylvester,
    householder_sylvester=HouseholderSylvester,
    triangular_sylvester=TriangularSylvester,
    iaf=IAF,
    neural_spline=NeuralSpline,
    realnvp=RealNVP,
    neural_spline_coupling=NeuralSplineCoupling,
    naf=NeuralAutoregressive,
)

__all__ = [
    "IAF",
    "POSTERIORS",
    "FlowPosterior",
    "FullRankNormal",
    "HouseholderSylvester",
    "LowRankNormal",
    "MeanFieldNormal",
    "Mixture",
    "NeuralAutoregressive",
    "NeuralSpline",
    "NeuralSplineCoupling",
    "OrthogonalSylvester",
    "Planar",
    "Posterior",
    "Radial",
    "RealNVP",
    "TriangularSylvester",
    "softplus_scale",
]
