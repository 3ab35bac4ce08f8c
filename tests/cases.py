"""Every family named once; every family test reads these."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import nn

from pyrovae import likelihoods, posteriors, priors
from pyrovae.distributions._capabilities import Inverse

LATENT, CONTEXT = 3, 5


@dataclass(frozen=True)
class Case:
    """A family, and what it promises.

    Attributes:
        make: builds a small one.
        inverse: how a point that it did not draw is scored.
        tolerance: by how much log-densities may be wrong in float64: of what is found by search, more than rounding.
        points: at how many an integral is taken, at most; fewer of what is dear.
        scale: of random weights at which its density is still easy to integrate.
        reparameterised: whether gradients pass through its draws.
        smooth: whether at fixed noise a draw moves smoothly with the parameters; else its gradient is right on average.
        vectorises: whether ``inference_gaps`` can fit it, by gradients through the draws under ``torch.func``.
    """

    make: Callable[[], Any]
    inverse: Inverse | None = "exact"
    tolerance: float = 1e-8
    points: int = 100_000
    scale: float = 0.5
    reparameterised: bool = True
    smooth: bool = True
    vectorises: bool = True

    def __call__(self) -> Any:
        return self.make()


class Unreparameterised(posteriors.Mixture):
    """A family whose draws carry no gradients, as users' own may be: torch's mixture."""

    def forward(self, context: torch.Tensor) -> Any:
        q = super().forward(context)
        return dist.MixtureSameFamily(q.mixture_distribution, q.component_distribution)


POSTERIORS = {
    "unreparameterised": Case(
        lambda: Unreparameterised(LATENT, CONTEXT, num_components=3),
        reparameterised=False,
        smooth=False,
        vectorises=False,
    ),
    "mean_field": Case(lambda: posteriors.MeanFieldNormal(LATENT, CONTEXT)),
    "mean_field_constant": Case(lambda: posteriors.MeanFieldNormal(LATENT, CONTEXT, scale="constant")),
    "full_rank": Case(lambda: posteriors.FullRankNormal(LATENT, CONTEXT)),
    "low_rank": Case(lambda: posteriors.LowRankNormal(LATENT, CONTEXT)),
    "mixture": Case(lambda: posteriors.Mixture(LATENT, CONTEXT, num_components=3), smooth=False),
    "planar": Case(lambda: posteriors.Planar(LATENT, CONTEXT, num_flows=3), inverse=None),
    "radial": Case(lambda: posteriors.Radial(LATENT, CONTEXT, num_flows=3), inverse=None),
    "sylvester": Case(lambda: posteriors.OrthogonalSylvester(LATENT, CONTEXT, num_flows=3, bottleneck=2), inverse=None),
    "sylvester_square": Case(lambda: posteriors.OrthogonalSylvester(LATENT, CONTEXT, num_flows=2), inverse=None),
    "householder_sylvester": Case(
        lambda: posteriors.HouseholderSylvester(LATENT, CONTEXT, num_flows=3, num_reflections=2), inverse=None
    ),
    "triangular_sylvester": Case(lambda: posteriors.TriangularSylvester(LATENT, CONTEXT, num_flows=3), inverse=None),
    "iaf": Case(lambda: posteriors.IAF(LATENT, CONTEXT, num_flows=3, hidden=(16,))),
    "neural_spline": Case(lambda: posteriors.NeuralSpline(LATENT, CONTEXT, num_flows=2, hidden=(16,), bins=5)),
    "realnvp": Case(lambda: posteriors.RealNVP(LATENT, CONTEXT, num_flows=3, hidden=(16,))),
    "neural_spline_coupling": Case(
        lambda: posteriors.NeuralSplineCoupling(LATENT, CONTEXT, num_flows=3, hidden=(16,), bins=5)
    ),
    "naf": Case(
        lambda: posteriors.NeuralAutoregressive(LATENT, CONTEXT, hidden=(16,), signal=4, monotone=(8,)),
        inverse="numerical",
        tolerance=2e-5,
        points=20_000,
        vectorises=False,
    ),
}

PRIORS = {
    "standard_normal": Case(lambda: priors.StandardNormal(LATENT)),
    "mixture": Case(lambda: priors.MixtureOfGaussians(LATENT, num_components=4)),
    "vamp": Case(lambda: priors.VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4)),
    "vamp_exemplars": Case(lambda: exemplars()),
    "ar1": Case(lambda: priors.AR1(LATENT, delta=0.7)),
    "flow": Case(lambda: priors.FlowPrior(LATENT, flow_options={"hidden": (16,), "bins": 5}), scale=0.3),
    "flow_iaf": Case(lambda: priors.FlowPrior(LATENT, flow="iaf", flow_options={"hidden": (16,)}), scale=0.2),
    "flow_naf": Case(
        lambda: priors.FlowPrior(LATENT, flow="naf", flow_options={"hidden": (16,), "signal": 4, "monotone": (8,)}),
        inverse="numerical",
        points=20_000,
        scale=0.3,
    ),
}


def exemplars() -> priors.VampPrior:
    prior = priors.VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4, exemplars=True)
    prior.start_at(torch.rand(4, CONTEXT, generator=torch.Generator().manual_seed(0)))
    return prior


LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "bernoulli": lambda: likelihoods.Bernoulli(1),
    "gaussian": lambda: likelihoods.Gaussian(1),
    "gaussian_fixed": lambda: likelihoods.Gaussian(1, scale=0.5),
    "gaussian_per_pixel": lambda: likelihoods.Gaussian(1, scale="per_pixel"),
    "categorical": lambda: likelihoods.Categorical(1, num_levels=17),
    "categorical_256": lambda: likelihoods.Categorical(1),
    "discretized_logistic": lambda: likelihoods.DiscretizedLogistic(1, num_levels=17),
    "discretized_logistic_256": lambda: likelihoods.DiscretizedLogistic(1),
    "discretized_logistic_mixture": lambda: likelihoods.DiscretizedLogisticMixture(1, num_components=3),
    "continuous_bernoulli": lambda: likelihoods.ContinuousBernoulli(1),
}


def randomized(module: nn.Module, *, scale: float = 0.5, seed: int = 1) -> nn.Module:
    """The module in float64 with parameters drawn from N(0, scale²): away from its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module
