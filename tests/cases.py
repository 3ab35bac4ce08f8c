"""Every family named once; every family test reads these."""

from collections.abc import Callable

import torch
from torch import nn

from pyrovae import likelihoods, posteriors, priors

LATENT, CONTEXT = 3, 5

POSTERIORS: dict[str, Callable[[], posteriors.Posterior]] = {
    "mean_field": lambda: posteriors.MeanFieldNormal(LATENT, CONTEXT),
    "full_rank": lambda: posteriors.FullRankNormal(LATENT, CONTEXT),
    "planar": lambda: posteriors.Planar(LATENT, CONTEXT, num_flows=3),
    "radial": lambda: posteriors.Radial(LATENT, CONTEXT, num_flows=3),
    "sylvester": lambda: posteriors.OrthogonalSylvester(LATENT, CONTEXT, num_flows=3, bottleneck=2),
    "sylvester_square": lambda: posteriors.OrthogonalSylvester(LATENT, CONTEXT, num_flows=2),
    "householder_sylvester": lambda: posteriors.HouseholderSylvester(LATENT, CONTEXT, num_flows=3, num_reflections=2),
    "triangular_sylvester": lambda: posteriors.TriangularSylvester(LATENT, CONTEXT, num_flows=3),
    "iaf": lambda: posteriors.IAF(LATENT, CONTEXT, num_flows=3, hidden=(16,)),
    "neural_spline": lambda: posteriors.NeuralSpline(LATENT, CONTEXT, num_flows=2, hidden=(16,), bins=5),
}

PRIORS: dict[str, Callable[[], priors.Prior]] = {
    "standard_normal": lambda: priors.StandardNormal(LATENT),
    "mixture": lambda: priors.MixtureOfGaussians(LATENT, num_components=4),
    "vamp": lambda: priors.VampPrior(LATENT, event_shape=(CONTEXT,), num_pseudo_inputs=4),
    "ar1": lambda: priors.AR1(LATENT, delta=0.7),
}

LIKELIHOODS: dict[str, Callable[[], likelihoods.Likelihood]] = {
    "bernoulli": lambda: likelihoods.Bernoulli(1),
    "gaussian": lambda: likelihoods.Gaussian(1),
    "gaussian_fixed": lambda: likelihoods.Gaussian(1, scale=0.5),
    "gaussian_per_pixel": lambda: likelihoods.Gaussian(1, scale="per_pixel"),
    "categorical": lambda: likelihoods.Categorical(1, num_levels=17),
    "categorical_256": lambda: likelihoods.Categorical(1),
}


def randomized(module: nn.Module, *, scale: float = 0.5, seed: int = 1) -> nn.Module:
    """The module in float64 with parameters drawn from N(0, scale²): away from its initialisation."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return module
