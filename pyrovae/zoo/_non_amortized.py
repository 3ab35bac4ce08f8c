"""Variational inference without amortisation: a table of variational parameters in place of an encoder."""

import copy
from typing import Any

import pyro
from torch import Tensor, nn

from pyrovae._checks import require_at_least, require_flag
from pyrovae._random import restored_on_error
from pyrovae.model import VAE, VAEModel
from pyrovae.model._modes import local_parameters
from pyrovae.posteriors import POSTERIORS, Posterior


class NonAmortizedVAE(VAEModel):
    """A VAE whose posterior reads a row of a table, one row for each datum, in place of the encoder's output.

    This is variational inference before amortisation (Hoffman et al. 2013, arXiv:1206.7051): no encoder, so no
    amortisation gap; but the parameters grow with the data, each is trained only when its datum comes, and a new datum
    has none. A datum's row is a covariate: ``fit(model, (x, torch.arange(len(x))))``, and so for every estimator. The
    optimiser's momentum also moves rows that are not in the batch: with few data, train on all of them at once.

    :func:`~pyrovae.inference_gaps` finds the same optima at a trained decoder, for any data.

    Args:
        generative: a :class:`~pyrovae.VAE`, of which prior, decoder and likelihood are copied.
        num_data: N, rows of the table.
        posterior: a name in ``posteriors.POSTERIORS``, or a module ``(..., C) -> distribution``.
        context_dim: C, width of a row; by default that of a built posterior, else 2Z, as many numbers as a factorised
            normal has.
        train_decoder: train prior, decoder and likelihood as well; by default they stay as they are, for a comparison
            with amortised inference at an equal decoder.
        posterior_options: options of a posterior given by name.

    Raises:
        TypeError: ``generative`` is not a :class:`~pyrovae.VAE`, ``posterior`` neither a name nor a module.
        ValueError: a prior that is made of the encoder's posteriors (VampPrior), an unknown posterior, options that it
            does not have, a built one of another size, N < 1.
    """

    def __init__(
        self,
        generative: VAE,
        num_data: int,
        *,
        posterior: str | Posterior = "mean_field",
        context_dim: int | None = None,
        train_decoder: bool = False,
        posterior_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, num_data=num_data)
        require_flag(train_decoder=train_decoder)
        if not isinstance(generative, VAE):
            raise TypeError(
                f"generative must be a pyrovae.VAE, whose prior and decoder are used; got {type(generative).__name__}."
            )
        if getattr(generative.prior, "uses_posterior", False):
            raise ValueError(
                f"the prior of generative, {type(generative.prior).__name__}, is made of the encoder's posteriors, and "
                f"here is no encoder: use prior='standard_normal' or 'mixture'."
            )
        if context_dim is None:
            context_dim = getattr(posterior, "context_dim", 2 * generative.latent_dim)
        require_at_least(1, context_dim=context_dim)
        sizes = {"latent_dim": generative.latent_dim, "context_dim": context_dim}
        self.event_shape = generative.event_shape
        with restored_on_error(), local_parameters():
            self.generative = copy.deepcopy(generative).requires_grad_(bool(train_decoder))
            del self.generative.encoder, self.generative.posterior
            self.context = nn.Embedding(num_data, context_dim)
            self.posterior = POSTERIORS.build(posterior, posterior_options, **sizes)

    def model(self, x: Tensor, index: Tensor | None = None) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.generative.prior())
            pyro.sample("x", self.generative.p(z), obs=x)

    def guide(self, x: Tensor, index: Tensor | None = None) -> None:
        if index is None or index.is_floating_point() or index.shape != (len(x),):
            came = "nothing" if index is None else f"{index.dtype} of shape {tuple(index.shape)}"
            raise ValueError(
                f"NonAmortizedVAE needs each datum's row number as a covariate, integers of shape ({len(x)},); got "
                f"{came}. Pass (x, torch.arange(len(x))) to fit, and torch.arange(len(x)) after x to estimators."
            )
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.context(index)))

    def train(self, mode: bool = True) -> "NonAmortizedVAE":
        super().train(mode)
        if not any(p.requires_grad for p in self.generative.parameters()):
            self.generative.eval()  # a frozen decoder neither drops out nor learns statistics
        return self
