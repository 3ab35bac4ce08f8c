"""VAEs with several layers of latents: the bottom-up posterior, and the ladder."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from pyrovae._checks import as_sizes, require_flag
from pyrovae.distributions import product_of_normals
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model import VAEModel
from pyrovae.networks import MLP
from pyrovae.posteriors import MeanFieldNormal


class _Hierarchy(VAEModel):
    """A VAE of several layers, p(z_L) p(z_{L-1} | z_L) ... p(x | z_1), of which all factors but the last are diagonal
    normals.
    """

    _layer_norm = False  # by default

    def __init__(
        self,
        event_shape: Sequence[int],
        latent_dims: Sequence[int] = (40, 20),
        *,
        hidden: Sequence[int] = (200, 200),
        layer_norm: bool | None = None,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = as_sizes(event_shape, "event_shape")
        dims, hidden = as_sizes(latent_dims, "latent_dims"), as_sizes(hidden, "hidden", empty=True)
        if layer_norm is not None:
            require_flag(layer_norm=layer_norm)
        layer_norm = self._layer_norm if layer_norm is None else layer_norm
        self.latent_dims = dims
        self.sites = tuple(f"z{layer}" for layer in range(1, len(dims) + 1))
        self.likelihood = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=len(self.event_shape))
        self.priors = nn.ModuleList(_conditional(above, here, hidden, layer_norm) for here, above in pairwise(dims))
        outputs = self.likelihood.num_params * prod(self.event_shape)
        self.decoder = MLP(dims[0], hidden[::-1], outputs, layer_norm=layer_norm)
        self._build_guide(prod(self.event_shape), hidden, layer_norm)

    def _build_guide(self, size: int, hidden: tuple[int, ...], layer_norm: bool) -> None:
        """Build the posterior's networks, for data of ``size`` numbers."""
        raise NotImplementedError

    def p(self, z: Float[Tensor, "*batch latent"]) -> dist.Distribution:
        """The distribution p(x | z_1): batch ``(...)`` for ``z`` of shape ``(..., Z_1)``."""
        assert self.event_shape is not None
        return self.likelihood.distribution(self.decoder(z), z.shape[:-1], self.event_shape)

    def model(self, x: Tensor) -> None:
        *lower, top = self.sites
        with pyro.plate("data", len(x)):
            z = pyro.sample(top, dist.Normal(x.new_zeros(self.latent_dims[-1]), 1.0).to_event(1))
            for site, prior in zip(reversed(lower), reversed(self.priors), strict=True):
                z = pyro.sample(site, prior(z))
            pyro.sample("x", self.p(z), obs=x)


class HierarchicalVAE(_Hierarchy):
    """A VAE of several stochastic layers, inferred bottom-up: q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}), as in
    Rezende et al. (2014, arXiv:1401.4082) and Burda et al. (2016, arXiv:1509.00519).

    Sites are ``z1``, next to the data, to ``zL``; with one layer this is a mean-field :class:`~pyrovae.VAE`.

    The guide draws z_1 before the latents that its prior depends on. Its KL therefore has no closed form, and what is
    reported for it, E_q log q(z_1 | x) - log p(z_1 | z_2), is that layer's share of the rate but no divergence: it may
    be negative. Only the top layer's is one.

    ``layer_norm`` normalises over features and not over the batch, which here holds particles as well as data:
    statistics over it would tie the log-density of every draw to the other draws, and the model would change with
    their number.

    Args:
        event_shape: shape of one datum.
        latent_dims: sizes of the layers, from the one next to the data upwards.
        hidden: widths of the hidden layers of every network; none makes every conditional affine.
        layer_norm: normalise the hidden layers over their features; by default no.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.

    Raises:
        TypeError: a likelihood that is neither a name nor a module of its class.
        ValueError: no layer, a size that is not positive, an unknown likelihood, options that it does not have, a built
            one for data of other dimensions.
    """

    def _build_guide(self, size: int, hidden: tuple[int, ...], layer_norm: bool) -> None:
        below = (size, *self.latent_dims[:-1])
        self.encoders = nn.ModuleList(
            _conditional(source, here, hidden, layer_norm) for source, here in zip(below, self.latent_dims, strict=True)
        )

    def guide(self, x: Tensor) -> None:
        h = x.flatten(1)
        with pyro.plate("data", len(x)):
            for site, encoder in zip(self.sites, self.encoders, strict=True):
                h = pyro.sample(site, encoder(h))


class LadderVAE(_Hierarchy):
    """The ladder VAE (Sønderby et al. 2016, arXiv:1602.02282): a deterministic pass upwards, then a posterior downwards
    that shares the generative path.

    q(z_L | x) comes from the top of the upward pass. Below, q(z_l | z_{l+1}, x) is the product of the normal that the
    upward pass proposes and of the prior p(z_l | z_{l+1}), so precisions weigh the means. Guide and model draw in the
    same order, and every layer's KL has a closed form given the draws above it.

    The paper finds batch normalisation and a warm-up of the KL essential. Here layers are normalised over their
    features (see :class:`HierarchicalVAE` for why), and the upward pass starts at scales well below the prior's. On
    digits the ladder lost its upper layer with neither, and was about 2 nats worse in four of five runs with only one.

    Args:
        event_shape: shape of one datum.
        latent_dims: sizes of the layers, from the one next to the data upwards.
        hidden: widths of the hidden layers of every network; none makes every conditional affine.
        layer_norm: normalise the hidden layers over their features; by default yes.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.

    Raises:
        TypeError: a likelihood that is neither a name nor a module of its class.
        ValueError: as of :class:`HierarchicalVAE`.
    """

    _layer_norm = True

    def _build_guide(self, size: int, hidden: tuple[int, ...], layer_norm: bool) -> None:
        ups, heads = [], []
        for here in self.latent_dims:
            ups.append(_trunk(size, hidden, layer_norm))
            size = (size, *hidden)[-1]
            heads.append(_narrow(MeanFieldNormal(here, size)))
        self.ups, self.heads = nn.ModuleList(ups), nn.ModuleList(heads)

    def guide(self, x: Tensor) -> None:
        h, proposals = x.flatten(1), []
        for up, head in zip(self.ups, self.heads, strict=True):
            h = up(h)
            proposals.append(head(h))
        *lower, top = self.sites
        with pyro.plate("data", len(x)):
            z = pyro.sample(top, proposals.pop())
            for site, prior in zip(reversed(lower), reversed(self.priors), strict=True):
                z = pyro.sample(site, product_of_normals(proposals.pop(), prior(z)))


def _narrow(q: MeanFieldNormal) -> MeanFieldNormal:
    """Start a posterior at scales of 0.21 instead of the prior's 1, which would drown what the upward pass says."""
    with torch.no_grad():
        q.head.bias[q.latent_dim :] -= 2.0
    return q


def _conditional(in_features: int, latent_dim: int, hidden: Sequence[int], layer_norm: bool) -> nn.Module:
    """An amortised diagonal normal over one layer's latents, given another layer's or the data."""
    return nn.Sequential(
        _trunk(in_features, hidden, layer_norm), MeanFieldNormal(latent_dim, (in_features, *hidden)[-1])
    )


def _trunk(in_features: int, hidden: Sequence[int], layer_norm: bool) -> nn.Module:
    """The hidden layers of a network, activated; the identity where there are none."""
    if not hidden:
        return nn.Identity()
    return MLP(in_features, hidden[:-1], hidden[-1], final_activation=True, layer_norm=layer_norm)
