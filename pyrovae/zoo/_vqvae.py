"""VQ-VAE: a grid of discrete codes as latents, and a prior over them learnt in a second stage."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pyrovae._arguments import parameters
from pyrovae._checks import (
    as_sizes,
    placed,
    require_at_least,
    require_callable,
    require_instance,
    require_positive,
)
from pyrovae._parts import check_sizes
from pyrovae._random import restored_on_error
from pyrovae.distributions import PointMass
from pyrovae.likelihoods import LIKELIHOODS, Likelihood
from pyrovae.model import VAEModel
from pyrovae.model._modes import inference
from pyrovae.networks import GridDecoder, GridEncoder, Quantized, VectorQuantizer, code_counts
from pyrovae.networks._grid import grid_shape
from pyrovae.training import FitResult, fit
from pyrovae.training.batches import Transform, with_splits
from pyrovae.zoo._code_prior import PixelCNNPrior, UniformCodes

_ENCODING_BATCH = 1000  # images that are encoded together


class VQVAE(VAEModel):
    """The VQ-VAE of van den Oord et al. (2017, arXiv:1711.00937), with a codebook of running means (Razavi et al. 2019,
    arXiv:1906.00446).

    Generative model: z ~ p(z), a grid of codes; x ~ p(x | z), whose decoder sees the codes' vectors. The guide is
    certain: all mass of q(z | x) is on the code nearest to the encoder's output at each position. So log q(z | x) = 0
    at its draw z(x), and with any number of draws :func:`~pyrovae.log_marginal` gives log p(x, z(x)), which is at most
    log p(x) = log Σ_z p(x, z): bits per dimension are an upper bound, and the verdict calls it a bound.

    **Stage one**: ``fit(vqvae, data)`` minimises :meth:`loss`. p(z) does not enter, and no gradient passes through z:
    an :class:`~pyrovae.ELBO` would train the decoder alone. **Stage two**: :meth:`fit_prior` puts a PixelCNN, fitted to
    the codes of the data, in the place of the uniform prior. Any module that returns a distribution over ``(H', W')``
    can be assigned to :attr:`prior`.

    Args:
        event_shape: ``(C, H, W)`` of an image.
        num_codes: K, size of the codebook.
        code_dim: D, size of a code's vector.
        downsampling: f, a power of 2; the grid is H' = H / f by W' = W / f.
        hidden: channels of encoder and decoder.
        num_blocks: residual blocks in each.
        likelihood: a name in ``likelihoods.LIKELIHOODS``, or a :class:`~pyrovae.likelihoods.Likelihood`.
        likelihood_options: options of a likelihood given by name.
        commitment: β, what the squared distance between encoder output and code costs, in nats.
        decay: of the codebook's running means.
        dead_below: fraction of an equal share of use under which a code is restarted; 0 for never.
        prior: a module that returns a distribution over ``(H', W')``; by default uniform.

    Attributes:
        grid_shape: ``(H', W')``.
        quantizer: the :class:`~pyrovae.networks.VectorQuantizer`.
        prior: p(z).

    Raises:
        TypeError: a likelihood that is neither a name nor a module of its class.
        ValueError: strides that do not fit the image, an unknown likelihood, options that it does not have, bad sizes,
            a likelihood or a prior of others, a prior that is no module that returns a distribution over grids.
    """

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        num_codes: int = 64,
        code_dim: int = 16,
        downsampling: int = 4,
        hidden: int = 64,
        num_blocks: int = 2,
        likelihood: str | Likelihood = "bernoulli",
        likelihood_options: Mapping[str, Any] | None = None,
        commitment: float = 0.25,
        decay: float = 0.99,
        dead_below: float = 0.1,
        prior: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_at_least(2, num_codes=num_codes)
        require_at_least(1, code_dim=code_dim)
        require_positive(commitment=commitment)
        self.event_shape = shape = as_sizes(event_shape, "event_shape")
        self.grid_shape = grid_shape(shape, downsampling, "event_shape")
        self.num_codes, self.commitment = num_codes, commitment
        self.likelihood = LIKELIHOODS.build(likelihood, likelihood_options, event_dim=3)
        with restored_on_error():
            sizes = {"downsampling": downsampling, "hidden": hidden, "num_blocks": num_blocks}
            self.encoder = GridEncoder(shape, code_dim, **sizes)
            self.decoder = GridDecoder(code_dim, shape, self.likelihood.num_params * shape[0], **sizes)
            self.quantizer = VectorQuantizer(num_codes, code_dim, decay=decay, dead_below=dead_below)
            self.prior = UniformCodes(self.grid_shape, num_codes) if prior is None else prior

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "prior":
            self._check_prior(value)
            self._set_argument("prior", None if isinstance(value, UniformCodes) else value)
        super().__setattr__(name, value)

    def _check_prior(self, prior: Any) -> None:
        """Raise a ``ValueError`` unless this is a module that returns a distribution over the model's grids."""
        check_sizes("prior", prior, grid_shape=self.grid_shape, num_codes=self.num_codes)
        if isinstance(prior, (PixelCNNPrior, UniformCodes)):
            return
        p, came = None, type(prior).__name__
        if isinstance(prior, nn.Module):
            try:
                with torch.no_grad():
                    p = prior()
                came = f"one that returns {p}"
            except TypeError:  # it wants an input
                came = f"{came}, which cannot be called without arguments"
        if tuple(getattr(p, "event_shape", ())) != self.grid_shape:
            raise ValueError(
                f"prior must be a module that returns a distribution of event shape {self.grid_shape}; got {came}. "
                f"Leave it out and call fit_prior after training, or pass PixelCNNPrior({self.grid_shape}, "
                f"{self.num_codes})."
            )

    # -- the pair ----------------------------------------------------------------------------------------

    def q(self, x: Float[Tensor, "*batch channels height width"]) -> dist.Distribution:
        """The posterior q(z | x), all mass on the nearest codes: batch ``(...)``, event ``(H', W')``."""
        return PointMass(self.quantizer.nearest(self._features(x)), self.num_codes).to_event(2)

    def p(self, z: Int[Tensor, "*batch rows columns"]) -> dist.Distribution:
        """The distribution p(x | z): batch ``(...)`` for codes ``(..., H', W')``."""
        return self._decoded(self.quantizer.embed(z))

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.p(z), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.q(x))

    # -- stage one ---------------------------------------------------------------------------------------

    def loss(self, x: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch"]:
        """The loss of stage one, -log p(x | z(x)) + β Σ ‖v - sg[e]‖² over the grid, in nats (eq. 3 without its codebook
        term, in whose place the running means are). In training mode the codebook moves.
        """
        quantized = self.quantize(x)
        return self.commitment * quantized.commitment.sum((-2, -1)) - self._decoded(quantized.vectors).log_prob(x)

    def quantize(self, x: Float[Tensor, "batch channels height width"]) -> Quantized:
        """Quantise the encoder's outputs, with a straight-through gradient."""
        return self.quantizer(self._features(placed(x, self.placement)))

    # -- stage two ---------------------------------------------------------------------------------------

    def fit_prior(
        self,
        data: Any,
        *,
        validation: Any = None,
        prior_options: Mapping[str, Any] | None = None,
        batch_transform: Transform | None = None,
        **options: Any,
    ) -> FitResult:
        """Fit a :class:`PixelCNNPrior` to the codes of data, and make it this model's prior. Nothing else changes.

        Args:
            data: ``datasets.load(...)``, or images ``(N, C, H, W)``. Where they are transformed (dynamic
                binarisation), every batch is transformed and encoded anew.
            validation: images, or a fraction of ``data`` to hold out; by default ``data.val`` where there is one. The
                prior of the best epoch is kept.
            prior_options: of :class:`PixelCNNPrior`.
            batch_transform: of training images, before they are encoded; by default ``data.batch_transform`` where
                there is one.
            options: of :func:`~pyrovae.fit`.

        Returns:
            The run, whose losses are -log p(z), in nats.
        """
        require_instance(Mapping | None, prior_options=prior_options)
        if unknown := [name for name in prior_options or {} if name not in parameters(PixelCNNPrior)[0]]:
            raise ValueError(f"prior_options are of PixelCNNPrior, which has no {', '.join(map(str, unknown))}.")
        if batch_transform is not None:
            require_callable(batch_transform=batch_transform)
        with restored_on_error():
            return self._fit_prior(data, validation, prior_options, batch_transform, options)

    def _fit_prior(
        self, data: Any, validation: Any, prior_options: Any, batch_transform: Any, options: dict[str, Any]
    ) -> FitResult:
        data, validation, transform = with_splits(data, validation, batch_transform)
        prior = PixelCNNPrior(self.grid_shape, self.num_codes, **(prior_options or {})).to(self.placement)
        options.setdefault("device", self.placement.device)
        if validation is not None:
            fraction = isinstance(validation, (float, np.floating))
            options["validation"] = validation if fraction else self.codes(validation).to(self.placement)
        if transform is None:
            run = fit(prior, self.codes(data).to(self.placement), **options)
        else:

            def encoded(x: Tensor) -> Tensor:
                with torch.no_grad():
                    return self.quantizer.nearest(self._features(transform(x))).to(x)

            prior.event_shape = None  # what comes in are images; fit sees the shape of what the transform makes of them
            run = fit(prior, self.as_data(data, "data"), batch_transform=encoded, **options)
        self.prior = prior
        return run

    def codes(self, x: Float[Tensor, "data channels height width"] | Any) -> Int[Tensor, "data rows columns"]:
        """The codes z(x) of images: ``(N, H', W')``.

        Raises:
            ValueError: bad data; see :func:`~pyrovae.log_marginal`.
        """
        x = self.as_data(x)
        with inference(self, None):
            parts = [
                self.quantizer.nearest(self._features(part.to(self.placement))) for part in x.split(_ENCODING_BATCH)
            ]
        return torch.cat(parts)

    def code_counts(self, x: Float[Tensor, "data channels height width"] | Any) -> Int[Tensor, "codes"]:
        """Count how often each code occurs for these images, ``(K,)``; see :func:`~pyrovae.networks.perplexity`."""
        return code_counts(self.codes(x), self.num_codes)

    def _features(self, x: Tensor) -> Tensor:
        """The encoder's output, a vector for each position: ``(..., H', W', D)``."""
        return self.encoder(x).movedim(-3, -1)

    def _decoded(self, vectors: Tensor) -> dist.Distribution:
        """The distribution p(x | z) for the vectors of codes, ``(..., H', W', D)``."""
        assert self.event_shape is not None
        return self.likelihood.distribution(self.decoder(vectors.movedim(-1, -3)), vectors.shape[:-3], self.event_shape)
